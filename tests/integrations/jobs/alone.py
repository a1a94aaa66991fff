"""Scenes of the checkpointer without a pipeline, which call `load`, `process` and `unload` like distilabel does.

The argument is the name of the scene.
"""

import copy
import json
import logging
import pickle
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from distilabel.pipeline import Pipeline
from distilabel.steps import StepResources

from hubsync import HubsyncError, QueuePolicy, RetryPolicy
from hubsync.integrations.distilabel import HuggingFaceHubCheckpointer

TOKEN = "hf_a_token_of_the_usual_length_0123456"


class Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (
            record.name.startswith("distilabel.step") and record.levelno != logging.WARNING
        ):  # without a pipeline, distilabel warns
            self.lines.append(f"{record.levelname} {record.getMessage()}")


said = Said()
logging.getLogger().addHandler(said)
logging.getLogger().setLevel(logging.INFO)


def step(**given: Any) -> HuggingFaceHubCheckpointer:
    retry = RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.2, request_timeout_s=5)
    return HuggingFaceHubCheckpointer(
        **{"name": "checkpoint", "repo_id": "user/rows", "spool": "spool", "retry": retry, "drain_s": 20, **given}
    )


def rows(first: int, end: int, text: str = "x") -> list[dict[str, Any]]:
    return [{"id": n, "text": text} for n in range(first, end)]


def run(checkpoint: HuggingFaceHubCheckpointer, *batches: list[dict[str, Any]]) -> int:
    """Load, process all batches and unload; return how many rows were passed on."""
    checkpoint.load()
    passed = sum(len(out) for batch in batches for out in checkpoint.process(batch))
    checkpoint.unload()
    return passed


def lives() -> int:
    """Process one batch, against whatever Hub the test has prepared."""
    return run(step(drain_s=1), rows(0, 50))


def is_rejected() -> int:
    """Process one batch that the Hub will reject, and wait for that."""
    return run(step(), rows(0, 50))


def two_predecessors() -> int:
    checkpoint = step()
    checkpoint.load()
    (out,) = checkpoint.process(rows(0, 50), rows(50, 80))
    checkpoint.unload()
    return len(out)


def transforms() -> dict[str, Any]:
    """Mask rows, drop every third, fail at one; and load a step from a file."""

    def mask(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["id"] == 31:
            raise KeyError(row["text"])
        row["text"] = "*"
        return row if row["id"] % 3 else None

    went = rows(0, 50, "secret")
    batches: list[list[dict[str, Any]]] = []
    checkpoint = step(transform=mask)
    checkpoint.load()
    batches += checkpoint.process(went)
    checkpoint.unload()
    with Pipeline(name="p"):
        dumped = step(name="a", transform=mask).dump()
    with Pipeline(name="another"):
        read = HuggingFaceHubCheckpointer.from_dict(json.loads(json.dumps(dumped)))
    refused = []
    for begin in (lambda: read.set_pipeline_artifacts_path(Path("artifacts")), read.load):
        try:
            begin()
        except HubsyncError as error:
            refused.append(str(error))
    return {"passed": [row["text"] for batch in batches for row in batch], "refused": refused, "dumped": str(dumped)}


def conflicts(**given: Any) -> int:
    """Write a batch with numbers between two with text, as Parquet."""
    numbers = [{"id": n, "text": n} for n in range(50, 60)]
    return run(step(format="parquet", input_batch_size=50, **given), rows(0, 50), numbers, rows(60, 100))


def quarantines() -> int:
    """Write the same batches with a dead letter for the one that conflicts."""
    return conflicts(on_conflict="dead letter")


def loses_its_spool() -> int:
    checkpoint = step()
    checkpoint.load()
    passed = sum(len(out) for out in checkpoint.process(rows(0, 50)))
    while Path("spool").exists():  # the uploader still writes there
        shutil.rmtree("spool", ignore_errors=True)
    passed += sum(len(out) for n in (50, 100) for out in checkpoint.process(rows(n, n + 50)))
    checkpoint.unload()
    return passed


def large_rows() -> int:
    batch = rows(0, 50)
    batch[20]["text"] = "x" * 5_000
    return run(step(queue=QueuePolicy(max_bytes=1_000)), batch)


def goes_on_by_count() -> int:
    passed = run(step(run="r"), rows(0, 50, "a"), rows(50, 100, "a"), rows(100, 120, "a"))  # a short last batch
    shutil.rmtree("spool")
    return passed + run(step(run="r"), rows(0, 50, "b"), rows(50, 100, "b"), rows(100, 150, "b"))


def cannot_begin() -> str:
    checkpoint = step(run="r")
    checkpoint.unload()
    try:
        checkpoint.load()
    except HubsyncError as error:
        checkpoint.unload()
        checkpoint.unload()
        return type(error).__name__
    return "loaded"


def arguments() -> dict[str, Any]:
    """Return which arguments are refused, and what is serialized of the others."""
    refused, seen = {}, []
    for name, given in {
        "run and replicas": {"run": "r", "resources": StepResources(replicas=2)},
        "repo": {"repo_id": "no/such/repo"},
        "path": {"path": "all.jsonl"},
        "linger": {"linger_s": -1},
        "typo": {"lingers": 1},
    }.items():
        try:
            with Pipeline(name="p") as pipeline:
                step(token=TOKEN, **given)
        except ValueError as error:
            refused[name] = str(error)
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            seen += [repr(frame.f_locals) for frame in frames if frame.f_code.co_filename != __file__]
        assert list(pipeline.dag) == []
    with Pipeline(name="p"):
        twins = step(name="a"), step(name="b"), step(name="c", split="test")
    for one in twins:
        try:
            one.set_pipeline_artifacts_path(Path("artifacts"))  # as Pipeline.run does first
        except ValueError as error:
            refused[f"twin {one.name}"] = str(error)
    with Pipeline(name="p"):
        plain, tuned = step(name="a", token="hf_another"), step(name="b", linger_s=5, spool="x", drain_s=None)
        elsewhere = step(name="c", repo_id="user/others")
    plain.set_runtime_parameters({"token": TOKEN})  # as Pipeline.run(parameters=…) does
    tuned.pipeline = None  # as distilabel does before it copies a step to another process
    return {
        "refused": refused,
        "seen": [*seen, repr(plain), str(plain), str(plain.dump()), plain.model_dump_json(), repr(vars(plain))],
        "same": step(name="a", linger_s=5, spool="x", drain_s=None).signature == plain.signature,
        "else": elsewhere.signature == step(name="c").signature,
        "token": plain.token is not None and plain.token.get_secret_value() == TOKEN,
        "copied": pickle.loads(pickle.dumps(copy.deepcopy(tuned))).linger_s,
    }


if __name__ == "__main__":
    result = {"result": globals()[sys.argv[1]](), "log": said.lines}
    with open("result", "w") as file:
        json.dump(result, file)
