"""Wake the committer's loops when there may be work for them. From the event loop only."""

from __future__ import annotations

from hubsync._runtime.clock import Clock
from hubsync._runtime.notifiers import Notifier


class Wakeups:
    """One notifier for each loop.

    Attributes:
        compress: a segment was sealed that needs compression.
        stage: a segment was sealed or compressed, or a slot for uploads is free.
        commit: a shard was staged, or became urgent; or a merge is ready.
        merge: shards were committed.
    """

    def __init__(self, clock: Clock) -> None:
        self.compress = Notifier(clock)
        self.stage = Notifier(clock)
        self.commit = Notifier(clock)
        self.merge = Notifier(clock)

    def all(self) -> None:
        """Wake every loop."""
        for notifier in (self.compress, self.stage, self.commit, self.merge):
            notifier.notify()
