"""The committer's lease."""

from __future__ import annotations

import os
from collections.abc import Callable

from hubsync.spool.spool import Spool


def test_only_one_committer_at_a_time_holds_the_lease(open_spool: Callable[..., Spool]) -> None:
    first, second = open_spool(), open_spool()
    assert first.lease.acquire()
    assert not second.lease.acquire()
    assert second.lease.holder_pid == os.getpid()
    first.lease.release()
    assert second.lease.holder_pid is None
    assert second.lease.acquire()
