"""Jobs for the tests of whole processes: run as `python -m tests.e2e.jobs '["NAME", ARGS…]'`; killed from outside, or
by themselves at a failpoint.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
from contextlib import ExitStack
from itertools import count
from typing import Any

from hubsync import AsyncUploader, CommitPolicy, CompactPolicy, RetryPolicy, ShardPolicy, Uploader
from hubsync._runtime import failpoints, file_lock
from hubsync._runtime.failpoints import Failpoint
from hubsync.committer import merger
from hubsync.model.layout import format_of
from hubsync.spool import database

QUICK: dict[str, Any] = {
    "shard": ShardPolicy(linger_s=0.05, max_rows=40),
    "commit": CommitPolicy(per_hour=100_000),
    "retry": RetryPolicy(initial_s=0.01, max_s=0.1, blocked_s=0.2, request_timeout_s=5),
}


def resuming(spool: str, source: str, rows: int) -> None:
    """Asks where to go on, and tells on stdout how far it was accepted."""
    with Uploader("user/rows", spool=spool, **QUICK) as up:
        start = -1 if (known := up.offset(source)) is None else known
        for n in range(start + 1, rows):
            up.put([{"id": f"{source}-{n}"}], offset=n, source=source)
            print(n, flush=True)


def endless(spool: str) -> None:
    """Puts until it is killed; a number is printed once its row is accepted."""
    with Uploader("user/rows", spool=spool, **QUICK) as up:
        for n in count():
            up.put([{"id": f"{os.getpid()}-{n}"}])
            print(f"{os.getpid()}-{n}", flush=True)


def telling(
    spool: str,
    told: str,
    pause_s: float,
    path: str | None = None,
    stalled_s: float = file_lock._STALLED_S,
    merges: bool = False,
) -> None:
    """As `endless`; writes to the file `told` what was accepted, so that it outlives every reader.

    Takes over from a committer that has shown no sign of life for `stalled_s`; if it `merges`, then as often as it can.
    """
    import time

    file_lock._STALLED_S = stalled_s
    merger._COMMITS_BETWEEN, merger._COMMITS_IF_BUSY, merger._RETRY_S = 1, 1, 0.2
    compact = CompactPolicy(min_shards=2) if merges else None
    fd = os.open(told, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    with Uploader("user/rows", spool=spool, path=path, compact=compact, **QUICK) as up:
        for n in count():
            up.put([{"id": f"{os.getpid()}-{n}"}])
            os.write(fd, b"%d-%d\n" % (os.getpid(), n))
            time.sleep(pause_s)


def merging() -> None:
    """Merges what there is, again and again, however young."""
    from hubsync.maintenance.compact import compact

    while True:
        compact("user/rows", apply=True, min_age_s=0)


def lingering(spool: str, told: str, grace_s: float) -> None:
    """Puts some rows that nothing seals, and waits to be ended."""
    import time

    fd = os.open(told, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    with Uploader("user/rows", spool=spool, grace_s=grace_s, **{**QUICK, "shard": ShardPolicy(linger_s=3600)}) as up:
        for n in range(50):
            up.put([{"id": f"a-{n}"}])
            os.write(fd, b"a-%d\n" % n)
        time.sleep(600)


def ending(spool: str, told: str, go_on: str) -> None:
    """Puts some rows, waits for the file `go_on`, and leaves the block."""
    import time

    fd = os.open(told, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    with Uploader("user/rows", spool=spool, **{**QUICK, "shard": ShardPolicy(linger_s=3600)}) as up:
        for n in range(50):
            up.put([{"id": f"a-{n}"}])
            os.write(fd, b"a-%d\n" % n)
        while not os.path.exists(go_on):
            time.sleep(0.01)
        os.write(fd, b"leaving\n")


def lingering_async(backend: str, spool: str, told: str, grace_s: float) -> None:
    """The same with tasks."""
    import anyio

    async def main() -> None:
        fd = os.open(told, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        policies = {**QUICK, "shard": ShardPolicy(linger_s=3600)}
        async with AsyncUploader("user/rows", spool=spool, grace_s=grace_s, **policies) as up:
            for n in range(50):
                await up.put([{"id": f"a-{n}"}])
                os.write(fd, b"a-%d\n" % n)
            await anyio.sleep(600)

    anyio.run(main, backend=backend)


def forgetful(spool: str, rows: int) -> None:
    """Ends without closing."""
    up = Uploader("user/rows", spool=spool, **QUICK).open()
    for n in range(rows):
        up.put([{"id": n}], ack="queued")


def crashing(
    spool: str, rows: int, path: str | None, point: str | None, nth: int, number: int, merges: bool = False
) -> None:
    """Goes on by offset; sends itself the signal `number` when it reaches a failpoint for the `nth` time."""
    if point is not None:
        at(Failpoint[point], nth, number)
    shard = ShardPolicy(linger_s=3600, max_rows=4)
    format = format_of(path or ".jsonl")
    compact = CompactPolicy(at_end=True) if merges else None
    with Uploader(
        "user/rows", spool=spool, path=path, format=format, compact=compact, **{**QUICK, "shard": shard}
    ) as up:
        start = -1 if (known := up.offset("a")) is None else known
        for n in range(start + 1, rows):
            up.put([{"id": n}], offset=n, source="a")


def at(point: Failpoint, nth: int, number: int) -> None:
    """Sends this process a signal when it reaches `point` for the `nth` time."""
    seen = count(1)

    def listen(reached: Failpoint) -> None:
        if reached is point and next(seen) == nth:
            with ExitStack() as still:
                if number == signal.SIGSTOP:
                    # No other thread is within a transaction: there a stopped process holds all up (guarantees.md).
                    for opened in database._open_catalogues:
                        still.enter_context(opened._lock)
                # To this thread: another one would stop a little later, when this one has left the block.
                signal.pthread_kill(threading.get_ident(), number)

    failpoints.listener = listen


def stopping(spool: str, told: str, point: str) -> None:
    """As `telling`; stops itself (SIGSTOP) once it has reached a failpoint often enough to be in the middle."""
    at(Failpoint[point], 5, signal.SIGSTOP)
    telling(spool, told, 0.005)


def spooling(source: str, rows: int, wait: bool) -> None:
    """Leaves its rows to the agent; tells on stdout how far it was accepted."""
    with Uploader("user/rows", committer="agent", **QUICK) as up:
        start = -1 if (known := up.offset(source)) is None else known
        for n in range(start + 1, rows):
            up.put([{"id": f"{source}-{n}"}], offset=n, source=source)
            print(n, flush=True)
        up.close(wait=wait)


def serving(point: str | None) -> None:
    """The agent; kills itself when it reaches a failpoint."""
    from hubsync.cli.agent import agent

    if point is not None:
        at(Failpoint[point], 1, signal.SIGKILL)
    agent(["--health", "127.0.0.1:0"])


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR2)  # `Jobs.describe` asks for it
    name, *args = json.loads(sys.argv[1])
    globals()[name](*args)
