"""The bounded queue: its bounds, its three policies, its counters."""

from __future__ import annotations

import threading

import anyio
import pytest

from hubsync import BatchTooLarge, ClosedError, QueueFull, QueuePolicy
from hubsync.model.batch import Batch
from hubsync.model.receipt import Receipt
from hubsync.policies import MIB
from hubsync.uploader.queue import BoundedQueue, Order


def batch(size: int = 10) -> Batch:
    return Batch(b"x" * size, 1, Receipt(1, size))


def taken(queue: BoundedQueue) -> list[Batch]:
    return [item for item in queue.take() if isinstance(item, Batch)]


def test_a_take_returns_the_waiting_batches_in_order() -> None:
    queue = BoundedQueue(QueuePolicy())
    batches = [batch() for _ in range(3)]
    for each in batches:
        assert queue.put(each)
    assert taken(queue) == batches


def test_batches_that_were_taken_count_until_they_are_spooled() -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=25, when_full="raise"))
    queue.put(batch())
    queue.put(batch())
    took = taken(queue)
    with pytest.raises(QueueFull, match="not accepted"):
        queue.put(batch())
    queue.release(took)
    assert queue.put(batch())
    assert queue.depth()[:6] == (1, 1, 10, 0, 1, 0)


def test_a_take_ends_before_producers_are_blocked_for_long() -> None:
    """What is written of a full queue makes room before the rest is written."""
    queue = BoundedQueue(QueuePolicy(max_bytes=12 * MIB, when_full="raise"))
    batches = [batch(MIB) for _ in range(12)]
    for each in batches:
        queue.put(each)
    took = taken(queue)
    assert took == batches[:4]
    queue.release(took)
    assert queue.put(batch(4 * MIB))
    assert taken(queue) == batches[4:8]


def test_the_oldest_batch_counts_until_it_is_spooled() -> None:
    now = 100.0
    queue = BoundedQueue(QueuePolicy(), lambda: now)
    assert queue.depth().oldest_at is None
    queue.put(batch())
    now = 110.0
    queue.put(batch())
    now = 120.0
    took = taken(queue)
    now = 130.0
    queue.put(batch())
    assert queue.depth().oldest_at == 100.0  # for example, as long as the disk is full
    queue.release(took)
    assert queue.depth().oldest_at == 130.0
    queue.release(taken(queue))
    assert queue.depth().oldest_at is None


def test_the_number_of_batches_is_bounded_like_the_bytes() -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1, when_full="drop"))
    assert queue.put(batch())
    assert not queue.put(batch())
    assert queue.depth().dropped == 1


def test_a_blocked_producer_continues_once_there_is_room() -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(batch())
    done = threading.Event()
    producer = threading.Thread(target=lambda: (queue.put(batch()), done.set()))
    producer.start()
    while not queue.depth().blocked:
        pass
    assert not done.is_set()
    queue.release(taken(queue))
    assert done.wait(10)
    producer.join()


def test_a_blocked_producer_gives_up_at_its_timeout() -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(batch())
    with pytest.raises(QueueFull, match="no room"):
        queue.put(batch(), timeout=0)


@pytest.mark.parametrize("face", ["thread", "task"])
def test_producers_that_gave_up_are_counted_and_not_kept(face: str) -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(batch())
    for _ in range(3):
        with pytest.raises(QueueFull, match=r"no room for 0\.1 s"):
            if face == "thread":
                queue.put(batch(), timeout=0.1)
            else:
                anyio.run(queue.put_async, batch(), 0.1)
    assert (queue.depth().blocked, queue.depth().raised) == (3, 3)
    assert not queue._producers


def test_a_blocked_task_continues_once_there_is_room() -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(batch())

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(queue.put_async, batch())
            for _ in range(2):
                await anyio.wait_all_tasks_blocked()
                queue.release(taken(queue))

    anyio.run(run)
    assert len(taken(queue)) == 1


def test_closing_the_queue_raises_in_blocked_producers() -> None:
    queue = BoundedQueue(QueuePolicy(max_batches=1))
    queue.put(batch())
    told: list[Exception] = []

    def put() -> None:
        try:
            queue.put(batch())
        except ClosedError as error:
            told.append(error)

    producer = threading.Thread(target=put)
    producer.start()
    while not queue.depth().blocked:
        pass
    queue.close()
    producer.join(10)
    assert len(told) == 1


def test_a_batch_larger_than_the_queue_is_rejected_at_once() -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    with pytest.raises(BatchTooLarge, match="QueuePolicy"):
        queue.put(batch(101))


def test_an_order_runs_after_all_batches_that_were_put_before_it() -> None:
    queue = BoundedQueue(QueuePolicy())
    first, order, second = batch(), Order(lambda: None), batch()
    queue.put(first)
    queue.order(order)
    queue.put(second)
    assert queue.take() == [first, order, second]


def test_a_closed_queue_returns_waiting_batches_and_then_nothing() -> None:
    queue = BoundedQueue(QueuePolicy())
    queue.put(batch())
    queue.close()
    assert len(queue.take()) == 1
    assert queue.take() == []
    with pytest.raises(ClosedError):
        queue.put(batch())
