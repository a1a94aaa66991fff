"""A job that waits says so, at least once a minute: how much waits, why, and what to do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from hubsync import ConfigError, NotDrained, QueuePolicy, RetryPolicy, SpoolPolicy, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.testing import ManualClock
from hubsync.uploader.stall_reporter import StallReporter
from tests.conftest import Commands, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


def reports(reporter: StallReporter, clock: ManualClock, seconds: int, **how: Any) -> list[int]:
    """Return after how many seconds it reports, if it is asked twice a second."""
    found = []
    for half in range(2 * seconds):
        clock.advance(0.5)
        if reporter.due(**how) is not None:
            found.append((half + 1) // 2)
    return found


@pytest.mark.parametrize(("someone_waits", "first"), [(True, 10), (False, 50)])
def test_a_stall_is_reported_at_least_once_a_minute(someone_waits: bool, first: int) -> None:
    clock = ManualClock()
    reporter = StallReporter(clock.time)
    found = reports(reporter, clock, 600, progress=1, is_stuck=True, someone_waits=someone_waits)
    assert first <= found[0] <= first + 1
    assert max(later - earlier for earlier, later in pairwise(found)) < 60
    assert found[-1] > 540


def test_progress_and_idleness_are_no_stalls() -> None:
    clock = ManualClock()
    reporter = StallReporter(clock.time)
    assert not reports(reporter, clock, 600, progress=1, is_stuck=False, someone_waits=False)
    for progress in range(100):
        assert not reports(reporter, clock, 9, progress=progress, is_stuck=True, someone_waits=True)


def stall_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records
        if record.levelno >= logging.WARNING and record.getMessage().startswith("Nothing has been uploaded")
    ]  # fmt: skip


@pytest.mark.parametrize("fault", [Fault.outage(), Fault.hang(), Fault.status(503)], ids=["outage", "hang", "503"])
def test_a_close_that_waits_for_the_hub_says_so_every_minute(
    uploader: Make, hub: LocalHub, dataset: Dataset, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    clock = ManualClock()
    up = uploader(clock=clock, retry=RetryPolicy(initial_s=1, max_s=5)).open()
    hub.faults.add(fault)
    for n in range(50):
        up.put([{"id": n}])
    closing = threading.Thread(target=up.close)
    closing.start()
    for expected in range(1, 4):

        def passes(expected: int = expected) -> bool:
            clock.advance(2)
            return len(stall_warnings(caplog)) >= expected

        until(passes)
    assert all("50 rows (" in line and str(up.spool) in line for line in stall_warnings(caplog))
    assert all(f"hubsync drain {up.spool}" in line for line in stall_warnings(caplog))
    hub.faults.clear()

    def is_closed() -> bool:
        clock.advance(2)
        return not closing.is_alive()

    until(is_closed)
    assert dataset.ids() == [*range(50)]


def test_a_put_that_waits_for_a_full_spool_says_so(
    uploader: Make, hub: LocalHub, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    spool = SpoolPolicy(directory=tmp_path / "spool", max_bytes=10)
    up = uploader(clock=clock, spool=spool, queue=QueuePolicy(max_batches=1)).open()
    hub.faults.add(Fault.outage())
    up.put([{"id": 0, "text": "more than ten bytes"}])
    putting = threading.Thread(target=lambda: [up.put([{"id": n}], ack="queued") for n in (1, 2, 3)])
    putting.start()

    def says_so() -> bool:
        clock.advance(2)
        return bool(stall_warnings(caplog))

    until(says_so)
    assert "holds its 10 bytes" in stall_warnings(caplog)[0]
    hub.faults.clear()

    def is_done() -> bool:
        clock.advance(2)
        return not putting.is_alive()

    until(is_done)
    closing = threading.Thread(target=up.close)
    closing.start()

    def is_closed() -> bool:
        clock.advance(2)
        return not closing.is_alive()

    until(is_closed)


SILENT = """
import sys
from hubsync import RetryPolicy, Uploader
from hubsync.uploader import stall_reporter
stall_reporter._FIRST_S = 0.5
spool, endpoint, token = sys.argv[1:4]
with Uploader("user/rows", endpoint=endpoint, token=token, spool=spool, retry=RetryPolicy(close_timeout_s=3)) as up:
    for n in range(50):
        up.put([{"id": n}])
"""


@pytest.mark.slow("a process that waits for three seconds")
def test_without_any_logging_configured_it_reaches_standard_error(run: Commands, hub: LocalHub, tmp_path: Any) -> None:
    hub.stop()
    with run.python("-c", SILENT, str(tmp_path / "spool"), hub.endpoint, hub.token) as job:
        _, log = job.communicate("")
        assert job.wait() == 1
    assert "Nothing has been uploaded for" in log
    assert "50 rows (" in log
    assert "NotDrained: 50 rows" in log


def test_close_has_a_default_timeout_from_the_policy_or_the_environment(
    uploader: Make, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    retry = RetryPolicy(initial_s=0.01, max_s=0.05, close_timeout_s=0.1)
    for options in ({"retry": retry}, {}):
        if not options:
            monkeypatch.setenv("HUBSYNC_CLOSE_TIMEOUT_S", "0.2")
        up = uploader(**options).open()
        hub.faults.add(Fault.outage())
        up.put([{"id": 1}])
        with pytest.raises(NotDrained, match="were not enough"):
            up.close()
        hub.faults.clear()
    monkeypatch.setenv("HUBSYNC_CLOSE_TIMEOUT_S", "soon")
    with pytest.raises(ConfigError, match="HUBSYNC_CLOSE_TIMEOUT_S must be a number of seconds, 0 or more, not 'soon'"):
        uploader()
