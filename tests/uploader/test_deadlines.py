"""What was reached by the deadline counts, even if a signal handler or a blocked event loop ran beyond it."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio
import pytest

from hubsync import QueuePolicy, Uploader, WaitTimeout
from hubsync.model.batch import Batch
from hubsync.model.receipt import Receipt, SegmentOutcome, Until, mark_spooled
from hubsync.uploader.queue import BoundedQueue
from tests.waiting import until

T = TypeVar("T")
TIMEOUT_S = 0.05


def beyond_the_deadline(work: Callable[[], object]) -> Callable[..., None]:
    """Return a function that does `work`, and returns once the deadline of a wait that it interrupts has passed."""

    def run(*_: object) -> None:
        work()
        end = time.monotonic() + TIMEOUT_S
        until(lambda: time.monotonic() > end)

    return run


@contextmanager
def interrupted_by(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S / 5)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def result_while_blocked_by(block: Callable[[], object], wait: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `wait`, which `block` interrupts on the same event loop as soon as it waits."""

    async def hold_up() -> None:
        await anyio.wait_all_tasks_blocked()
        block()

    async def run() -> T:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold_up)
            return await wait()

    return anyio.run(run)


def small_batch() -> Batch:
    return Batch(b"x", 1, Receipt(1, 1))


def full_queue() -> BoundedQueue:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(small_batch())
    return queue


def make_room(queue: BoundedQueue) -> None:
    queue.release([item for item in queue.take() if isinstance(item, Batch)])


@pytest.mark.parametrize("goal", ["spooled", "committed"])
def test_a_receipt_that_gets_there_during_a_long_signal_handler_does_not_time_out(goal: Until) -> None:
    receipt, outcome = Receipt(1, 1), SegmentOutcome("abc", settled=True)
    with interrupted_by(beyond_the_deadline(lambda: mark_spooled(receipt, outcome, replayed=False))):
        assert receipt.wait(goal, timeout=TIMEOUT_S) == "abc"


@pytest.mark.parametrize("goal", ["spooled", "committed"])
def test_a_receipt_that_gets_there_while_the_event_loop_is_blocked_does_not_time_out(goal: Until) -> None:
    receipt, outcome = Receipt(1, 1), SegmentOutcome("abc", settled=True)
    block = beyond_the_deadline(lambda: mark_spooled(receipt, outcome, replayed=False))
    assert result_while_blocked_by(block, lambda: receipt.wait_async(goal, timeout=TIMEOUT_S)) == "abc"


def test_a_receipt_that_does_not_get_there_times_out() -> None:
    receipt = Receipt(1, 1)
    with interrupted_by(beyond_the_deadline(lambda: None)), pytest.raises(WaitTimeout):
        receipt.wait("spooled", timeout=TIMEOUT_S)


def test_room_that_a_long_signal_handler_makes_is_taken() -> None:
    queue = full_queue()
    with interrupted_by(beyond_the_deadline(lambda: make_room(queue))):
        assert queue.put(small_batch(), timeout=TIMEOUT_S)


def test_room_that_is_made_while_the_event_loop_is_blocked_is_taken() -> None:
    queue = full_queue()
    block = beyond_the_deadline(lambda: make_room(queue))
    assert result_while_blocked_by(block, lambda: queue.put_async(small_batch(), TIMEOUT_S))


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_flush_that_a_long_signal_handler_interrupts_is_done(call: str, uploader: Callable[..., Uploader]) -> None:
    up = uploader().open()
    up.put([{"id": 1}])

    committed = beyond_the_deadline(lambda: until(lambda: up.stats().counts.committed_rows == 1))
    with interrupted_by(committed):
        getattr(up, call)(timeout=TIMEOUT_S)
    up.close()
