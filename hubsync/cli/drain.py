"""`hubsync drain`: upload what jobs left in their spools."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import click

from hubsync._runtime.formatting import count_text, rejected_text
from hubsync.cli.console import DIRECTORY, Seconds, error_text, exit_with_error, message
from hubsync.errors import HubsyncError, NotDrained, SpoolBusy
from hubsync.model.stats import SpoolDepth
from hubsync.telemetry.condition import ExitCode

_SILENT_S = 120.0  # without SPOOL: how long a Hub may be away, so that one that is gone does not hold up the command


class _Result(NamedTuple):
    """What became of one spool."""

    spool: Path
    depth: SpoolDepth = SpoolDepth()
    error: Exception | None = None

    @property
    def exit_code(self) -> int:
        if self.error is None:
            return ExitCode.FAILED if self.depth.dead or self.depth.lost_rows else ExitCode.OK
        return ExitCode.WAITING if isinstance(self.error, (NotDrained, SpoolBusy)) else ExitCode.FAILED

    def as_json(self) -> dict[str, object]:
        if self.error is not None:
            return {"spool": str(self.spool), "error": error_text(self.error)}
        depth = self.depth
        return {
            "spool": str(self.spool), "rows_left": depth.rows, "dead_shards": depth.dead,
            "lost_rows": depth.lost_rows, "committed_rows": depth.committed_rows,
        }  # fmt: skip

    def __str__(self) -> str:
        depth = self.depth
        if self.error is not None:
            return f"{self.spool}: not uploaded: {error_text(self.error)}"
        if depth.dead or depth.lost_rows:
            rejected = rejected_text(depth.dead, depth.dead_rows, depth.lost_rows)
            return f"{self.spool}: all on the Hub but {rejected}.\nFor details: hubsync dead-letter list {self.spool}"
        return f"{self.spool}: all on the Hub."


@click.command()
@click.argument("spool", required=False, type=DIRECTORY)
@click.option("--timeout", type=Seconds(), help="Longest time to drain; the rest stays in the spool.")
@click.option("--rescue", "rebuild", is_flag=True, help="Rebuild a corrupt or lost catalogue from the segment files.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def drain(spool: Path | None, timeout: float | None, rebuild: bool, as_json: bool) -> None:
    """Upload the rows left in SPOOL (default: all your spools).

    With SPOOL and without --timeout, it waits for as long as the Hub is away. Without SPOOL, it leaves a spool whose
    Hub has not answered for two minutes.

    \b
    Exit codes:
      0  everything is on the Hub
      1  an operator must act: a message says where and why
      3  rows are left; another run can upload them
      4  without SPOOL: some spools could not be drained, all others are finished
    """
    from hubsync.maintenance.inspect import inspect_all

    if rebuild:
        _rebuild(spool)
    reports = [] if spool is not None else inspect_all()
    idle = [report.directory for report in reports if report.condition.kind == "finished"]
    directories = [spool] if spool is not None else [r.directory for r in reports if r.directory not in idle]
    results = _drain_all(directories, timeout, None if spool is not None else _SILENT_S)
    for result in results:
        if result.error is not None and not isinstance(result.error, HubsyncError):
            raise result.error
    if spool is not None and (error := results[0].error) is not None:
        assert isinstance(error, HubsyncError)
        exit_with_error(error, results[0].exit_code)
    if as_json:
        click.echo(json.dumps([result.as_json() for result in results]))
    else:
        for result in results:
            message(str(result))
        if idle:
            message(f"{count_text(len(idle), 'spool')}: nothing to upload.")
        elif not results:
            message("There is no spool: nothing to upload.")
    sys.exit(_exit_code([result.exit_code for result in results], some_are_finished=bool(idle)))


def _exit_code(codes: list[int], *, some_are_finished: bool) -> int:
    if any(codes) and (some_are_finished or ExitCode.OK in codes):
        return ExitCode.PARTLY
    return ExitCode.FAILED if ExitCode.FAILED in codes else max(codes, default=0)


def _drain_all(directories: list[Path], timeout: float | None, silent_s: float | None) -> list[_Result]:
    """Drain all spools at once, since one may wait hours for its Hub or its commit quota."""
    from hubsync.maintenance.drain import drain as drain_spool
    from hubsync.maintenance.drain import show_progress
    from hubsync.maintenance.inspect import inspect_spool

    results: dict[Path, _Result] = {}

    def drain_one(directory: Path) -> None:
        message(f"{directory}")
        try:
            with show_progress(directory, message) as progress:
                depth = drain_spool(directory, timeout=timeout, silent_s=silent_s, progress=progress)
        except Exception as error:  # noqa: BLE001  (the other spools are drained all the same)
            results[directory] = _Result(directory, error=error)
        else:
            results[directory] = _Result(directory, depth)

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
