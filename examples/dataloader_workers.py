"""Several worker processes, as a DataLoader has them: each with an uploader of its own, all on one spool.

    python examples/dataloader_workers.py user/tokens --rows 1000

On one host they share a spool, and one of them commits for all, so they spend one commit quota. A worker that dies is
started again once the others are through, and goes on from its own offset; what it had put is not lost.
"""

import argparse
import multiprocessing
import signal
import sys

from hubsync import Uploader

# Which rows are a worker's depends on how many there are, and so does what its offset means: a dataset that was begun
# with four workers is gone on with by four.
WORKERS = 4
MOST_RESTARTS = 3


def tokenize(n: int) -> dict[str, object]:
    """The work: what a DataLoader's `__getitem__` does."""
    text = f"sample number {n}"
    return {"id": n, "tokens": [hash_of(word) for word in text.split()]}


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode(), "big") % 50_257


def work(worker: int, repo: str, rows: int) -> None:
    """One worker: every WORKERS-th row. It opens its uploader itself, since one can't be taken through a fork."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the uploader's to handle: forked, a worker has its parent's handler
    source = f"worker-{worker}"
    with Uploader(repo) as up:
        done = up.offset(source)
        for n in range(worker if done is None else done + WORKERS, rows, WORKERS):
            up.put([{"worker": worker, **tokenize(n)}], offset=n, source=source)


def end(*_: object) -> None:
    """The job is told to end, and tells its workers; each brings up what it has, and the interpreter waits for them."""
    for process in multiprocessing.active_children():
        process.terminate()
    sys.exit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/tokens")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--start-method", choices=["fork", "spawn"], default="spawn")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, end)
    context = multiprocessing.get_context(args.start_method)
    left = list(range(WORKERS))
    for _ in range(1 + MOST_RESTARTS):
        processes = {n: context.Process(target=work, args=(n, args.repo, args.rows)) for n in left}
        for process in processes.values():
            process.start()
        for process in processes.values():
            process.join()
        left = [n for n, process in processes.items() if process.exitcode != 0]
        if not left:
            return
        print(f"worker {', '.join(map(str, left))} died and goes on where it was", flush=True)
    raise SystemExit("a worker dies again and again; what was put is safe, and the next run goes on from there")


if __name__ == "__main__":
    main()
