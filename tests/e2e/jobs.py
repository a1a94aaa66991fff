"""Jobs for the tests of whole processes: run as `python -m tests.e2e.jobs NAME ARGS…`, killed from outside."""

from __future__ import annotations

import os
import sys
from itertools import count
from typing import Any

from hubsync import CommitPolicy, RetryPolicy, ShardPolicy, Uploader

QUICK: dict[str, Any] = {
    "shard": ShardPolicy(linger_s=0.05, max_rows=40),
    "commit": CommitPolicy(per_hour=100_000),
    "retry": RetryPolicy(initial_s=0.01, max_s=0.1, blocked_s=0.2, request_timeout_s=5),
}


def resuming(spool: str, source: str, rows: str) -> None:
    """Asks where to go on, and tells on stdout how far it was accepted."""
    with Uploader("user/rows", spool=spool, **QUICK) as up:
        start = -1 if (known := up.offset(source)) is None else known
        for n in range(start + 1, int(rows)):
            up.put([{"id": f"{source}-{n}"}], offset=n, source=source)
            print(n, flush=True)


def endless(spool: str) -> None:
    """Puts until it is killed; a number is printed once its row is accepted."""
    with Uploader("user/rows", spool=spool, **QUICK) as up:
        for n in count():
            up.put([{"id": f"{os.getpid()}-{n}"}])
            print(f"{os.getpid()}-{n}", flush=True)


def forgetful(spool: str, rows: str) -> None:
    """Ends without closing."""
    up = Uploader("user/rows", spool=spool, **QUICK).open()
    for n in range(int(rows)):
        up.put([{"id": n}], ack="queued")


if __name__ == "__main__":
    {"resuming": resuming, "endless": endless, "forgetful": forgetful}[sys.argv[1]](*sys.argv[2:])
