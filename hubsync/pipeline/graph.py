"""Steps and how they hang together: the graph of a pipeline, checked as it is drawn.

A step is a plain class: its class attributes are its fields, its annotations are never evaluated. What runs it is
`running.py`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator, Iterable, Sequence
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from hubsync.errors import ConfigError, HubsyncError

if TYPE_CHECKING:
    from hubsync.pipeline.distiset import Distiset

Row: TypeAlias = dict[str, Any]
StepInput: TypeAlias = list[Row]
"""What `process` gets from each predecessor: rows, at most `input_batch_size` of them."""
StepOutput: TypeAlias = (
    Generator[list[Row], None, None] | AsyncGenerator[list[Row], None] | Awaitable[list[Row] | None] | list[Row]
)
"""What `process` gives: lists of rows, yielded by `def` or `async def`, or one list returned."""

_current: ContextVar[Pipeline | None] = ContextVar("hubsync pipeline", default=None)


class PipelineError(ConfigError):
    """A pipeline that can't work as it is drawn. Raised before any row is generated."""


class StepError(HubsyncError):
    """A step has raised, or yielded what is no list of rows. What was checkpointed before is safe."""


class Step:
    """Takes batches of rows and yields lists of rows.

    Attributes:
        name: unique in its pipeline; made of the class' name where it is not given.
        input_batch_size: rows that `process` gets at once from each predecessor; the last batch is shorter.
    """

    name: str
    input_batch_size: int = 50

    def __init__(self, *, name: str | None = None, **fields: Any) -> None:
        """Takes the class' fields by name.

        Raises:
            PipelineError: a field that the class does not have, a size below 1, or no pipeline around it.
        """
        for field, value in fields.items():
            if field.startswith("_") or not (hasattr(type(self), field) or field in _annotated(type(self))):
                raise PipelineError(f"{type(self).__name__} has no field {field!r}.")
            setattr(self, field, value)
        size = self.input_batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PipelineError(f"{type(self).__name__}: input_batch_size is rows, at least 1, not {size!r}.")
        pipeline = _current.get()
        if pipeline is None:
            raise PipelineError(f"{type(self).__name__} stands in no pipeline: write `with Pipeline() as pipeline:`.")
        self.predecessors: list[Step] = []
        self.successors: list[Step] = []
        self.pipeline = pipeline
        self.name = pipeline._add(self, name)

    def load(self) -> None:
        """Called once before the first batch, in the step's thread."""

    def unload(self) -> None:
        """Called once after the last batch, also where the pipeline fails."""

    def process(self, *inputs: StepInput) -> StepOutput:
        """Makes rows of rows; gets one list for each predecessor. A generator of lists, plain or async."""
        raise NotImplementedError(f"{type(self).__name__} has no `process`.")

    def __rshift__(self, other: Step | Sequence[Step]) -> Any:
        return self.pipeline._connect([self], other)

    def __rrshift__(self, others: Sequence[Step]) -> Step:
        self.pipeline._connect(list(others), self)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'name', '')!r}>"


class GeneratorStep(Step):
    """Makes rows of nothing; stands at the beginning.

    `offset` of `process` is above 0 where a run goes on after a crash.
    """

    def process(self, offset: int = 0) -> Any:  # type: ignore[override]
        """Yields lists of rows, or pairs of a list and whether it is the last, from row `offset` on."""
        raise NotImplementedError(f"{type(self).__name__} has no `process`.")


class GlobalStep(Step):
    """Gets all rows of its predecessors at once, when they have ended."""


class Pipeline:
    """Steps, drawn within its `with` block by `a >> b`, `a >> [b, c]` and `[a, b] >> c`."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name or "pipeline"
        if not re.fullmatch(r"[\w.-]+", self.name, re.ASCII):
            raise PipelineError(f"a pipeline's name is made of letters, digits, '-', '_' and '.', not {self.name!r}.")
        self.steps: list[Step] = []
        self._token: Token[Pipeline | None] | None = None

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)

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
        from hubsync.pipeline.runner import run

        self.check(dataset is not None)
        return run(self, dataset, use_cache)

    def check(self, has_dataset: bool) -> None:
        """Raises `PipelineError` where the graph can't run."""
        if not self.steps:
            raise PipelineError(f"the pipeline {self.name!r} has no steps.")
        for step in self.steps:
            if isinstance(step, GeneratorStep):
                continue
            if not step.predecessors and not has_dataset:
                raise PipelineError(f"{step.name!r} gets no rows: give `run(dataset=…)`, or a GeneratorStep before it.")

    @property
    def leaves(self) -> list[Step]:
        """The steps with nothing behind them."""
        return [step for step in self.steps if not step.successors]

    def _add(self, step: Step, name: str | None) -> str:
        base = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(step).__name__).lower()
        taken = {other.name for other in self.steps}
        if name is not None and name in taken:
            raise PipelineError(f"two steps are called {name!r}.")
        found = name or next(n for i in range(len(taken) + 1) if (n := f"{base}_{i}") not in taken)
        self.steps.append(step)
        return found

    def _connect(self, before: Sequence[Step], after: Step | Sequence[Step]) -> Step | Sequence[Step]:
        for first in before:
            for second in [after] if isinstance(after, Step) else after:
                self._draw(first, second)
        return after

    def _draw(self, first: Step, second: Step) -> None:
        if not isinstance(second, Step) or second.pipeline is not self or first.pipeline is not self:
            raise PipelineError(f"{first!r} >> {second!r}: both must be steps of this pipeline.")
        if isinstance(second, GeneratorStep):
            raise PipelineError(f"{second.name!r} generates rows, so nothing can stand before it.")
        if second in first.successors:
            raise PipelineError(f"{first.name!r} >> {second.name!r} is drawn twice.")
        if first is second or first in _behind(second):
            raise PipelineError(f"{first.name!r} >> {second.name!r} makes a cycle.")
        first.successors.append(second)
        second.predecessors.append(first)


def _behind(step: Step) -> set[Step]:
    """Every step that gets rows of `step`, at first or second hand."""
    found: set[Step] = set()
    ahead = [step]
    while ahead:
        for successor in ahead.pop().successors:
            if successor not in found:
                found.add(successor)
                ahead.append(successor)
    return found


def _annotated(cls: type) -> set[str]:
    """Names with an annotation; none is evaluated, since what it names may stand under `TYPE_CHECKING` only."""
    names: set[str] = set()
    for base in cls.__mro__:
        if sys.version_info >= (3, 14):
            from annotationlib import Format, get_annotations

            names |= set(get_annotations(base, format=Format.STRING))
        else:
            names |= set(inspect.get_annotations(base))
    return names
