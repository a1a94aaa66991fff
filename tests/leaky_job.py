"""A job as a user might run it who logs everything and reports every crash with all variables: for test_security.

Its token comes from the environment, so no frame of the job itself holds it. Modes: "async" uses the other face.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import resource
import sys
import traceback
from types import TracebackType
from typing import Any

from hubsync import AsyncUploader, CommitPolicy, HubsyncError, RetryPolicy, ShardPolicy, Uploader


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What crash reporters write: every frame with its variables, of every error in the chain."""
    from rich.console import Console
    from rich.traceback import Traceback

    print("CRASHED", file=sys.stderr)
    print_error(error)
    rich = Traceback.from_exception(kind, error, trace, show_locals=True, locals_max_string=None)
    Console(stderr=True, width=5_000).print(rich)
    faulthandler.dump_traceback(all_threads=True)


def print_error(error: BaseException) -> None:
    print(repr(error), vars(error), file=sys.stderr)
    for line in traceback.TracebackException.from_exception(error, capture_locals=True).format():
        print(line, file=sys.stderr)


GIVEN: dict[str, Any] = {
    "spool": os.environ["JOB_SPOOL"],
    "shard": ShardPolicy(linger_s=3600),
    "commit": CommitPolicy(per_hour=100_000),
    "retry": RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.05, request_timeout_s=5),
}


def blob() -> list[dict[str, Any]]:
    """Enough rows for a blob of its own. Never in a variable: crash reports would be full of it."""
    return [{"id": n, "text": os.urandom(900).hex()} for n in range(6_000)]


def main() -> None:
    up = None
    while up is None:
        try:
            up = Uploader("user/rows", **GIVEN).open()
        except HubsyncError as error:
            print_error(error)
    up.put([{"id": -1}])
    flush(up)
    up.put(blob())
    flush(up)
    print(up, up.stats(), vars(up), vars(up._engine), file=sys.stderr)
    revoke()
    up.put([{"id": -2}])
    up.close()


def flush(up: Uploader) -> None:
    while up.stats().spool.rows:
        try:
            up.flush()
        except HubsyncError as error:
            print_error(error)


async def main_async() -> None:
    async with AsyncUploader("user/rows", **GIVEN) as up:
        await up.put([{"id": -1}], ack="committed")
        revoke()
        await up.put([{"id": -2}])


def revoke() -> None:
    """Signal the test that all rows are committed, and wait until it has revoked the token."""
    print("revoke", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.excepthook = report
    logging.basicConfig(level=1, stream=sys.stderr)
    asyncio.run(main_async(), debug=True) if sys.argv[1:] == ["async"] else main()
