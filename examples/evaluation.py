"""An evaluation: one row per sample, one config per task, thousands of tiny puts, and a config for the summary.

    python examples/evaluation.py user/scores --samples 2000

Scoring is fast and repeatable, so a sample that was still in memory when the job was killed is simply scored again.
That is why `ack="queued"` is enough; the sample's key keeps accepted rows from being added twice.
"""

import argparse
import random
from statistics import fmean

from hubsync import Uploader

TASKS = ("arithmetic", "spelling")


def score(task: str, n: int) -> dict[str, object]:
    """Return the metrics of the model's answer to sample `n`."""
    rng = random.Random(f"{task}-{n}")
    return {"sample": n, "exact_match": rng.random() < 0.7, "f1": round(rng.uniform(0.5, 1.0), 3)}


def evaluate(repo: str, task: str, model: str, samples: int) -> dict[str, object]:
    """Score all samples of a task; return its row of the summary."""
    exact: list[bool] = []
    f1: list[float] = []
    with Uploader(repo, config=task, split="test") as up:
        for n in range(samples):
            row = score(task, n)
            up.put([{"model": model, "task": task, **row}], key=f"{model}/{task}/{n}", ack="queued")
            exact.append(row["exact_match"])
            f1.append(row["f1"])
        up.flush()  # the samples are on the Hub before their summary
    return {"model": model, "task": task, "samples": samples, "exact_match": fmean(exact), "f1": fmean(f1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo", help="the dataset, such as user/scores")
    parser.add_argument("--model", default="my-model")
    parser.add_argument("--samples", type=int, default=2000, help="samples per task")
    args = parser.parse_args()

    summary = [evaluate(args.repo, task, args.model, args.samples) for task in TASKS]
    with Uploader(args.repo, config="summary", split="test") as up:
        for row in summary:
            up.put([row], key=f"{args.model}/{row['task']}/summary of {args.samples}")
    for row in summary:
        print(f"{row['task']}: exact match {row['exact_match']:.3f}, f1 {row['f1']:.3f}")


if __name__ == "__main__":
    main()
