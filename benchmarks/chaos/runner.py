"""One run of the chaos benchmark: a Hub with bad weather, producers on one spool, and somebody who kills them.

All that happens is written into `events.jsonl` of the run's directory, which also holds the Hub, the spool, the ledgers
and a log of every producer: what a post-mortem needs.
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

_END_S = 120.0  # what the last lives, and the drain, may take without any fault
_SPARED = 0.7  # of the kills that would strike a stopped process: others must get the time to take over from it


@dataclass
class Outcome:
    """What a run was, and what it came to.

    Attributes:
        kills: SIGKILLs; `of_committer` of them struck the process that committed.
        stops: SIGSTOPs, each followed by SIGCONT or SIGKILL.
        struck: how often each kind of weather struck a request.
        recovered_s: for every kill of the committer, how long until the next commit stood on the Hub; with all waits
            for the Hub's weather in it, since a commit may also wait for that.
        wrong: what is wrong, by kind.
    """

    seed: int
    kills: int = 0
    of_committer: int = 0
    stops: int = 0
    closed: int = 0
    spells: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    drains: int = 0
    storm_s: float = 0.0
    judged_s: float = 0.0
    recovered_s: list[float] = field(default_factory=list)
    verdict: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)


class _Life:
    """A producer and the process that it is now."""

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

    def again(self) -> None:
        self.job = replace(self.job, life=self.job.life + 1)
        self.start()


class ChaosRun:
    """Runs one seed in `directory`, which is kept."""

    def __init__(self, directory: Path, *, seed: int, kills: int, producers: int) -> None:
        self.directory = directory
        self._outcome = Outcome(seed)
        self._seed = seed
        self._kills = kills
        self._producers = producers
        self._died: list[str] = []
        self._disobeyed: list[str] = []
        self._stuck: list[str] = []
        self._committer_kills: list[float] = []
        self._spell = FaultPeriod(0, "calm")
        self._spell_began = 0.0
        self._changes = 0  # starts, stops and ends of stops, within this spell
        self._stopped: tuple[_Life, int] | None = None  # and its pid
        self._faults: list[int] = []
        for name in ("ledgers", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self._events = (directory / "events.jsonl").open("a", buffering=1)

    def run(self) -> Outcome:
        with self._events, BenchmarkHub(self.directory) as self._hub:
            began = time.monotonic()
            self._prepare()
            self._lives = [_Life(job) for job in self._jobs()]
            try:
                for life in self._lives:
                    life.start()
                self._blow()
                self._end()
            finally:
                for process in [life.process for life in self._lives if life.process is not None]:
                    process.kill()
                    process.join()
            self._drain()
            self._outcome.storm_s = time.monotonic() - began
            self._judge()
        return self._outcome

    def _say(self, what: str, **more: Any) -> None:
        self._events.write(json.dumps({"t": time.time(), "what": what, **more}) + "\n")

    # Before.

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
        """Where huggingface_hub looks for it, whole at any time."""
        file = Path(os.environ["HF_HOME"], "token")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".new").write_text(self._hub.token)
        file.with_suffix(".new").replace(file)

    def _jobs(self) -> list[Job]:
        """Both kinds of producer, both kinds of storage, and plain LFS as well as Xet, shuffled."""
        rng = random.Random(f"{self._seed}/jobs")
        flip, plain = rng.random() < 0.5, rng.randrange(self._producers)
        jobs = [
            Job(
                self.directory, self._hub.endpoint, self._seed, f"p{n}",
                kind="keys" if n % 2 else "offsets",
                config="large" if (n % 2 == 0) == flip else "default",
                xet=n != plain,
                leaves=rng.random() < 0.5,
            )
            for n in range(self._producers)
        ]  # fmt: skip
        run = {"seed": self._seed, "sources": [job.source for job in jobs], "jobs": [repr(job) for job in jobs]}
        (self.directory / "run.json").write_text(json.dumps(run, indent=1))
        return jobs

    # The storm.

    def _blow(self) -> None:
        to_kill, to_stop, weather = kills(self._seed), stops(self._seed), fault_periods(self._seed)
        kill, stop = next(to_kill), next(to_stop)
        now = time.monotonic()
        kill_at, stop_at, turn_at = now + kill.after_s, now + stop.after_s, now
        while self._outcome.kills < self._kills:
            self._restart_ended()
            now = time.monotonic()
            if now >= turn_at:
                self._turn(next(weather))
                turn_at = time.monotonic() + self._spell.seconds
            if now >= stop_at and self._stopped is None:
                self._stop(stop)
                stop_at = time.monotonic() + stop.seconds
                stop = next(to_stop)
            elif now >= stop_at:
                self._let_go_on()
                stop_at = time.monotonic() + stop.after_s
            if now >= kill_at:
                self._kill(kill)
                kill = next(to_kill)
                kill_at = time.monotonic() + kill.after_s
            time.sleep(max(0.0, min(kill_at, stop_at, turn_at, now + 0.02) - time.monotonic()))
        self._let_go_on()
        self._turn(FaultPeriod(0, "calm"))

    def _victim(self, of: Kill | Stop) -> _Life:
        victim = self._lives[int(of.pick * len(self._lives))]
        if of.victim == "youngest":
            return max(self._lives, key=lambda life: life.started)
        if of.victim == "committer":
            committer = self._committer()
            return next((life for life in self._lives if life.process.pid == committer), victim)
        return victim

    def _stop(self, stop: Stop) -> None:
        victim = self._victim(stop)
        self._stopped = victim, victim.process.pid
        self._outcome.stops += 1
        self._changes += 1
        self._say("stop", source=victim.job.source, life=victim.job.life, pid=victim.process.pid,
                  committer=victim.process.pid == self._committer(), seconds=round(stop.seconds, 2))  # fmt: skip
        self._signal(victim, signal.SIGSTOP)

    def _let_go_on(self) -> None:
        if self._stopped is not None:
            (life, pid), self._stopped = self._stopped, None
            if life.process.pid == pid:  # it was not killed meanwhile
                self._changes += 1
                self._say("goes on", source=life.job.source, life=life.job.life, pid=pid)
                self._signal(life, signal.SIGCONT)

    def _signal(self, life: _Life, number: signal.Signals) -> None:
        if life.process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(life.process.pid, number)

    def _kill(self, kill: Kill) -> None:
        committer = self._committer()
        victim = self._victim(kill)
        if self._stopped is not None and victim is self._stopped[0] and kill.pick < _SPARED:
            victim = next((life for life in self._lives if life is not victim), victim)
        age = time.monotonic() - victim.started
        at, pid = time.time(), victim.process.pid
        victim.process.kill()
        victim.process.join()
        if victim.process.exitcode != -signal.SIGKILL:
            return  # it ended a moment before, and is seen to be so
        self._outcome.kills += 1
        if pid == committer:
            self._outcome.of_committer += 1
            self._committer_kills.append(at)
        self._say("kill", number=self._outcome.kills, source=victim.job.source, life=victim.job.life, pid=pid,
                  committer=pid == committer, age_s=round(age, 3))  # fmt: skip
        self._start(victim)

    def _committer(self) -> int | None:
        try:
            return int((self.directory / "spool" / "committer.lock").read_text() or 0)
        except (OSError, ValueError):
            return None

    def _start(self, life: _Life) -> None:
        life.again()
        self._changes += 1
        self._say("start", source=life.job.source, life=life.job.life, pid=life.process.pid)

    def _restart_ended(self) -> None:
        for life in self._lives:
            if life.process.exitcode is not None:
                self._note_end(life)
                self._start(life)

    def _note_end(self, life: _Life) -> None:
        job, code = life.job, life.process.exitcode
        self._say("end", source=job.source, life=job.life, exitcode=code)
        if code == 0:
            self._outcome.closed += 1
        else:
            self._died.append(f"{job.source}.{job.life} ended unexpectedly with {code}: logs/{job.source}.log")

    # The weather.

    def _turn(self, spell: FaultPeriod) -> None:
        """The weather changes. Faults go one by one, so that what hangs or lands late does so in its own time."""
        before, lasted = self._spell, time.monotonic() - self._spell_began
        struck = {fault["id"]: fault for fault in self._hub.control("GET", "faults")}
        for number in self._faults:
            self._hub.control("DELETE", f"faults/{number}")
            times = struck[number]["struck"]
            self._outcome.struck[before.name] += times
            self._say("spell over", name=before.name, struck=times, seen=struck[number]["seen"])
            if before.asks_s is not None and times > lasted / before.asks_s + 1 + self._changes:
                self._disobeyed.append(
                    f"{times} commits in {lasted:.2f} s of {before.name} with {before.asks_s} s to wait, and "
                    f"{self._changes} changes of processes"
                )
        if before.expires:
            self._hub.renew_token()
            self._write_token()
            self._outcome.struck[before.name] += 1
        self._spell, self._spell_began, self._changes = spell, time.monotonic(), 0
        self._say("spell", name=spell.name, seconds=round(spell.seconds, 2), faults=spell.faults)
        self._outcome.spells += 1
        self._faults = [self._hub.control("POST", "faults", fault)["id"] for fault in spell.faults]
        if spell.expires:
            self._hub.revoke_token()

    # The end.

    def _end(self) -> None:
        """The sky clears; every producer puts a little more and ends: some close, some just go."""
        self._hub.control("DELETE", "faults")
        (self.directory / "end").touch()
        self._say("the end begins")
        until = time.monotonic() + _END_S
        running = list(self._lives)
        while running and time.monotonic() < until:
            time.sleep(0.02)
            for life in running:
                if life.process.exitcode is not None:
                    self._note_end(life)
            running = [life for life in running if life.process.exitcode is None]
        for life in running:
            self._signal(life, signal.SIGUSR1)  # its stacks, into its log
            time.sleep(0.5)
            self._stuck.append(
                f"{life.job.source}.{life.job.life} did not end in {_END_S:g} s: logs/{life.job.source}.log"
            )
        while self._hub.control("GET", "health")["held"]:
            time.sleep(0.05)

    def _drain(self) -> None:
        """By the command, as a person would, until it says that all is there."""
        # As if an hour had passed: the command keeps to the usual quota, of which a storm spends several hours'.
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
        said = (done.stderr.splitlines() or ["nothing"])[-1]
        self._stuck.append(f"hubsync drain did not succeed in {_END_S:g} s and said {said!r}: logs/drain.log")

    def _judge(self) -> None:
        began = time.monotonic()
        requests = self._hub.control("GET", "requests")
        (self.directory / "requests.json").write_text(json.dumps(requests))
        done = self._command("judge", ["benchmarks.chaos.judge", str(self.directory)])
        if done.returncode:
            raise RuntimeError(f"the judgement failed: {done.stderr[-2_000:]}")
        self._outcome.verdict = verdict = json.loads(done.stdout)
        commits = verdict["commit_times"]
        for at in self._committer_kills:
            self._outcome.recovered_s += (
                [next(commit - at for commit in commits if commit > at)] if commits[-1] > at else []
            )
        alarms = self.directory / "alarms.txt"
        found = {
            name: list(said) for name, said in verdict.items() if isinstance(said, list) and name != "commit_times"
        }
        found |= {"died": self._died, "stuck": self._stuck, "disobeyed": self._disobeyed}
        found["alarms"] = alarms.read_text().splitlines() if alarms.exists() else []
        self._outcome.wrong = {name: said for name, said in found.items() if said}
        self._outcome.judged_s = time.monotonic() - began
        self._say("judged", wrong=self._outcome.wrong)

    def _command(
        self, name: str, module: Sequence[str], timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a module as a process of its own, with what it says in the logs."""
        rng = random.Random(f"{self._seed}/{name}")
        environ = {
            **os.environ,
            "HF_ENDPOINT": self._hub.endpoint,
            "HF_HUB_DISABLE_XET": str(rng.randrange(2)) if name == "drain" else "0",
        }
        if name == "judge":
            environ |= {"HF_HOME": f"{self.directory}/hf-of-judge", "HF_TOKEN": self._hub.token}
        self._say(name)
        try:
            done = subprocess.run(
                [sys.executable, "-m", *module], env=environ, capture_output=True, text=True, check=False,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stderr or b""
            done = subprocess.CompletedProcess([], -1, "", said.decode() if isinstance(said, bytes) else said)
        with (self.directory / "logs" / f"{name}.log").open("a") as log:
            log.write(done.stderr)
        self._say(f"{name} ended", exitcode=done.returncode)
        return done
