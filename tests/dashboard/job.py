"""A job for the page to show, run as `python -m tests.dashboard.job REPO SPOOL [--option VALUE]…` until it is killed:
rows of about a kilobyte, in bursts, as a model would make them.
"""

from __future__ import annotations

import argparse
import math
import random
import time

from hubsync import CommitPolicy, RetryPolicy, ShardPolicy, Uploader


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("repo")
    parser.add_argument("spool")
    parser.add_argument("--rows-per-s", type=float, default=200)
    parser.add_argument("--linger-s", type=float, default=0.3)
    parser.add_argument("--per-hour", type=int, default=100_000)
    parser.add_argument("--blocked-s", type=float, default=0.5)
    parser.add_argument("--retry-s", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=None, help="then wait")
    given = parser.parse_args()
    rng = random.Random(7)
    with Uploader(
        given.repo,
        spool=given.spool,
        shard=ShardPolicy(linger_s=given.linger_s),
        commit=CommitPolicy(per_hour=given.per_hour),
        retry=RetryPolicy(initial_s=given.retry_s, max_s=given.retry_s, blocked_s=given.blocked_s, request_timeout_s=5),
    ) as up:
        begun, number = time.monotonic(), 0
        while given.rows is None or number < given.rows:
            pace = 1 + 0.35 * math.sin((time.monotonic() - begun) / 25) + rng.uniform(-0.2, 0.2)
            batch = [{"id": number + n, "text": "x" * rng.randint(400, 1600)} for n in range(20)]
            up.put(batch)
            number += len(batch)
            time.sleep(len(batch) / given.rows_per_s / max(0.2, pace))
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
