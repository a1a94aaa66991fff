"""put, flush and stats in a signal handler, in a `__del__`, in a logging handler: they work, or raise at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubsync.localhub import Fault, LocalHub
from tests.conftest import Commands

# Each job ends with its threads' stacks on standard error if it is stuck.
BEGIN = """
import faulthandler, gc, itertools, logging, random, signal, sys, threading
from hubsync import CommitPolicy, QueuePolicy, RetryPolicy, ShardPolicy, SpoolPolicy, Uploader
from hubsync.errors import QueueFull, ReentrantCall
faulthandler.dump_traceback_later(60, exit=True)
spool, endpoint, token = sys.argv[1:4]
up = Uploader(
    "user/rows", endpoint=endpoint, token=token, spool=spool, progress=False,
    shard=ShardPolicy(linger_s=3600), commit=CommitPolicy(per_hour=100_000),
    retry=RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.2, request_timeout_s=5), **OPTIONS,
)
numbers = itertools.count()
accepted = []

def put(by, **options):
    n = next(numbers)
    row = {"n": n, "by": by}
    if n % 100 == 7:
        row[f"extra_{n}"] = n  # a new column goes the long way through the schema guard
    receipt = up.put([row], **options)
    if receipt.state != "dropped":
        accepted.append((n, receipt))
"""
END = """
lost = [n for n, receipt in accepted if receipt.state != "committed"]
assert not lost, lost
print(len(accepted))
"""


def job(run: Commands, hub: LocalHub, spool: Path, program: str, options: str = "{}") -> int:
    whole = f"OPTIONS = {options}\n{BEGIN}{program}{END}"
    with run.python("-c", whole, str(spool), hub.endpoint, hub.token) as process:
        said, log = process.communicate("")
    assert process.wait() == 0, log[-6000:]
    return int(said)


@pytest.mark.slow("some thousand signals")
@pytest.mark.parametrize("options", ["{}", "{'queue': QueuePolicy(max_batches=2)}"], ids=["roomy", "full queue"])
def test_a_signal_handler_may_put_flush_and_look_while_it_interrupts_put(
    run: Commands, hub: LocalHub, tmp_path: Path, dataset: object, options: str
) -> None:
    """Of three threads, one is interrupted at any instruction of `put`; SLURM's SIGUSR1 asks for a flush."""
    options = options.replace("QueuePolicy", "__import__('hubsync').QueuePolicy")
    program = """
rng = random.Random(1)
calls = 0

def handler(*_):
    global calls
    calls += 1
    if calls % 25 == 0:
        up.flush()
    elif calls % 5 == 0:
        up.stats(), up.offset(), up.known("key")
    else:
        put("handler", ack=rng.choice(["queued", "spooled"]))
    if calls < 600:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.002))

signal.signal(signal.SIGALRM, handler)
with up:
    def work():
        while calls < 600:
            put("thread")
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    while calls < 600:
        put("main", key=str(next(numbers)))
    for thread in threads:
        thread.join()
"""
    count = job(run, hub, tmp_path / "spool", program, options)
    rows = dataset.rows()  # type: ignore[attr-defined]
    assert len(rows) == len({row["n"] for row in rows}) == count


@pytest.mark.slow("thousands of garbage collections")
def test_a_finalizer_may_put_flush_and_look_in_any_thread(
    run: Commands, hub: LocalHub, tmp_path: Path, dataset: object
) -> None:
    program = """
raised = set()
open_ = True

class Cycle:
    def __init__(self):
        self.me = self

    def __del__(self):
        if not open_:
            return
        n = next(ends)
        try:
            if n % 50 == 0:
                up.flush()
            elif n % 5 == 0:
                up.stats()
            else:
                put("finalizer")
        except ReentrantCall:
            raised.add(threading.current_thread().name)

ends = itertools.count(1)
gc.set_threshold(20, 2, 2)
with up:
    def work():
        while next(made) < 1500:
            Cycle()
            put("thread")
            up.stats()
    made = itertools.count()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.disable()
    open_ = False
"""
    count = job(run, hub, tmp_path / "spool", program)
    rows = dataset.rows()  # type: ignore[attr-defined]
    assert len(rows) == len({row["n"] for row in rows}) == count


@pytest.mark.slow("many failed requests")
def test_a_logging_handler_may_put_what_it_gets(run: Commands, hub: LocalHub, tmp_path: Path, dataset: object) -> None:
    """Also hubsync's own records, which the Hub's failures cause; the handler's lock is held while it puts."""
    hub.faults.add(Fault.status(500, on="commit", times=40))
    program = """
class Handler(logging.Handler):
    def emit(self, record):
        put(record.name)
        up.stats()
        if record.getMessage() == "flush":
            up.flush()

logging.getLogger().setLevel(logging.INFO)
with up:
    logging.getLogger().addHandler(Handler())
    def work():
        for n in range(200):
            logging.info("flush" if n % 40 == 0 else "a row")
            put("thread")
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logging.getLogger().handlers.clear()
"""
    count = job(run, hub, tmp_path / "spool", program)
    rows = dataset.rows()  # type: ignore[attr-defined]
    assert len(rows) == len({row["n"] for row in rows}) == count
    assert {"hubsync", "root", "thread"} <= {row["by"] for row in rows}


@pytest.mark.slow("processes of their own")
def test_a_process_whose_standard_error_is_stuck_does_not_stop_another(
    run: Commands, hub: LocalHub, tmp_path: Path, dataset: object
) -> None:
    """It logs within its transactions, and no one reads what it logs."""
    stuck = """
import os
from hubsync.spool.writer import SpoolWriter
accept = SpoolWriter._accept

def accept_and_log(self, batch, take):  # as a disk that complains would
    logging.getLogger("hubsync").warning("x" * 60_000)
    return accept(self, batch, take)

SpoolWriter._accept = accept_and_log
with up:
    for n in range(20):
        put("stuck", ack="queued")
    print("logged", flush=True)
    accepted[-1][1].wait("spooled")
    print("spooled", flush=True)
    sys.stdin.read()
    os._exit(0)
"""
    spool = tmp_path / "spool"
    process = run.python("-c", f"OPTIONS = {{}}\n{BEGIN}{stuck}", str(spool), hub.endpoint, hub.token)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() in ("logged", b"logged")
        count = job(run, hub, spool, "with up:\n    for n in range(50): put('free')\n")
        assert count == 50
        assert process.stdout.readline().strip() in ("spooled", b"spooled")
        process.kill()
