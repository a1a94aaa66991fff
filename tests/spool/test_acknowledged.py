"""A catalogue that was set back is refused before it costs a row: it takes acknowledged rows for torn tails."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import ShardPolicy, SpoolError, Uploader
from hubsync.localhub import LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.rebuild import rebuild
from hubsync.spool import acknowledged
from tests.conftest import Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


@pytest.fixture
def killed(uploader: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> Path:
    """A spool as SIGKILL leaves it, sealed segments and an open one; `before` is from after its first row."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader(shard=ShardPolicy(max_rows=2, linger_s=3600)) as up:
        for n in range(1, 6):
            up.put([{"id": n}])
            if n == 1:
                shutil.copytree(up.spool, tmp_path / "before")
        note = next(up.spool.glob("writers/*.ack"))
        until(lambda: int.from_bytes(note.read_bytes()[40:48], "little") == 3)
        shutil.copytree(up.spool, tmp_path / "killed")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return tmp_path / "killed"


def without_its_log(spool: Path) -> None:
    (spool / "catalogue.sqlite-wal").unlink()


def with_an_older_catalogue(spool: Path) -> None:
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
        shutil.copy(spool.parent / "before" / file.name, file)


@pytest.mark.parametrize("damage", [without_its_log, with_an_older_catalogue])
def test_a_catalogue_that_was_set_back_is_refused_and_rescued(
    killed: Path, uploader: Make, dataset: Dataset, damage: Callable[[Path], None]
) -> None:
    damage(killed)
    before = {file.name: file.read_bytes() for file in (killed / "segments").iterdir()}
    for _ in range(2):
        with pytest.raises(SpoolError, match=r"was set back.*hubsync drain --rescue"):
            uploader(spool=killed).open()
    assert {file.name: file.read_bytes() for file in (killed / "segments").iterdir()} == before
    report = rebuild(killed)
    assert report is not None
    assert any("which keys were accepted" in text for text in report.unknown)
    drain(killed, timeout=60)
    assert dataset.ids() == [1, 2, 3, 4, 5]
    with uploader(spool=killed) as up:
        up.put([{"id": 6}])
    assert dataset.ids() == [1, 2, 3, 4, 5, 6]


def test_a_spool_whose_process_was_killed_opens(killed: Path, uploader: Make, dataset: Dataset) -> None:
    assert rebuild(killed) is None
    with uploader(spool=killed):
        pass
    assert dataset.ids() == [1, 2, 3, 4, 5]


def test_after_a_power_cut_the_catalogue_may_be_older(
    killed: Path, uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without fsync that is expected, and the job must go on without a person; but not without a word."""
    with_an_older_catalogue(killed)
    monkeypatch.setattr(acknowledged, "_boot", lambda: b"another boot")
    with uploader(spool=killed) as up:
        up.put([{"id": 7}])
    assert dataset.ids() == [1, 7]
    assert "3 files" in caplog.text
    assert "durability" in caplog.text
