"""What all commands share: the standard streams, options that are seconds or files, and how an error is told.

A stream that was closed, or that takes no more, is an ordinary mistake: one message and exit code 1. What is only
said to a person never fails a command that has done its work.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from hubsync.errors import HubsyncError, RepoMissingError


def say(text: str, nl: bool = True) -> None:
    """To standard error, for a person; where that takes nothing, nobody is told."""
    with suppress(OSError):
        click.echo(text, err=True, nl=nl)


def printable(text: str) -> str:
    """Others' text: a terminal must not obey it."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def told(error: Exception) -> str:
    """An error's message with its notes, and what to do where there is no such dataset."""
    notes = [*getattr(error, "__notes__", ())]
    if isinstance(error, RepoMissingError) and error.missing == "revision":
        notes.append("The repo is there; --revision names none of its branches, tags or commits.")
    elif isinstance(error, RepoMissingError) and "hf auth login" not in f"{error}{notes}":
        notes.append("Is the name right? A private one needs a token. Log in (hf auth login), or set HF_TOKEN.")
    return "\n  ".join([str(error), *notes])


@contextmanager
def errors_told() -> Iterator[None]:
    """Around a whole command: what went wrong as one message and exit code 1, not a traceback."""
    _fill_closed_streams()
    try:
        yield
    except HubsyncError as error:
        say(f"hubsync: {told(error)}")
        sys.exit(1)
    except OSError as error:
        say(f"hubsync: {'standard output: ' if error.filename is None else ''}{error}")
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it has not taken fails the interpreter's exit no more
        sys.exit(1)


class Interruptible(click.Group):
    """Ctrl-C ends every command with exit code 130, as a shell expects, and without a word of click's."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(130)


def _fill_closed_streams() -> None:
    """The next file that is opened would take a closed one's place, and get what is written to standard output."""
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):  # reading and writing still fail
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
            if fd == 1:
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


class Seconds(click.FloatRange):
    """A number of seconds that time can be waited for: from 0, no infinity and no NaN."""

    name = "seconds"

    def __init__(self, *, min_open: bool = False) -> None:
        super().__init__(0, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return number


def new_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """For an option's `callback`: a file that is written late is found to be no file before any work is done."""
    if value is not None and not os.access(value if value.exists() else value.parent, os.W_OK):
        raise click.BadParameter(f"{value} can't be written, or its directory is not there.")
    return value
