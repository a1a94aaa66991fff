"""Every exception that hubsync raises on purpose. Catching a class also catches those below it.

    HubsyncError
    ├── ConfigError (ValueError)      an argument that can never work: repo id, config, split, template, policy
    ├── RowError (ValueError)         a row cannot become a JSON line; its whole batch is rejected
    │   ├── TransformError            the uploader's `transform` raised, or is not a plain function
    │   └── SchemaConflict            a value does not fit its column
    ├── QueueFull                     the queue is full, and its policy is "raise" or `timeout` passed
    ├── WaitTimeout (TimeoutError)    time ran out before a batch was as far as wanted; hubsync goes on with it
    ├── BatchTooLarge (ValueError)    one batch is larger than the whole queue may be
    ├── ClosedError                   a call before `open` or after `close`
    ├── ForkedError                   a forked child used its parent's uploader
    ├── ReentrantCall                 a finalizer or a hook in a thread of hubsync itself would wait for that thread
    ├── OffsetOrderError              an offset out of order, or of an earlier run with other rows
    │   └── SourceInUse               another open uploader of the spool puts offsets of the same source
    ├── OffsetUnknown                 the spool is new, and the Hub has not told yet which offsets the dataset contains
    ├── SpoolError                    the spool's directory, disk or catalogue
    │   ├── SpoolMismatch             the spool belongs to another repo, revision or endpoint
    │   ├── SpoolVersionError         a newer hubsync wrote the spool
    │   ├── SpoolBusy                 another live process commits for this spool
    │   ├── SpoolLost                 the spool was deleted, its disk unmounted, or its catalogue damaged
    │   └── LeaseLost                 another process took over committing while this one was stopped
    ├── NotDrained                    time ran out, or the uploader closed, before everything was committed
    ├── ShardsRefused                 shards were rejected and are in the dead letter, or lost rows with their files
    ├── UnreadableRow                 a line of the dataset is not a row
    ├── DatasetRewritten              a reader cannot tell which rows are new
    └── HubError                      the Hub's response, or the lack of one
        ├── TransientError            the worker retries it forever
        │   ├── AmbiguousError        the response was lost: the request may have taken effect
        │   ├── StaleParentError      412: somebody else committed in between
        │   ├── UnreadableShard       a shard's local file cannot be read
        │   └── RateLimitedError      429: the API's window, or the commit quota
        ├── BlockedError              an operator must act; rows are still accepted into the spool
        │   ├── AuthenticationError   401: no token, or an invalid or expired one
        │   ├── WriteForbiddenError   403: the token may not write to the repo
        │   ├── RepoMissingError      the repo or the branch does not exist
        │   ├── DatasetConflict       the rows would not load, or would change how the dataset loads
        │   ├── StorageQuotaError     the account's storage is full
        │   └── FolderFullError       a folder of the repo has as many files as the Hub allows
        └── DefectError               413, 422, a rejected path: this content will never be accepted

In brackets: the built-in exception that a class also is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

_MAX_MESSAGE = 2_000  # characters


class HubsyncError(Exception):
    """The base class of all errors that hubsync raises on purpose."""


class ConfigError(HubsyncError, ValueError):
    """An argument can never work. Constructors raise it before they write anything."""


class RowError(HubsyncError, ValueError):
    """A row cannot become a line of JSON. Its whole batch was rejected; nothing was written.

    Attributes:
        row: The index of the row in its batch, from 0.
        path: The field, such as `messages[2].content`; empty for the row itself.
        reason: What is wrong with the value, and what to do.
    """

    def __init__(self, row: int, path: str, reason: str) -> None:
        self.row, self.path, self.reason = row, path, reason
        where = f"row {row}, field {path!r}" if path else f"row {row}"
        super().__init__(f"{where}: {reason} The whole batch was rejected; nothing was written.")

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str]]:
        return type(self), (self.row, self.path, self.reason)


class TransformError(RowError):
    """The uploader's `transform` raised on a row. Its whole batch was rejected; nothing was written.

    `__cause__` is the exception that it raised. That exception's text may show the row, so this message does not quote
    it.
    """


class SchemaConflict(RowError):
    """A value does not fit its column, so `load_dataset` could not load the dataset. Its whole batch was rejected.

    Attributes:
        row: The index of the row in its batch, from 0.
        path: The field; `messages[].content` is a field of any element of the list.
        known: What the column holds.
        given: What the row has.
    """

    def __init__(self, row: int, path: str, known: str, given: str, why: str | None = None) -> None:
        self.known, self.given, self._why = known, given, why
        usual = (
            f"it is {given}, and the column holds {known}: a dataset with both cannot be loaded. Convert them to one "
            'type, or pass schema=SchemaPolicy(on_conflict="json") to the uploader.'
        )
        super().__init__(row, path, why or usual)

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str, str, str | None]]:  # type: ignore[override]
        return type(self), (self.row, self.path, self.known, self.given, self._why)


class QueueFull(HubsyncError):
    """The queue is full. The batch was not accepted; repeat the put later."""


class WaitTimeout(HubsyncError, TimeoutError):
    """A batch was not as far as requested within `timeout` seconds. hubsync continues with it; do not repeat the put.

    Attributes:
        receipt: The batch's `Receipt`, which shows how far it is; you can wait for it again. A batch that is still
            "queued" is in memory only. It becomes "dropped" if the spool takes no more rows before the uploader ends.
    """

    def __init__(self, message: str, receipt: Any = None) -> None:
        super().__init__(message)
        self.receipt = receipt


class BatchTooLarge(HubsyncError, ValueError):
    """One batch is larger than the whole queue may be. It was not accepted."""


class ClosedError(HubsyncError):
    """The uploader is closed and accepts no more rows."""


class ForkedError(HubsyncError):
    """This process was forked from the one that opened the uploader. Open another here: they may share a spool."""


class ReentrantCall(HubsyncError):
    """The call would wait for the thread that makes it: a thread of hubsync itself.

    Python may run a `__del__`, a weak reference's callback or a telemetry hook of the job in any thread. There, `put`
    accepts a batch without waiting (`ack="queued"`), and `stats` works; calls that must wait raise this.
    """


class OffsetOrderError(HubsyncError):
    """A batch came after one with the same or a higher offset of its source in one run, and was not accepted.

    It is also raised for other rows than an earlier run has put with the same offset.

    Attributes:
        source: The source.
        offset: The batch's offset.
        last: The highest offset that was accepted from this source.
    """

    def __init__(self, source: str, offset: int, last: int | None, why: str | None = None) -> None:
        self.source, self.offset, self.last, self._why = source, offset, last, why
        super().__init__(
            why
            or f"offset {offset} of source {source!r} came after {last} in the same run. Its batch was not accepted; "
            "everything before is safe. The offsets of a source must rise: put each source from one thread or task, "
            "give each its own source=, or let hubsync put them in order: docs/how-to/resume-after-a-crash.md."
        )

    def __reduce__(self) -> tuple[type[OffsetOrderError], tuple[str, int, int | None, str | None]]:
        return type(self), (self.source, self.offset, self.last, self._why)


class SourceInUse(OffsetOrderError):
    """Another open uploader of the same spool puts offsets of the same source. The batch was not accepted."""


class OffsetUnknown(HubsyncError):
    """The spool is new, and the Hub has not told yet which offsets the dataset contains."""


class SpoolError(HubsyncError):
    """The spool's directory, disk or catalogue failed."""


class SpoolMismatch(SpoolError, ValueError):
    """The spool belongs to another repo, revision or endpoint."""


class SpoolVersionError(SpoolError):
    """A newer hubsync wrote the spool. Nothing was changed."""


class SpoolBusy(SpoolError):
    """Another live process commits for this spool, or another machine uses it."""


class SpoolLost(SpoolError):
    """The spool was deleted, its disk unmounted, or its catalogue is corrupt. It can no longer be used."""


class LeaseLost(SpoolError):
    """Another process took over committing while this one was stopped. Nothing was changed."""


class NotDrained(HubsyncError):
    """Time ran out, or the uploader ended, before everything was committed. The rest is safe in the spool.

    Attributes:
        spool: The spool's directory.
        rows: Rows that are not committed yet.
        bytes: Their size, in bytes.
        why: What ended the wait.
    """

    def __init__(self, spool: Path, rows: int, size: int, why: str) -> None:
        self.spool, self.rows, self.bytes, self.why = spool, rows, size, why
        what, are, they, them = ("row", "is", "It is", "it") if rows == 1 else ("rows", "are", "They are", "them")
        super().__init__(
            f"{rows:,} {what} ({size:,} bytes) {are} not on the Hub yet: {why} {they} safe in {spool}; the next job "
            f"that opens this spool uploads {them}, or run: hubsync drain {spool}"
        )

    def __reduce__(self) -> tuple[type[NotDrained], tuple[Path, int, int, str]]:
        return type(self), (self.spool, self.rows, self.bytes, self.why)


class ShardsRefused(HubsyncError):
    """Shards were permanently rejected, or lost rows because their files in the spool were damaged.

    What was rejected is in the spool's dead letter, and what was lost is listed there (`hubsync dead-letter`). A flush
    and a close raise this for all such shards of this uploader since the last flush; all other rows are committed.

    Attributes:
        shards: How many shards.
        rows: Their rows that are kept in the dead letter.
        lost_rows: Their rows that are lost.
    """

    def __init__(self, message: str, *, shards: int = 0, rows: int = 0, lost_rows: int = 0) -> None:
        self.shards, self.rows, self.lost_rows = shards, rows, lost_rows
        super().__init__(message)


class UnreadableRow(HubsyncError):
    """A line of the dataset is not a JSON object. The reader is past it: continue iterating to skip it.

    Attributes:
        path: The file that holds the line.
        line: The number of the line, from 1.
        why: What is wrong with the line.
    """

    def __init__(self, path: str, line: int, why: str) -> None:
        self.path, self.line, self.why = path, line, one_line(why)
        super().__init__(f"{one_line(path)}, line {line:,}: {self.why}.")

    def __reduce__(self) -> tuple[type[UnreadableRow], tuple[str, int, str]]:
        return type(self), (self.path, self.line, self.why)


class DatasetRewritten(HubsyncError):
    """Files were replaced, and neither their rows nor the history show which of the new rows were read before."""


def one_line(text: str) -> str:
    """Make text from outside safe for terminals and logs.

    Control characters, which can forge lines and move the cursor, become spaces. Text over 2,000 characters is cut.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[:_MAX_MESSAGE])
    return shown if len(text) <= _MAX_MESSAGE else shown + "…"


class HubError(HubsyncError):
    """A request to the Hub failed.

    Attributes:
        reason: What happened, without what differs between attempts.
        status: The HTTP status; None if there was no response.
        request_id: The Hub's id of the request, for its support; None if it gave none.
    """

    def __init__(self, message: str, *, status: int | None = None, request_id: str | None = None) -> None:
        self.reason, self.status = one_line(message), status
        self.request_id = None if request_id is None else one_line(request_id)[:100]
        super().__init__(self.reason if request_id is None else f"{self.reason} (request {self.request_id})")


class _Response(TypedDict, total=False):
    status: int | None
    request_id: str | None


class TransientError(HubError):
    """A failure that a retry can overcome: a lost connection, a timeout, 408, 409, 412, 423, 425, 429, 5xx.

    Attributes:
        retry_after_s: Seconds that the Hub asked to wait; None if it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None, **response: Unpack[_Response]) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, **response)


class AmbiguousError(TransientError):
    """The response was lost, so the request may have taken effect. Read the remote state before sending it again."""


class StaleParentError(TransientError):
    """412: the branch's newest commit is not the commit's parent; or the commit to read from no longer exists."""


class UnreadableShard(TransientError):
    """A shard's local file cannot be read. Other shards are uploaded meanwhile."""


class RateLimitedError(TransientError):
    """429: too many requests or commits.

    Attributes:
        commit_quota: Whether the hourly commit quota is used up, and not the API's request limit.
    """

    def __init__(
        self,
        message: str,
        *,
        commit_quota: bool = False,
        retry_after_s: float | None = None,
        **response: Unpack[_Response],
    ) -> None:
        self.commit_quota = commit_quota
        super().__init__(message, retry_after_s=retry_after_s, **response)


class BlockedError(HubError):
    """An operator must act. Meanwhile the spool still accepts rows, and the worker retries slowly."""


class AuthenticationError(BlockedError):
    """401: no token, or an invalid or expired one. Run `hf auth login`, or set HF_TOKEN."""


class WriteForbiddenError(BlockedError):
    """403: the token may not write to this repo."""


class RepoMissingError(BlockedError):
    """The repo or the branch does not exist, or this token may not see it.

    Attributes:
        missing: What does not exist: "repo", "revision" or "file". None if the response does not say, like a proxy's
            404.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Literal["repo", "revision", "file"] | None = None,
        **response: Unpack[_Response],
    ) -> None:
        self.missing = missing
        super().__init__(message, **response)


class DatasetConflict(BlockedError):
    """The rows cannot be added so that they load and everything else in the dataset loads as before.

    `open` raises it before any row is accepted. If the dataset changes later, the rows stay in the spool until it fits.
    """


class StorageQuotaError(BlockedError):
    """The account's storage is full."""


class FolderFullError(BlockedError):
    """400: a folder would hold more files than the Hub allows. Shards move to another folder, if that helps.

    Attributes:
        folders: The folders that the Hub names, each with a slash at both ends: "/data/".
        limit: Files that the Hub allows in one folder; None if it does not say.
    """

    def __init__(
        self, message: str, *, folders: tuple[str, ...] = (), limit: int | None = None, **response: Unpack[_Response]
    ) -> None:
        self.folders, self.limit = folders, limit
        super().__init__(message, **response)


class DefectError(HubError):
    """413, 422, a rejected path: the Hub will never accept this content."""
