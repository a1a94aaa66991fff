"""A job waits while the dataset's offsets are being read and says so; if the wait ends, the error says why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from hubsync import AsyncUploader, OffsetUnknown, RetryPolicy, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.telemetry.status import READING, State
from hubsync.testing import ManualClock
from hubsync.uploader import offsets_wait
from hubsync.uploader.offsets_wait import OffsetsWait
from tests.committer.test_watermark_folding import old_marks
from tests.conftest import FAST, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


class Engine(SimpleNamespace):
    """As much of an engine as a wait asks, in a spool that never gets seeded, with a clock that a test moves."""

    def __init__(self) -> None:
        self.now, self.state = 100.0, State()
        super().__init__(
            is_offline=False,
            spool=SimpleNamespace(
                is_seeded=False, directory=Path("spool"), target=SimpleNamespace(repo="user/rows"), clock=ManualClock()
            ),
            monitor=SimpleNamespace(figures=lambda: SimpleNamespace(state=self.state), condition=lambda: "why"),
            status=SimpleNamespace(activity=""),
            spool_thread=SimpleNamespace(is_stopping=False),
        )

    def read(self, files: int) -> None:
        self.state = State("ok", f"{READING}: {files} of 9,990 files")


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    engine = Engine()
    with monkeypatch.context() as patch:
        patch.setattr(offsets_wait, "time", SimpleNamespace(monotonic=lambda: engine.now))
        yield engine


def wait(engine: Engine, seconds: int, waiter: OffsetsWait) -> None:
    for _ in range(seconds):
        engine.now += 1
        waiter.poll()


def test_a_wait_lasts_as_long_as_files_are_read(engine: Engine) -> None:
    waiter: OffsetsWait = OffsetsWait(engine, 15, engine.now)  # type: ignore[arg-type]  # as much as it asks
    for files in range(50, 1_000, 50):
        engine.read(files)
        wait(engine, 14, waiter)
    with pytest.raises(OffsetUnknown, match=r"reading the watermarks .* 950 of 9,990 files\)\. What was read is kept"):
        wait(engine, 2, waiter)
    engine.read(1_000)  # so the call may be repeated
    wait(engine, 14, waiter)


def test_a_wait_includes_the_pause_that_the_hub_asks_for(engine: Engine) -> None:
    waiter: OffsetsWait = OffsetsWait(engine, 15, engine.now)  # type: ignore[arg-type]  # as much as it asks
    at = engine.spool.clock.time() + 300
    engine.state = State("backing off", f"{READING}: 2,500 of 9,990 files; 429", at)
    wait(engine, 310, waiter)
    with pytest.raises(OffsetUnknown, match="2,500 of 9,990 files; 429"):
        wait(engine, 10, waiter)


def test_a_wait_says_so_at_least_once_a_minute(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    waiter: OffsetsWait = OffsetsWait(engine, 15, engine.now)  # type: ignore[arg-type]  # as much as it asks
    for n in range(200):
        engine.read(n)
        wait(engine, 1, waiter)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 4
    assert "Waiting for the offsets that user/rows contains" in warnings[1]
    assert "59 of 9,990 files" in warnings[1]


def test_a_wait_ends_when_an_operator_must_act(engine: Engine) -> None:
    waiter: OffsetsWait = OffsetsWait(engine, 15, engine.now)  # type: ignore[arg-type]  # as much as it asks
    engine.state = State("blocked", "401")
    with pytest.raises(OffsetUnknown, match=r"not known yet \(why\)"):
        waiter.poll()


def test_a_put_with_a_timeout_waits_no_longer_for_the_offsets(uploader: Make, hub: LocalHub) -> None:
    hub.stop()
    with uploader(retry=RetryPolicy(initial_s=0.01, max_s=0.05, open_timeout_s=3600)) as up:
        with pytest.raises(OffsetUnknown):
            up.put([{"id": 1}], offset=1, timeout=0.01)
        hub.start()
        up.put([{"id": 1}], offset=1)


def test_a_hub_that_answers_all_but_one_request_is_not_called_unreachable(
    uploader: Make, hub: LocalHub, dataset: Dataset
) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    hub.faults.add(Fault.hang(on="preupload"))
    with uploader(retry=RetryPolicy(initial_s=0.01, max_s=0.05, open_timeout_s=0.3)) as up:
        until(lambda: hub.faults.held)
        with pytest.raises(OffsetUnknown, match=r"the Hub has not answered the check of access for .*") as unknown:
            up.offset()
        assert "reach" not in str(unknown.value)
        hub.faults.clear()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_task_that_waits_for_the_offsets_blocks_no_other_and_can_be_cancelled(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, backend: str
) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    hub.faults.add(Fault.hang(on="preupload"))
    patient = RetryPolicy(open_timeout_s=0.3)
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}

    async def run() -> None:
        async with AsyncUploader("user/rows", **{**given, "retry": patient}) as up:
            up._offsets_wait._until += 3600
            for call in (up.offset, up.in_order, lambda: up.put([{"id": 1}], offset=1)):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(call)
                    await anyio.sleep(0.1)
                    tasks.cancel_scope.cancel()
            hub.faults.clear()
            assert await up.offset() is None
            assert not await up.known("key")
            await up.put([{"id": 1}], offset=1)
            assert (await up.in_order()).next == 2

    anyio.run(run, backend=backend)


def test_a_process_waits_for_the_one_that_reads_for_its_spool(
    hub: LocalHub, uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows what that one does, and does not claim that the Hub is silent."""
    for name in ("FIRST_FOLD", "_STEP"):
        monkeypatch.setattr(f"hubsync.committer.seeding.{name}", 4)
    old_marks(dataset, 20)
    hub.faults.add(Fault.hang(on="resolve", after=10))
    first = uploader(retry=RetryPolicy(open_timeout_s=0.3)).open()
    until(lambda: hub.faults.held)
    second = uploader(retry=RetryPolicy(open_timeout_s=0.3)).open()
    until(lambda: READING in second._engine.monitor.figures().state.reason)  # type: ignore[union-attr]
    with pytest.raises(OffsetUnknown, match=r"reading the watermarks in the dataset: \d of 20 files"):
        second.offset()
    hub.faults.clear()
    until(lambda: first._engine.spool.is_seeded)  # type: ignore[union-attr]
    assert (first.offset("source 19"), second.offset("source 3")) == (19, 3)
    second.close()
    first.close()
