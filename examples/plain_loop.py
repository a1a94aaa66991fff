"""A plain loop that makes one row after the other, and resumes after it was killed.

    python examples/plain_loop.py user/numbers --rows 1000

Run it, kill it, run it again: every row is in the dataset exactly once.
"""

import argparse
import random

from hubsync import Uploader


def make(n: int) -> dict[str, object]:
    """Make row `n`. Its number is the seed, so it can be made at any time."""
    rng = random.Random(n)
    a, b = rng.randrange(1000), rng.randrange(1000)
    return {"id": n, "question": f"What is {a} + {b}?", "answer": a + b}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/numbers; created if it does not exist")
    parser.add_argument("--rows", type=int, default=1000)
    args = parser.parse_args()

    with Uploader(args.repo) as up:  # the Hub and the token come from HF_ENDPOINT and HF_TOKEN, or the login
        # The last row that earlier runs have stored: None before the first, 0 if row 0 is safe.
        done = up.offset("questions")
        first = 0 if done is None else done + 1
        for n in range(first, args.rows):
            up.put([make(n)], offset=n, source="questions")
    # The block ends when all rows are on the Hub.
    print(f"{max(0, args.rows - first):,} rows made, {min(first, args.rows):,} existed already")


if __name__ == "__main__":
    main()
