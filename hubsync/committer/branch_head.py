"""What the committer knows of the branch's head, and what it is unsure about."""

from __future__ import annotations

from hubsync.model.commit import BranchTip


class BranchHead:
    """The newest commit of the branch, as far as this committer knows.

    Every commit names it as its parent, so a commit that is based on an outdated head is refused. If someone else moved
    the head, they may have taken the paths of shards that exist by then, and changed the card.

    Attributes:
        sha: the commit; None if it must be read.
        moves: how often someone else moved it.
        is_ours_alone: this committer created the repo and made every commit since.
    """

    def __init__(self) -> None:
        self.sha: str | None = None
        self.moves = 0
        self.is_ours_alone = False
        self._unsure_up_to = 0

    def connected(self, tip: BranchTip) -> None:
        """The repo was found, or created; in another attempt, perhaps with other files."""
        self.sha, self.is_ours_alone = tip.sha, tip.is_new
        self.moves += 1

    def landed(self, sha: str) -> None:
        """Our own commit is the head now."""
        self.sha = sha

    def moved(self, sha: str, newest_segment: int) -> None:
        """Someone else's commit is the head: compare every segment up to the newest before it is committed."""
        self.sha = sha
        self.moves += 1
        self.is_ours_alone = False
        self._unsure_up_to = newest_segment

    def taken_over(self, newest_segment: int) -> None:
        """This committer is new: the one before may have committed any of these segments."""
        self._unsure_up_to = newest_segment

    def forget(self) -> None:
        """Read the head again before the next commit."""
        self.sha = None
        self.is_ours_alone = False

    def is_unsure_about(self, segment: int) -> bool:
        """Return whether another file may be at a segment's path."""
        return segment <= self._unsure_up_to
