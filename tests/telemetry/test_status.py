"""What the log says about a job's state: one line per change, at the level at which someone must act."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubsync import BlockedError, NotDrained, RetryPolicy, SpoolPolicy, Uploader, WaitTimeout
from hubsync._runtime.formatting import time_text
from hubsync.localhub import Fault, LocalHub
from hubsync.telemetry.status import State, Status
from hubsync.testing import ManualClock
from tests.conftest import Commands
from tests.waiting import until

Make = Callable[..., Uploader]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """What was logged from INFO on, as "LEVEL text", without the time of day."""
    caplog.set_level(logging.INFO, "hubsync")

    def read(start: str = "") -> list[str]:
        found = [f"{r.levelname} {r.message}" for r in caplog.records if r.name == "hubsync"]
        return [re.sub(r"\d\d:\d\d:\d\d", "TIME", text) for text in found if start in text]

    return read


class Watched:
    """A status whose clock advances only when the test says so."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.status = Status(lambda text: None, lambda: "7 rows (70 bytes) wait in /spool", now=self.clock.time)

    def fails(self, reason: str, wait_s: float) -> None:
        self.status.report("commit", State("backing off", reason, self.clock.time() + wait_s))

    def works(self) -> None:
        self.status.report("commit", State())


def test_a_job_without_problems_logs_nothing(uploader: Make, lines: Any) -> None:
    with uploader() as up:
        up.put([{"id": 1}])
        up.flush()
    assert lines() == []


def test_the_commit_quota_is_a_warning_at_once_and_so_is_its_end(lines: Any) -> None:
    watched = Watched()
    for _ in range(3):
        watched.fails("commit quota", 900)
        watched.clock.advance(900)
    watched.works()
    assert lines() == [
        f"WARNING backing off: commit quota; next try {_day(900)}TIME; 7 rows (70 bytes) wait in /spool",
        "WARNING going on after 45 min; 7 rows (70 bytes) wait in /spool",
    ]


def _day(after_s: float) -> str:
    return re.sub(r"\d\d:\d\d:\d\d$", "", time_text(ManualClock().time() + after_s))


def test_a_problem_that_passes_within_seconds_is_not_a_warning(lines: Any) -> None:
    watched = Watched()
    for _ in range(50):
        watched.fails("commit to user/rows: 503", 0.5)
        watched.clock.advance(0.5)
        watched.works()
        watched.clock.advance(60)
    assert {line.split()[0] for line in lines()} == {"INFO"}
    assert len(lines("backing off")) == len(lines("going on")) == 50


def test_an_outage_is_a_warning_once_it_lasts_and_only_once(lines: Any) -> None:
    watched = Watched()
    for wait in (1, 2, 4, 8, 16, 32, 64, 120, 120, 120):
        watched.fails(("commit to" if wait % 3 else "paths-info of") + " user/rows: the Hub can't be reached", wait)
        watched.clock.advance(wait)
    watched.works()
    assert [line.split(":")[0] for line in lines()] == [
        "INFO backing off",
        "WARNING backing off",
        "WARNING going on after 8 min; 7 rows (70 bytes) wait in /spool",
    ]


def test_a_problem_that_comes_and_goes_is_a_warning_once_in_ten_minutes(lines: Any) -> None:
    watched = Watched()
    for _ in range(20):
        watched.status.report("spool thread", State("spool full", "it holds its 100 bytes."))
        watched.clock.advance(30)
        watched.status.report("spool thread", State())
        watched.clock.advance(30)
    assert len(lines("ERROR spool full")) == 2
    assert len(lines("WARNING going on")) == 2


def test_a_full_spool_whose_figures_change_is_one_problem(lines: Any) -> None:
    watched = Watched()
    for n in range(1, 11):
        full = f"the spool /spool holds its 4,194,304 bytes, {n}.{n} MB of them in the dead letter; it takes more"
        watched.status.report("spool thread", State("spool full", full))
        watched.clock.advance(0.5)
        watched.status.report("spool thread", State())
        watched.clock.advance(0.5)
    assert [line.split()[0] for line in lines() if not line.startswith("INFO")] == ["ERROR", "WARNING"]


def test_a_timeout_names_the_request_without_a_response(
    uploader: Make, hub: LocalHub, run: Commands, tmp_path: Path
) -> None:
    hub.faults.add(Fault.hang(on="commit"))
    with uploader(retry=RetryPolicy(request_timeout_s=600)) as up:
        up.put([{"id": 1}])
        with pytest.raises(NotDrained, match="uploading: the Hub has not answered a commit of 1 shard for "):
            up.flush(timeout=1)
        with pytest.raises(NotDrained, match="has not answered"):
            up.close(timeout=0.1)
    done = run("drain", tmp_path / "spool", "--timeout", 1)
    assert "the Hub has not answered a commit of 1 shard for " in done.stderr


def test_a_full_spool_names_what_keeps_it_from_draining(lines: Any) -> None:
    watched = Watched()
    watched.status.report("spool thread", State("spool full", "it holds its 100 bytes."))
    for wait in (1, 2, 4, 8):  # which pass
        watched.fails(f"commit to user/rows: 50{wait}", wait)
    for reason in ("preupload to user/rows: 401, no", "commit to user/rows: 401, no"):
        watched.status.report("commit", State("blocked", reason, watched.clock.time() + 60))
    assert watched.status.state.reason == "uploads are blocked (401, no); it holds its 100 bytes."
    assert watched.status.state.until == watched.clock.time() + 60
    watched.status.report("commit", State())
    assert watched.status.state.reason == "it holds its 100 bytes."
    watched.status.report("spool thread", State())
    assert [line.partition(";")[0] for line in lines()] == [
        "ERROR spool full: it holds its 100 bytes",
        "ERROR spool full: uploads are blocked (401, no)",
        "WARNING going on after 0 s",
    ]


def test_a_full_spool_names_an_outage_that_lasts_however_soon_it_is_tried_again(lines: Any) -> None:
    watched = Watched()
    watched.status.report("spool thread", State("spool full", "it holds its 100 bytes."))
    for _ in range(12):
        watched.fails("commit to user/rows: 503", 1)
        watched.clock.advance(1)
    assert watched.status.state.reason == "uploads fail (503); it holds its 100 bytes."
    watched.status.report("commit", State())
    watched.fails("commit to user/rows: 503", 1)  # another one, which may pass
    assert watched.status.state.reason == "it holds its 100 bytes."


def test_another_cause_is_news(lines: Any) -> None:
    watched = Watched()
    for reason in ("preupload to user/rows: 401, no", "commit to user/rows: 401, no", "commit to user/rows: 403, full"):
        watched.status.report("commit", State("blocked", reason, watched.clock.time() + 60))
    assert [line.partition(";")[0] for line in lines()] == [
        "ERROR blocked: preupload to user/rows: 401, no",
        "ERROR blocked: commit to user/rows: 403, full",
    ]


def test_a_time_of_another_day_names_the_day() -> None:
    assert re.fullmatch(r"\d\d:\d\d:\d\d", time_text(time.time()))
    assert re.fullmatch(r"[A-Z]\w\w \d\d \d\d:\d\d:\d\d", time_text(time.time() + 48 * 3600))


# Real jobs.


def test_the_hubs_commit_quota(uploader: Make, hub: LocalHub, lines: Any, tmp_path: Path) -> None:
    hub.faults.add(Fault.rate_limit("commits", on="commit"))
    with uploader(retry=RetryPolicy(request_timeout_s=5), grace_s=0) as up:
        up.put([{"id": n} for n in range(1_200)])
        with pytest.raises(NotDrained):
            up.flush(timeout=0.2)
        until(lambda: up.stats().state.kind == "backing off")
        with pytest.raises(NotDrained):
            up.close(timeout=0.1)
    (said,) = lines()
    said = re.sub(r"\w+ \d\d TIME", "TIME", said)  # an hour from now is tomorrow, late in the evening
    assert (
        said == f"WARNING backing off: commit quota; next try TIME; 1,200 rows (13.3 kB) wait in {tmp_path / 'spool'}"
    )


def test_a_revoked_token_and_a_good_one_again(uploader: Make, hub: LocalHub, lines: Any, tmp_path: Path) -> None:
    with uploader() as up:
        fault = hub.faults.add(Fault.status(403, body='{"error": "Forbidden: this token may not write."}', on="commit"))
        up.put([{"id": 1}])
        for _ in range(3):
            with pytest.raises(BlockedError):
                up.flush()
        hub.faults.remove(fault)
        until(lambda: up.stats().spool.rows == 0)  # a try on its way is refused still
        up.flush()
    (blocked, going) = lines()
    assert re.fullmatch(
        r"ERROR blocked: commit to user/rows: 403, .*may not write.*; next try TIME; 1 row \(9 bytes\) waits in "
        + re.escape(str(tmp_path / "spool")),
        blocked,
    )
    assert re.fullmatch(r"WARNING going on after \d+ s; nothing waits in .*", going)
    assert hub.token not in str(lines())


def test_a_hub_that_is_gone_at_the_start_is_one_line(uploader: Make, hub: LocalHub, lines: Any) -> None:
    hub.stop()
    try:
        with uploader() as up:
            up.put([{"id": 1}])
            hub.start()
            up.flush()
    finally:
        hub.start()
    assert [line.split(":")[0].split(" after")[0] for line in lines()] == ["WARNING backing off", "WARNING going on"]


def test_a_full_spool(uploader: Make, hub: LocalHub, lines: Any, tmp_path: Path) -> None:
    with uploader(spool=SpoolPolicy(directory=tmp_path / "spool", max_bytes=1_000_000)) as up:
        outage = hub.faults.add(Fault.outage())
        up.put([{"id": "x" * 9_000_000}])
        up.put([{"id": "y"}], ack="queued")
        until(lambda: up.stats().state.kind == "spool full")
        assert up.stats().queue.oldest_at is not None  # it waits in memory, and is no younger for that
        hub.faults.remove(outage)
        up.flush()
    (full,) = lines("spool full")
    assert full.startswith(f"ERROR spool full: the spool {tmp_path / 'spool'} holds its 1,000,000 bytes")
    assert lines()[-1].startswith("WARNING going on")


def test_offline_says_where_the_rows_are(
    uploader: Make, monkeypatch: pytest.MonkeyPatch, lines: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader() as up:
        up.put([{"id": 1}, {"id": 2}])
    assert lines() == [
        f"INFO offline: HF_HUB_OFFLINE is set; rows are only spooled; nothing waits in {tmp_path / 'spool'}",
        f"INFO Offline: 2 rows (18 bytes) wait in {tmp_path / 'spool'}. To upload them: hubsync drain "
        f"{tmp_path / 'spool'}",
    ]


def test_a_batch_that_is_not_spooled_in_time_is_reported_as_not_accepted(
    uploader: Make, hub: LocalHub, tmp_path: Path
) -> None:
    up = uploader(spool=SpoolPolicy(directory=tmp_path / "spool", max_bytes=1_000_000)).open()
    hub.faults.add(Fault.outage())
    up.put([{"id": "x" * 9_000_000}])
    with pytest.raises(WaitTimeout, match="It is in memory only") as late:
        up.put([{"id": "z"}], timeout=0.01)
    assert late.value.receipt.state == "queued"
    with pytest.raises(NotDrained):
        up.close(timeout=0.1)
    assert late.value.receipt.state == "dropped"


def test_a_batch_that_is_not_committed_in_time_is_reported_as_safe(uploader: Make, hub: LocalHub) -> None:
    with uploader() as up:
        hub.faults.add(Fault.outage())
        with pytest.raises(WaitTimeout, match="safe in the spool") as late:
            up.put([{"id": 1}], ack="committed", timeout=0.2)
        assert (late.value.receipt.rows, late.value.receipt.state) == (1, "spooled")
        hub.faults.clear()
    assert late.value.receipt.state == "committed"


def test_a_job_that_an_exception_ended_logs_how_its_drain_went(uploader: Make, lines: Any) -> None:
    with pytest.raises(ZeroDivisionError), uploader() as up:
        up.put([{"id": 1}])
        1 / 0  # noqa: B018
    began, ended = lines("WARNING")
    assert began.startswith("WARNING ZeroDivisionError ended the job. Uploading the rest: 1 row")
    assert ended == "WARNING Done: all rows are on the Hub."


def test_a_job_that_ends_with_an_error_before_its_first_row_does_not_speak_of_rows(uploader: Make, lines: Any) -> None:
    with pytest.raises(RuntimeError), uploader():
        raise RuntimeError
    assert lines() == []
