"""What the runner needs of a step that stores rows durably, such as the checkpointer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from hubsync.pipeline.channels import Position
from hubsync.pipeline.steps import Row, Step


class DurableStep(Step, ABC):
    """Store rows so that they survive the process, and know after a crash which ones are stored.

    The runner passes all rows on to the successors; the step itself has no `process`. `number` is the index of the
    predecessor that the rows come from.

    Attributes:
        drain_s: Seconds that the end of a run may wait for stored rows to reach their destination; None for no limit.
    """

    drain_s: float | None = None

    @abstractmethod
    def stored_position(self, number: int, source: str) -> Position:
        """Return how far earlier runs have stored the rows of one predecessor under the name `source`."""

    @abstractmethod
    def store(self, number: int, rows: list[Row], source: str | None, place: str, position: Position) -> None:
        """Store rows that end at `position` of the predecessor's stream, unless they are stored already.

        Args:
            number: Index of the predecessor.
            rows: The rows.
            source: The name under which positions are stored; a later run resumes from them. None if the run does not
                resume: then rows count as stored if an earlier attempt stored equal rows at the same place.
            place: Names the attempt, the step and the predecessor.
            position: Where the rows end.
        """

    @abstractmethod
    def drain(self, timeout: float | None) -> None:
        """Finish storing within `timeout` seconds (None: no limit). Log what failed instead of raising it."""
