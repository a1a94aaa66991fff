"""What the commands share: the standard streams, option types, tables, and how errors are printed.

A standard stream that is closed or full is an ordinary mistake: one message, and exit code 1. A message for people that
cannot be written does not fail a command that has done its work.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from hubsync.errors import HubsyncError, RepoMissingError

DIRECTORY = click.Path(path_type=Path, file_okay=False)


def message(text: str, nl: bool = True) -> None:
    """Print a message for people to standard error; do nothing if it cannot be written."""
    with suppress(OSError):
        click.echo(text, err=True, nl=nl)


def printable(text: str) -> str:
    """Return untrusted text without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def print_table(
    columns: Iterable[str], rows: Iterable[Sequence[str]], *, title: str = "", width: int | None = None
) -> None:
    """Print a table of untrusted text to standard output.

    Args:
        columns: The column names. A name that ends with ">" is right-aligned.
        rows: The cells, as many per row as there are columns.
        title: A line above the table.
        width: Its width in characters; None for the terminal's.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # Text: square brackets are not markup
    console = Console(width=width)
    if title:
        console.print(Text(title), style="bold")
    console.print(table)


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print a name and untrusted text on each line. Long lines are not broken: commands can be copied as they are."""
    from rich.console import Console
    from rich.text import Text

    pairs, console = list(lines), Console()
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, value in pairs:  # Text: square brackets are not markup
        console.print(Text.assemble((f"{name:<{width}}", "bold"), printable(value)), soft_wrap=True)


def error_text(error: Exception) -> str:
    """Return an error's message and notes; for a repo that was not found, also what to check."""
    notes = [*getattr(error, "__notes__", ())]
    if isinstance(error, RepoMissingError) and error.missing == "revision":
        notes.append("The repo exists, but --revision names none of its branches, tags or commits.")
    elif isinstance(error, RepoMissingError) and "hf auth login" not in f"{error}{notes}":
        notes.append("Check the name. A private repo needs a token: log in (hf auth login), or set HF_TOKEN.")
    return "\n  ".join([str(error), *notes])


def exit_with_error(error: HubsyncError, code: int = 1) -> NoReturn:
    """Print an error and exit."""
    message(f"hubsync: {error_text(error)}")
    sys.exit(code)


@contextmanager
def report_errors() -> Iterator[None]:
    """Turn the errors of a command into one message and exit code 1, without a traceback."""
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: a locale that lacks a character
    try:
        yield
    except HubsyncError as error:
        exit_with_error(error)
    except OSError as error:
        message(f"hubsync: {'standard output: ' if error.filename is None else ''}{error}")
        with suppress(OSError):
            # What standard output has not accepted must not fail the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Turn an ImportError into a message that says what to install.

    Raises:
        click.ClickException: A package of the extra is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise click.ClickException(f"{error}: {what} needs `pip install 'hf-hubsync[{extra}]'`.") from None


class Interruptible(click.Group):
    """A group whose commands exit with code 130 on Ctrl-C, as a shell expects, without click's message."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(130)


def _open_closed_streams() -> None:
    """Open standard streams that are closed, so that no other file gets their descriptors.

    Such a file would receive what is written to standard output. Reading and writing the streams still fails.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, flags)
            if fd == 1:
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115


class Seconds(click.FloatRange):
    """A finite number of seconds, from 0 on."""

    name = "seconds"

    def __init__(self, *, min_open: bool = False) -> None:
        """Create the type; `min_open` excludes 0."""
        super().__init__(0, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; fail on infinity and NaN."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number of seconds.", param, ctx)
        return number


def writable_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Check, as an option's `callback`, that a file can be written before the command does any work.

    Raises:
        click.BadParameter: The file cannot be written, or its directory does not exist.
    """
    if value is not None and not os.access(value if value.exists() else value.parent, os.W_OK):
        raise click.BadParameter(f"{value} cannot be written, or its directory does not exist.")
    return value
