"""The committer's lease."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import SpoolLost, Uploader
from hubsync.maintenance.inspect import inspect_spool
from hubsync.spool.spool import Spool
from tests.conftest import Dataset


def test_only_one_committer_at_a_time_holds_the_lease(open_spool: Callable[..., Spool]) -> None:
    first, second = open_spool(), open_spool()
    assert first.lease.acquire()
    assert not second.lease.acquire()
    assert second.lease.holder_pid == os.getpid()
    first.lease.release()
    assert second.lease.holder_pid is None
    assert second.lease.acquire()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_something_else_in_the_place_of_the_lock_ends_a_job_and_says_what_to_do(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    with uploader() as up:
        up.put([{"id": 1}])
    lock = tmp_path / "spool" / "committer.lock"
    lock.unlink()
    make(lock)
    with pytest.raises(SpoolLost, match=rf"place of the lock {lock}.* rows .* are safe.* and remove"):
        uploader().open()
    assert inspect_spool(tmp_path / "spool").committer_pid is None
    lock.rmdir() if make is os.mkdir else lock.unlink()
    with uploader() as up:
        up.put([{"id": 2}])
    assert dataset.ids() == [1, 2]
