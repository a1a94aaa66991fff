"""`Dataset.map` over several processes, which upload each batch as soon as it is ready.

    python examples/datasets_map.py user/answers --rows 1000

The mapped function puts its rows and returns nothing. So `datasets` writes no second copy to its cache and, the next
time, calls the function instead of reading that copy.
"""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from datasets import Dataset

from hubsync import Uploader

# Each process gets one part of the dataset, and its offset counts within that part. Always resume a dataset with the
# number of processes that it was started with. The batch size may change.
PROCESSES = 2

_up: Uploader | None = None  # of this process


def uploader(repo: str) -> Uploader:
    """Return the uploader of this process, opened with its first batch: an uploader does not survive a fork.

    It is never closed, because a pool ends its processes by SIGTERM, even after success. That does no harm: a row is in
    the spool when `put` returns, and `main` uploads it.
    """
    global _up
    if _up is None:
        _up = Uploader(repo, grace_s=None).open()
    return _up


def answer(question: str) -> str:
    """Do the work."""
    return question[::-1]


def answer_batch(batch: dict[str, list[str]], indices: list[int], rank: int, repo: str, end: str) -> None:
    if os.path.exists(end):
        raise InterruptedError("the job received SIGTERM")
    up, source = uploader(repo), f"piece-{rank}"
    done = up.offset(source)
    questions = zip(indices, batch["question"], strict=True)
    todo = [(n, question) for n, question in questions if done is None or n > done]
    if todo:
        rows = [{"id": n, "question": question, "answer": answer(question)} for n, question in todo]
        up.put(rows, offset=indices[-1], source=source)


def let_children_die_by_sigterm() -> None:
    """Restore SIGTERM's default in forked processes; block it during the fork, so that the job's handler never runs."""
    sigterm = {signal.SIGTERM}

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, sigterm),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm),
        after_in_child=in_child,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/answers")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=20)
    args = parser.parse_args()

    questions = Dataset.from_dict({"question": [f"Question number {n}?" for n in range(args.rows)]})
    let_children_die_by_sigterm()
    with tempfile.TemporaryDirectory() as directory:
        # On SIGTERM, each process may finish its batch: an exception raised by a signal handler, or a process killed
        # while it holds the pool's locks, can make the pool wait forever.
        end = Path(directory, "end")
        signal.signal(signal.SIGTERM, lambda *_: end.touch())
        try:
            questions.map(
                answer_batch,
                batched=True,
                batch_size=args.batch_size,
                with_indices=True,
                with_rank=True,
                num_proc=PROCESSES,
                fn_kwargs={"repo": args.repo, "end": str(end)},
            )
        except InterruptedError:
            pass
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from here on, the uploader handles it
            with Uploader(args.repo):  # closing it uploads the rows of all processes
                if end.exists():
                    signal.raise_signal(signal.SIGTERM)  # within its grace period


if __name__ == "__main__":
    main()
