"""hf_xet gets the files that were checked, whatever takes their place meanwhile."""

from __future__ import annotations

import os
from typing import Any

import pytest

from hubsync.destinations.hub import xet as module
from hubsync.errors import UnreadableShard
from hubsync.model.shard import Shard
from tests.destinations.hostile import BATCH, ROWS, FakeHub, FakeXet, shard, talk

__all__ = ["shard"]  # a fixture

pytestmark = pytest.mark.skipif(not module._PROC.is_dir(), reason="needs /proc, by which a file is opened again")


def read_at_once(file: str) -> bytes:
    """Read without waiting for the writer of a pipe."""
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        return stream.read()


def test_a_pipe_in_the_place_of_a_file_does_not_hold_up_its_upload(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class SlowXet(FakeXet):
        def start_upload_file(self, file: str, *, sha256: str) -> FakeXet:
            shard.file.unlink()
            os.mkfifo(shard.file)
            read.append(read_at_once(file))
            return self

    monkeypatch.setattr("hf_xet.XetSession", SlowXet)
    talk(FakeHub(lfs=BATCH), lambda hub: hub.stage([shard]))
    assert read == [ROWS]


def test_a_few_files_of_an_upload_are_open_at_a_time(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    open_files = []

    class CountingXet(FakeXet):
        def start_upload_file(self, file: str, *, sha256: str) -> FakeXet:
            open_files.append(len(os.listdir("/proc/self/fd")))
            return self

    monkeypatch.setattr("hf_xet.XetSession", CountingXet)
    shards = [shard] * 60
    talk(FakeHub(lfs=BATCH), lambda hub: hub.stage(shards))
    assert len(open_files) == 60
    assert max(open_files) - open_files[0] < 16


def test_a_file_that_cannot_be_opened_is_unreadable(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    class RemovingXet(FakeXet):
        def new_upload_commit(self, **how: Any) -> FakeXet:
            shard.file.unlink()
            return self

    monkeypatch.setattr("hf_xet.XetSession", RemovingXet)
    assert isinstance(talk(FakeHub(lfs=BATCH), lambda hub: hub.stage([shard])), UnreadableShard)
