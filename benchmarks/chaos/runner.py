"""One run of the chaos benchmark: kill and stop producers that share a spool, while the Hub has faults.

For a post-mortem, the run's directory has all events in `events.jsonl`, and the Hub, the spool, the ledgers and a log
of each producer.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos.producers import REPO, Job, produce
from benchmarks.chaos.schedule import FaultPeriod, Kill, Stop, fault_periods, kills, stops
from benchmarks.hub import BenchmarkHub

_END_S = 120.0  # a limit for the producers' end, and for the drain, both without faults
_SPARED = 0.7  # share of kills of a stopped process that hit another one, so that others have time to take over


@dataclass
class Outcome:
    """The result of a run.

    Attributes:
        seed: of the run.
        kills: SIGKILLs.
        committer_kills: those that hit the committing process.
        stops: SIGSTOPs, each followed by SIGCONT or SIGKILL.
        closed: processes that closed or exited without being killed.
        fault_periods: how many.
        faults: how many requests each kind of fault period affected.
        drains: how often `hubsync drain` ran at the end.
        run_s: duration of the run.
        judge_s: duration of the judgement.
        recovered_s: for each kill of the committer, seconds until the next commit on the Hub, including its faults.
        verdict: what the judge found.
        wrong: what is wrong, by kind.
    """

    seed: int
    kills: int = 0
    committer_kills: int = 0
    stops: int = 0
    closed: int = 0
    fault_periods: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    drains: int = 0
    run_s: float = 0.0
    judge_s: float = 0.0
    recovered_s: list[float] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)


class _ProducerProcess:
    """A producer and its current process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started = 0.0
        self.process: Any = None

    def start(self) -> None:
        self.process = multiprocessing.get_context("forkserver").Process(
            target=produce, args=(self.job,), name=self.job.source
        )
        self.started = time.monotonic()
        self.process.start()

    def restart(self) -> None:
        self.job = replace(self.job, restarts=self.job.restarts + 1)
        self.start()


class ChaosRun:
    """Run one seed.

    Args:
        directory: of the run; it is kept.
        seed: draws the kills, the stops and the faults.
        kills: the run ends after so many SIGKILLs.
        producers: processes that share the spool.
    """

    def __init__(self, directory: Path, *, seed: int, kills: int, producers: int) -> None:
        self.directory = directory
        self._outcome = Outcome(seed)
        self._seed = seed
        self._kills = kills
        self._producer_count = producers
        self._died: list[str] = []
        self._disobeyed: list[str] = []
        self._stuck: list[str] = []
        self._committer_killed_at: list[float] = []
        self._period = FaultPeriod(0, "calm")
        self._period_began = 0.0
        self._changes = 0  # starts, stops and continues of processes within this period
        self._stopped: tuple[_ProducerProcess, int] | None = None  # with its pid
        self._fault_ids: list[int] = []
        for name in ("ledgers", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self._events = (directory / "events.jsonl").open("a", buffering=1)

    def run(self) -> Outcome:
        with self._events, BenchmarkHub(self.directory) as self._hub:
            began = time.monotonic()
            self._prepare()
            self._producers = [_ProducerProcess(job) for job in self._draw_jobs()]
            try:
                for producer in self._producers:
                    producer.start()
                self._interfere()
                self._end()
            finally:
                for process in [producer.process for producer in self._producers if producer.process is not None]:
                    process.kill()
                    process.join()
            self._drain()
            self._outcome.run_s = time.monotonic() - began
            self._judge()
        return self._outcome

    def _log(self, what: str, **more: Any) -> None:
        self._events.write(json.dumps({"t": time.time(), "what": what, **more}) + "\n")

    # Set up.

    def _prepare(self) -> None:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._hub.endpoint, token=self._hub.token)
        api.create_repo(REPO, repo_type="dataset")
        api.upload_file(
            path_or_fileobj=b"large/*.jsonl filter=lfs diff=lfs merge=lfs -text\n",
            path_in_repo=".gitattributes", repo_id=REPO, repo_type="dataset",
        )  # fmt: skip
        self._write_token()

    def _write_token(self) -> None:
        """Write the token to the file that huggingface_hub reads, and replace it atomically."""
        file = Path(os.environ["HF_HOME"], "token")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(self._hub.token)
        file.with_suffix(".new").replace(file)

    def _draw_jobs(self) -> list[Job]:
        """Draw producers of both kinds, with both kinds of storage, one with plain LFS and the others with Xet."""
        rng = random.Random(f"{self._seed}/jobs")
        flip, plain = rng.random() < 0.5, rng.randrange(self._producer_count)
        jobs = [
            Job(
                self.directory, self._hub.endpoint, self._seed, f"p{n}",
                kind="keys" if n % 2 else "offsets",
                config="large" if (n % 2 == 0) == flip else "default",
                xet=n != plain,
                exits_without_close=rng.random() < 0.5,
            )
            for n in range(self._producer_count)
        ]  # fmt: skip
        run = {"seed": self._seed, "sources": [job.source for job in jobs], "jobs": [repr(job) for job in jobs]}
        (self.directory / "run.json").write_text(json.dumps(run, indent=1))
        return jobs

    # Interfere.

    def _interfere(self) -> None:
        """Kill, stop and continue processes and change the faults of the Hub, until enough kills happened."""
        to_kill, to_stop, periods = kills(self._seed), stops(self._seed), fault_periods(self._seed)
        kill, stop = next(to_kill), next(to_stop)
        now = time.monotonic()
        kill_at, stop_at, period_at = now + kill.after_s, now + stop.after_s, now
        while self._outcome.kills < self._kills:
            self._restart_ended()
            now = time.monotonic()
            if now >= period_at:
                self._begin_period(next(periods))
                period_at = time.monotonic() + self._period.seconds
            if now >= stop_at and self._stopped is None:
                self._stop(stop)
                stop_at = time.monotonic() + stop.seconds
                stop = next(to_stop)
            elif now >= stop_at:
                self._continue()
                stop_at = time.monotonic() + stop.after_s
            if now >= kill_at:
                self._kill(kill)
                kill = next(to_kill)
                kill_at = time.monotonic() + kill.after_s
            time.sleep(max(0.0, min(kill_at, stop_at, period_at, now + 0.02) - time.monotonic()))
        self._continue()
        self._begin_period(FaultPeriod(0, "calm"))

    def _victim(self, event: Kill | Stop) -> _ProducerProcess:
        victim = self._producers[int(event.pick * len(self._producers))]
        if event.victim == "youngest":
            return max(self._producers, key=lambda producer: producer.started)
        if event.victim == "committer":
            committer = self._committer()
            return next((producer for producer in self._producers if producer.process.pid == committer), victim)
        return victim

    def _stop(self, stop: Stop) -> None:
        victim = self._victim(stop)
        self._stopped = victim, victim.process.pid
        self._outcome.stops += 1
        self._changes += 1
        self._log("stop", source=victim.job.source, restarts=victim.job.restarts, pid=victim.process.pid,
                  committer=victim.process.pid == self._committer(), seconds=round(stop.seconds, 2))  # fmt: skip
        self._signal(victim, signal.SIGSTOP)

    def _continue(self) -> None:
        if self._stopped is not None:
            (producer, pid), self._stopped = self._stopped, None
            if producer.process.pid == pid:  # otherwise it was killed while it was stopped
                self._changes += 1
                self._log("continue", source=producer.job.source, restarts=producer.job.restarts, pid=pid)
                self._signal(producer, signal.SIGCONT)

    def _signal(self, producer: _ProducerProcess, number: signal.Signals) -> None:
        if producer.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(producer.process.pid, number)

    def _kill(self, kill: Kill) -> None:
        committer = self._committer()
        victim = self._victim(kill)
        if self._stopped is not None and victim is self._stopped[0] and kill.pick < _SPARED:
            victim = next((producer for producer in self._producers if producer is not victim), victim)
        age_s = time.monotonic() - victim.started
        at, pid = time.time(), victim.process.pid
        victim.process.kill()
        victim.process.join()
        if victim.process.exitcode != -signal.SIGKILL:
            return  # it exited just before; `_restart_ended` will see that
        self._outcome.kills += 1
        if pid == committer:
            self._outcome.committer_kills += 1
            self._committer_killed_at.append(at)
        self._log("kill", number=self._outcome.kills, source=victim.job.source, restarts=victim.job.restarts, pid=pid,
                  committer=pid == committer, age_s=round(age_s, 3))  # fmt: skip
        self._restart(victim)

    def _committer(self) -> int | None:
        try:
            return int((self.directory / "spool" / "committer.lock").read_text() or 0)
        except (OSError, ValueError):
            return None

    def _restart(self, producer: _ProducerProcess) -> None:
        producer.restart()
        self._changes += 1
        job = producer.job
        self._log("start", source=job.source, restarts=job.restarts, pid=producer.process.pid)

    def _restart_ended(self) -> None:
        for producer in self._producers:
            if producer.process.exitcode is not None:
                self._record_exit(producer)
                self._restart(producer)

    def _record_exit(self, producer: _ProducerProcess) -> None:
        job, code = producer.job, producer.process.exitcode
        self._log("exit", source=job.source, restarts=job.restarts, exitcode=code)
        if code == 0:
            self._outcome.closed += 1
        else:
            self._died.append(f"{job.source}.{job.restarts} ended unexpectedly with {code}: logs/{job.source}.log")

    def _begin_period(self, period: FaultPeriod) -> None:
        """End the current fault period and begin another.

        Faults are removed one by one: removing all at once would also release the requests that hang or are delayed.
        """
        before, lasted_s = self._period, time.monotonic() - self._period_began
        by_id = {fault["id"]: fault for fault in self._hub.control("GET", "faults")}
        for number in self._fault_ids:
            self._hub.control("DELETE", f"faults/{number}")
            affected = by_id[number]["struck"]
            self._outcome.faults[before.name] += affected
            self._log("period ended", name=before.name, affected=affected, seen=by_id[number]["seen"])
            if before.retry_after_s is not None and affected > lasted_s / before.retry_after_s + 1 + self._changes:
                self._disobeyed.append(
                    f"{affected} commits in {lasted_s:.2f} s of {before.name}, though each had to wait "
                    f"{before.retry_after_s} s and only {self._changes} processes were started, stopped or continued"
                )
        if before.expires:
            self._hub.renew_token()
            self._write_token()
            self._outcome.faults[before.name] += 1
        self._period, self._period_began, self._changes = period, time.monotonic(), 0
        self._log("period", name=period.name, seconds=round(period.seconds, 2), faults=period.faults)
        self._outcome.fault_periods += 1
        self._fault_ids = [self._hub.control("POST", "faults", fault)["id"] for fault in period.faults]
        if period.expires:
            self._hub.revoke_token()

    # End.

    def _end(self) -> None:
        """Remove all faults and wait until every producer has put a few more batches and exited."""
        self._hub.control("DELETE", "faults")
        (self.directory / "end").touch()
        self._log("end")
        until = time.monotonic() + _END_S
        running = list(self._producers)
        while running and time.monotonic() < until:
            time.sleep(0.02)
            for producer in running:
                if producer.process.exitcode is not None:
                    self._record_exit(producer)
            running = [producer for producer in running if producer.process.exitcode is None]
        for producer in running:
            self._signal(producer, signal.SIGUSR1)  # writes all stacks to its log
            time.sleep(0.5)
            job = producer.job
            self._stuck.append(f"{job.source}.{job.restarts} did not end in {_END_S:g} s: logs/{job.source}.log")
        while self._hub.control("GET", "health")["held"]:
            time.sleep(0.05)

    def _drain(self) -> None:
        """Run `hubsync drain` until it succeeds."""
        # The run spends several hours' worth of the default commit quota, which `drain` keeps to: forget that.
        catalogue = sqlite3.connect(self.directory / "spool" / "catalogue.sqlite")
        with catalogue:
            catalogue.execute("DELETE FROM meta WHERE key = 'governor'")
        catalogue.close()
        until = time.monotonic() + _END_S
        while (left_s := until - time.monotonic()) > 0:
            self._outcome.drains += 1
            done = self._command("drain", ["hubsync", "-v", "drain", str(self.directory / "spool")], left_s)
            if done.returncode == 0:
                return
            time.sleep(0.5)
        message = (done.stderr.splitlines() or ["nothing"])[-1]
        self._stuck.append(f"hubsync drain did not succeed in {_END_S:g} s; it printed {message!r}: logs/drain.log")

    def _judge(self) -> None:
        began = time.monotonic()
        requests = self._hub.control("GET", "requests")
        (self.directory / "requests.json").write_text(json.dumps(requests))
        done = self._command("judge", ["benchmarks.chaos.judge", str(self.directory)])
        if done.returncode:
            raise RuntimeError(f"the judge failed: {done.stderr[-2_000:]}")
        self._outcome.verdict = verdict = json.loads(done.stdout)
        commits = verdict["commit_times"]
        for at in self._committer_killed_at:
            self._outcome.recovered_s += (
                [next(commit - at for commit in commits if commit > at)] if commits[-1] > at else []
            )
        alarms = self.directory / "alarms.txt"
        found = {
            kind: list(texts) for kind, texts in verdict.items() if isinstance(texts, list) and kind != "commit_times"
        }
        found |= {"died": self._died, "stuck": self._stuck, "disobeyed": self._disobeyed}
        found["alarms"] = alarms.read_text().splitlines() if alarms.exists() else []
        self._outcome.wrong = {kind: texts for kind, texts in found.items() if texts}
        self._outcome.judge_s = time.monotonic() - began
        self._log("judged", wrong=self._outcome.wrong)

    def _command(
        self, name: str, module: Sequence[str], timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a module in its own process, and append its stderr to a log."""
        rng = random.Random(f"{self._seed}/{name}")
        environ = {
            **os.environ,
            "HF_ENDPOINT": self._hub.endpoint,
            "HF_HUB_DISABLE_XET": str(rng.randrange(2)) if name == "drain" else "0",
        }
        if name == "judge":
            environ |= {"HF_HOME": f"{self.directory}/hf-of-judge", "HF_TOKEN": self._hub.token}
        self._log(name)
        try:
            done = subprocess.run(
                [sys.executable, "-m", *module], env=environ, capture_output=True, text=True, check=False,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            stderr = error.stderr or b""
            done = subprocess.CompletedProcess([], -1, "", stderr.decode() if isinstance(stderr, bytes) else stderr)
        with (self.directory / "logs" / f"{name}.log").open("a") as log:
            log.write(done.stderr)
        self._log(f"{name} ended", exitcode=done.returncode)
        return done
