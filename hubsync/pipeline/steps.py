"""Steps, and the graph that they form as a user connects them.

A step is a plain class. Its class attributes are its fields; its annotations are never evaluated.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Generator, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

from hubsync.errors import ConfigError, HubsyncError

Row: TypeAlias = dict[str, Any]
StepInput: TypeAlias = list[Row]
"""The rows that `process` gets from one predecessor, at most `input_batch_size`."""
StepOutput: TypeAlias = (
    Generator[list[Row], None, None] | AsyncGenerator[list[Row], None] | Awaitable[list[Row] | None] | list[Row]
)
"""What `process` may be: a generator of lists of rows, plain or async, or a function that returns one list."""


class PipelineError(ConfigError):
    """The pipeline can't work as it is defined. Raised before any row is generated."""


class StepError(HubsyncError):
    """A step raised an exception or yielded something other than a list of rows. Checkpointed rows are safe."""


class Step:
    """Take batches of rows and yield lists of rows.

    Attributes:
        name: Unique in the pipeline; by default the class name in snake case, with a number.
        input_batch_size: Rows per predecessor that `process` gets in one call; the last batch may be shorter.
    """

    name: str
    input_batch_size: int = 50

    def __init__(self, *, name: str | None = None, **fields: Any) -> None:
        """Set the class's fields and join the surrounding pipeline.

        Raises:
            PipelineError: The class has no such field, `input_batch_size` is below 1, or no pipeline is open.
        """
        for field, value in fields.items():
            if field.startswith("_") or not (hasattr(type(self), field) or field in _annotated(type(self))):
                raise PipelineError(f"{type(self).__name__} has no field {field!r}.")
            setattr(self, field, value)
        size = self.input_batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise PipelineError(f"{type(self).__name__}: input_batch_size must be at least 1 row, not {size!r}.")
        graph = current_graph.get()
        if graph is None:
            raise PipelineError(
                f"{type(self).__name__} is outside a pipeline. Create it inside `with Pipeline() as pipeline:`."
            )
        self.predecessors: list[Step] = []
        self.successors: list[Step] = []
        self.graph = graph
        self.name = graph.add(self, name)

    def load(self) -> None:
        """Prepare the step. Called once, in a thread, before the first batch."""

    def unload(self) -> None:
        """Release what `load` acquired. Called once after the last batch, even if the pipeline fails."""

    def process(self, *inputs: StepInput) -> StepOutput:
        """Turn rows into rows: a generator of lists, plain or async, or a function that returns one list.

        Args:
            inputs: One list of rows per predecessor.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `process`.")

    def __rshift__(self, other: Step | Sequence[Step]) -> Any:
        for successor in [other] if isinstance(other, Step) else other:
            self.graph.connect(self, successor)
        return other

    def __rrshift__(self, others: Sequence[Step]) -> Step:
        for predecessor in others:
            self.graph.connect(predecessor, self)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'name', '')!r}>"


class GeneratorStep(Step):
    """Generate rows; has no predecessors.

    `process` gets an `offset` above 0 if the run resumes after a crash.
    """

    def process(self, offset: int = 0) -> Any:  # type: ignore[override]  # it takes no rows
        """Yield lists of rows, or pairs of a list and whether it is the last.

        Args:
            offset: Index of the first row to generate.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `process`.")


class GlobalStep(Step):
    """Get all rows of its predecessors in one call, after they have finished."""


class StepGraph:
    """The steps of one pipeline and their connections. Refuses a connection that can't work when it is made."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    @property
    def leaves(self) -> list[Step]:
        """The steps without successors."""
        return [step for step in self.steps if not step.successors]

    def add(self, step: Step, name: str | None) -> str:
        """Add a step; return its name, made from its class if none is given.

        Raises:
            PipelineError: Another step has this name.
        """
        taken = {other.name for other in self.steps}
        if name is not None and name in taken:
            raise PipelineError(f"two steps have the name {name!r}.")
        base = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(step).__name__).lower()
        self.steps.append(step)
        return name or next(free for n in range(len(taken) + 1) if (free := f"{base}_{n}") not in taken)

    def connect(self, first: Step, second: Step) -> None:
        """Pass the rows of `first` to `second`.

        Raises:
            PipelineError: The connection exists, forms a cycle, leads to a generator or leaves the pipeline.
        """
        if not isinstance(second, Step) or first.graph is not self or second.graph is not self:
            raise PipelineError(f"{first!r} >> {second!r}: both must be steps of this pipeline.")
        if isinstance(second, GeneratorStep):
            raise PipelineError(f"{second.name!r} generates rows, so it can't have a predecessor.")
        if second in first.successors:
            raise PipelineError(f"{first.name!r} >> {second.name!r} is written twice.")
        if first is second or first in _downstream(second):
            raise PipelineError(f"{first.name!r} >> {second.name!r} makes a cycle.")
        first.successors.append(second)
        second.predecessors.append(first)


current_graph: ContextVar[StepGraph | None] = ContextVar("hubsync pipeline", default=None)
"""The graph of the pipeline whose `with` block is running."""


def _downstream(step: Step) -> set[Step]:
    """Return every step that gets rows of `step`, directly or through others."""
    found: set[Step] = set()
    ahead = [step]
    while ahead:
        for successor in ahead.pop().successors:
            if successor not in found:
                found.add(successor)
                ahead.append(successor)
    return found


def _annotated(cls: type) -> set[str]:
    """Return the annotated names of a class without evaluating them: they may exist under `TYPE_CHECKING` only."""
    names: set[str] = set()
    for base in cls.__mro__:
        if sys.version_info >= (3, 14):
            from annotationlib import Format, get_annotations

            names |= set(get_annotations(base, format=Format.STRING))
        else:
            names |= set(inspect.get_annotations(base))
    return names
