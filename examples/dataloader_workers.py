"""Several worker processes, like a DataLoader's: each has its own uploader, and all share one spool.

    python examples/dataloader_workers.py user/tokens --rows 1000

On one host they share a spool and one of them commits for all, so they use one commit quota. A worker that dies is
restarted after the others have finished, and resumes from its own offset. The rows that it had put are not lost.
"""

import argparse
import multiprocessing
import signal
import sys

from hubsync import Uploader

# The number of workers decides which rows a worker gets, and so what its offset means. Always resume a dataset with the
# number that it was started with.
WORKERS = 4
MAX_RESTARTS = 3


def tokenize(n: int) -> dict[str, object]:
    """Do the work of a DataLoader's `__getitem__`."""
    text = f"sample number {n}"
    return {"id": n, "tokens": [hash_of(word) for word in text.split()]}


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode(), "big") % 50_257


def work(worker: int, repo: str, rows: int) -> None:
    """Process every WORKERS-th row. A worker opens its own uploader, because an uploader does not survive a fork."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # instead of the parent's handler: the uploader handles it
    source = f"worker-{worker}"
    with Uploader(repo) as up:
        done = up.offset(source)
        for n in range(worker if done is None else done + WORKERS, rows, WORKERS):
            up.put([{"worker": worker, **tokenize(n)}], offset=n, source=source)


def end(*_: object) -> None:
    """Pass SIGTERM on to the workers. Each uploads its rows, and the interpreter waits for all of them."""
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
    for _ in range(1 + MAX_RESTARTS):
        processes = {n: context.Process(target=work, args=(n, args.repo, args.rows)) for n in left}
        for process in processes.values():
            process.start()
        for process in processes.values():
            process.join()
        left = [n for n, process in processes.items() if process.exitcode != 0]
        if not left:
            return
        print(f"worker {', '.join(map(str, left))} died and is restarted", flush=True)
    raise SystemExit("a worker keeps dying. Its rows so far are safe; the next run resumes after them.")


if __name__ == "__main__":
    main()
