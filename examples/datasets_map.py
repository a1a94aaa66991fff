"""`Dataset.map` over several processes, each batch on its way to the Hub as soon as it is made.

    python examples/datasets_map.py user/answers --rows 1000

The function is called for what it puts and returns nothing, so `datasets` neither writes a second copy to its cache
nor, the next time, takes one from there instead of calling it.
"""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from datasets import Dataset

from hubsync import Uploader

# Each process gets one piece of the dataset, and its offset counts within that piece: a dataset that was begun with
# two processes is gone on with by two. The batch size may change.
PROCESSES = 2

_up: Uploader | None = None  # this process' own


def uploader(repo: str) -> Uploader:
    """The uploader of this process, opened when its first batch comes: one can't be taken through a fork.

    Nobody closes it: a pool ends its processes by SIGTERM, also when all is well. That is no harm, since what `put` has
    returned from is in the spool, and `main` brings it up.
    """
    global _up
    if _up is None:
        _up = Uploader(repo, grace_s=None).open()
    return _up


def answer(question: str) -> str:
    """The work."""
    return question[::-1]


def answer_batch(batch: dict[str, list[str]], indices: list[int], rank: int, repo: str, end: str) -> None:
    if os.path.exists(end):
        raise InterruptedError("the job was told to end")
    up, source = uploader(repo), f"piece-{rank}"
    done = up.offset(source)
    questions = zip(indices, batch["question"], strict=True)
    todo = [(n, question) for n, question in questions if done is None or n > done]
    if todo:
        rows = [{"id": n, "question": question, "answer": answer(question)} for n, question in todo]
        up.put(rows, offset=indices[-1], source=source)


def die_when_told() -> None:
    """Has the map's processes die by SIGTERM, and not run the job's handler; also one that has only just begun."""
    told = {signal.SIGTERM}

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, told)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, told),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, told),
        after_in_child=in_child,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/answers")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=20)
    args = parser.parse_args()

    questions = Dataset.from_dict({"question": [f"Question number {n}?" for n in range(args.rows)]})
    die_when_told()
    with tempfile.TemporaryDirectory() as directory:
        # Told to end, the job lets each process finish its batch: an exception out of a signal's handler, or a process
        # that is killed while it holds the pool's locks, can leave the pool waiting for ever.
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
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the uploader's to handle from here
            with Uploader(args.repo):  # one that closes brings up what the dead have left
                if end.exists():
                    signal.raise_signal(signal.SIGTERM)  # as far as its grace goes


if __name__ == "__main__":
    main()
