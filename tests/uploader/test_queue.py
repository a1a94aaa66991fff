"""The bounded queue: its bounds, its three policies, its counters."""

from __future__ import annotations

import signal
import threading

import anyio
import pytest

from hubsync import BatchTooLarge, ClosedError, QueueFull, QueuePolicy
from hubsync.model.batch import Batch
from hubsync.model.receipt import Receipt
from hubsync.policies import MIB
from hubsync.uploader.queue import BoundedQueue, Order
from tests.waiting import PATIENCE_S, until


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
    until(queue.waiting_producers)
    assert not done.is_set()
    queue.release(taken(queue))
    assert done.wait(PATIENCE_S)
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
    assert not queue.waiting_producers()


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
    errors: list[Exception] = []

    def put() -> None:
        try:
            queue.put(batch())
        except ClosedError as error:
            errors.append(error)

    producer = threading.Thread(target=put)
    producer.start()
    until(queue.waiting_producers)
    queue.close()
    producer.join(PATIENCE_S)
    assert len(errors) == 1


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


def wait_in_line(queue: BoundedQueue, *sizes: int) -> list[threading.Thread]:
    """Start a producer for each size, and let them come one after the other."""
    producers = []
    for size in sizes:
        ahead = queue.waiting_producers()
        producers.append(threading.Thread(target=queue.put, args=(batch(size),)))
        producers[-1].start()
        until(lambda ahead=ahead: queue.waiting_producers() > ahead)  # type: ignore[misc]
    return producers


def test_a_large_batch_gets_in_before_small_ones_that_came_later() -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    queue.put(batch(60))
    producers = wait_in_line(queue, 90, 5, 5)
    assert queue.depth().bytes == 60  # there would be room for the small ones
    queue.release(taken(queue))
    for producer in producers:
        producer.join(PATIENCE_S)
    assert [len(each.lines) for each in taken(queue)][:1] == [90]


@pytest.mark.slow("each take passes through a thread")
def test_a_large_batch_does_not_starve_among_many_small_ones() -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=1000, max_batches=20))
    stop = threading.Event()

    def put_small() -> None:
        while not stop.is_set():
            queue.put(batch(30))

    def spool() -> None:
        while took := taken(queue):
            queue.release(took)

    threads = [threading.Thread(target=work) for work in [put_small] * 8 + [spool]]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert queue.put(batch(900))  # a time limit would say how fast the machine is
    stop.set()
    for thread in threads[:-1]:
        thread.join(PATIENCE_S)
    queue.close()
    threads[-1].join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert queue.depth()[:3] == (0, 0, 0)


def test_tasks_get_in_in_the_order_in_which_they_came() -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    queue.put(batch(60))

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for size in (90, 20, 30):
                tasks.start_soon(queue.put_async, batch(size))
                await anyio.wait_all_tasks_blocked()
            assert queue.depth().bytes == 60
            for _ in range(2):
                queue.release(taken(queue))
                await anyio.wait_all_tasks_blocked()

    anyio.run(run)
    assert [len(each.lines) for each in taken(queue)] == [20, 30]


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
def test_a_waiter_that_leaves_lets_the_next_one_in(how: str) -> None:
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    queue.put(batch(60))

    async def run() -> None:
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as first:

            async def put_large() -> None:
                if how == "timeout":
                    with pytest.raises(QueueFull):
                        await queue.put_async(batch(90), 0.2)
                else:
                    await queue.put_async(batch(90))

            first.start_soon(put_large)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(queue.put_async, batch(20))
            await anyio.wait_all_tasks_blocked()
            assert queue.depth().bytes == 60
            if how == "cancelled":
                first.cancel_scope.cancel()

    anyio.run(run)
    assert queue.depth().bytes == 80
    assert not queue.waiting_producers()


def test_a_put_that_a_signal_handler_ends_lets_the_next_one_in() -> None:
    """It raises in the main thread while that waits for room, as Ctrl-C does."""
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    queue.put(batch(60))
    others: list[threading.Thread] = []

    def interrupt(*_: object) -> None:
        others.extend(wait_in_line(queue, 20))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            queue.put(batch(90))
    finally:
        signal.signal(signal.SIGALRM, before)
    others[0].join(PATIENCE_S)
    assert queue.depth().bytes == 80


def test_a_put_within_a_put_that_waits_goes_first() -> None:
    """A signal handler's: what it interrupts can't go on before it."""
    queue = BoundedQueue(QueuePolicy(max_bytes=100))
    queue.put(batch(60))

    def interrupt(*_: object) -> None:
        queue.release(taken(queue))
        queue.put(batch(70))
        queue.release(taken(queue))

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert queue.put(batch(90))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [len(each.lines) for each in taken(queue)] == [90]
