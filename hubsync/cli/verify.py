"""`hubsync verify`: compare a dataset with itself and with the spool that wrote it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hubsync._runtime.formatting import count_text, size_text
from hubsync.cli.console import message, printable

if TYPE_CHECKING:
    from hubsync.maintenance.verify import Report


@click.command()
@click.argument("where", nargs=-1, metavar="[SPOOL] REPO")
@click.option("--no-spool", is_flag=True, help="Compare the dataset only with itself, even if there is a spool.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit.")
@click.option("--endpoint", help="URL of the Hub.", show_default="HF_ENDPOINT, else huggingface.co")
@click.option("--content", is_flag=True, help="Download every shard, check its bytes and count its rows.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def verify(
    where: tuple[str, ...], no_spool: bool, revision: str, endpoint: str | None, content: bool, as_json: bool
) -> None:
    """Check that a dataset holds every committed row exactly once.

    Compares REPO with itself (watermarks, numbers, rows) and with what SPOOL committed. Without SPOOL, it uses the
    spool that jobs of this machine use for REPO, if there is one. Jobs may continue meanwhile. The exit code is 1 if
    anything differs.
    """
    from hubsync.errors import ConfigError
    from hubsync.maintenance.verify import default_spool
    from hubsync.maintenance.verify import verify as compare

    if not 1 <= len(where) <= 2 or (no_spool and len(where) == 2):
        raise click.UsageError("give [SPOOL] REPO, or --no-spool and REPO.")
    *given, repo = where
    spool = Path(given[0]) if given else None
    try:
        if spool is None and not no_spool:
            spool = default_spool(repo, revision=revision, endpoint=endpoint)
            message(
                f"{repo}: " + (f"comparing with the spool {spool}" if spool else "this machine has no spool for it")
            )
        report = compare(repo, spool=spool, revision=revision, endpoint=endpoint, content=content, progress=_progress)
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}))
    else:
        print_report(report)
    sys.exit(0 if report.ok else 1)


def _progress(read: int, shards: int) -> None:
    if sys.stderr.isatty():
        message(f"\r{read:,} of {shards:,} shards read", nl=read == shards)


def _rows(report: Report) -> str:
    """Return how many rows there are and, if that differs, how many were committed."""
    if report.rows is None:
        return f"at most {count_text(report.marked_rows, 'row')}"
    of = "" if report.rows == report.marked_rows else f" of {report.marked_rows:,} that were committed"
    return f"{count_text(report.rows, 'row')}{of}"


def print_report(report: Report) -> None:
    """Print the differences, the notes and the outcome, one per line."""
    lines = [f"{d.kind:9} {d.path}: expected {d.expected}; found {d.found}. {d.hint}" for d in report.differences]
    lines += [f"note      {note}" for note in report.notes]
    outcome = "everything agrees" if report.ok else count_text(len(report.differences), "difference")
    lines.append(
        f"{report.repo} ({report.revision}) at {report.commit}: {outcome}. {count_text(report.shards, 'shard')}, "
        f"{_rows(report)}, {size_text(report.bytes)}, {count_text(report.writers, 'writer')}; "
        + ("content read; " if report.content else "content not read (--content); ")
        + (f"compared with {report.spool}" if report.spool else "no spool compared")
    )
    for line in lines:
        click.echo(printable(line))  # paths come from the repo
