"""What the commands print to."""

from typing import NoReturn

import typer
from rich.console import Console

console = Console()


def say(text: str) -> None:
    """Print a sentence, without colours or line breaks of its own."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def fail(message: str) -> NoReturn:
    """End the program with a sentence and exit status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


def usage_error(message: str) -> NoReturn:
    """End the program with a sentence and exit status 2, as for a wrong option."""
    typer.echo(message, err=True)
    raise typer.Exit(2)
