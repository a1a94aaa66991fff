"""`Dataset.map` over several processes, each batch on its way to the Hub as soon as it is made.

    python examples/datasets_map.py user/answers --rows 1000

The function is called for what it puts and returns nothing, so `datasets` neither writes a second copy to its cache
nor, the next time, takes one from there instead of calling it.
"""

import argparse
import signal
import sys

from datasets import Dataset
from multiprocess.util import Finalize  # not multiprocessing: `datasets` makes its processes with this one

from hubsync import Uploader

# Each process gets one piece of the dataset, and its offset counts within that piece: a dataset that was begun with
# two processes is gone on with by two. The batch size may change.
PROCESSES = 2

_up: Uploader | None = None  # this process' own


def uploader(repo: str) -> Uploader:
    """The uploader of this process, opened when its first batch comes: one can't be taken through a fork."""
    global _up
    if _up is None:
        _up = Uploader(repo).open()
        # A pool's process ends by os._exit, without `atexit`; what it does run is multiprocess' own finalizers.
        Finalize(None, _up.close, exitpriority=0)
    return _up


def answer(question: str) -> str:
    """The work."""
    return question[::-1]


def answer_batch(batch: dict[str, list[str]], indices: list[int], rank: int, repo: str) -> None:
    up, source = uploader(repo), f"piece-{rank}"
    done = up.offset(source)
    questions = zip(indices, batch["question"], strict=True)
    todo = [(n, question) for n, question in questions if done is None or n > done]
    if todo:
        rows = [{"id": n, "question": question, "answer": answer(question)} for n, question in todo]
        up.put(rows, offset=indices[-1], source=source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/answers")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=20)
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # told to end, the job tells the map's processes as well
    questions = Dataset.from_dict({"question": [f"Question number {n}?" for n in range(args.rows)]})
    try:
        questions.map(
            answer_batch,
            batched=True,
            batch_size=args.batch_size,
            with_indices=True,
            with_rank=True,
            num_proc=PROCESSES,
            fn_kwargs={"repo": args.repo},
        )
    finally:
        # Where a process was killed, its rows are in the spool: an uploader that closes brings up what the dead left.
        with Uploader(args.repo):
            pass


if __name__ == "__main__":
    main()
