"""`python -m d2lfast.bench`."""

from d2lfast.bench.commands import app

app(prog_name="d2lfast bench")
