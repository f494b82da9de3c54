"""`python -m d2lfast` is the command `d2lfast`."""

from d2lfast.cli import main

if __name__ == "__main__":
    main()
