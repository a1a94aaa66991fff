"""What a checkpointer costs a pipeline while the Hub is down: the same pipeline with one and without, by turns.

A generator that waits (as for an API) and one that computes, batches of 50 rows of 3 kB; timed from the first
batch to the last one behind the last step. The Hub is gone for all of it, a minute; then it comes back, and the rows
must all arrive. Each case runs in a process of its own, against a Hub in another.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, batches, wait_for_start
from benchmarks.report import LIMIT, OURS, Column, Report, bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _ROW_BYTES = 50, 3_000
_BATCH_S = 0.02  # that a batch takes to be generated
_KINDS = ("waiting", "computing")
_CASES = ("without", "with")


def run(*, quick: bool) -> Report:
    """All cases: seconds, and by how much the checkpointer is slower."""
    rounds, count = (1, 250) if quick else (2, 3_000)
    times: dict[tuple[str, str], list[float]] = {}
    with BenchmarkHub() as hub:
        for number in range(rounds):
            for kind in _KINDS:
                for case in _CASES if number % 2 == 0 else reversed(_CASES):
                    times.setdefault((kind, case), []).append(_one(hub, kind, case, count))
    figures: list[dict[str, Any]] = []
    for kind in _KINDS:
        without, with_it = (statistics.median(times[kind, case]) for case in _CASES)
        pairs = zip(times[kind, "without"], times[kind, "with"], strict=True)
        slower = statistics.median((b / a - 1) * 100 for a, b in pairs)
        figures.append({"generator": kind, "without_s": without, "with_s": with_it, "slower_percent": slower})
    return Report(
        name="pipeline",
        title=f"A pipeline of {count:,} batches while the Hub is down, medians of {rounds} rounds",
        figures=figures,
        columns=(
            Column("generator", "generator"),
            Column("without_s", "without a checkpointer (s)", ".2f"),
            Column("with_s", "with one (s)", ".2f"),
            Column("slower_percent", "slower by (%)", ".2f"),
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(8.0, 3.0),
    )


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    bars(
        figure.subplots(),
        [f"{f['generator']}, {case} a checkpointer" for f in figures for case in _CASES],
        [f[f"{case}_s"] for f in figures for case in _CASES],
        colours=[OURS if case == "with" else LIMIT for _ in figures for case in _CASES],
        unit="seconds to the last batch",
        spec=".2f",
    )


def _one(hub: BenchmarkHub, kind: str, case: str, count: int) -> float:
    hub.set_condition("healthy")
    repo = f"user/pipeline-{time.time_ns()}"
    child = hub.spawn("pipeline", kind, case, count, repo)
    child.read_line()  # the steps are loaded: now the weather turns
    hub.set_condition("down")
    child.go()
    took = float(child.read_line())
    hub.set_condition("healthy")
    child.communicate()
    if child.returncode:
        raise RuntimeError(f"the pipeline ended with {child.returncode}")
    if case == "with" and (found := _rows_of(hub, repo)) != count * _ROWS:
        raise RuntimeError(f"{found:,} of {count * _ROWS:,} rows have arrived")
    return took


def _rows_of(hub: BenchmarkHub, repo: str) -> int:
    from hubsync.reader import shards

    return sum(shard.rows or 0 for shard in shards(repo, endpoint=hub.endpoint, token=hub.token))


def _work(kind: str, case: str, count: int, repo: str) -> None:
    from hubsync import RetryPolicy
    from hubsync.pipeline import GeneratorStep, HuggingFaceHubCheckpointer, Pipeline, Step, StepInput

    stock = batches(_ROWS, _ROW_BYTES)
    began = [0.0]

    class Source(GeneratorStep):
        def load(self) -> None:
            wait_for_start()
            began[0] = time.perf_counter()

        def process(self, offset: int = 0) -> Iterator[tuple[list[dict[str, Any]], bool]]:
            for n in range(count):
                if kind == "waiting":
                    time.sleep(_BATCH_S)
                else:
                    _compute(_BATCH_S)
                yield stock[n % len(stock)], n == count - 1

    class Last(Step):
        input_batch_size = _ROWS
        seen = 0

        def process(self, *inputs: StepInput) -> Iterator[list[dict[str, Any]]]:
            self.seen += len(inputs[0])
            if self.seen == count * _ROWS:
                print(time.perf_counter() - began[0], flush=True)
            yield []  # the distiset is not what is measured

    with Pipeline(name="bench") as pipeline:
        last = Last()
        if case == "with":
            # Retries soon: how long the rows take after the outage is not what is measured.
            checkpointer = HuggingFaceHubCheckpointer(
                repo_id=repo, input_batch_size=2_000, retry=RetryPolicy(initial_s=0.5, max_s=2.0)
            )
            source = Source()  # loaded behind the checkpointer, which opens while the Hub is there
            source >> checkpointer >> last
        else:
            Source() >> last
    pipeline.run()


def _compute(seconds: float) -> None:
    """Takes the processor for so long; by its own time, so that who takes it away makes this take longer."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(1_000))


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
