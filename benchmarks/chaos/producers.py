"""The jobs of the chaos benchmark: producers of rows that show any damage, each a process that may die at any instant.

One kind counts by offset and asks where to go on; the other names its batches by keys and repeats all of them from the
beginning whenever it starts. What `put` returned for is written into a ledger at once, by a write of one line, which
survives the death of its process. The modules that a job needs are imported here, so a fork server has them already.
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

# Not hf_xet: it has a thread of its own from its import on, and a fork would lose it.
_PRELOADED = (anyio, httpx, huggingface_hub, hubsync, sqlite3, card.preload())

REPO = "user/chaos"
_log = logging.getLogger("chaos")
_LINE = re.compile(r"(try|got) (\d+) (\d+) \.")
_KEY_ROOM = 10  # row numbers of one key's batch
_ODD = ("", "\n", "\u2028 line", "é ü 漢字 🌊", '"quoted" \\n', "\x00\x7f", "</script>", "\r\n\t")

Kind = Literal["offsets", "keys"]


@dataclass(frozen=True)
class Job:
    """One life of one producer.

    Attributes:
        directory: the run's; holds the spool, the ledgers and the logs.
        life: how often it was started before.
        config: "large" is stored by LFS or Xet, whatever the size: the repo's `.gitattributes` says so.
        xet: whether Xet may be used, or plain LFS.
        leaves: at the end it goes without closing, rather than drain.
    """

    directory: Path
    endpoint: str
    seed: int
    source: str
    kind: Kind
    config: str
    xet: bool
    leaves: bool
    life: int = 0


def row(seed: int, source: str, n: int) -> dict[str, Any]:
    """Row number `n` of a source, the same whenever it is asked for: up to 20 kB, most of them much smaller."""
    rng = random.Random(f"{seed}/{source}/{n}")
    text = rng.randbytes(int(25 * 400 ** rng.random())).hex() + _ODD[n % len(_ODD)]
    check = hashlib.sha256(f"{source}/{n}/{text}".encode()).hexdigest()[:16]
    return {"id": f"{source}-{n}", "source": source, "n": n, "text": text, "check": check}


def keyed(seed: int, source: str, key: int) -> range:
    """The row numbers of a key's batch, the same whenever it is asked for."""
    return range(key * _KEY_ROOM, key * _KEY_ROOM + random.Random(f"{seed}/{source}/key/{key}").randint(1, 6))


class Ledger:
    """What a source tried to put, and what was accepted. One line each, which is there whole or not at all."""

    def __init__(self, directory: Path, source: str) -> None:
        self._path = directory / "ledgers" / f"{source}.txt"

    def read(self) -> tuple[set[int], set[int]]:
        """The row numbers (tried, accepted)."""
        found: dict[str, set[int]] = {"try": set(), "got": set()}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            if match := _LINE.fullmatch(line):
                found[match[1]].update(range(int(match[2]), int(match[3]) + 1))
        return found["try"], found["got"]

    def open(self) -> None:
        self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def tell(self, what: Literal["try", "got"], numbers: range) -> None:
        os.write(self._fd, f"{what} {numbers[0]} {numbers[-1]} .\n".encode())


def produce(job: Job) -> None:
    """One life: opens, goes on where the last one was, and puts until it is killed, closes, or is asked to end."""
    _settle_in(job)
    producer = _Producer(job)
    if job.kind == "offsets":
        producer.by_offset()
    else:
        producer.by_key()


def _settle_in(job: Job) -> None:
    os.environ["HF_ENDPOINT"] = job.endpoint
    os.environ.pop("HF_TOKEN", None)
    os.environ["HF_HUB_DISABLE_XET"] = "0" if job.xet else "1"
    log = os.open(job.directory / "logs" / f"{job.source}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    form = f"%(asctime)s.%(msecs)03d {job.source}.{job.life} %(process)d %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form, datefmt="%H:%M:%S", force=True)
    logging.getLogger("hubsync").setLevel(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)


class _Producer:
    """What both kinds share: an open uploader, drawn habits, the ledger."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.rng = random.Random(f"{job.seed}/{job.source}/life/{job.life}")
        self.ledger = Ledger(job.directory, job.source)
        self.tried, self.got = self.ledger.read()
        self.ledger.open()
        self.closes_after = self.rng.randint(3, 40) if self.rng.random() < 0.2 else None
        self.batches = 0
        self.last: int | None = None  # batches still to come, once it is asked to end
        self.up = self._open()
        _log.info("opened as %s; %d rows accepted so far", self.up.writer, len(self.got))

    def _open(self) -> Uploader:
        policies: dict[str, Any] = {
            "shard": ShardPolicy(linger_s=0.05, max_rows=self.rng.randint(20, 60)),
            # So many that they are hardly paced: refusals make the governor take as little as a sixteenth of it.
            "commit": CommitPolicy(per_hour=self.rng.choice((100_000, 1_000_000))),
            "retry": RetryPolicy(initial_s=0.02, max_s=0.3, blocked_s=0.3, request_timeout_s=1.5),
        }
        while True:
            try:
                return Uploader(REPO, config=self.job.config, spool=self.job.directory / "spool", **policies).open()
            except BlockedError as error:  # an expired token, which somebody renews
                _log.info("can't open: %s", error)
                time.sleep(self.rng.uniform(0.05, 0.2))

    def alarm(self, text: str) -> None:
        """Something that must never be, seen from within."""
        _log.error("ALARM %s", text)
        with (self.job.directory / "alarms.txt").open("a") as file:
            file.write(f"{self.job.source}.{self.job.life}: {text}\n")

    def by_offset(self) -> None:
        known = self._where_to_go_on()
        if self.got and (known is None or known < max(self.got)):
            self.alarm(f"offset() is {known}, but row {max(self.got)} was accepted")
        if known is not None and known not in self.tried:
            self.alarm(f"offset() is {known}, which was never put")
        n = 0 if known is None else known + 1
        while self._goes_on():
            numbers = range(n, n + self.rng.choice((1, 1, 2, 3, 5, 8)))
            receipt = self._put(numbers, offset=numbers[-1], source=self.job.source)
            if receipt.replayed:
                self.alarm(f"rows {numbers} were never put, and the receipt says that they were")
            n = numbers[-1] + 1

    def _where_to_go_on(self) -> int | None:
        while True:
            try:
                return self.up.offset(self.job.source)
            except OffsetUnknown as error:  # the first start of all, and the Hub is away
                _log.info("%s", error)
                time.sleep(0.1)

    def by_key(self) -> None:
        for key in count(self._repeated()):
            if not self._goes_on():
                break
            numbers = keyed(self.job.seed, self.job.source, key)
            receipt = self._put(numbers, key=f"{self.job.source}/{key}")
            if receipt.replayed and numbers[0] not in self.tried:
                self.alarm(f"key {key} was never put, and the receipt says that it was")

    def _repeated(self) -> int:
        """Puts all that was accepted once more, from the first key on; answers how many keys that were."""
        receipts: list[Receipt] = []
        for key in count():
            numbers = keyed(self.job.seed, self.job.source, key)
            if numbers[0] not in self.got:
                break
            receipts.append(self._put(numbers, key=f"{self.job.source}/{key}", ack="queued"))
        for known, receipt in enumerate(receipts):
            receipt.wait("spooled")
            if not receipt.replayed:
                self.alarm(f"key {known} was accepted before, and was accepted again")
        _log.info("%d keys repeated", len(receipts))
        return len(receipts)

    def _put(self, numbers: range, **how: Any) -> Receipt:
        rows = [row(self.job.seed, self.job.source, n) for n in numbers]
        if how.get("ack") == "queued":
            return self.up.put(rows, **how)
        self.ledger.tell("try", numbers)
        receipt = self.up.put(rows, **how)
        self.ledger.tell("got", numbers)
        return receipt

    def _goes_on(self) -> bool:
        """Between two batches: a pause, or a flush now and then, or the end."""
        self.batches += 1
        if self.last is None and (self.job.directory / "end").exists():
            self.last = 10
        elif self.last is not None:
            self.last -= 1
        if self.last is not None:
            if self.last <= 0:
                self._end()
                return False
        elif self.closes_after is not None and self.batches > self.closes_after:
            self._close()
            return False
        chance = self.rng.random()
        if chance < 0.03:
            try:
                self.up.flush(timeout=self.rng.uniform(0.1, 2))
            except HubsyncError as error:  # the token expired, or the time was too short: all is in the spool
                _log.info("flush: %s", error)
        elif chance < 0.08:
            time.sleep(self.rng.uniform(0.1, 0.4))
        elif chance < 0.6:
            time.sleep(self.rng.uniform(0.002, 0.06))
        return True

    def _end(self) -> None:
        if self.job.leaves:
            _log.info("leaves without closing")
            os._exit(0)
        self._close()

    def _close(self) -> None:
        _log.info("closes")
        try:
            self.up.close()
        except BlockedError as error:
            _log.info("closed with rows in the spool: %s", error)
        _log.info("closed")
