"""The plain loop: rows are made one after the other, and a job that was killed goes on where it was.

    python examples/plain_loop.py user/numbers --rows 1000

Run it, kill it, run it again: every row is in the dataset once.
"""

import argparse
import random

from hubsync import Uploader


def make(n: int) -> dict[str, object]:
    """The work. By its number a row can be made at any time: the seed is its own."""
    rng = random.Random(n)
    a, b = rng.randrange(1000), rng.randrange(1000)
    return {"id": n, "question": f"What is {a} + {b}?", "answer": a + b}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/numbers; it is made where it does not exist")
    parser.add_argument("--rows", type=int, default=1000)
    args = parser.parse_args()

    with Uploader(args.repo) as up:  # the Hub and the token come from HF_ENDPOINT and HF_TOKEN, or the login
        # How far earlier runs came. None is the first run's answer; 0 is not, it means that row 0 is safe.
        done = up.offset("questions")
        first = 0 if done is None else done + 1
        for n in range(first, args.rows):
            up.put([make(n)], offset=n, source="questions")
    # The block ends when all of it is on the Hub.
    print(f"{max(0, args.rows - first):,} rows made, {min(first, args.rows):,} were there already")


if __name__ == "__main__":
    main()
