"""`hubsync pipe`: upload JSON Lines from standard input."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubsync._runtime.formatting import count_text
from hubsync.cli.console import DIRECTORY, Seconds, message, writable_file
from hubsync.model.layout import FORMATS

if TYPE_CHECKING:
    from hubsync.cli.stdin_reader import BadLine, BadLines, StreamCounts


@click.command()
@click.argument("repo")
@click.option("--config", default="default", show_default=True, help="Config of the dataset.")
@click.option("--split", default="train", show_default=True, help="Split of the dataset.")
@click.option("--path", help="Template of the shard paths, such as {config}/{split}-{writer}-{seq:05d}.jsonl.")
@click.option(
    "--format", type=click.Choice(FORMATS), default=None,
    help="Format of the shards; by default that of the dataset, jsonl for a new one.",
)  # fmt: skip
@click.option("--private/--public", default=None, help="Visibility of the repo, if it does not exist yet.")
@click.option("--revision", default="main", show_default=True, help="Branch to commit to.")
@click.option("--spool", type=DIRECTORY, help="Directory for rows that are not committed yet.")
@click.option(
    "--linger", default=60.0, show_default=True, type=Seconds(), help="Longest time a row waits before its upload."
)
@click.option("--source", help="Name of this stream. The next run with this name skips the lines already uploaded.")
@click.option(
    "--bad-lines",
    type=click.Choice(["fail", "set-aside"]),
    default="fail",
    show_default=True,
    help="What to do with a line that is not a JSON object.",
)
@click.option(
    "--aside",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=writable_file,
    help="File for bad lines.",
    show_default="SPOOL/dead-letter/lines.txt",
)
@click.option("--timeout", type=Seconds(), help="Longest time to drain at the end; the rest stays in the spool.")
@click.option(
    "--grace",
    default=25.0,
    show_default=True,
    type=Seconds(),
    help="Longest time to drain after SIGTERM or Ctrl-C; the second one exits at once.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Show a progress bar always, or never.",
    show_default="only if draining takes long",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pipe(
    repo: str,
    linger: float,
    source: str | None,
    bad_lines: BadLines,
    aside: Path | None,
    timeout: float | None,
    grace: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Upload JSON Lines from standard input to a dataset.

    \b
        my-job | hubsync pipe user/rollouts
    """
    from hubsync.cli.stdin_reader import BadLine, read_stream
    from hubsync.errors import HubsyncError, ShardsRefused
    from hubsync.policies import ShardPolicy
    from hubsync.uploader.sync import Uploader

    if sys.stdin is None:
        raise click.UsageError("standard input is closed: there is nothing to read.")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the uploader installs its own handler
    with Uploader(repo, shard=ShardPolicy(linger_s=linger), grace_s=grace, **options) as up:
        offline = up.stats().state.kind == "offline"
        try:
            counts = read_stream(sys.stdin.fileno(), up, source=source, bad_lines=bad_lines, aside=aside)
        except HubsyncError as error:
            place = f"in {up.spool}" if offline else f"on the Hub in {repo}"
            try:
                up.close(timeout)
            except HubsyncError as not_drained:
                place = f"in {up.spool}"
                error.add_note(str(not_drained))
            if isinstance(error, BadLine):
                error.add_note(_how_to_continue(error, place, source))
            raise
        try:
            up.close(timeout)
        except ShardsRefused as error:
            committed = counts.rows - error.rows
            error.add_note(f"{_are(committed, 'row')} on the Hub in {repo}; {error.rows:,} rejected.")
            raise
    if as_json:
        result = {"repo": repo, "lines": counts.read, "rows": counts.rows, "skipped": counts.skipped}
        click.echo(json.dumps({**result, "set_aside": counts.set_aside}))
    else:
        message(_summary(counts, repo, aside or up.spool / "dead-letter" / "lines.txt", up.spool if offline else None))


def _summary(counts: StreamCounts, repo: str, aside: Path, offline_in: Path | None) -> str:
    """Return the message of a run that succeeded. `offline_in` is the spool, if the rows are only there."""
    if offline_in is not None:
        parts = [
            f"{_are(counts.rows, 'row')} in {offline_in} (HF_HUB_OFFLINE is set)",
            f"upload {'it' if counts.rows == 1 else 'them'} with: hubsync drain {offline_in}",
        ]
    else:
        parts = [f"{_are(counts.rows, 'row')} on the Hub in {repo}"]
    if counts.skipped:
        were = "was" if counts.skipped == 1 else "were"
        parts.append(f"{count_text(counts.skipped, 'line')} {were} uploaded before")
    if counts.set_aside:
        parts.append(f"{_are(counts.set_aside, 'bad line')} in {aside}")
    return "; ".join(parts) + "."


def _are(number: int, what: str) -> str:
    return f"{count_text(number, what)} {'is' if number == 1 else 'are'}"


def _how_to_continue(bad: BadLine, place: str, source: str | None) -> str:
    """Return the note of a bad line that ended the stream: where the lines before it are, and what to do."""
    rerun = (
        f"Run again with --source {source} to continue after them."
        if source
        else f"Run again from line {bad.number:,} on: lines are skipped only with --source."
    )
    before = f"The lines before it are {place}. {rerun} " if bad.number > 1 else ""
    return f"{before}To write such lines to a file and continue: --bad-lines set-aside"
