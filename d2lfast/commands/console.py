"""What the commands print to."""

from typing import NoReturn

import typer
from rich.console import Console

console = Console()


def fail(message: str) -> NoReturn:
    """End the program with a sentence and exit status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)
