"""Fixtures and helpers of the spool's tests: batches, writers, and spools on a stopped clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubsync import ShardPolicy, SpoolPolicy
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.model.shard import Shard
from hubsync.model.target import Target
from hubsync.spool.plans import Plans
from hubsync.spool.shards import Shards
from hubsync.spool.spool import Spool
from hubsync.spool.writer import SpoolWriter
from hubsync.testing import ManualClock

TARGET = Target("http://127.0.0.1:1", "user/rows")


def batch(*ids: int, **about: Any) -> Batch:
    lines = b"".join(b'{"id":%d}\n' % n for n in ids)
    return Batch(lines, len(ids), Receipt(len(ids), len(lines)), **about)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def open_spool(directory: Path) -> Iterator[Callable[..., Spool]]:
    opened: list[Spool] = []

    def make(target: Target | None = TARGET, **policy: Any) -> Spool:
        spool = Spool(directory, target=target, policy=SpoolPolicy(**policy), clock=ManualClock())
        opened.append(spool)
        return spool

    yield make
    for spool in opened:
        spool.close()


def writer_of(spool: Spool, layout: Layout | None = None, **shard: Any) -> SpoolWriter:
    return SpoolWriter.open(spool, layout or Layout(), ShardPolicy(**shard))


def plans_of(spool: Spool) -> Plans:
    assert spool.lease.acquire()
    return spool.plans


def shards_of(spool: Spool) -> Shards:
    assert spool.lease.acquire()
    return spool.shards


def all_sealed(spool: Spool) -> list[Shard]:
    return spool.shards.to_stage(1000, 1 << 40)


def die(writer: SpoolWriter) -> None:
    """The process ends here: the locks go, and nothing else happens."""
    writer.order.release()
    writer._lock.release()
