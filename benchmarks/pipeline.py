"""Measure what a checkpointer costs a pipeline while the Hub is down, by running the pipeline with and without one.

One generator waits, as for an API; another computes. Batches have 50 rows of 3 kB. The time counts from the first batch
until the last step has processed the last one, about a minute, during which the Hub is down. Then it comes back, and
all rows must arrive. Each case runs in its own process, and so does its Hub.
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
_BATCH_S = 0.02  # time to generate a batch
_GENERATORS = ("waiting", "computing")
_CASES = ("without", "with")


def run(*, quick: bool) -> Report:
    """Run all cases; report the seconds, and by how much the checkpointer slows the pipeline down."""
    rounds, count = (1, 250) if quick else (2, 3_000)
    times: dict[tuple[str, str], list[float]] = {}
    with BenchmarkHub() as hub:
        for number in range(rounds):
            for generator in _GENERATORS:
                for case in _CASES if number % 2 == 0 else reversed(_CASES):
                    times.setdefault((generator, case), []).append(_run_case(hub, generator, case, count))
    figures: list[dict[str, Any]] = []
    for generator in _GENERATORS:
        without, with_it = (statistics.median(times[generator, case]) for case in _CASES)
        pairs = zip(times[generator, "without"], times[generator, "with"], strict=True)
        slower = statistics.median((b / a - 1) * 100 for a, b in pairs)
        figures.append({"generator": generator, "without_s": without, "with_s": with_it, "slower_percent": slower})
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


def _run_case(hub: BenchmarkHub, generator: str, case: str, count: int) -> float:
    """Return the seconds from the first to the last batch."""
    hub.set_condition("healthy")
    repo = f"user/pipeline-{time.time_ns()}"
    child = hub.spawn("pipeline", generator, case, count, repo)
    child.read_line()  # the steps are loaded
    hub.set_condition("down")
    child.go()
    took = float(child.read_line())
    hub.set_condition("healthy")
    child.communicate()
    if child.returncode:
        raise RuntimeError(f"the pipeline ended with {child.returncode}")
    if case == "with" and (found := _count_rows(hub, repo)) != count * _ROWS:
        raise RuntimeError(f"only {found:,} of {count * _ROWS:,} rows arrived")
    return took


def _count_rows(hub: BenchmarkHub, repo: str) -> int:
    from hubsync.reader import shards

    return sum(shard.rows or 0 for shard in shards(repo, endpoint=hub.endpoint, token=hub.token))


def _child(generator: str, case: str, count: int, repo: str) -> None:
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
                if generator == "waiting":
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
            yield []  # the distiset is not measured

    with Pipeline(name="bench") as pipeline:
        last = Last()
        if case == "with":
            # Retry quickly, because the time after the outage is not measured.
            checkpointer = HuggingFaceHubCheckpointer(
                repo_id=repo, input_batch_size=2_000, retry=RetryPolicy(initial_s=0.5, max_s=2.0)
            )
            source = Source()  # loaded after the checkpointer, which has to open while the Hub is up
            source >> checkpointer >> last
        else:
            Source() >> last
    pipeline.run()


def _compute(seconds: float) -> None:
    """Use that much CPU time of this thread. It takes longer if other threads or processes compete for the CPU."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(1_000))


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
