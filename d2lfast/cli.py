"""Entry of the command line; says which extra is missing instead of showing a traceback."""

import sys


def main() -> None:
    """Run `d2lfast`; the commands are in `d2lfast.commands`."""
    try:
        from d2lfast.commands import app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {"typer", "rich", "click"}:
            raise
        sys.exit(f"The command line needs {error.name}: pip install 'd2lfast[cli]'")
    app(prog_name="d2lfast")


if __name__ == "__main__":
    main()
