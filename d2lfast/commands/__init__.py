"""The commands of `d2lfast`; what only one of them needs is imported when it runs."""

from typing import Annotated

import typer

from d2lfast import memory
from d2lfast.commands import bench, info, selftest, summary, train, use

app = typer.Typer(
    help="Drop-in PyTorch layers with fast kernels, for the networks of Dive into Deep Learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _begin(
    cache: Annotated[
        bool,
        typer.Option("--cache-memory/--no-cache-memory", help="Reuse freed CPU memory (d2lfast.memory)."),
    ] = True,
) -> None:
    if cache:
        memory.enable()


app.command("train")(train.command)
app.command("summary")(summary.command)
app.command("translate")(use.translate_command)
app.command("generate")(use.generate_command)
app.command("show")(use.show_command)
app.command("info")(info.command)
app.command("selftest")(selftest.command)
app.command(
    "bench",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(bench.command)

__all__ = ["app"]
