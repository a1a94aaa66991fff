"""`hubsync ls`, `hubsync read` and `hubsync tail`: the shards and rows of a dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hubsync._runtime.formatting import size_text
from hubsync.cli.console import DIRECTORY, Seconds, print_table, writable_file

Command = Callable[..., None]


def _dataset_options(command: Command) -> Command:
    """Add the options of every command that reads a dataset."""
    for option in (
        click.option("--endpoint", help="URL of the Hub.", show_default="HF_ENDPOINT, else huggingface.co"),
        click.option("--revision", default="main", show_default=True, help="Branch, tag or commit."),
        click.option("--split", help="Only this split."),
        click.option("--config", help="Only this config."),
        click.argument("repo"),
    ):
        command = option(command)
    return command


def _row_options(command: Command) -> Command:
    """Add the options of every command that prints rows."""
    for option in (
        click.option("--spool", type=DIRECTORY, help="Include the rows of this spool that are not committed yet."),
        click.option(
            "--cursor",
            "cursor_file",
            type=click.Path(path_type=Path, dir_okay=False),
            callback=writable_file,
            help="Continue after the cursor in this file, and save it there.",
        ),
        click.option(
            "--bad-lines", type=click.Choice(["fail", "skip"]), default="fail", show_default=True,
            help="What to do with a line that is not a JSON object.",
        ),
    ):  # fmt: skip
        command = option(command)
    return _dataset_options(command)


@click.command()
@_row_options
@click.option("--since", help="Only rows that came after a commit (sha) or a time (ISO 8601).")
def read(repo: str, spool: Path | None, **options: Any) -> None:
    """Print the rows of a dataset as JSON Lines."""
    from hubsync.cli.jsonl_writer import write_rows

    write_rows(repo, spool=spool or False, **options)


@click.command()
@_row_options
@click.option(
    "-n", "--rows", "count", default=10, show_default=True, type=click.IntRange(0), help="Number of rows."
)  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Then print new rows as they come, until Ctrl-C.")
@click.option(
    "--must-exist", is_flag=True, help="With -f: fail if the dataset does not exist, instead of waiting for it."
)
@click.option(
    "--poll", "poll_s", default=10.0, show_default=True, type=Seconds(min_open=True),
    help="Pause between two looks at the dataset.",
)  # fmt: skip
def tail(repo: str, **options: Any) -> None:
    """Print the last rows of a dataset, and follow it.

    Prints JSON Lines. The last rows are those of the newest commits.
    """
    from hubsync.cli.jsonl_writer import write_last_rows

    write_last_rows(repo, **options)


@click.command()
@_dataset_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines, as if standard output is not a terminal.")
def ls(repo: str, as_json: bool, **options: Any) -> None:
    """List the shards of a dataset.

    Lists the rows, size, writer and number of each, and the commit that added it.
    """
    from hubsync.cli.jsonl_writer import require_shards
    from hubsync.reader import shards

    found = list(shards(repo, **options))
    require_shards(repo, found, options)
    if as_json or not sys.stdout.isatty():
        for shard in found:
            time = shard.time.isoformat() if shard.time else None
            click.echo(json.dumps({**shard._asdict(), "time": time}))
        return
    print_table(
        ("path", "rows>", "size>", "writer", "commit", "time"),
        (
            (
                shard.path, "?" if shard.rows is None else f"{shard.rows:,}", size_text(shard.bytes),
                shard.writer or "", (shard.commit or "")[:8], f"{shard.time:%Y-%m-%d %H:%M:%S}" if shard.time else "",
            )
            for shard in found
        ),
    )  # fmt: skip
