"""`hubsync dead-letter`: what the Hub refused for good, in a person's hands."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubsync._runtime.formatting import count_text, moment_text, size_text
from hubsync.cli.console import say, told
from hubsync.errors import HubsyncError, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from hubsync.maintenance.quarantine import Quarantine
    from hubsync.model.shard import QuarantinedShard


@click.group()
def dead_letter() -> None:
    """Shards that the Hub refuses for good: kept in the spool, to be looked at, put again, or thrown away.

    \b
    hubsync dead-letter list
    hubsync dead-letter export 12 --out rows.jsonl
    hubsync dead-letter resubmit 12 --from rows.jsonl

    A shard's ID is its number in its spool. Without SPOOL it is the one at the usual place that has a dead letter.
    """


@dead_letter.result_callback()
def _exit(*_: object) -> None:
    if _has_failed():
        sys.exit(1)


_FAILED = "hubsync.dead_letter.failed"
_where = click.argument("where", nargs=-1, metavar="[SPOOL] [ID]...")
_all = click.option("--all", "everything", is_flag=True, help="Every shard of the spool's dead letter.")


@dead_letter.command("list")
@click.argument("spool", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a shard, one line each.")
def list_(spool: Path | None, as_json: bool) -> None:
    """What is in the dead letter of SPOOL, and why; without SPOOL, of all spools at the usual place."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    is_empty = True
    for directory, shards in _held([spool] if spool is not None else _spools()):
        is_empty = is_empty and not shards
        if as_json:
            for shard in shards:
                click.echo(json.dumps({"spool": str(directory), **shard._asdict()}))
        elif shards:
            _show(console, directory, shards)
    if is_empty and not as_json and not _has_failed():
        click.echo("The dead letter is empty.", err=True)


def _show(console: Console, directory: Path, shards: Sequence[QuarantinedShard]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "path", "rows", "size", "when", "why"):
        table.add_column(name, justify="right" if name in ("id", "rows", "size") else "left", overflow="fold")
    for shard in shards:
        cells = (
            str(shard.id), shard.path, f"{shard.rows:,}", size_text(shard.bytes),
            "" if shard.at is None else moment_text(shard.at), shard.why,
        )  # fmt: skip
        table.add_row(*(Text(one_line(cell)) for cell in cells))  # a server's words, and no markup
    console.print(Text(f"{directory}:"), style="bold")
    console.print(table)


@dead_letter.command()
@_where
@_all
@click.option(
    "--out", default="-", show_default=True,
    help="A file for all their rows, a directory for a file each, or - for standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over what is there.")
def export(where: tuple[str, ...], everything: bool, out: str, force: bool) -> None:
    """Writes the rows of dead shards as JSON Lines, exactly as they were to be committed. They stay where they are.

    A shard's file that somebody has edited goes out as it is now, and is named.
    """
    with _chosen(where, everything) as (letter, shards):
        edited = letter.edited(shards)
        for file in edited:
            size = size_text(file.stat().st_size)
            click.echo(f"{file} was changed after it was set aside, and is exported as it is now ({size}).", err=True)
        if out == "-":
            for shard in shards:
                for piece in letter.lines(shard):
                    sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        for path in letter.export(shards, Path(out), force=force):
            click.echo(f"{path}", err=True)
        was = " when they were set aside" if edited else ""
        click.echo(f"Exported: {_amount(shards)}{was}. They stay in the dead letter.", err=True)


@dead_letter.command()
@_where
@_all
@click.option(
    "--from", "file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Put the rows of this file (JSON Lines) in place of those of the one shard ID.",
)  # fmt: skip
@click.option("--drain", "at_once", is_flag=True, help="Bring them up now, where no job does.")
@click.option("--yes", is_flag=True, help="Do not ask, also where FILE has fewer rows.")
def resubmit(where: tuple[str, ...], everything: bool, file: Path | None, at_once: bool, yes: bool) -> None:
    """Puts the rows of dead shards again, to the config and split where they belong: each is in the dataset once.

    A job that is live on the spool brings them up. What the Hub refuses again is in the dead letter again.
    """
    with _chosen(where, everything) as (letter, shards):
        if file is not None:
            if len(shards) != 1 or everything:
                raise click.UsageError("--from takes the rows of one shard: give one ID.")
            rows, size = letter.mend(shards[0], file, agree=partial(_ask_for_loss, shards[0], yes))
            click.echo(f"Put as {shards[0].path}: {count_text(rows, 'row')}, {size_text(size)}, of {file}.", err=True)
        else:
            there = [shard for shard in shards if shard.rows or not everything]
            for shard in there:
                letter.resubmit(shard)
            click.echo(f"Put again: {_amount(there)}.", err=True)
        directory, pid = letter.directory, letter.committer_pid
    if pid is not None:
        click.echo(f"Process {pid}, which commits for {directory}, brings them up.", err=True)
    elif at_once:
        _drain(directory, {shard.id for shard in shards})
    else:
        click.echo(f"Nobody commits for this spool now. To bring them up: hubsync drain {directory}", err=True)


def _ask_for_loss(shard: QuarantinedShard, yes: bool, rows: int) -> None:
    """Where fewer rows are put than were refused: the others are nowhere else."""
    if yes or rows >= shard.rows:
        return
    loss = f"{count_text(rows, 'row')} in place of {shard.rows:,}: the others will be lost."
    if not sys.stdin.isatty():
        raise click.ClickException(
            f"{loss} Nothing was done. To put them all the same: --yes. To keep the others, export the shard first, "
            "and mend that file."
        )
    click.confirm(f"{loss} Put them?", abort=True, err=True)


def _drain(directory: Path, ids: set[int]) -> None:
    from hubsync.maintenance.drain import drain

    drain(directory)
    with _open(directory) as letter:
        again = [shard for shard in letter.shards() if shard.id in ids]
    if again:
        click.echo(f"Refused again: {_amount(again)}. See: hubsync dead-letter list {directory}", err=True)
        sys.exit(1)
    click.echo("All of it is on the Hub.", err=True)


@dead_letter.command()
@_where
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(where: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Throws the rows of dead shards away, for good. Asks first."""
    with _chosen(where, everything) as (letter, shards):
        if not shards:
            return
        for shard in shards:
            click.echo(
                f"  {shard.id}  {one_line(shard.path)}: {count_text(shard.rows, 'row')}, {size_text(shard.bytes)}",
                err=True,
            )
        if not yes:
            click.confirm(f"{_amount(shards)} will be lost. Throw them away?", abort=True, err=True)
        for shard in shards:
            letter.discard(shard)
        click.echo(f"Thrown away: {_amount(shards)}.", err=True)


class _chosen:
    """The dead letter and the shards that a command's arguments name."""

    def __init__(self, where: tuple[str, ...], everything: bool) -> None:
        spool = Path(where[0]) if where and not where[0].isdecimal() else None
        named = where if spool is None else where[1:]
        if not all(number.isdecimal() for number in named):
            raise click.UsageError("give [SPOOL] and the IDs that `hubsync dead-letter list` shows.")
        if bool(named) == everything:
            raise click.UsageError("give the IDs that `hubsync dead-letter list` shows, or --all.")
        self._ids = [int(number) for number in named]
        self._letter = _open(spool if spool is not None else _the_only_one())

    def __enter__(self) -> tuple[Quarantine, list[QuarantinedShard]]:
        try:
            return self._letter, self._letter.pick(self._ids) if self._ids else self._letter.shards()
        except BaseException:
            self._letter.__exit__(None, None, None)
            raise

    def __exit__(self, *raised: object) -> None:
        self._letter.__exit__(None, None, None)


def _open(directory: Path) -> Quarantine:
    from hubsync.maintenance.quarantine import Quarantine

    return Quarantine(directory)


def _spools() -> list[Path]:
    from hubsync.maintenance.inspect import spools

    return list(spools())


def _held(directories: Iterable[Path]) -> Iterator[tuple[Path, list[QuarantinedShard]]]:
    """What each spool's dead letter holds. One that can't be read hides no other: it is told, exit code 1."""
    for directory in directories:
        try:
            with _open(directory) as letter:
                shards = letter.shards()
        except HubsyncError as error:
            say(f"hubsync: {told(error)}")
            click.get_current_context().meta[_FAILED] = True
        else:
            yield directory, shards


def _has_failed() -> bool:
    return _FAILED in click.get_current_context().meta


def _the_only_one() -> Path:
    """The spool at the usual place whose dead letter holds something."""
    found = [directory for directory, shards in _held(_spools()) if shards]
    if len(found) != 1:
        several = "which spool? These have a dead letter: " + ", ".join(map(str, found))
        raise click.UsageError(several if found else "no spool at the usual place has a dead letter; give SPOOL.")
    return found[0]


def _amount(shards: Sequence[QuarantinedShard]) -> str:
    rows, size = sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards)
    many = "1 shard" if len(shards) == 1 else f"{len(shards):,} shards"
    return f"{many} ({count_text(rows, 'row')}, {size_text(size)})"
