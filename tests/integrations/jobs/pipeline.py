"""A distilabel pipeline as a user would write it: source >> one or two generating steps >> the checkpointer.

The argument is its plan, as JSON. It writes its result to a file.
"""

import json
import math
import os
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from distilabel.pipeline import Pipeline, sample_n_steps
from distilabel.steps import GeneratorStep, Step, StepInput, StepResources
from distilabel.typing import GeneratorStepOutput, StepOutput

from hubsync import CommitPolicy, RetryPolicy
from hubsync.integrations.distilabel import HuggingFaceHubCheckpointer


class Source(GeneratorStep):
    rows: int

    @property
    def outputs(self) -> list[str]:
        return ["id"]

    def process(self, offset: int = 0) -> "GeneratorStepOutput":
        for start in range(offset, self.rows, self.batch_size):
            end = min(start + self.batch_size, self.rows)
            yield [{"id": n} for n in range(start, end)], end == self.rows


class Generate(Step):
    """Record the generated ids in a file named after the step, for the tests to read."""

    kind: str = "same"
    pace_s: float = 0.0

    @property
    def inputs(self) -> list[str]:
        return ["id"]

    @property
    def outputs(self) -> list[str]:
        return ["by", "text"]

    def process(self, inputs: StepInput) -> "StepOutput":
        rows = []
        for row in inputs:
            time.sleep(self.pace_s)
            rows.append({**row, "by": self.name, **self._values(row["id"])})
        with open(f"made-{self.name}", "a") as made:
            made.writelines(f"{row['id']}\n" for row in rows)
        yield rows

    def _values(self, number: int) -> dict[str, Any]:
        if self.kind == "other":
            return {"text": str(uuid.uuid4())}  # as an LLM would
        if self.kind == "odd":
            when = datetime(2026, 1, 1, 12, tzinfo=UTC)
            return {"text": "café", "when": when, "score": math.inf if number == 7 else 0.5}
        return {"text": "x" * 100}


def even(row: dict[str, Any]) -> dict[str, Any] | None:
    row["text"] = "*"
    return None if row["id"] % 2 else row


def build(plan: dict[str, Any], **given: Any) -> Pipeline:
    with Pipeline(name="job", cache_dir="cache") as pipeline:
        source = Source(name="source", rows=plan["rows"], batch_size=50 if plan.get("routed") else 60)
        generating = [
            Generate(name=name, kind=plan.get("kind", "same"), pace_s=plan.get("pace_s", 0.0), input_batch_size=50)
            for name in plan.get("generate", ["first"])
        ]
        last = HuggingFaceHubCheckpointer(
            name="checkpoint",
            repo_id="user/rows",
            input_batch_size=50,
            spool="spool",
            commit=CommitPolicy(per_hour=100_000),
            retry=RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.2, request_timeout_s=5),
            token=os.environ.get("JOB_TOKEN"),
            resources=StepResources(replicas=plan.get("replicas", 1)),
            transform=even if plan.get("transform") else None,
            **{**plan.get("checkpoint", {}), **given},
        )
        if plan.get("routed"):
            source >> sample_n_steps(1) >> generating >> last
        else:
            source >> generating
            generating[::-1] >> last  # connected in another order than they were created in
    return pipeline


def main(plan: dict[str, Any]) -> None:
    result: dict[str, Any] = {}
    pipeline = build(plan)
    if plan.get("dry_run"):
        pipeline.dry_run()
    distiset = pipeline.run(use_cache=False)
    result["rows"] = [[row["by"], row["id"]] for row in distiset["default"]["train"]] if distiset else []
    if plan.get("again"):
        again = build(plan, drain_s=88.0)
        distiset = again.run(use_cache=True, parameters={"checkpoint": {"linger_s": 77.0}})
        result["again"] = len(distiset["default"]["train"])
        step = again.dag.get_step("checkpoint")["step"]
        result["given"] = [step.linger_s, step.drain_s]
    if repo := plan.get("push_to"):
        # Its card holds a row, as JSON.
        distiset["default"]["train"] = distiset["default"]["train"].remove_columns("when")
        distiset.push_to_hub(repo, token=os.environ["JOB_TOKEN"], include_script=True)
    if plan.get("load"):
        from datasets import load_dataset

        for repo, config in plan["load"]:
            loaded = load_dataset(repo, config, split="train", token=os.environ.get("JOB_TOKEN"))
            result[f"{repo} {config}"] = loaded["id"][:]
    with open("result", "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
