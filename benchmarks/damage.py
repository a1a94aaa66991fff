"""Damage the spool of a job: does the job always end, either finished or with an error that names the lost rows?

Each round has an embedded Hub, a job, and one to three faults drawn from a seed: a spool file is deleted, truncated,
appended to, or replaced by a directory (reading it fails with EISDIR, much like EIO); the catalogue is damaged; a small
disk is full for a while. Faults happen while the job runs, or between a SIGKILL and the restart. Afterwards `drain`
runs, with `--rescue` if its message asks for that, and the dataset is compared with the job's ledger.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.report import OURS, Column, Report, bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPO = "user/damage"
_ROWS, _SHARD_ROWS = 60, 3
_END_S = 40.0  # a job or a drain that takes longer is stuck, because the Hub responds at once
_TARGETS = {
    "segment": 8, "catalogue": 2, "log": 1, "lock": 1, "note": 1, "segments": 1, "spool": 1, "disk": 2,
}  # fmt: skip
_ACTIONS = ("delete", "cut", "grow", "directory")
When = Literal["running", "killed"]


@dataclass
class Outcome:
    """One round.

    Attributes:
        faults: which file was damaged, and how.
        accepted: rows that `put` accepted.
        lost: rows that were accepted and are not on the Hub.
        named: whether an exit code and a message reported the loss.
        wrong: what must never happen; empty if the round passed.
        log: the output of the job and the commands.
    """

    number: int
    faults: list[str] = field(default_factory=list)
    accepted: int = 0
    lost: int = 0
    named: bool = False
    wrong: list[str] = field(default_factory=list)
    log: str = ""


class Round:
    """Run one job on a damaged spool, and compare the dataset with its ledger."""

    def __init__(self, root: Path, seed: int, number: int) -> None:
        self._rng = random.Random(f"{seed}/{number}")
        self._root = root
        self._spool = root / "disk" / "spool"
        self._ledger = root / "ledger"
        self._outcome = Outcome(number)
        self._at_risk: dict[str, set[int]] = {}  # rows that may be lost, by damaged file
        self._codes: list[int] = []

    def run(self) -> Outcome:
        """Run the job to its end, drain, and compare."""
        from hubsync.localhub import Fault, LocalHub

        (self._root / "hub").mkdir(parents=True)
        with _small_disk(self._root / "disk") as is_small, LocalHub(self._root / "hub") as hub:
            environ = {**os.environ, **hub.environ(), "HUBSYNC_HOME": str(self._root / "home")}
            outage = hub.faults.add(Fault.outage(after=self._rng.randrange(3, 40)))
            job = self._start(environ)
            for _ in range(self._rng.randint(1, 3)):
                self._wait_for_rows(job, self._rng.randrange(5, _ROWS))
                when: When = self._rng.choice(("running", "killed"))
                if when == "killed" and job.poll() is None:
                    job.send_signal(signal.SIGKILL)
                    self._end(job, is_killed=True)
                self._damage(when, is_small=is_small)
                if not self._spool.exists():
                    break
                if job.poll() is not None:
                    job = self._start(environ)
            time.sleep(self._rng.random() * 0.5)
            hub.faults.remove(outage)
            with suppress(OSError):
                (self._root / "disk" / "ballast").unlink()
            self._end(job)
            self._drain(environ)
            self._compare(hub.endpoint, hub.token)
        return self._outcome

    # The job.

    def _start(self, environ: dict[str, str]) -> subprocess.Popen[str]:
        args = [sys.executable, "-m", "benchmarks.damage", str(self._spool), str(self._ledger), str(_ROWS)]
        return subprocess.Popen(args, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _wait_for_rows(self, job: subprocess.Popen[str], rows: int) -> None:
        until = time.monotonic() + _END_S
        while job.poll() is None and len(_read_ledger(self._ledger, "got")) < rows and time.monotonic() < until:
            time.sleep(0.005)

    def _end(self, job: subprocess.Popen[str], *, is_killed: bool = False) -> None:
        try:
            output, _ = job.communicate(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._outcome.wrong.append("the job did not end")
            job.send_signal(signal.SIGUSR1)  # faulthandler prints all stacks
            try:
                output, _ = job.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                job.kill()
                output, _ = job.communicate()
        self._log(f"job: exit code {job.returncode}", output)
        if not is_killed:
            self._codes.append(job.returncode)
            if "Traceback" in output:
                self._outcome.wrong.append("the job ended with an exception that does not come from hubsync")

    # Damage.

    def _damage(self, when: When, *, is_small: bool) -> None:
        target = self._rng.choices([*_TARGETS], [*_TARGETS.values()])[0]
        action = self._rng.choice(_ACTIONS)
        if target == "disk":
            if is_small:
                self._note(when, "fill", self._root / "disk")
                _fill(self._root / "disk" / "ballast")
            return
        file = self._pick(target)
        if file is None or (target == "spool" and when == "killed"):  # afterwards nothing could report the lost rows
            return
        self._note(when, "delete" if target in ("segments", "spool") else action, file)
        segments = [file] if target == "segment" else list((self._spool / "segments").glob("*"))
        if target in ("segment", "segments", "spool"):
            for segment in segments:
                ids = _ids_in(segment)
                # The job may be writing more rows to it.
                ids |= set(range(max(ids, default=0), max(ids, default=0) + 1 + _SHARD_ROWS - len(ids)))
                self._at_risk.setdefault(segment.name, set()).update(ids)
        if target in ("segments", "spool"):
            shutil.rmtree(file, ignore_errors=True)
            return
        with suppress(OSError):
            if action == "grow":
                with file.open("ab") as stream:
                    stream.write(b"\x00 not a row \n" * 100)
            elif action == "cut":
                os.truncate(file, self._rng.randrange(max(1, file.stat().st_size)))
            else:
                file.unlink()
                if action == "directory":
                    file.mkdir()

    def _pick(self, target: str) -> Path | None:
        patterns = {
            "segment": "segments/*", "catalogue": "catalogue.sqlite", "log": "catalogue.sqlite-wal",
            "lock": "**/*.lock", "note": "writers/*.json", "segments": "segments", "spool": "",
        }  # fmt: skip
        found = [self._spool] if target == "spool" else sorted(self._spool.glob(patterns[target]))
        return self._rng.choice(found) if found else None

    def _note(self, when: When, action: str, file: Path) -> None:
        shown = f"{when}: {action} {file.relative_to(self._root)}"
        self._outcome.faults.append(shown)
        self._log("FAULT", shown)

    # Afterwards.

    def _drain(self, environ: dict[str, str]) -> None:
        if not self._spool.exists():
            return
        rescue: tuple[str, ...] = ()
        for _ in range(4):  # an operator, who does as the messages say
            output = self._command(environ, "drain", *rescue, self._spool, "--timeout", 30)
            if found := re.search(r"place of the lock (\S+), .* and remove", output):
                os.rmdir(found[1])
            elif "--rescue" in output and not rescue:
                rescue = ("--rescue",)
            else:
                break
        self._command(environ, "dead-letter", "list", self._spool)
        self._command(environ, "status", self._spool)

    def _command(self, environ: dict[str, str], *args: object) -> str:
        command = [sys.executable, "-m", "hubsync", *map(str, args)]
        try:
            done = subprocess.run(
                command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                timeout=_END_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            self._outcome.wrong.append(f"hubsync {args[0]} did not end")
            self._log(f"hubsync {args[0]}", str(error.output))
            return ""
        self._codes.append(done.returncode)
        self._log(f"hubsync {' '.join(map(str, args))}: exit code {done.returncode}", done.stdout)
        if "Traceback" in done.stdout:
            self._outcome.wrong.append(f"hubsync {args[0]} shows a traceback")
        return done.stdout

    def _compare(self, endpoint: str, token: str) -> None:
        from hubsync import HubsyncError
        from hubsync.reader import rows

        outcome, accepted = self._outcome, _read_ledger(self._ledger, "got")
        tried = _read_ledger(self._ledger, "try")
        found: Counter[int] = Counter()
        try:
            for row in rows(REPO, endpoint=endpoint, token=token):
                found[row["id"]] += 1
                if row != make_row(row["id"]):
                    outcome.wrong.append(f"row {row['id']} is damaged")
        except HubsyncError as error:
            if found or "404" not in str(error):
                outcome.wrong.append(f"the dataset cannot be read: {error}")
        lost = accepted - found.keys()
        outcome.accepted, outcome.lost = len(accepted), len(lost)
        outcome.wrong += [f"row {n} is on the Hub {count} times" for n, count in found.items() if count > 1]
        outcome.wrong += [f"row {n} was never put" for n in found.keys() - tried]
        at_risk = set().union(*self._at_risk.values())
        if unexplained := lost - at_risk:
            outcome.wrong.append(f"lost, though no damaged file contained them: rows {sorted(unexplained)}")
        if lost:
            files = [name for name, ids in self._at_risk.items() if ids & lost]
            is_named = any(self._codes) and ("lost" in outcome.log or any(name in outcome.log for name in files))
            outcome.named = is_named
            if not is_named:
                outcome.wrong.append(f"lost without a message: rows {sorted(lost)} of {', '.join(files)}")

    def _log(self, title: str, text: str) -> None:
        self._outcome.log += f"--- {title}\n{text}\n"


# The job: `python -m benchmarks.damage SPOOL LEDGER ROWS`.


def make_row(n: int) -> dict[str, Any]:
    """Return row number `n`."""
    return {"id": n, "text": f"row {n} " * 40}


def job(spool: Path, ledger: Path, rows: int) -> int:
    """Put the rows that no earlier run of the job put, then close.

    Returns:
        The exit code.
    """
    import faulthandler
    import logging

    from hubsync import CommitPolicy, HubsyncError, RetryPolicy, ShardPolicy, Uploader
    from hubsync.policies import SpoolPolicy

    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    start = max(_read_ledger(ledger, "try"), default=-1) + 1
    try:
        with (
            ledger.open("a", buffering=1) as log,
            Uploader(
                REPO, spool=SpoolPolicy(directory=spool), shard=ShardPolicy(max_rows=_SHARD_ROWS, linger_s=0.2),
                commit=CommitPolicy(per_hour=100_000), retry=RetryPolicy(initial_s=0.01, max_s=0.2, blocked_s=0.5),
            ) as up,
        ):  # fmt: skip
            for n in range(start, rows):
                log.write(f"try {n}\n")
                up.put([make_row(n)])
                log.write(f"got {n}\n")
                time.sleep(0.01)
    except HubsyncError as error:
        print("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
        return 1
    return 0


def _read_ledger(ledger: Path, kind: str) -> set[int]:
    try:
        lines = ledger.read_text().splitlines()
    except FileNotFoundError:
        return set()
    return {int(line.split()[1]) for line in lines if line.startswith(f"{kind} ")}


def _ids_in(file: Path) -> set[int]:
    found = set()
    with suppress(OSError):
        for line in file.read_bytes().split(b"\n"):
            with suppress(ValueError):
                found.add(json.loads(line)["id"])
    return found


@contextmanager
def _small_disk(where: Path) -> Iterator[bool]:
    """Mount a 4 MB disk at `where`; yield whether that worked, since only root may."""
    where.mkdir(parents=True)
    is_mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(where)], capture_output=True, check=False
    ).returncode == 0  # fmt: skip
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(where)], check=False)


def _fill(file: Path) -> None:
    with suppress(OSError), file.open("ab", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


# The benchmark.


def run(*, quick: bool, rounds: int = 100, seeds: Sequence[int] = (1,), keep: Path | None = None) -> Report:
    """Run all rounds of all seeds; print what is wrong.

    Args:
        quick: ten rounds per seed.
        rounds: jobs per seed.
        seeds: draw the faults.
        keep: directory for the logs of failed rounds; by default a temporary one.

    Returns:
        The report; `passed` is False if anything is wrong.
    """
    root = Path(tempfile.mkdtemp(prefix="hubsync-damage-")) if keep is None else keep.absolute()
    figures: list[dict[str, Any]] = []
    passed = True
    for seed in seeds:
        outcomes = []
        for number in range(10 if quick else rounds):
            directory = root / f"{seed}-{number}"
            outcome = Round(directory, seed, number).run()
            outcomes.append(outcome)
            if outcome.wrong:
                passed = False
                (root / f"{seed}-{number}.log").write_text(outcome.log)
                print(f"seed {seed}, round {number}: {'; '.join(outcome.faults)}", file=sys.stderr)
                for text in outcome.wrong[:5]:
                    print(f"  {text[:200]}", file=sys.stderr)
            shutil.rmtree(directory, ignore_errors=True)
        figures.append(
            {
                "seed": seed, "rounds": len(outcomes), "faults": sum(len(o.faults) for o in outcomes),
                "rows": sum(o.accepted for o in outcomes), "lost and named": sum(o.lost for o in outcomes if o.named),
                "wrong": sum(bool(o.wrong) for o in outcomes),
            }
        )  # fmt: skip
    if keep is None and passed:
        shutil.rmtree(root)
    elif not passed:
        print(f"logs: {root}", file=sys.stderr)
    return Report(
        name="damage",
        title="Jobs with a damaged spool: rows accepted, and rows lost with an error that names them",
        figures=figures,
        columns=tuple(Column(name, name, "" if name == "seed" else ",") for name in figures[0]),
        draw=lambda figure: _draw(figure, figures),
        size=(7.0, 3.0),
        passed=passed,
    )


def _draw(figure: Figure, figures: Sequence[dict[str, Any]]) -> None:
    axes = figure.subplots()
    names = ("rounds", "faults", "rows", "lost and named", "wrong")
    totals = [sum(f[name] for f in figures) for name in names]
    bars(axes, names, totals, colours=[OURS] * len(names), unit="count", log=True, spec=",.0f")


if __name__ == "__main__":
    sys.exit(job(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
