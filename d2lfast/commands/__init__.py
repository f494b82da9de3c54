"""The commands of `d2lfast`; what only one of them needs is imported when it runs."""

import typer

from d2lfast.commands import bench, info, selftest, train

app = typer.Typer(
    help="Drop-in PyTorch layers with fast kernels, for the networks of Dive into Deep Learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train.command)
app.command("info")(info.command)
app.command("selftest")(selftest.command)
app.command(
    "bench",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(bench.command)

__all__ = ["app"]
