"""Rebuilding a catalogue that is half readable, with leftovers, and while jobs start."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hubsync import SpoolBusy, Uploader
from hubsync._runtime import file_lock
from hubsync.localhub import LocalHub
from hubsync.maintenance import rebuild as rescuing
from hubsync.maintenance.drain import drain
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.salvage import SalvagedCatalogue
from hubsync.spool.spool import Spool
from tests.conftest import Dataset
from tests.maintenance.test_rebuild import _login, fill, header, spool

__all__ = ["_login", "spool"]


def break_table(spool: Path, table: str) -> None:
    file = spool / "catalogue.sqlite"
    db = sqlite3.connect(file)
    (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    db.close()
    with file.open("r+b") as stream:
        stream.seek((page - 1) * 4096)
        stream.write(b"\xff" * 4096)


def test_offsets_are_recovered_if_only_their_table_is_broken(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path
) -> None:
    fill(hub, uploader)
    break_table(spool, "offsets")
    assert rebuild(spool) is not None
    drain(spool, timeout=60)
    with uploader() as up:
        following = (up.offset("a") or 0) + 1
        for n in range(following, 32):
            up.put([{"id": n}], offset=n, source="a", timeout=20)
    assert dataset.ids() == list(range(32))


@pytest.mark.parametrize("damage", [header, lambda spool: break_table(spool, "offsets")], ids=["all", "one table"])
def test_a_leftover_whose_id_was_reused_does_not_stop_a_rebuild(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path, damage: Callable[[Path], None]
) -> None:
    fill(hub, uploader)
    number = sorted((spool / "segments").glob("*.jsonl"))[-1].stem.rpartition("-")[2]
    (spool / "segments" / f"00000000-{number}.jsonl").write_bytes(b'{"id":99}\n')
    damage(spool)
    assert rebuild(spool) is not None
    drain(spool, timeout=60)
    assert [n for n in dataset.ids() if n != 99] == list(range(30))


@pytest.mark.slow("waits until a lease without heartbeat would be stolen")
@pytest.mark.parametrize("opens", [False, True])
def test_a_job_that_starts_during_a_rebuild(
    hub: LocalHub,
    uploader: Callable[..., Uploader],
    dataset: Dataset,
    spool: Path,
    monkeypatch: pytest.MonkeyPatch,
    opens: bool,
) -> None:
    fill(hub, uploader)
    read_remote = rescuing.read_remote
    monkeypatch.setattr(SalvagedCatalogue, "is_sound", lambda old: False)
    monkeypatch.setattr(rescuing, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(file_lock, "_STALLED_S", 1.5)  # which passes twice

    async def slowly(*args: Any) -> Any:
        with monkeypatch.context() as offline:
            offline.setenv("HF_HUB_OFFLINE", "1")
            if opens:
                with uploader() as up:
                    up.put([{"id": 30}])
        other = Spool(spool, target=None)
        for _ in range(10):
            assert not other.lease.acquire()
            await anyio.sleep(0.3)
        other.close()
        return await read_remote(*args)

    monkeypatch.setattr(rescuing, "read_remote", slowly)
    if opens:
        with pytest.raises(SpoolBusy):
            rebuild(spool)
        monkeypatch.setattr(rescuing, "read_remote", read_remote)
    rebuild(spool)
    drain(spool, timeout=60)
    assert dataset.ids() == list(range(31 if opens else 30))
