"""What survives a crash: a position in a stream of rows, and the steps that store rows up to one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from hubsync.pipeline.steps import Row, Step

_SKIP_BITS = 24  # of an offset: at most 2**24 rows per mark


class Position(NamedTuple):
    """A position in a stream: after everything made of the source's rows up to `mark`, plus `skip` rows."""

    mark: int = -1
    skip: int = 0

    def offset(self) -> int:
        """Return the position as an uploader's offset: an int that rises along the stream."""
        if self.skip >> _SKIP_BITS:
            raise OverflowError(f"one batch of the source became more than {1 << _SKIP_BITS:,} rows.")
        return (self.mark + 1) << _SKIP_BITS | self.skip

    @classmethod
    def from_offset(cls, offset: int | None) -> Position:
        """Return the position of an offset; the beginning of the stream for None."""
        return cls() if offset is None else cls((offset >> _SKIP_BITS) - 1, offset & ((1 << _SKIP_BITS) - 1))


class DurableStep(Step, ABC):
    """A step that stores the rows of its predecessors, such as the checkpointer.

    It has no `process`: the runner passes all rows on to the successors. `number` is the index of a predecessor.

    Attributes:
        drain_s: Seconds that the end of a run may wait for `drain`; None for no limit.
    """

    drain_s: float | None = None

    @abstractmethod
    def stored_position(self, number: int, source: str) -> Position:
        """Return how far earlier runs have stored a predecessor's rows under the name `source`."""

    @abstractmethod
    def store(self, number: int, rows: list[Row], source: str | None, place: str, position: Position) -> None:
        """Store rows that end at `position`, unless they are stored already.

        With a `source`, the position decides that. Without one, rows count as stored if an earlier attempt of the same
        run stored equal rows at the same `place`, which names the attempt, the step and the predecessor.
        """

    @abstractmethod
    def drain(self, timeout: float | None) -> None:
        """Finish within `timeout` seconds (None: no limit). Never raises: log what could not be finished."""
