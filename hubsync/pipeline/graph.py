"""The pipeline that users build: named steps, connected with `>>`, and their run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import Token
from types import TracebackType
from typing import Self

from hubsync.pipeline import runner
from hubsync.pipeline.distiset import Distiset
from hubsync.pipeline.steps import GeneratorStep, PipelineError, Row, Step, StepGraph, current_graph


class Pipeline:
    """Run the steps created in its `with` block, connected by `a >> b`, `a >> [b, c]` and `[a, b] >> c`.

    Attributes:
        name: Names the run's cache; the default is "pipeline".
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or "pipeline"
        if not re.fullmatch(r"[\w.-]+", self.name, re.ASCII):
            raise PipelineError(f"invalid pipeline name {self.name!r}: use letters, digits, '-', '_' and '.'.")
        self._graph = StepGraph()
        self._token: Token[StepGraph | None] | None = None

    def __enter__(self) -> Self:
        self._token = current_graph.set(self._graph)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            current_graph.reset(self._token)

    @property
    def steps(self) -> list[Step]:
        """The steps, in the order in which they were created."""
        return self._graph.steps

    @property
    def leaves(self) -> list[Step]:
        """The steps without successors."""
        return self._graph.leaves

    def run(self, dataset: Iterable[Row] | None = None, use_cache: bool = False) -> Distiset:
        """Run all steps to the end.

        Args:
            dataset: The rows for the first steps: a `datasets.Dataset` or `IterableDataset`, a list, or a generator.
            use_cache: Continue where an earlier run of this pipeline ended or crashed. Nothing that was checkpointed is
                computed again.

        Returns:
            The rows of the last steps.

        Raises:
            PipelineError: The pipeline cannot work. Nothing was generated.
            BlockedError: A checkpointer cannot write to its dataset. Nothing was generated.
            StepError: A step failed. Everything checkpointed is safe.
        """
        self.check(dataset is not None)
        return runner.run(self.name, self._graph, dataset, use_cache)

    def check(self, has_dataset: bool) -> None:
        """Check that every step gets rows.

        Args:
            has_dataset: Whether `run` gets a dataset.

        Raises:
            PipelineError: The pipeline has no steps, or a step has neither a predecessor nor a dataset.
        """
        if not self.steps:
            raise PipelineError(f"the pipeline {self.name!r} has no steps.")
        for step in self.steps:
            if not (isinstance(step, GeneratorStep) or step.predecessors or has_dataset):
                raise PipelineError(
                    f"{step.name!r} gets no rows: pass `run(dataset=…)` or add a GeneratorStep before it."
                )
