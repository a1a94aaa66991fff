"""`hubsync dead-letter`: inspect, export, resubmit or discard shards that were rejected, and list lost rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubsync._runtime.formatting import count_text, datetime_text, size_text
from hubsync.cli.console import error_text, message, print_table
from hubsync.errors import HubsyncError, one_line

if TYPE_CHECKING:
    from hubsync.maintenance.quarantine import QuarantineCommands
    from hubsync.model.shard import QuarantinedShard


@click.group()
def dead_letter() -> None:
    """Inspect, export, resubmit or discard rejected shards.

    Shards were rejected by the Hub, by the schema policy, or because their files could not be read. Their rows are kept
    in the spool. Rows that are lost with a damaged file are listed, too: "why" says how many and how. Nothing of them
    can be exported. To put them again: resubmit ID --from FILE. To clear the list: discard ID.

    \b
        hubsync dead-letter list
        hubsync dead-letter export 12 --out rows.jsonl
        hubsync dead-letter resubmit 12 --from rows.jsonl

    ID is the number of a shard in its spool. SPOOL can be omitted if only one of your spools has a dead letter.
    """


@dead_letter.result_callback()
def _exit(*_: object) -> None:
    if _has_failed():
        sys.exit(1)


_FAILED = "hubsync.dead_letter.failed"
_Command = Callable[..., None]


def _shard_arguments(command: _Command) -> _Command:
    """Add the arguments of every command that takes shards."""
    command = click.option("--all", "everything", is_flag=True, help="All shards in the dead letter.")(command)
    return click.argument("where", nargs=-1, metavar="[SPOOL] [ID]...")(command)


@dead_letter.command("list")
@click.argument("spool", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per shard and line.")
def list_(spool: Path | None, as_json: bool) -> None:
    """List the rejected shards of your spools, and why.

    Lists those of SPOOL, or of all your spools.
    """
    is_empty = True
    for directory, shards in _read_all([spool] if spool is not None else _spools()):
        is_empty = is_empty and not shards
        if as_json:
            for shard in shards:
                click.echo(json.dumps({"spool": str(directory), **shard._asdict()}))
        elif shards:
            has_losses = any(shard.lost for shard in shards)
            print_table(
                ("id>", "path", "rows>", *(["lost>"] if has_losses else []), "size>", "when", "why"),
                (
                    (str(shard.id), shard.path, f"{shard.rows:,}",
                     *([f"{shard.lost:,}"] if has_losses else []), size_text(shard.bytes),
                     "" if shard.at is None else datetime_text(shard.at), one_line(shard.why))
                    for shard in shards
                ),
                title=f"{directory}:", width=None if sys.stdout.isatty() else 160,
            )  # fmt: skip
    if is_empty and not as_json and not _has_failed():
        click.echo("The dead letter is empty.", err=True)


@dead_letter.command()
@_shard_arguments
@click.option(
    "--out", default="-", show_default=True,
    help="A file for all rows, a directory for one file per shard, or - for standard output.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Overwrite existing files.")
def export(where: tuple[str, ...], everything: bool, out: str, force: bool) -> None:
    """Write the rows of rejected shards as JSON Lines.

    The rows are exactly those that would have been committed. They stay in the dead letter. A shard whose file was
    edited is exported as it is now, with a message.
    """
    with _selected(where, everything) as (letter, shards):
        edited = letter.edited_files(shards)
        for file in edited:
            size = size_text(file.stat().st_size)
            click.echo(
                f"{file} was edited after the Hub rejected it; exporting its current content ({size}).", err=True
            )
        if out == "-":
            for shard in shards:
                for piece in letter.lines(shard):
                    sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        for path in letter.export(shards, Path(out), force=force):
            click.echo(f"{path}", err=True)
        then = " when they were rejected" if edited else ""
        click.echo(f"Exported: {_amount(shards)}{then}. They stay in the dead letter.", err=True)


@dead_letter.command()
@_shard_arguments
@click.option(
    "--from", "file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Replace the rows of the one shard ID by those of this file (JSON Lines).",
)  # fmt: skip
@click.option("--drain", "drain_now", is_flag=True, help="Upload them now, if no job does.")
@click.option("--yes", is_flag=True, help="Do not ask, even if FILE has fewer rows.")
def resubmit(where: tuple[str, ...], everything: bool, file: Path | None, drain_now: bool, yes: bool) -> None:
    """Commit the rows of rejected shards after all, each exactly once.

    They go to their original config and split. If a job has the spool open, it uploads them. A shard that the Hub
    rejects again returns to the dead letter.
    """
    with _selected(where, everything) as (letter, shards):
        if file is not None:
            if len(shards) != 1 or everything:
                raise click.UsageError("--from takes the rows of one shard: give one ID.")
            rows, size = letter.resubmit_edited(shards[0], file, confirm=partial(_confirm_loss, shards[0], yes))
            click.echo(
                f"Resubmitted as {shards[0].path}: {count_text(rows, 'row')} ({size_text(size)}) of {file}.", err=True
            )
        else:
            chosen = [shard for shard in shards if shard.rows or not everything]
            for shard in chosen:
                letter.resubmit(shard)
            click.echo(f"Resubmitted: {_amount(chosen)}.", err=True)
        directory, pid = letter.directory, letter.committer_pid
    if pid is not None:
        click.echo(f"Process {pid}, which has {directory} open, uploads them.", err=True)
    elif drain_now:
        _drain(directory, {shard.id for shard in shards})
    else:
        click.echo(f"No job has this spool open. Upload them: hubsync drain {directory}", err=True)


def _confirm_loss(shard: QuarantinedShard, yes: bool, rows: int) -> None:
    """Ask before a file replaces more rows than it has: the spool holds the only copy."""
    if yes or rows >= shard.rows:
        return
    loss = f"{count_text(rows, 'row')} instead of {shard.rows:,}: the others will be lost."
    if not sys.stdin.isatty():
        raise click.ClickException(
            f"{loss} Nothing was changed. To keep the others, export the shard first and edit that file. To continue "
            "anyway: --yes"
        )
    click.confirm(f"{loss} Continue?", abort=True, err=True)


def _drain(directory: Path, ids: set[int]) -> None:
    from hubsync.maintenance.drain import drain

    drain(directory)
    with _open(directory) as letter:
        rejected = [shard for shard in letter.shards() if shard.id in ids]
    if rejected:
        click.echo(f"Rejected again: {_amount(rejected)}. See: hubsync dead-letter list {directory}", err=True)
        sys.exit(1)
    click.echo("All of them are on the Hub.", err=True)


@dead_letter.command()
@_shard_arguments
@click.option("--yes", is_flag=True, help="Do not ask.")
def discard(where: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Delete the rows of rejected shards, after asking."""
    with _selected(where, everything) as (letter, shards):
        if not shards:
            return
        for shard in shards:
            size = f"{count_text(shard.rows, 'row')}, {size_text(shard.bytes)}"
            click.echo(f"  {shard.id}  {one_line(shard.path)}: {size}", err=True)
        if not yes:
            click.confirm(f"{_amount(shards)} will be lost. Delete?", abort=True, err=True)
        for shard in shards:
            letter.discard(shard)
        click.echo(f"Deleted: {_amount(shards)}.", err=True)


@contextmanager
def _selected(where: tuple[str, ...], everything: bool) -> Iterator[tuple[QuarantineCommands, list[QuarantinedShard]]]:
    """Open the dead letter that a command's arguments name, and find the shards in it.

    Raises:
        click.UsageError: The arguments name no shards, or do not say which spool.
    """
    spool = Path(where[0]) if where and not where[0].isdecimal() else None
    ids = where if spool is None else where[1:]
    if not all(number.isdecimal() for number in ids):
        raise click.UsageError("give [SPOOL] and the IDs that `hubsync dead-letter list` shows.")
    if bool(ids) == everything:
        raise click.UsageError("give the IDs that `hubsync dead-letter list` shows, or --all.")
    with _open(spool if spool is not None else _only_spool()) as letter:
        yield letter, letter.pick([int(number) for number in ids]) if ids else letter.shards()


def _open(directory: Path) -> QuarantineCommands:
    from hubsync.maintenance.quarantine import QuarantineCommands

    return QuarantineCommands(directory)


def _spools() -> list[Path]:
    from hubsync.maintenance.inspect import default_spools

    return list(default_spools())


def _read_all(directories: Iterable[Path]) -> Iterator[tuple[Path, list[QuarantinedShard]]]:
    """Yield what each spool's dead letter holds. Report one that cannot be read, exit with code 1, and continue."""
    for directory in directories:
        try:
            with _open(directory) as letter:
                shards = letter.shards()
        except HubsyncError as error:
            message(f"hubsync: {error_text(error)}")
            click.get_current_context().meta[_FAILED] = True
        else:
            yield directory, shards


def _has_failed() -> bool:
    return _FAILED in click.get_current_context().meta


def _only_spool() -> Path:
    """Return the one spool in the default directory that has a dead letter.

    Raises:
        click.UsageError: There is no such spool, or there are several.
    """
    found = [directory for directory, shards in _read_all(_spools()) if shards]
    if len(found) != 1:
        several = "which spool? These have a dead letter: " + ", ".join(map(str, found))
        raise click.UsageError(several if found else "none of your spools has a dead letter; give SPOOL.")
    return found[0]


def _amount(shards: Sequence[QuarantinedShard]) -> str:
    rows, size = sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards)
    lost = sum(shard.lost for shard in shards)
    also = f", {count_text(lost, 'lost row')}" if lost else ""
    return f"{count_text(len(shards), 'shard')} ({count_text(rows, 'row')}, {size_text(size)}{also})"
