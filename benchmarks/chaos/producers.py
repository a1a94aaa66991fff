"""The jobs of the chaos benchmark: each producer is a process that may be killed at any time; its rows show any damage.

One kind of producer numbers its batches by offset, and asks the uploader where to resume. The other gives its batches
keys, and puts all of them again from the first one whenever it starts. When `put` returns, the producer records that in
a ledger with a single `write`, which survives a SIGKILL. This module imports all that a job needs, so the fork server
has already loaded it.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import os
import random
import re
import signal
import sqlite3
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

import anyio._backends._asyncio
import httpx
import huggingface_hub.hf_api

import hubsync.cli.main
import hubsync.destinations.hub.dataset
import hubsync.uploader.engine
from hubsync import CommitPolicy, HubsyncError, Receipt, RetryPolicy, ShardPolicy, Uploader
from hubsync.destinations.hub import card
from hubsync.errors import BlockedError, OffsetUnknown

# Not hf_xet: importing it starts a thread, which would not survive the fork.
_PRELOADED = (anyio, httpx, huggingface_hub, hubsync, sqlite3, card.preload())

REPO = "user/chaos"
_log = logging.getLogger("chaos")
_LINE = re.compile(r"(try|got) (\d+) (\d+) \.")
_ROWS_PER_KEY = 10  # row numbers reserved for the batch of one key
_ODD_TEXTS = ("", "\n", "\u2028 line", "é ü 漢字 🌊", '"quoted" \\n', "\x00\x7f", "</script>", "\r\n\t")

Kind = Literal["offsets", "keys"]


@dataclass(frozen=True)
class Job:
    """What one process of a producer does.

    Attributes:
        directory: of the run, with the spool, the ledgers and the logs.
        endpoint: of the Hub.
        seed: of the run.
        source: name of the producer.
        kind: how it resumes.
        config: shards of "large" are always stored in LFS or Xet, because the repo's `.gitattributes` says so.
        xet: whether it may use Xet; otherwise plain LFS.
        exits_without_close: at the end of the run it exits at once, instead of draining.
        restarts: how often the producer was started before.
    """

    directory: Path
    endpoint: str
    seed: int
    source: str
    kind: Kind
    config: str
    xet: bool
    exits_without_close: bool
    restarts: int = 0


def row(seed: int, source: str, n: int) -> dict[str, Any]:
    """Return row number `n` of a source, the same on every call: up to 20 kB, but mostly much smaller."""
    rng = random.Random(f"{seed}/{source}/{n}")
    text = rng.randbytes(int(25 * 400 ** rng.random())).hex() + _ODD_TEXTS[n % len(_ODD_TEXTS)]
    check = hashlib.sha256(f"{source}/{n}/{text}".encode()).hexdigest()[:16]
    return {"id": f"{source}-{n}", "source": source, "n": n, "text": text, "check": check}


def numbers_of_key(seed: int, source: str, key: int) -> range:
    """Return the row numbers in the batch of a key, the same on every call."""
    first = key * _ROWS_PER_KEY
    return range(first, first + random.Random(f"{seed}/{source}/key/{key}").randint(1, 6))


class Ledger:
    """Records what a source tried to put, and what was accepted. A line is written completely or not at all."""

    def __init__(self, directory: Path, source: str) -> None:
        self._path = directory / "ledgers" / f"{source}.txt"

    def read(self) -> tuple[set[int], set[int]]:
        """Return the row numbers (tried, accepted)."""
        found: dict[str, set[int]] = {"try": set(), "got": set()}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            if match := _LINE.fullmatch(line):
                found[match[1]].update(range(int(match[2]), int(match[3]) + 1))
        return found["try"], found["got"]

    def open(self) -> None:
        """Open the file for `record`."""
        self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def record(self, what: Literal["try", "got"], numbers: range) -> None:
        """Append a line for these row numbers."""
        os.write(self._fd, f"{what} {numbers[0]} {numbers[-1]} .\n".encode())


def produce(job: Job) -> None:
    """Open an uploader, resume, and put batches until the process is killed, closes, or has to end."""
    _set_up_process(job)
    producer = _Producer(job)
    if job.kind == "offsets":
        producer.by_offset()
    else:
        producer.by_key()


def _set_up_process(job: Job) -> None:
    os.environ["HF_ENDPOINT"] = job.endpoint
    os.environ.pop("HF_TOKEN", None)
    os.environ["HF_HUB_DISABLE_XET"] = "0" if job.xet else "1"
    log = os.open(job.directory / "logs" / f"{job.source}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    form = f"%(asctime)s.%(msecs)03d {job.source}.{job.restarts} %(process)d %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", force=True)
    logging.getLogger("hubsync").setLevel(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class _Producer:
    """A producer of either kind: an open uploader, a ledger, and random behaviour."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rng = random.Random(f"{job.seed}/{job.source}/life/{job.restarts}")
        self.ledger = Ledger(job.directory, job.source)
        self.tried, self.got = self.ledger.read()
        self.ledger.open()
        self.closes_after = self.rng.randint(3, 40) if self.rng.random() < 0.2 else None
        self.batches = 0
        self.left: int | None = None  # batches still to put before it ends
        self.up = self._open()
        _log.info("opened as %s; %d rows accepted so far", self.up.writer, len(self.got))

    def _open(self) -> Uploader:
        policies: dict[str, Any] = {
            "shard": ShardPolicy(linger_s=0.05, max_rows=self.rng.randint(20, 60)),
            # High enough to hardly slow commits down, since after 429s the rate limiter uses as little as 1/16 of it.
            "commit": CommitPolicy(per_hour=self.rng.choice((100_000, 1_000_000))),
            "retry": RetryPolicy(initial_s=0.02, max_s=0.3, blocked_s=0.3, request_timeout_s=1.5),
        }
        while True:
            try:
                return Uploader(REPO, config=self.job.config, spool=self.job.directory / "spool", **policies).open()
            except BlockedError as error:  # the token has expired; the run will issue a new one
                _log.info("cannot open: %s", error)
                time.sleep(self.rng.uniform(0.05, 0.2))

    def alarm(self, text: str) -> None:
        """Report something that must never happen."""
        _log.error("ALARM %s", text)
        with (self.job.directory / "alarms.txt").open("a") as file:
            file.write(f"{self.job.source}.{self.job.restarts}: {text}\n")

    def by_offset(self) -> None:
        """Put batches with offsets, from the first one that the uploader does not know."""
        known = self._last_offset()
        if self.got and (known is None or known < max(self.got)):
            self.alarm(f"offset() is {known}, but row {max(self.got)} was accepted")
        if known is not None and known not in self.tried:
            self.alarm(f"offset() is {known}, which was never put")
        n = 0 if known is None else known + 1
        while self._continues():
            numbers = range(n, n + self.rng.choice((1, 1, 2, 3, 5, 8)))
            receipt = self._put(numbers, offset=numbers[-1], source=self.job.source)
            if receipt.replayed:
                self.alarm(f"rows {numbers} were never put, but the receipt says replayed")
            n = numbers[-1] + 1

    def _last_offset(self) -> int | None:
        while True:
            try:
                return self.up.offset(self.job.source)
            except OffsetUnknown as error:  # the spool is new, and the Hub is down
                _log.info("%s", error)
                time.sleep(0.1)

    def by_key(self) -> None:
        """Put batches with keys: first all accepted ones again, then new ones."""
        for key in count(self._put_accepted_again()):
            if not self._continues():
                break
            numbers = numbers_of_key(self.job.seed, self.job.source, key)
            receipt = self._put(numbers, key=f"{self.job.source}/{key}")
            if receipt.replayed and numbers[0] not in self.tried:
                self.alarm(f"key {key} was never put, but the receipt says replayed")

    def _put_accepted_again(self) -> int:
        """Put all accepted batches again, from the first key on, and return their number."""
        receipts: list[Receipt] = []
        for key in count():
            numbers = numbers_of_key(self.job.seed, self.job.source, key)
            if numbers[0] not in self.got:
                break
            receipts.append(self._put(numbers, key=f"{self.job.source}/{key}", ack="queued"))
        for known, receipt in enumerate(receipts):
            receipt.wait("spooled")
            if not receipt.replayed:
                self.alarm(f"key {known} was accepted twice")
        _log.info("put %d keys again", len(receipts))
        return len(receipts)

    def _put(self, numbers: range, **arguments: Any) -> Receipt:
        rows = [row(self.job.seed, self.job.source, n) for n in numbers]
        if arguments.get("ack") == "queued":
            return self.up.put(rows, **arguments)
        self.ledger.record("try", numbers)
        receipt = self.up.put(rows, **arguments)
        self.ledger.record("got", numbers)
        return receipt

    def _continues(self) -> bool:
        """Pause, flush or end between two batches; return False at the end."""
        self.batches += 1
        if self.left is None and (self.job.directory / "end").exists():
            self.left = 10
        elif self.left is not None:
            self.left -= 1
        if self.left is not None:
            if self.left <= 0:
                self._end()
                return False
        elif self.closes_after is not None and self.batches > self.closes_after:
            self._close()
            return False
        chance = self.rng.random()
        if chance < 0.03:
            try:
                self.up.flush(timeout=self.rng.uniform(0.1, 2))
            except HubsyncError as error:  # an expired token or the timeout; the rows are in the spool
                _log.info("flush: %s", error)
        elif chance < 0.08:
            time.sleep(self.rng.uniform(0.1, 0.4))
        elif chance < 0.6:
            time.sleep(self.rng.uniform(0.002, 0.06))
        return True

    def _end(self) -> None:
        if self.job.exits_without_close:
            _log.info("exiting without closing")
            os._exit(0)
        self._close()

    def _close(self) -> None:
        _log.info("closing")
        try:
            self.up.close()
        except BlockedError as error:
            _log.info("closed with rows in the spool: %s", error)
        _log.info("closed")
