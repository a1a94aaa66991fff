"""`hubsync status`: what spools hold, and how their jobs are doing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubsync._runtime.formatting import count_text, size_text, time_text
from hubsync.cli.console import DIRECTORY, Seconds, printable

if TYPE_CHECKING:
    from rich.console import Console

Facts = dict[str, Any]  # of one spool, as in the JSON output


@click.command()
@click.argument("spool", required=False, type=DIRECTORY)
@click.option("--watch", is_flag=True, help="Repeat until Ctrl-C.")
@click.option("--interval", default=1.0, show_default=True, type=Seconds(min_open=True), help="Pause between repeats.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per spool and line.")
def status(spool: Path | None, watch: bool, interval: float, as_json: bool) -> None:
    """Show what your spools hold and how their jobs are doing.

    For SPOOL, or each of your spools: the rows that are not on the Hub yet, the age of the oldest one, the state of the
    job, and the next attempt after an error. It only reads the spool, whether the job runs or not.
    """
    from rich.console import Console

    console = Console()
    while True:
        facts = _facts_of(spool)
        if as_json:
            for fact in facts:
                click.echo(json.dumps(fact))
        else:
            if watch and console.is_terminal:
                console.clear()
            _print(console, facts)
        if not watch:
            sys.exit(1 if any("error" in fact for fact in facts) else 0)
        sys.stdout.flush()
        time.sleep(interval)


def _facts_of(spool: Path | None) -> list[Facts]:
    from hubsync.errors import HubsyncError
    from hubsync.maintenance.inspect import default_spools, inspect_spool

    if spool is not None:
        return [inspect_spool(spool).as_dict()]
    found = []
    for directory in default_spools():
        try:
            found.append(inspect_spool(directory).as_dict())
        except HubsyncError as error:  # the other spools are shown all the same
            found.append({"spool": str(directory), "error": str(error)})
    return found


def _print(console: Console, facts: list[Facts]) -> None:
    from rich.text import Text

    if not facts:
        console.print("There is no spool.")
    for fact in facts:
        lines = _lines(fact)
        width = max(len(name) for name, _ in lines) + 2
        for name, value in lines:
            # Text: a server's square brackets are not markup. soft_wrap: commands can be copied as they are.
            console.print(Text.assemble((f"{name:<{width}}", "bold"), printable(value)), soft_wrap=True)
        console.print()


def _lines(fact: Facts) -> list[tuple[str, str]]:
    """Return the name and value of each line about one spool."""
    if "error" in fact:
        return [("spool", fact["spool"]), ("error", fact["error"])]
    jobs = ", ".join(map(str, fact["writer_pids"]))
    is_open = bool(fact["committer_pid"] or jobs)
    lines = [
        ("repo", f"{fact['repo']} ({fact['revision']}) at {fact['endpoint']}"),
        ("spool", fact["spool"]),
        ("waiting", _waiting(fact)),
        ("oldest", f"{fact['oldest_age_s']:,.0f} s" if fact["oldest_age_s"] is not None else "nothing waits"),
        ("committed", _committed(fact)),
        ("committer", f"process {fact['committer_pid']}" if fact["committer_pid"] else _no_committer(jobs)),
        ("state", _state(fact, is_open)),
    ]
    if fact["next_try_at"] and fact["next_try_at"] > time.time():
        lines.append(("next try", time_text(fact["next_try_at"])))
    lines += [("dead letter", f"{d['path']} ({d['rows']:,} rows): {d['why']}") for d in fact["dead_letter"]]
    if fact["rows_waiting"] and not is_open:
        lines.append(("to do", f"hubsync drain {fact['spool']}"))
    if fact["dead_letter"]:
        lines.append(("to do", f"hubsync dead-letter list {fact['spool']}"))
    return lines


def _waiting(fact: Facts) -> str:
    shards = ", ".join(f"{count} {state}" for state, count in fact["shards"].items() if count and state != "dead")
    waiting = f"{count_text(fact['rows_waiting'], 'row')}, {size_text(fact['bytes_waiting'])}"
    return f"{waiting} ({shards})" if shards else waiting


def _committed(fact: Facts) -> str:
    return f"{count_text(fact['committed']['rows'], 'row')}, {count_text(fact['committed']['shards'], 'shard')}"


def _no_committer(jobs: str) -> str:
    return f"nobody (open in process {jobs})" if jobs else "nobody (no job has it open)"


def _state(fact: Facts, is_open: bool) -> str:
    state = fact["state"] if is_open else f"{fact['state']} (when the last job ended)"
    return f"{state}: {fact['reason']}" if fact["reason"] else str(state)
