"""An evaluation: one row per sample in a config per task, thousands of tiny puts, and a summary in a config of its own.

    python examples/evaluation.py user/scores --samples 2000

Scoring is quick and gives the same again, so a sample that was still in memory when the job was killed is just scored
again: `ack="queued"` waits for nothing, and the sample's key keeps those that were accepted from being there twice.
"""

import argparse
import random
from statistics import fmean

from hubsync import Uploader

TASKS = ("arithmetic", "spelling")


def score(task: str, n: int) -> dict[str, object]:
    """The work: what a metric makes of the model's answer to sample `n`."""
    rng = random.Random(f"{task}-{n}")
    return {"sample": n, "exact_match": rng.random() < 0.7, "f1": round(rng.uniform(0.5, 1.0), 3)}


def evaluate(repo: str, task: str, model: str, samples: int) -> dict[str, object]:
    """Scores all samples of a task; returns its line of the summary."""
    exact: list[bool] = []
    f1: list[float] = []
    with Uploader(repo, config=task, split="test") as up:
        for n in range(samples):
            row = score(task, n)
            up.put([{"model": model, "task": task, **row}], key=f"{model}/{task}/{n}", ack="queued")
            exact.append(row["exact_match"])
            f1.append(row["f1"])
        up.flush()  # all of it is on the Hub: a summary is never there before its samples
    return {"model": model, "task": task, "samples": samples, "exact_match": fmean(exact), "f1": fmean(f1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/scores")
    parser.add_argument("--model", default="my-model")
    parser.add_argument("--samples", type=int, default=2000, help="of each task")
    args = parser.parse_args()

    summary = [evaluate(args.repo, task, args.model, args.samples) for task in TASKS]
    with Uploader(args.repo, config="summary", split="test") as up:
        for row in summary:
            up.put([row], key=f"{args.model}/{row['task']}/summary of {args.samples}")
    for row in summary:
        print(f"{row['task']}: exact match {row['exact_match']:.3f}, f1 {row['f1']:.3f}")


if __name__ == "__main__":
    main()
