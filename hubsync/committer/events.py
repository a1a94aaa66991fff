"""What the committer reports to the uploader of its process."""

from __future__ import annotations

from typing import Protocol

from hubsync.errors import HubError


class DeliveryEvents(Protocol):
    """Receives what becomes of segments. Called in the event loop; must not block.

    Rejected ones are not among it: `Segments.on_refused` tells of them, whatever part of the process rejects them.
    """

    def committed(self, segment: int, sha: str) -> None:
        """A segment is in this commit."""
        ...

    def blocked(self, error: HubError) -> None:
        """Nothing can be sent until an operator acts."""
        ...

    def schema_mismatch(self) -> None:
        """A shard does not fit what others committed: the schema of its config has changed."""
        ...


class NoEvents:
    """For a committer that no uploader listens to."""

    def committed(self, segment: int, sha: str) -> None:
        """Ignore it."""

    def blocked(self, error: HubError) -> None:
        """Ignore it."""

    def schema_mismatch(self) -> None:
        """Ignore it."""
