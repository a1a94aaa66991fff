"""Failpoints: every instant at which a process can die, named in one place.

Code calls `failpoint` between two steps. In production nothing listens. Tests do: they kill a real process at each
point (`tests/e2e/test_failpoints.py`), or abandon a simulated one (`tests/test_model.py`). The table in
`docs/concepts/guarantees.md` is generated from this list.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Failpoint(Enum):
    """A point between two steps: the state at that instant, and how the next start recovers."""

    # From `put` to the disk.
    ENCODED = "`put` has encoded the rows", "not accepted: the job must repeat the put"
    QUEUED = "the batch is in the queue", "only in memory: `put` with ack='spooled' has not returned"
    TAKEN = "the spool thread has taken the batch", "as above"
    TAKE_BEGUN = "the catalogue's transaction is open", "SQLite rolls it back"
    SEGMENT_CREATED = "a new segment's file exists, unknown to the catalogue", "the file is removed"
    PARTLY_WRITTEN = "part of the take is in the file", "the torn tail is truncated to what the catalogue counts"
    WRITTEN = "all bytes are in the file", "as above: the catalogue does not count them yet"
    COUNTED = "the catalogue counts them, in the open transaction", "as above: SQLite rolls it back"
    SPOOLED = "the transaction is committed", "accepted: it is uploaded; a repeated put is a replay"
    NOTIFIED = "the receipts say 'spooled'", "accepted: it is uploaded"

    # The segment becomes a shard.
    SEAL_BEGUN = "path and number are fixed, in the open transaction", "SQLite rolls it back; the segment is sealed"
    SEALED = "the shard's path and bytes are fixed", "it is staged"
    HASHED = "its hashes are in the catalogue", "it is staged"
    PARTLY_COMPRESSED = "part of it is compressed in a temporary file", "the file is removed; it is compressed again"
    COMPRESSED = "the compressed file has its name, the catalogue counts the lines", "as above"
    COMPRESSED_COUNTED = "the open transaction counts the compressed file", "SQLite rolls it back; as above"
    COMPRESSED_RECORDED = "the catalogue counts it, the lines still exist", "the lines are removed; it is staged"
    PREUPLOADED = "preupload has answered, nothing is uploaded", "it is staged again; preupload is free"
    BLOB_STAGED = "a blob is uploaded, unknown to the catalogue", "it is uploaded again: equal content is one blob"
    STAGED = "the catalogue says staged", "it is committed"

    # The commit.
    CARD_MERGED = "the card is merged with the Hub's, in memory", "it is read and merged again"
    WATERMARKED = "the plan with its watermarks is in an open transaction", "SQLite rolls it back; it is planned again"
    PLANNED = "the plan is in the catalogue, nothing was sent", "reconciled: not in the repo; it is planned again"
    HALF_SENT = "part of the commit's body is sent", "reconciled: not in the repo; it is planned again"
    LANDED = "the commit landed, its response is not read", "reconciled: in the repo; it is settled"
    RESPONSE_LOST = "the response is lost; the commit may have landed", "reconciled: the files at its paths decide"
    RESPONSE_READ = "the response is read, unknown to the catalogue", "reconciled: in the repo; it is settled"
    QUOTA_COUNTED = "the rate limiter has counted it", "reconciled, as above"
    RECONCILED = "the files at the plan's paths are known", "they are read again"
    WATERMARK_RECORDED = "the watermark is in the open transaction", "SQLite rolls it back; reconciled, as above"
    SETTLED = "the catalogue says committed, the local files exist", "the files are removed"
    FILE_REMOVED = "one local file is removed, others are not", "the others are removed"
    CARD_RECORDED = "the catalogue records what the card contains", "nothing is left to do"

    # Merging shards that are settled: see `committer/merger.py`. Nothing of it is in the catalogue.
    MERGE_CHOSEN = "the shards to merge are chosen", "they are chosen again later"
    MERGE_DOWNLOADED = "their files are in the spool again", "the files are removed; as above"
    MERGE_WRITTEN = "the merged file is written", "the file is removed; as above"
    MERGE_STAGED = "the merged file's blob is uploaded", "as above: equal content is one blob"
    MERGE_CHECKED = "the shards are unchanged at the head", "as above"
    MERGE_ANSWERED = "the merge is in the dataset, or was refused", "the head is read: it holds the same rows"

    # Unknown outcomes and rejections.
    PATH_TAKEN = "another file is at the shard's path; a free number is found", "a free number is looked up again"
    RENUMBERED = "the shard has its new path", "it is staged"
    UNSTAGED = "the Hub lost the blob; the shard is sealed again", "it is staged"
    QUARANTINE_LINKED = "a rejected shard is linked into the dead letter", "it is rejected and linked there again"
    QUARANTINED = "the catalogue says dead, the segment's file exists", "the file is removed; the dead letter keeps it"

    # An operator's commands on the dead letter (`tests/maintenance/test_quarantine.py`).
    EDITED_COPIED = "edited rows are copied into the spool", "dead as before; the next command removes the copy"
    RELINKED = "a dead shard's file is linked back, in the open transaction", "SQLite rolls it back; dead as before"
    RESUBMITTED = "the catalogue says sealed, the dead letter has the file, too", "it is staged; the link is removed"
    DISCARDED = "the catalogue says discarded, the file exists", "the file is removed"

    # Start, takeover, end.
    REPO_CREATED = "the dataset exists and is empty", "it is used as it is"
    SEEDED = "the dataset's watermarks are in the catalogue", "they are not read again"
    NAME_TAKEN = "a dead writer's name is taken over, its segments are open", "another writer takes it over"
    TAIL_CUT = "a torn tail is truncated, the segment is open", "it is truncated to the same length again"
    ADOPTED = "a dead writer's segment is sealed", "it is staged"
    LOCK_TAKEN = "the committer's lock is taken over, the old plan is open", "another process takes it over"
    TAKEN_OVER = "the rate limiter's state is loaded, leftovers are removed", "another process does the same"
    DRAINED = "everything is committed, the uploader is not closed", "nothing is left to do"

    def __init__(self, state: str, recovery: str) -> None:
        self.state = state
        self.recovery = recovery

    @property
    def title(self) -> str:
        """The name for people: "partly written"."""
        return self.name.lower().replace("_", " ")


listener: Callable[[Failpoint], None] | None = None


def failpoint(point: Failpoint) -> None:
    """Report that `point` is reached."""
    if listener is not None:
        listener(point)
