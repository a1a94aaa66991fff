"""A power cut that takes what the kernel had not written, of segments that were sealed already."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hubsync import NotDrained, ShardPolicy, Uploader
from hubsync.drain import drain
from hubsync.localhub import Fault, LocalHub
from hubsync.plan import Watermark
from tests.conftest import Dataset


def test_a_sealed_segment_that_is_short_or_gone_holds_nothing_else_up(
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
    assert sum("lost by a power cut" in record.message for record in caplog.records) == 2


def test_a_staged_shard_that_is_short_goes_up_as_far_as_it_is_there_and_not_again_where_it_has_landed(
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


def test_a_catalogue_that_was_set_back_brings_no_row_twice(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut takes the last seconds of a log that is not synced; the Hub has what was committed in them."""
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
    assert "the spool was set back" in caplog.text
    with uploader() as up:
        up.put([{"id": 5}], offset=5)
    assert caplog.text.count("the spool was set back") == 1
    assert [mark.rows for mark in marks(dataset)] == [5]


def marks(dataset: Dataset) -> list[Watermark]:
    paths = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    return [msgspec.json.decode(dataset.read(path), type=Watermark) for path in paths]
