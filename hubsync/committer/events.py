"""What the committer reports to the uploader of its process."""

from __future__ import annotations

from typing import Protocol

from hubsync.errors import HubError, HubsyncError


class DeliveryEvents(Protocol):
    """Receives what becomes of segments. Called in the event loop; must not block."""

    def settled(self, segment: int, sha: str | None, error: HubsyncError | None) -> None:
        """A segment reached its end: the commit that contains it or, if it was quarantined, why."""
        ...

    def blocked(self, error: HubError) -> None:
        """Nothing can be sent until an operator acts."""
        ...

    def schema_mismatch(self) -> None:
        """A shard does not fit what others committed: the schema of its config has changed."""
        ...


class NoEvents:
    """For a committer that no uploader listens to."""

    def settled(self, segment: int, sha: str | None, error: HubsyncError | None) -> None:
        """Ignore it."""

    def blocked(self, error: HubError) -> None:
        """Ignore it."""

    def schema_mismatch(self) -> None:
        """Ignore it."""
