"""Every instant at which a process can die, named in one place.

Code calls `reach` where one step is done and the next is not. Nothing listens there but tests, which kill a real
process at each point (`tests/e2e/test_crash_points.py`), or abandon a simulated one (`tests/test_model.py`). The table
in `docs/concepts/guarantees.md` is made from this list.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Failpoint(Enum):
    """Each with what is so at that instant, and with what the next start does about it.

    "Before" a step is the point that stands above it, "after" it is its own.
    """

    # The batch, on its way to the disk.
    ENCODED = "`put` has encoded the rows and handed nothing over", "not accepted: the job puts it again"
    QUEUED = "the batch is in the queue", "in memory alone: `put` with ack='spooled' has not returned"
    TAKEN = "the spool's thread has taken it", "as above"
    TAKE_BEGUN = "the catalogue's transaction is open", "SQLite rolls it back"
    SEGMENT_CREATED = "a new segment's file is there, the catalogue does not know it", "the file is removed"
    PARTLY_WRITTEN = "a part of the take is in the file", "the torn tail is cut back to what the catalogue counts"
    WRITTEN = "all of its bytes are in the file", "as above: the catalogue does not count them yet"
    COUNTED = "the catalogue counts them, in the open transaction", "as above: SQLite rolls it back"
    SPOOLED = "the transaction is committed, nobody was told", "accepted: it is brought up; a repeated put is a replay"
    TOLD = "the receipts say 'spooled'", "accepted: it is brought up"

    # The segment becomes a shard.
    SEAL_BEGUN = "path and number are fixed, in the open transaction", "SQLite rolls it back; the segment is sealed"
    SEALED = "the shard's path and bytes are fixed", "it is staged"
    HASHED = "its hashes are in the catalogue", "it is staged"
    PARTLY_PACKED = "a part of it is packed, under a temporary name", "that is removed; it is packed anew"
    PACKED = "the packed shard has its name, the catalogue counts the lines", "as above"
    PACK_COUNTED = "the catalogue counts the packed shard, in the open transaction", "SQLite rolls it back; as above"
    PACK_KEPT = "the catalogue counts the packed shard, the lines are there", "the lines are removed; it is staged"
    MODES_ASKED = "preupload has answered, no blob went up", "it is staged again; asking is free"
    BLOB_STAGED = "a blob is on the Hub, the catalogue does not know", "it goes up again: the same content is one blob"
    STAGED = "the catalogue says staged", "it is committed"

    # The commit.
    CARD_MERGED = "the card is merged with the Hub's, in memory", "it is read and merged again"
    WATERMARKED = "the plan with its watermarks is in an open transaction", "SQLite rolls it back; it is planned again"
    PLANNED = "the plan is in the catalogue, nothing was sent", "reconciled: nothing stands there; it is planned again"
    HALF_SENT = "a part of the commit's body is sent", "reconciled: the Hub took nothing; it is planned again"
    LANDED = "the commit has landed, its answer is not read", "reconciled: ours stands there; it is committed"
    ANSWER_LOST = "the answer was lost, and it may have landed", "reconciled: what stands at the paths decides"
    ANSWERED = "the answer is read, the catalogue does not know", "reconciled: ours stands there; it is committed"
    QUOTA_COUNTED = "the governor has counted it", "reconciled, as above"
    RECONCILED = "it is known what stands at the plan's paths", "it is read again"
    MARKED = "the watermark is in the open transaction", "SQLite rolls it back; reconciled, as above"
    SETTLED = "the catalogue says committed, the local files are there", "the files are removed"
    FILE_REMOVED = "a local file is removed, others are not", "the others are removed"
    CARDED = "the catalogue knows what the card shows", "nothing is left to do"

    # Doubts and refusals.
    PATH_TAKEN = "another's file stands at the shard's path, a free number is found", "it is looked for again"
    RENUMBERED = "the shard has its new path", "it is staged"
    UNSTAGED = "the Hub has lost the blob; the shard is sealed again", "it is staged"
    GRAVE_LINKED = "a refused shard is linked into the dead letter", "it is refused and linked again, under one name"
    BURIED = "the catalogue says dead, the segment's file is there", "the file is removed; the dead letter keeps it"

    # The dead letter, by a person (`tests/test_dead_letter.py`).
    MENDED = "a person's edited rows are copied into the spool", "dead as before; the next command removes the copy"
    RAISED = "a dead shard's file is linked back, in the open transaction", "SQLite rolls it back; dead as before"
    RESUBMITTED = "the catalogue says sealed, the dead letter has the file too", "it is staged; the other is removed"
    DISCARDED = "the catalogue says discarded, the file is there", "the file is removed"

    # Starting, taking over, ending.
    REPO_CREATED = "the dataset is made and is empty", "it is there"
    SEEDED = "the dataset's watermarks are in the catalogue", "they are not read again"
    NAME_TAKEN = "a dead writer's name is taken over, its segments are open", "another takes the name over"
    TAIL_CUT = "a torn tail is cut, the segment is open", "it is cut to the same length again"
    ADOPTED = "a dead writer's segment is sealed", "it is staged"
    LOCK_TAKEN = "the committer's lock is taken over, the old plan is open", "another takes it over"
    TAKEN_OVER = "the governor's memory is loaded, leftovers are swept", "another does the same"
    DRAINED = "all is committed, the uploader is not closed", "nothing is left to do"

    def __init__(self, now: str, then: str) -> None:
        self.now = now
        self.then = then

    @property
    def title(self) -> str:
        """Its name for people: "partly written"."""
        return self.name.lower().replace("_", " ")


listener: Callable[[Failpoint], None] | None = None


def failpoint(point: Failpoint) -> None:
    """Says that a point is reached."""
    if listener is not None:
        listener(point)
