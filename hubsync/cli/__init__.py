"""The command line: one file per command, `main` assembles them."""

from hubsync.cli.main import main

__all__ = ["main"]
