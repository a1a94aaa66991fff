"""The queue's policy applies to a full spool as well."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hubsync import AsyncUploader, NotDrained, QueueFull, QueuePolicy, SpoolPolicy, Uploader, WaitTimeout
from hubsync.localhub import Fault, LocalHub
from hubsync.policies import Ack
from hubsync.telemetry import status
from hubsync.uploader import stall_reporter
from hubsync.uploader.queue import Order
from tests.conftest import FAST, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]
ROW = {"text": "more than ten bytes"}


def options(tmp_path: Path, when_full: Any) -> dict[str, Any]:
    return {
        "spool": SpoolPolicy(directory=tmp_path / "spool", max_bytes=10),
        "queue": QueuePolicy(when_full=when_full),
    }


@pytest.mark.parametrize("ack", ["spooled", "committed"])
def test_a_put_raises_while_the_spool_is_full(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path, ack: Ack
) -> None:
    with uploader(**options(tmp_path, "raise")) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 0, **ROW}], offset=0)
        for _ in range(2):
            with pytest.raises(QueueFull, match=r"the batch was not accepted: the spool .* holds its 10 bytes"):
                up.put([{"id": 1, **ROW}], offset=1, ack=ack)
        assert up.stats().queue[:5] == (0, 0, 0, 0, 2)
        assert up.stats().state.kind == "spool full"
        hub.faults.clear()
        up.flush()
        up.put([{"id": 1, **ROW}], offset=1)
    assert dataset.ids() == [0, 1]


def test_a_put_is_dropped_while_the_spool_is_full(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    with uploader(**options(tmp_path, "drop")) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 0, **ROW}])
        receipts = [up.put([{"id": 1, **ROW}]), up.put([{"id": 2, **ROW}], ack="queued")]
        until(lambda: [receipt.state for receipt in receipts] == ["dropped", "dropped"])
        assert up.stats().queue.dropped == 2
        assert isinstance(receipts[0].error, QueueFull)
        hub.faults.clear()
        up.flush()
        up.put([{"id": 3, **ROW}])
    assert dataset.ids() == [0, 3]


def test_what_was_accepted_in_memory_is_kept_while_later_puts_raise(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    """No one would raise for them: `put` with ack="queued" has returned."""
    with uploader(**options(tmp_path, "raise")) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 0, **ROW}])
        kept = up.put([{"id": 1, **ROW}], ack="queued")
        until(lambda: up._engine is not None and up._engine.queue.refusal is not None)
        for ack in ("queued", "spooled"):
            with pytest.raises(QueueFull, match="holds its 10 bytes"):
                up.put([{"id": 2, **ROW}], ack=ack)
        hub.faults.clear()
        up.flush()
        assert kept.state == "committed"
        up.put([{"id": 3, **ROW}])
    assert dataset.ids() == [0, 1, 3]


def test_a_task_that_puts_raises_while_the_spool_is_full(hub: LocalHub, dataset: Dataset, tmp_path: Path) -> None:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, **FAST, **options(tmp_path, "raise")}

    async def run() -> None:
        async with AsyncUploader("user/rows", **given) as up:
            hub.faults.add(Fault.outage())
            await up.put([{"id": 0, **ROW}])
            with pytest.raises(QueueFull):
                await up.put([{"id": 1, **ROW}])
            hub.faults.clear()

    anyio.run(run)
    assert dataset.ids() == [0]


def test_a_put_that_waits_raises_although_one_that_was_accepted_in_memory_is_before_it(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    """They are taken from the queue together, with a flush between them."""
    with uploader(**options(tmp_path, "raise")) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 0, **ROW}])
        assert up._engine is not None
        engine, go = up._engine, threading.Event()
        engine.queue.order(Order(go.wait))
        kept = up.put([{"id": 1, **ROW}], ack="queued")
        engine.queue.order(Order(lambda: None))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(up.put, [{"id": 2, **ROW}])
            until(lambda: engine.queue.depth().batches == 2)
            go.set()
            with pytest.raises(QueueFull):
                waiting.result(60)
        hub.faults.clear()
        up.flush()
        assert kept.state == "committed"
    assert dataset.ids() == [0, 1]


def test_a_full_spool_says_why_nothing_leaves_it_and_which_rows_are_safe(
    uploader: Make, hub: LocalHub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stall_reporter, "_FIRST_S", 0.0)
    monkeypatch.setattr(status, "_LASTS_S", 0.0)
    with uploader(**options(tmp_path, "block"), retry=replace(FAST["retry"], close_timeout_s=10)) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 0, **ROW}])
        with pytest.raises(WaitTimeout, match="It is in memory only") as late:
            up.put([{"id": 1, **ROW}], timeout=0.1)
        until(lambda: "uploads fail (" in up.stats().state.reason)
        with pytest.raises(NotDrained, match=r"uploads fail \(no response.*1 row in memory is not in the spool yet"):
            up.flush(timeout=0.5)
        hub.faults.clear()
        up.flush()
        assert late.value.receipt.state == "committed"
    (said, *_) = [
        record.getMessage() for record in caplog.records if "Nothing has been uploaded" in record.getMessage()
    ]
    assert re.search(r"uploads fail \(no response.*\); the spool .* holds its 10 bytes", said)
    assert (
        f"1 row (38 bytes) is safe in {tmp_path / 'spool'}, and 1 row (38 bytes) only in memory. Uploads go on" in said
    )
