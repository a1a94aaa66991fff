"""A power cut takes bytes of sealed segments that the kernel had not written yet."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hubsync import NotDrained, ShardPolicy, ShardsRefused, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.compact import compact
from hubsync.maintenance.drain import drain
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.model.commit import Watermark
from tests.conftest import Dataset


def test_a_truncated_or_missing_sealed_segment_does_not_delay_others(
    hub: LocalHub,
    uploader: Callable[..., Uploader],
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    up = uploader(shard=ShardPolicy(max_rows=2, linger_s=3600)).open()
    hub.faults.add(Fault.outage())
    for n in range(8):
        up.put([{"id": n}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.2)
    hub.faults.clear()
    torn, gone, *_ = sorted((tmp_path / "spool" / "segments").glob("*.jsonl"))
    os.truncate(torn, torn.stat().st_size - 3)
    gone.unlink()
    drain(tmp_path / "spool", timeout=20)
    assert dataset.ids() == [0, 4, 5, 6, 7]
    assert sum("by a power cut" in record.message for record in caplog.records) == 2


@pytest.mark.slow("opens a spool several times")
def test_what_is_left_of_a_truncated_staged_shard_is_uploaded_unless_it_landed(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    up = uploader(shard=ShardPolicy(max_rows=2, linger_s=3600)).open()
    hub.faults.add(Fault.outage(on="commit"))
    for n in range(6):
        up.put([{"id": n}])
    with pytest.raises(NotDrained):
        up.close(timeout=2)
    hub.faults.clear()
    with sqlite3.connect(tmp_path / "spool" / "catalogue.sqlite") as db:
        found = db.execute("SELECT state, file, path FROM segments ORDER BY id").fetchall()
    assert {state for state, _, _ in found} == {"staged"}
    torn, landed, _ = (tmp_path / "spool" / "segments" / file for _, file, _ in found)
    dataset.api.upload_file(
        path_or_fileobj=landed.read_bytes(), path_in_repo=found[1][2], repo_id="user/rows", repo_type="dataset"
    )
    for file in (torn, landed):
        os.truncate(file, file.stat().st_size - 3)
    drain(tmp_path / "spool", timeout=20)
    assert dataset.ids() == [0, 2, 3, 4, 5]


def test_a_catalogue_that_was_rolled_back_repeats_no_row(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut takes the last seconds of an unsynced log; the Hub has what was committed in them."""
    up = uploader().open()
    spool = up.spool
    up.put([{"id": 1}], offset=1)
    up.flush(timeout=20)
    kept = {file: file.read_bytes() for file in spool.glob("catalogue.sqlite*") if not file.name.endswith("-shm")}
    for n in (2, 3):
        up.put([{"id": n}], offset=n)
        up.flush(timeout=20)
    up.close()
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
    for file, content in kept.items():
        file.write_bytes(content)
    with uploader() as up:
        assert up.offset() == 3
        up.put([{"id": 3}], offset=3)
        up.put([{"id": 4}], offset=4)
        up.flush(timeout=20)
    assert dataset.ids() == [1, 2, 3, 4]
    assert [mark.rows for mark in marks(dataset)] == [4]
    assert "was rolled back" in caplog.text
    with uploader() as up:
        up.put([{"id": 5}], offset=5)
    assert caplog.text.count("was rolled back") == 1
    assert [mark.rows for mark in marks(dataset)] == [5]


@pytest.mark.parametrize("is_merged", [False, True])
def test_a_spool_rolled_back_to_before_its_first_commit_repeats_no_row(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, is_merged: bool
) -> None:
    hub.faults.add(Fault.outage(on="commit"))
    up = uploader(shard=ShardPolicy(linger_s=3600)).open()
    up.put([{"id": 1}], offset=1)
    with pytest.raises(NotDrained):
        up.close(timeout=0.5)
    hub.faults.clear()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    with uploader() as up:
        for n in (2, 3):
            up.put([{"id": n}], offset=n)
    if is_merged:
        assert compact("user/rows", endpoint=hub.endpoint, token=hub.token, min_age_s=0, apply=True).commits
    with uploader(spool=tmp_path / "copy") as up:
        assert up.offset() == 3
        up.put([{"id": 4}], offset=4)
    assert dataset.ids() == [1, 2, 3, 4]


@pytest.mark.slow("opens a spool several times")
@pytest.mark.parametrize("grown", [False, True])
def test_a_spool_rolled_back_while_segments_were_open_repeats_no_row(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, *, grown: bool
) -> None:
    """Their numbers and first rows are those of shards that are in the dataset."""
    slow = {"shard": ShardPolicy(linger_s=3600)}
    with uploader(**slow) as one, uploader(**slow) as two:
        for n, up in enumerate((one, two)):
            up.put([{"id": n}], offset=n, source=f"{n}")
            up.flush()
            up.put([{"id": n + 10}], offset=n + 10, source=f"{n}")
        shutil.copytree(one.spool, tmp_path / "copy")
        if grown:
            one.put([{"id": 20}], offset=20, source="0")
    with uploader(spool=tmp_path / "copy", **slow) as up:
        assert (up.offset("0"), up.offset("1")) == (20 if grown else 10, 11)
    assert dataset.ids() == [0, 1, 10, 11, *([20] if grown else [])]


@pytest.mark.slow("kills a job and opens its spool again")
@pytest.mark.parametrize("state", ["open", "sealed", "staged"])
def test_blocks_that_a_power_cut_zeroed_are_never_committed(
    hub: LocalHub,
    uploader: Callable[..., Uploader],
    dataset: Dataset,
    tmp_path: Path,
    state: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even if an earlier process read the file: it was in the kernel's memory then."""
    if state != "open":
        hub.faults.add(Fault.outage(on="commit" if state == "staged" else "preupload"))
    up = uploader(shard=ShardPolicy(linger_s=3600)).open()
    for n in range(4):
        up.put([{"id": n}])
    if state == "open":
        shutil.copytree(up.spool, tmp_path / "copy")
        up.close()
        dataset.api.delete_repo("user/rows", repo_type="dataset")
    else:
        with pytest.raises(NotDrained):
            up.close(timeout=1)
        hub.faults.clear()
        os.rename(tmp_path / "spool", tmp_path / "copy")
    with sqlite3.connect(tmp_path / "copy" / "catalogue.sqlite") as db:
        assert db.execute("SELECT state FROM segments").fetchall() == [(state,)]
    (file,) = (tmp_path / "copy" / "segments").glob("*.jsonl")
    content = file.read_bytes()
    file.write_bytes(content[:18] + bytes(len(content) - 18))
    with pytest.raises(ShardsRefused, match="2 of its 4 rows are lost: 18 bytes of"), uploader(spool=tmp_path / "copy"):
        pass
    assert dataset.ids() == [0, 1]
    assert "2 of its 4 rows are lost: 18 bytes of" in caplog.text


@pytest.mark.slow("kills a job and opens its spool again")
def test_a_file_that_was_changed_is_neither_committed_nor_deleted(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit may still be valid JSON. The file has its full length, so it was not a power cut."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.faults.add(Fault.outage(on="preupload"))
    up = uploader(shard=ShardPolicy(max_rows=2, linger_s=3600)).open()
    for n in range(4):
        up.put([{"id": n}], key=f"{n}")
    with pytest.raises(NotDrained):
        up.close(timeout=0.5)
    hub.faults.clear()
    bent, _ = sorted((tmp_path / "spool" / "segments").glob("*.jsonl"))
    bent.write_bytes(bent.read_bytes().replace(b'"id":1', b'"id":9'))
    depth = drain(tmp_path / "spool", timeout=20)
    assert (dataset.ids(), depth.rows, depth.dead) == ([2, 3], 0, 1)
    assert not bent.exists()
    with QuarantineCommands(tmp_path / "spool") as letter:
        (dead,) = letter.shards()
        assert dead.rows == 2
        assert "does not have the sha256 that was written" in dead.why
        letter.resubmit(dead)
    drain(tmp_path / "spool", timeout=20)
    assert dataset.ids() == [0, 2, 3, 9]  # as the operator decided


@pytest.mark.slow("kills a job and opens its spool again")
def test_a_file_that_cannot_be_inspected_is_not_lost(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since Python 3.14, `Path.exists` returns False there."""
    hub.faults.add(Fault.outage(on="preupload"))
    up = uploader().open()
    up.put([{"id": 1}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.5)
    hub.faults.clear()
    stat, failures = os.stat, [errno.EIO, errno.EACCES, errno.ESTALE]

    def fail(path: Any, *args: Any, **about: Any) -> os.stat_result:
        if failures and str(path).endswith(".jsonl"):
            raise OSError(failures.pop(), "can't be looked at", str(path))
        return stat(path, *args, **about)

    monkeypatch.setattr(os, "stat", fail)
    monkeypatch.setattr(Path, "exists", lambda self: os.path.exists(self))
    with uploader():
        pass
    assert failures == []
    assert dataset.ids() == [1]


def marks(dataset: Dataset) -> list[Watermark]:
    paths = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    return [msgspec.json.decode(dataset.read(path), type=Watermark) for path in paths]
