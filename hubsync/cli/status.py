"""`hubsync status`: what spools hold, and how their jobs are doing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubsync._runtime.formatting import count_text, duration_text, size_text, time_text, word
from hubsync.cli.console import DIRECTORY, Seconds, print_lines, print_table
from hubsync.telemetry.condition import KINDS, ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from hubsync.maintenance.inspect import SpoolReport


_COLUMNS = ("state", "dataset", "rows wait>", "oldest>", "why")
_MIN_WHY = 20  # characters of it in the table; a long name of a dataset is folded instead


@click.command()
@click.argument("spool", required=False, type=DIRECTORY)
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C.")
@click.option("--interval", default=1.0, show_default=True, type=Seconds(min_open=True), help="Pause between repeats.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per spool and line.")
def status(spool: Path | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show what your spools hold and how their jobs are doing.

    Without SPOOL: a table of all your spools, problems first. With SPOOL: everything about that one. It only reads,
    whether a job runs or not.

    \b
    Exit codes:
      0  nothing needs you
      1  a spool is blocked, has rejected rows, or cannot be read
      3  rows wait in a spool that no job has open: run hubsync drain
    """
    from rich.console import Console

    from hubsync.maintenance.inspect import inspect_all, inspect_spool

    console = Console()
    while True:
        reports = inspect_all() if spool is None else [inspect_spool(spool)]
        if as_json:
            for report in reports:
                click.echo(json.dumps(report.as_dict()))
        else:
            if watch and console.is_terminal:
                console.clear()
            if spool is None:
                _print_table(console, reports)
            else:
                print_lines(_lines(reports[0]))
        if not watch:
            sys.exit(_exit_code(reports))
        sys.stdout.flush()
        time.sleep(interval)


def _exit_code(reports: list[SpoolReport]) -> int:
    """Return the code of the worst spool: a failure counts more than rows that wait."""
    codes = {int(report.condition.exit_code) for report in reports}
    return next((code for code in (1, 3) if code in codes), 0)


def _print_table(console: Console, reports: list[SpoolReport]) -> None:
    if not reports:
        from hubsync.model.target import default_home

        console.print(f"There is no spool in {default_home()}.", soft_wrap=True, markup=False, highlight=False)
        return
    shown = sorted((r for r in reports if r.condition.kind != "finished"), key=_order)
    finished = len(reports) - len(shown)
    if shown:
        width = console.width if console.is_terminal else 80
        print_table(_COLUMNS, _cut([*map(_cells, shown)], width), width=width)
    if problems := [report for report in shown if report.condition.exit_code == ExitCode.FAILED]:
        console.print("\nProblems:")
        print_lines([("", f"{r.directory}: {r.error or r.condition}") for r in problems])
    if commands := list(dict.fromkeys(r.condition.command for r in shown if r.condition.command)):
        console.print("\nTo do:")
        print_lines([("", command) for command in commands])
    if finished:
        spools = count_text(finished, "other spool" if shown else "spool")
        if shown:
            console.print()
        console.print(
            f"{spools} {word(finished, 'is', 'are')} finished: every row is on the Hub. To remove what is empty: "
            "hubsync prune",
            soft_wrap=True, highlight=False,
        )  # fmt: skip


def _cut(rows: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Cut the last cell of each row where the line ends; the problems are listed in full below the table."""
    columns = zip(_COLUMNS[:-1], *(row[:-1] for row in rows), strict=True)
    room = max(_MIN_WHY, width - sum(max(map(len, column)) + 2 for column in columns))
    return [(*row[:-1], row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 1]}…") for row in rows]


def _order(report: SpoolReport) -> tuple[int, float]:
    return KINDS.index(report.condition.kind), -(report.oldest_age_s or 0.0)


def _cells(report: SpoolReport) -> tuple[str, ...]:
    condition, target = report.condition, report.target
    name = report.directory.name if target is None else target.repo
    if target is not None and target.revision != "main":
        name += f" ({target.revision})"
    why = condition.reason
    if condition.until is not None and condition.until > time.time():  # first, where it is not cut
        why = f"next try {time_text(condition.until)}; {why}"
    rows = "?" if target is None else f"{report.depth.rows:,}"
    oldest = "" if report.oldest_age_s is None else duration_text(report.oldest_age_s)
    return condition.kind, name, rows, oldest, why


def _lines(report: SpoolReport) -> list[tuple[str, str]]:
    """Return the name and value of each line about one spool."""
    fact = report.as_dict()
    jobs = ", ".join(map(str, fact["writer_pids"]))
    lines = [
        ("state", str(report.condition)),
        ("repo", f"{fact['repo']} ({fact['revision']}) at {fact['endpoint']}"),
        ("spool", fact["spool"]),
        ("waiting", _waiting(fact)),
        ("oldest", f"{fact['oldest_age_s']:,.0f} s" if fact["oldest_age_s"] is not None else "nothing waits"),
        (
            "committed",
            f"{count_text(report.depth.committed_rows, 'row')}, {count_text(report.depth.committed_shards, 'shard')}",
        ),
        ("committer", _committer(report, jobs)),
    ]
    for shard in report.dead_letter:
        rows = "" if shard.lost else f" ({count_text(shard.rows, 'row')})"
        lines.append(("lost" if shard.lost else "dead letter", f"{shard.path}{rows}: {shard.why}"))
    if fact["rows_waiting"] and not (jobs or fact["committer_pid"]):
        lines.append(("to do", f"hubsync drain {fact['spool']}"))
    if fact["dead_letter"]:
        lines.append(("to do", f"hubsync dead-letter list {fact['spool']}"))
    return lines


def _waiting(fact: dict[str, Any]) -> str:
    shards = ", ".join(f"{count} {state}" for state, count in fact["shards"].items() if count and state != "dead")
    waiting = f"{count_text(fact['rows_waiting'], 'row')}, {size_text(fact['bytes_waiting'])}"
    return f"{waiting} ({shards})" if shards else waiting


def _committer(report: SpoolReport, jobs: str) -> str:
    pid, agent = report.committer_pid, report.agent_pid
    if agent is not None and pid in (agent, None):
        return f"process {agent}, the agent" + ("" if pid else ": nothing to upload now")
    if pid is not None:
        return f"process {pid}"
    return f"no process; open in process {jobs}" if jobs else "no process: no job has this spool open"
