"""`hubsync drain`: upload what jobs left in their spools."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import click

from hubsync._runtime.formatting import count_text
from hubsync.cli.console import DIRECTORY, Seconds, error_text, message
from hubsync.errors import HubsyncError


class _Result(NamedTuple):
    """What became of one spool."""

    spool: Path
    rows_left: int = 0
    dead_shards: int = 0
    committed_rows: int = 0
    error: Exception | None = None

    def as_json(self) -> dict[str, object]:
        if self.error is not None:
            return {"spool": str(self.spool), "error": error_text(self.error)}
        return {
            "spool": str(self.spool), "rows_left": self.rows_left, "dead_shards": self.dead_shards,
            "committed_rows": self.committed_rows,
        }  # fmt: skip


@click.command()
@click.argument("spool", required=False, type=DIRECTORY)
@click.option("--timeout", type=Seconds(), help="Longest time to drain; the rest stays in the spool.")
@click.option("--rescue", "rebuild", is_flag=True, help="Rebuild a corrupt or lost catalogue from the segment files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def drain(spool: Path | None, timeout: float | None, rebuild: bool, as_json: bool) -> None:
    """Upload the rows left in SPOOL (default: all your spools)."""
    from hubsync.maintenance.inspect import default_spools

    if rebuild:
        _rebuild(spool)
    results = _drain_all([spool] if spool is not None else list(default_spools()), timeout)
    for result in results:
        if result.error is not None and (spool is not None or not isinstance(result.error, HubsyncError)):
            raise result.error
    if as_json:
        click.echo(json.dumps([result.as_json() for result in results]))
    else:
        _print(results)
    if any(result.error or result.dead_shards for result in results):
        sys.exit(1)


def _print(results: list[_Result]) -> None:
    if not results:
        message("There is no spool: nothing to upload.")
    for result in results:
        if result.error is not None:
            message(f"{result.spool}: not uploaded: {error_text(result.error)}")
        elif result.dead_shards:
            message(f"{result.spool}: all on the Hub but {count_text(result.dead_shards, 'shard')} in the dead letter.")
            message(f"Inspect or resubmit them: hubsync dead-letter list {result.spool}")
        else:
            message(f"{result.spool}: all on the Hub.")


def _drain_all(directories: list[Path], timeout: float | None) -> list[_Result]:
    """Drain all spools at once, since one may wait hours for its Hub or its commit quota."""
    from hubsync.maintenance.drain import drain as drain_spool
    from hubsync.maintenance.drain import show_progress
    from hubsync.maintenance.inspect import inspect_spool

    results: dict[Path, _Result] = {}

    def drain_one(directory: Path) -> None:
        message(f"{directory}")
        try:
            with show_progress(directory, message) as progress:
                depth = drain_spool(directory, timeout=timeout, progress=progress)
        except Exception as error:  # noqa: BLE001  (the other spools are drained all the same)
            results[directory] = _Result(directory, error=error)
        else:
            results[directory] = _Result(directory, depth.rows, depth.dead, depth.committed_rows)

    threads = [threading.Thread(target=drain_one, args=(directory,), daemon=True) for directory in directories]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for directory in [directory for directory in directories if directory not in results]:
            rows = count_text(inspect_spool(directory).depth.rows, "row")
            message(f"Interrupted: {rows} not on the Hub yet, and safe in {directory}.")
            message(f"To continue: hubsync drain {directory}")
        sys.exit(130)
    return [results[directory] for directory in directories]


def _rebuild(spool: Path | None) -> None:
    from hubsync.maintenance.rebuild import rebuild

    if spool is None or not (spool / "segments").is_dir():
        raise click.BadParameter("--rescue needs the directory of a spool.", param_hint="SPOOL")
    found = rebuild(spool)
    if found is None:
        message(f"{spool}: the catalogue is intact; there is nothing to rescue.")
        return
    kept = f" The broken catalogue is kept as {found.kept}." if found.kept else ""
    message(
        f"Rescued: {count_text(found.rows, 'row')} in {count_text(found.segments, 'file')}; already on the Hub: "
        f"{count_text(found.on_hub, 'file')}.{kept}"
    )
    for line in found.unknown:
        message(f"  unknown: {line}")
