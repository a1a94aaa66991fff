"""`hubsync compact`: merge the small shards of a dataset."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from hubsync._runtime.formatting import count_text, size_text
from hubsync.cli.console import message, printable
from hubsync.cli.prune import Age

if TYPE_CHECKING:
    from hubsync.maintenance.compact import Compaction


@click.command()
@click.argument("repo")
@click.option("--apply", is_flag=True, help="Do it. Without, only show what would be merged.")
@click.option("--older-than", type=Age(), default="1h", show_default=True, help="Only shards committed this long ago.")
@click.option("--max-mb", default=500, show_default=True, type=click.IntRange(1), help="MB of a merged file, at most.")
@click.option("--revision", default="main", show_default=True, help="Branch.")
@click.option("--endpoint", help="URL of the Hub.", show_default="HF_ENDPOINT, else huggingface.co")
def compact(repo: str, apply: bool, older_than: float, max_mb: int, revision: str, endpoint: str | None) -> None:
    """Merge the small shards of a dataset into large ones.

    Successive shards of a writer become one file, in a commit that adds it and deletes them, so the dataset loads with
    the same rows at every moment. Files that hubsync did not write stay as they are. Jobs may keep writing. After a
    crash, run it again. Earlier revisions still have the small files; hubsync squash removes those.
    """
    from hubsync.errors import ConfigError
    from hubsync.maintenance.compact import compact as merge

    try:
        found = merge(
            repo, apply=apply, min_age_s=older_than, max_file_bytes=max_mb * 10**6, revision=revision,
            endpoint=endpoint, progress=_progress if apply else lambda merged, files: None,
        )  # fmt: skip
    except ConfigError as error:
        raise click.UsageError(str(error)) from None
    print_compaction(found)


def _progress(merged: int, files: int) -> None:
    if sys.stderr.isatty() and files:
        message(f"\r{merged:,} of {count_text(files, 'file')} merged", nl=merged == files)


def print_compaction(found: Compaction) -> None:
    """Print what was merged, or would be."""
    for merge in found.merges if not found.commits else ():
        click.echo(printable(f"{merge.path}: {count_text(len(merge.files), 'file')}, {size_text(merge.size)}"))
    for note in found.notes:
        click.echo(printable(f"left alone: {note}"))
    if not found.merges:
        click.echo(f"{found.repo}: nothing to merge.")
        return
    after = found.files - found.merged_files + len(found.merges)
    if found.commits:
        did = f"merged in {count_text(len(found.commits), 'commit')}"
        click.echo(f"{found.repo}: {count_text(found.files, 'file')} became {after:,} ({did}).")
    else:
        click.echo(
            f"{found.repo}: {count_text(found.files, 'file')} would become {after:,}. This downloads "
            f"{size_text(found.bytes)}, and uploads what the Hub cannot take from the old files. Nothing was changed. "
            "To do it, add --apply."
        )
