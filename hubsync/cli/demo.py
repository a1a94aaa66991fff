"""`hubsync demo`: a real job in its own process, an embedded Hub, an outage, and a SIGKILL if asked for.

At the end, `datasets` and `HfFileSystem` read the dataset back, and every row must be in it exactly once.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import click

from hubsync._runtime.formatting import count_text
from hubsync.cli.console import DIRECTORY, Seconds, needs_extra
from hubsync.cli.demo_job import corpus

if TYPE_CHECKING:
    from hubsync.localhub import LocalHub

_REPO = "user/standard-library"
_POLL_S = 0.05


@click.command()
@click.option("--rows", default=4_000, show_default=True, type=click.IntRange(1), help="Rows the job generates.")
@click.option("--crash", is_flag=True, help="Kill the job with SIGKILL halfway, and restart it.")
@click.option("--outage", "outage_s", default=3.0, show_default=True, type=Seconds(), help="How long the Hub is down.")
@click.option("--dir", "directory", type=DIRECTORY, help="Keep the Hub and the spool in this directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(rows: int, crash: bool, outage_s: float, directory: Path | None, as_json: bool) -> None:
    """Run a real job against an embedded Hub, offline.

    The Hub goes down while the job runs; with --crash, the job is killed, too. At the end the dataset is read back with
    `datasets` and huggingface_hub: every row must be in it exactly once.
    """
    with needs_extra("the demo", "demo"):
        from hubsync.localhub import LocalHub

    with _place(directory) as place, LocalHub(place / "hub") as hub:
        environ = {
            **os.environ,
            **hub.environ(),
            "HF_HOME": str(place / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        }
        environ.pop("HF_HUB_OFFLINE", None)
        display = _Display(rows, quiet=as_json)
        play = _Play(hub, place / "spool", rows, crash, outage_s, environ, display)
        play.run()
        checks = play.checks()
        if play.exit_code == 0:
            display.event("reading the dataset back with datasets and huggingface_hub")
            checks += _read_back(rows, environ)
    if as_json:
        passed = all(check.passed for check in checks)
        result = {"passed": passed, "figures": play.figures(), "checks": [check._asdict() for check in checks]}
        click.echo(json.dumps(result))
    else:
        _report(play, checks, directory)
    sys.exit(0 if all(check.passed for check in checks) else 1)


@contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    """Yield the directory for the Hub and the spool; a temporary one is deleted at the end."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="hubsync-demo-") as temporary:
            yield Path(temporary)


class _Check(NamedTuple):
    """One thing that must be true at the end."""

    name: str
    passed: bool
    detail: str


@dataclass(slots=True)
class _Reports:
    """What the job's processes have reported on their standard outputs."""

    rows: int = 0
    put_ms: list[float] = field(default_factory=list)
    commits: int = 0
    retries: int = 0

    def read(self, stream: IO[str]) -> None:
        """Read the reports of one process until it ends."""
        for line in stream:
            try:
                report = json.loads(line)
            except ValueError:
                continue  # SIGKILL has cut it off
            self.rows = max(self.rows, report.get("rows", 0))
            if "put_ms" in report:
                self.put_ms.append(report["put_ms"])
            self.commits += report.get("commits", 0)
            self.retries += report.get("retries", 0)


class _Display:
    """Prints events to standard error; in a terminal, with two bars below them."""

    def __init__(self, rows: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._began = time.monotonic()
        self._progress = Progress(
            TextColumn("          {task.description}"), BarColumn(28, complete_style="green", finished_style="green"),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows", justify="right"),
            TextColumn("{task.fields[note]}", "yellow", markup=False, table_column=Column(ratio=1)),
            console=self._console, auto_refresh=False, transient=True, expand=True,
            disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._put, self._on_hub = (
            self._progress.add_task(name, total=rows, note="") for name in ("put by the job", "on the Hub")
        )

    def event(self, text: str, style: str = "") -> None:
        """Print something that happens, with the time."""
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2, 0, 0))  # indents what follows a line break
        line.add_row(Text(f"{time.monotonic() - self._began:6.1f} s", "dim"), Text(text, style))
        self._console.print(line)

    def update(self, spool: Path, put: int) -> None:
        """Draw the bars, from what the job has put and the spool that it writes to."""
        from hubsync.errors import SpoolError
        from hubsync.maintenance.inspect import inspect_spool

        if self._progress.disable:
            return
        try:
            report = inspect_spool(spool)
        except SpoolError:
            return  # the job is still creating it
        state = "" if report.state.kind == "ok" else report.state.kind
        self._progress.start()
        self._progress.update(self._put, completed=put)
        self._progress.update(self._on_hub, completed=report.depth.committed_rows, note=state)
        self._progress.refresh()

    def close(self) -> None:
        """Remove the bars."""
        self._progress.stop()


class _Play:
    """Runs the job, and makes the Hub and the job fail."""

    def __init__(
        self,
        hub: LocalHub,
        spool: Path,
        rows: int,
        crash: bool,
        outage_s: float,
        environ: dict[str, str],
        display: _Display,
    ) -> None:
        self.rows, self.spool = rows, spool
        self.reports = _Reports()
        self.starts = self.exit_code = 0
        self.seconds = 0.0
        self._hub, self._crash, self._outage_s, self._environ = hub, crash, outage_s, environ
        self._outage_began: float | None = None
        self._outage_ended = not outage_s
        self._display = display

    def run(self) -> None:
        """Run the job to its end."""
        began = time.monotonic()
        process = self._start()
        try:
            while process.poll() is None or (process.returncode == 0 and not self._outage_ended):
                self._outage()
                if self._crash and self.starts == 1 and self.reports.rows >= self.rows // 2 and process.poll() is None:
                    process.kill()
                    process.wait()
                    self._display.event(f"SIGKILL ends process {process.pid}", "bold yellow")
                    process = self._start()
                self._display.update(self.spool, self.reports.rows)
                time.sleep(_POLL_S)
        finally:
            self._display.close()
        self.exit_code = process.returncode
        self.seconds = time.monotonic() - began
        self._display.event(f"process {process.pid} exits with code {self.exit_code}")

    def _start(self) -> subprocess.Popen[str]:
        self.starts += 1
        process = subprocess.Popen(
            [sys.executable, "-m", "hubsync.cli.demo_job", _REPO, str(self.spool), str(self.rows)],
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        then = f"generates {self.rows:,} rows" if self.starts == 1 else "resumes where it stopped"
        self._display.event(f"process {process.pid} {then}")
        assert process.stdout is not None
        assert process.stderr is not None
        threading.Thread(target=self.reports.read, args=(process.stdout,), daemon=True).start()
        threading.Thread(target=self._relay, args=(process.stderr,), daemon=True).start()
        return process

    def _relay(self, log: IO[str]) -> None:
        for line in log:
            self._display.event(f"the job logs: {line.rstrip()}")

    def _outage(self) -> None:
        """Stop the Hub once a third of the rows are put, and start it again later."""
        now = time.monotonic()
        if self._outage_began is None and not self._outage_ended and self.reports.rows >= self.rows // 3:
            self._hub.stop()
            self._outage_began = now
            self._display.event(f"the Hub goes down for {self._outage_s:g} s", "bold yellow")
        elif self._outage_began is not None and not self._outage_ended and now >= self._outage_began + self._outage_s:
            self._hub.start()
            self._outage_ended = True
            self._display.event("the Hub is up again", "bold green")

    def checks(self) -> list[_Check]:
        """Return what must be true of the job and its spool."""
        from hubsync.maintenance.inspect import inspect_spool

        found = [_Check("the job ended well", self.exit_code == 0, f"exit code {self.exit_code}")]
        if self.exit_code:
            return found
        waiting = inspect_spool(self.spool).depth.rows
        found.append(_Check("the spool is empty", waiting == 0, f"{waiting} rows wait"))
        if self._crash:
            found.append(_Check("the job was killed and went on", self.starts == 2, f"started {self.starts} times"))
        if self._outage_s:
            longest, outage = max(self.reports.put_ms, default=0.0), self._outage_s * 1e3
            detail = f"longest put {longest:.1f} ms, outage {outage:.0f} ms"
            found.append(_Check("the job never waited for the Hub", longest < outage, detail))
        return found

    def figures(self) -> dict[str, float]:
        """Return what was measured."""
        put_ms = sorted(self.reports.put_ms) or [0.0]
        return {
            "rows": self.rows,
            "seconds": round(self.seconds, 1),
            "put_median_ms": round(put_ms[len(put_ms) // 2], 3),
            "put_longest_ms": round(put_ms[-1], 3),
            "commits": self.reports.commits,
            "retries": self.reports.retries,
            "process_starts": self.starts,
        }


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


def _read_back(rows: int, environ: dict[str, str]) -> list[_Check]:
    """Read the dataset as any user would, in a new process that knows nothing of the uploader."""
    done = subprocess.run(
        [sys.executable, "-c", _READ_BACK, _REPO], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return [_Check("load_dataset reads the dataset", False, done.stderr.strip().splitlines()[-1])]
    facts = json.loads(done.stdout.splitlines()[-1])
    ids: Counter[str] = Counter(facts["ids"])
    expected = Counter(row["id"] for row in islice(corpus(), rows))
    missing, extra = expected - ids, ids - expected
    lines = f"{facts['lines']:,} lines in {facts['paths']} shards, {facts['commits']} commits"
    return [
        _Check("load_dataset: no row is missing", not missing, f"{len(expected):,} rows, {missing.total()} missing"),
        _Check("load_dataset: no row is there twice", not extra, f"{extra.total()} too many"),
        _Check("HfFileSystem sees the same rows", facts["lines"] == rows, lines),
    ]


def _report(play: _Play, checks: list[_Check], directory: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print()
    for check in checks:
        mark, style = ("✓", "green") if check.passed else ("✗ FAILED:", "bold red")
        console.print(Text.assemble("  ", (mark, style), f" {check.name} ", (f"({check.detail})", "dim")))
    figures = play.figures()
    console.print(
        f"\n  {figures['rows']:,} rows in {figures['seconds']} s. put took {figures['put_median_ms']} ms (median), "
        f"{figures['put_longest_ms']} ms at most.\n  The last process made "
        f"{count_text(play.reports.commits, 'commit')} and retried {count_text(play.reports.retries, 'request')}.\n"
    )
    if directory is not None:
        console.print(
            f"  Serve this Hub again, with {_REPO} in it: [bold]hubsync hub serve --dir {directory / 'hub'}[/]"
        )
        console.print(f"  Look at the spool: [bold]hubsync status {directory / 'spool'}[/]")
    else:
        console.print("  Keep the Hub and the spool to look at them: [bold]hubsync demo --dir demo[/]")
