"""Entry of the command line; says which extra is missing instead of showing a traceback."""

import sys


def main() -> None:
    """Run `d2lfast`; the commands are in `d2lfast.commands`."""
    try:
        from d2lfast.commands import app
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in {"typer", "rich"}:
            raise
        sys.exit(f"The command line needs {package}: pip install 'd2lfast[cli]'")
    app(prog_name="d2lfast")


if __name__ == "__main__":
    main()
