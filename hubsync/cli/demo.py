"""The demo: a real job in a process of its own, on an embedded Hub, with an outage and a SIGKILL if asked for.

The rows are real: the functions and classes of the standard library's own source, with their docstrings. At the end
the dataset is read back by `datasets` and `HfFileSystem`, and every row must be there exactly once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from hubsync.cli.console import Seconds, needs_extra
from hubsync.cli.demo_job import corpus
from hubsync.telemetry.progress import Figures, Progress
from hubsync.telemetry.status import State

if TYPE_CHECKING:
    from hubsync.localhub import LocalHub

_REPO = "user/standard-library"


@click.command()
@click.option("--rows", default=4_000, show_default=True, type=click.IntRange(1), help="Rows the job generates.")
@click.option("--crash", is_flag=True, help="Kill the job with SIGKILL halfway, and restart it.")
@click.option("--outage", "outage_s", default=3.0, show_default=True, type=Seconds(), help="How long the Hub is down.")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Keep the Hub and the spool in this directory."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(rows: int, crash: bool, outage_s: float, directory: Path | None, as_json: bool) -> None:
    """Run a real job against an embedded Hub, offline.

    The Hub goes down while the job runs; with --crash, the job is killed, too. At the end the dataset is read back with
    `datasets` and huggingface_hub: every row must be in it exactly once.
    """
    with needs_extra("the demo", "demo"):
        import hubsync.localhub.server  # noqa: F401
    sys.exit(0 if run(rows=rows, crash=crash, outage_s=outage_s, directory=directory, as_json=as_json) else 1)


@dataclass(slots=True)
class _Told:
    """What the job's processes have told so far."""

    rows: int = 0
    stalls_ms: list[float] = field(default_factory=list)
    commits: int = 0
    retries: int = 0
    draining: bool = False

    def listen(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                fact = json.loads(line)
            except ValueError:
                continue  # cut off by SIGKILL
            self.rows = max(self.rows, fact.get("rows", 0))
            if "put_ms" in fact:
                self.stalls_ms.append(fact["put_ms"])
            self.commits += fact.get("commits", 0)
            self.retries += fact.get("retries", 0)
            self.draining = self.draining or fact.get("draining", False)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be so."""

    name: str
    passed: bool
    detail: str


def run(*, rows: int, crash: bool, outage_s: float, directory: Path | None, as_json: bool) -> bool:
    """Runs the demo and prints what came of it; whether every check passed."""
    from hubsync.localhub import LocalHub

    keep = directory is not None
    scratch = None if keep else tempfile.TemporaryDirectory(prefix="hubsync-demo-")
    place = Path(scratch.name) if scratch is not None else Path(str(directory)).absolute()
    place.mkdir(parents=True, exist_ok=True)
    try:
        with LocalHub(place / "hub") as hub:
            environ = {
                **os.environ,
                **hub.environ(),
                "HF_HOME": str(place / "hf"),
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            }
            environ.pop("HF_HUB_OFFLINE", None)
            stage = _Stage(hub, place, rows, crash, outage_s, environ, quiet=as_json)
            stage.play()
            checks = [*stage.checks(), *_read_back(rows, environ)]
            _report(stage, checks, place if keep else None, as_json)
    finally:
        if scratch is not None:
            scratch.cleanup()
    return all(check.passed for check in checks)


class _Stage:
    """Runs the job, and lets happen to it what is to happen."""

    def __init__(
        self,
        hub: LocalHub,
        place: Path,
        rows: int,
        crash: bool,
        outage_s: float,
        environ: dict[str, str],
        *,
        quiet: bool,
    ) -> None:
        self.hub, self.place, self.rows, self.crash, self.outage_s = hub, place, rows, crash, outage_s
        self.environ, self.quiet = environ, quiet
        self.told = _Told()
        self.spool = place / "spool"
        self.killed = self.starts = self.exit_code = 0
        self.outage_ended: float | None = None
        self.outage_began: float | None = None
        self.seconds = 0.0
        self._figures = Figures(_REPO, str(self.spool), State(), 0, 0, 0, 0, total=rows)
        self._progress = Progress(lambda: self._figures, not quiet, time.monotonic, line_s=1, say=self._print)

    def play(self) -> None:
        began = time.monotonic()
        process = self._start()
        try:
            while True:
                code = process.poll()
                self._outage()
                if self.crash and not self.killed and self.told.rows >= self.rows // 2 and code is None:
                    process.kill()
                    process.wait()
                    self.killed += 1
                    self._say("the job is killed by SIGKILL, and started again")
                    process = self._start()
                elif code is not None and (self.outage_began is None or self.outage_ended is not None):
                    break
                self._look()
                time.sleep(0.05)
            self._look()
        finally:
            self._progress.close()
        self.exit_code = process.returncode
        self.seconds = time.monotonic() - began

    def _start(self) -> subprocess.Popen[str]:
        self.starts += 1
        process = subprocess.Popen(
            [sys.executable, "-m", "hubsync.cli.demo_job", _REPO, str(self.spool), str(self.rows)],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=self.told.listen, args=(process.stdout,), daemon=True).start()
        threading.Thread(target=_relay, args=(process.stderr, self._say), daemon=True).start()
        return process

    def _outage(self) -> None:
        now = time.monotonic()
        if self.outage_s and self.outage_began is None and self.told.rows >= self.rows // 3:
            self.hub.stop()
            self.outage_began = now
            self._say(f"the Hub is gone for {self.outage_s:g} s")
        elif self.outage_began is not None and self.outage_ended is None and now - self.outage_began >= self.outage_s:
            self.hub.start()
            self.outage_ended = now
            self._say("the Hub is back")

    def _look(self) -> None:
        """Rows on the Hub and the worker's state, from the catalogue beside the job that writes it."""
        from hubsync.errors import SpoolError
        from hubsync.maintenance.inspect import spool_facts

        try:
            facts = spool_facts(self.spool)
        except SpoolError:
            return  # it is just being made
        self._figures = self._figures._replace(
            state=State(facts["state"], facts["reason"], facts["next_try_at"]), accepted=self.told.rows,
            committed=facts["committed"]["rows"], waiting=facts["rows_waiting"],
            waiting_bytes=facts["bytes_waiting"], oldest_age_s=facts["oldest_age_s"],
        )  # fmt: skip
        self._progress.tick()

    def _say(self, text: str) -> None:
        """One thing that happens."""
        self._print(f"* {text}")

    def _print(self, text: str) -> None:
        if not self.quiet:
            print(f"  {text}", file=sys.stderr)

    def checks(self) -> list[Check]:
        from hubsync.maintenance.inspect import spool_facts

        left = spool_facts(self.spool)
        longest = max(self.told.stalls_ms, default=0.0)
        found = [
            Check("the job ended well", self.exit_code == 0, f"exit code {self.exit_code}"),
            Check("the spool is empty", left["rows_waiting"] == 0, f"{left['rows_waiting']} rows wait"),
        ]
        if self.crash:
            found.append(Check("the job was killed and went on", self.killed == 1, f"started {self.starts} times"))
        if self.outage_s:
            found.append(
                Check(
                    "the job never waited for the Hub",
                    longest < self.outage_s * 1e3,
                    f"longest put {longest:.1f} ms, outage {self.outage_s * 1e3:.0f} ms",
                )
            )
        return found


def _relay(stream: IO[str], say: Callable[[str], None]) -> None:
    for line in stream:
        say(f"the job logs: {line.rstrip()}")


_READ_BACK = """
import json, sys
from collections import Counter
from datasets import load_dataset
from huggingface_hub import HfApi, HfFileSystem
repo = sys.argv[1]
ids = Counter(load_dataset(repo, split="train")["id"])
fs = HfFileSystem()
paths = fs.glob(f"datasets/{repo}/data/*.jsonl")
lines = sum(fs.cat_file(path).count(b"\\n") for path in paths)
commits = HfApi().list_repo_commits(repo, repo_type="dataset")
print(json.dumps({"ids": ids, "lines": lines, "paths": len(paths), "commits": len(commits)}))
"""


def _read_back(rows: int, environ: dict[str, str]) -> list[Check]:
    """Reads the dataset as any user would, in a fresh process without a trace of the uploader."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_BACK, _REPO], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [Check("load_dataset reads the dataset", False, done.stderr.strip().splitlines()[-1])]
    facts = json.loads(done.stdout.splitlines()[-1])
    ids: Counter[str] = Counter(facts["ids"])
    expected = Counter(row["id"] for row in islice(corpus(), rows))
    missing, extra = expected - ids, ids - expected
    return [
        Check("load_dataset: no row is missing", not missing, f"{len(expected):,} rows, {missing.total()} missing"),
        Check("load_dataset: no row is there twice", not extra, f"{extra.total()} too many"),
        Check(
            "HfFileSystem sees the same rows",
            facts["lines"] == rows,
            f"{facts['lines']:,} lines in {facts['paths']} shards, {facts['commits']} commits",
        ),
    ]


def _report(stage: _Stage, checks: list[Check], kept: Path | None, as_json: bool) -> None:
    stalls = sorted(stage.told.stalls_ms)
    median = stalls[len(stalls) // 2] if stalls else 0.0
    figures = {
        "rows": stage.rows,
        "seconds": round(stage.seconds, 1),
        "put_median_ms": round(median, 3),
        "put_longest_ms": round(stalls[-1] if stalls else 0.0, 3),
        "commits": stage.told.commits,
        "retries": stage.told.retries,
        "process_starts": stage.starts,
    }
    if as_json:
        told = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks]
        print(json.dumps({"passed": all(c.passed for c in checks), "figures": figures, "checks": told}))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print()
    for check in checks:
        mark = "[green]passed[/]" if check.passed else "[red]FAILED[/]"
        console.print(f"  {mark}  {check.name}  [dim]({check.detail})[/]")
    console.print(
        f"\n  {figures['rows']:,} rows in {figures['seconds']} s: put took {figures['put_median_ms']} ms (median), "
        f"{figures['put_longest_ms']} ms at most;\n  the last process made {figures['commits']} commits "
        f"and {figures['retries']} retries."
    )
    if kept is not None:
        console.print(
            f"\n  Look: [bold]hubsync hub serve --dir {kept / 'hub'}[/] serves this Hub again, "
            f"and {_REPO} is in it;\n  [bold]hubsync status {kept / 'spool'}[/] shows the spool."
        )
    else:
        console.print("\n  Keep the Hub and the spool to look at: [bold]hubsync demo --dir demo[/]")
