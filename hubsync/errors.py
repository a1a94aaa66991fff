"""Every exception that hubsync raises on purpose. To catch a class is to catch those below it as well.

    HubsyncError
    ├── ConfigError (ValueError)      an argument that can never work: repo id, config, split, template, policy
    ├── RowError (ValueError)         a row cannot become a JSON line; its whole batch is rejected
    │   ├── TransformError            the uploader's `transform` raised, or is not a plain function
    │   └── SchemaConflict            a value does not fit its column
    ├── QueueFull                     the queue is full, and its policy is "raise" or `timeout` passed
    ├── WaitTimeout (TimeoutError)    time ran out before a batch was as far as wanted; its upload continues
    ├── BatchTooLarge (ValueError)    one batch is larger than the whole queue may be
    ├── ClosedError                   a call before `open` or after `close`
    ├── ForkedError                   a forked child used its parent's uploader
    ├── OffsetUnknown                 the spool is new and the Hub unreachable: offsets in the dataset are unknown
    ├── SpoolError                    the spool's directory, disk or catalogue
    │   ├── SpoolMismatch             the spool belongs to another repo, revision or endpoint
    │   ├── SpoolVersionError         a newer hubsync wrote the spool
    │   ├── SpoolBusy                 another live process commits for this spool
    │   ├── SpoolLost                 the spool was deleted, its disk unmounted, or its catalogue damaged
    │   └── LeaseLost                 another process took over committing while this one was stopped
    ├── NotDrained                    time ran out, or the uploader closed, before everything was committed
    ├── ShardsRefused                 the Hub rejected shards; they are in the dead letter
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
        │   └── StorageQuotaError     the account's storage is full
        └── DefectError               413, 422, a rejected path: this content will never be accepted

In brackets: the built-in exception that a class also is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

_LONGEST = 2_000  # characters of a message


class HubsyncError(Exception):
    """The root of all errors that hubsync raises on purpose."""


class ConfigError(HubsyncError, ValueError):
    """An argument that can never work. Raised by the constructor, before anything is written."""


class RowError(HubsyncError, ValueError):
    """A row that can't become a line of JSON. Its whole batch is refused; nothing of it was written.

    Attributes:
        row: index of the row in its batch, from 0.
        path: where in the row, such as `messages[2].content`; empty for the row itself.
        reason: what is wrong with the value, and what to do.
    """

    def __init__(self, row: int, path: str, reason: str) -> None:
        self.row, self.path, self.reason = row, path, reason
        where = f"row {row}, field {path!r}" if path else f"row {row}"
        super().__init__(f"{where}: {reason} The whole batch was refused; nothing of it was written.")

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str]]:
        return type(self), (self.row, self.path, self.reason)


class TransformError(RowError):
    """The uploader's `transform` raised on a row. Its whole batch is refused; nothing of it was written.

    The exception that it raised is the `__cause__`. What that says may show the row, so this message does not.
    """


class SchemaConflict(RowError):
    """A row that no file of its config may hold, or `load_dataset` fails for everybody. Its whole batch is refused.

    Attributes:
        row, path: where, as in `RowError`; `messages[].content` stands for any element of the list.
        known, given: what the column holds, and what this row has, in words.
    """

    def __init__(self, row: int, path: str, known: str, given: str, why: str | None = None) -> None:
        self.known, self.given, self._why = known, given, why
        usual = (
            f"it is {given}, and the column holds {known}: a dataset with both can't be loaded. Make them one type, or "
            'give the uploader schema=SchemaPolicy(on_conflict="dead letter") or "new config".'
        )
        super().__init__(row, path, why or usual)

    def __reduce__(self) -> tuple[type[RowError], tuple[int, str, str, str, str | None]]:  # type: ignore[override]
        return type(self), (self.row, self.path, self.known, self.given, self._why)


class QueueFull(HubsyncError):
    """The queue is at its bound. The batch was not accepted; put it again later."""


class WaitTimeout(HubsyncError, TimeoutError):
    """A batch is not as far as was wanted within the `timeout`. It goes on by itself.

    Attributes:
        receipt: the batch's `Receipt`, which tells how far it is and can be waited for again. One that is "queued" is
            not accepted yet: where the spool takes nothing more before the uploader ends, it is "dropped" then.
    """

    def __init__(self, message: str, receipt: Any = None) -> None:
        super().__init__(message)
        self.receipt = receipt


class BatchTooLarge(HubsyncError, ValueError):
    """One batch is larger than the whole queue may ever be. It was not accepted."""


class ClosedError(HubsyncError):
    """The uploader is closed, and accepts nothing more."""


class ForkedError(HubsyncError):
    """This process was forked from the uploader's. Open an uploader here: any number may share a spool."""


class OffsetUnknown(HubsyncError):
    """The spool is new and the Hub can't be reached, so it can't be known which offsets the dataset holds."""


class SpoolError(HubsyncError):
    """The spool's directory, disk or catalogue refuses to work."""


class SpoolMismatch(SpoolError, ValueError):
    """The spool belongs to another repo, revision or endpoint."""


class SpoolVersionError(SpoolError):
    """The spool was written by a newer hubsync. Nothing was touched."""


class SpoolBusy(SpoolError):
    """Another live process is the spool's committer."""


class SpoolLost(SpoolError):
    """The spool was deleted, its disk unmounted, or its catalogue is corrupt: it can't be used any more."""


class LeaseLost(SpoolError):
    """Another process has become the spool's committer while this one was stopped. Nothing was changed."""


class NotDrained(HubsyncError):
    """Time ran out, or the uploader ended, before all was committed. What is left is safe in the spool.

    Attributes:
        spool: the spool's directory.
        rows, bytes: what is not yet committed.
    """

    def __init__(self, spool: Path, rows: int, size: int, why: str) -> None:
        self.spool, self.rows, self.bytes, self.why = spool, rows, size, why
        what, are, they, them = ("row", "is", "It is", "it") if rows == 1 else ("rows", "are", "They are", "them")
        super().__init__(
            f"{rows:,} {what} ({size:,} bytes) {are} not on the Hub yet: {why} {they} safe in {spool}; "
            f"the next job that opens this spool brings {them} up, or run: hubsync drain {spool}"
        )

    def __reduce__(self) -> tuple[type[NotDrained], tuple[Path, int, int, str]]:
        return type(self), (self.spool, self.rows, self.bytes, self.why)


class ShardsRefused(HubsyncError):
    """The Hub refused single shards for good. The rest is committed; they are kept in the spool's dead letter: see
    `hubsync dead-letter`.

    Attributes:
        shards, rows: how many of this uploader's, as `flush` and `close` tell it; 0 where a receipt tells of its batch.
    """

    shards = rows = 0


class UnreadableRow(HubsyncError):
    """A line of the dataset is not a JSON object. The reader is past it: continue iterating to skip it.

    Attributes:
        path: the file that holds the line.
        line: the number of the line, from 1.
        why: what is wrong with the line.
    """

    def __init__(self, path: str, line: int, why: str) -> None:
        self.path, self.line, self.why = path, line, one_line(why)
        super().__init__(f"{one_line(path)}, line {line:,}: {self.why}.")

    def __reduce__(self) -> tuple[type[UnreadableRow], tuple[str, int, str]]:
        return type(self), (self.path, self.line, self.why)


class DatasetRewritten(HubsyncError):
    """Files were replaced, and neither their rows nor the history show which of the new rows were read before."""


def one_line(text: str) -> str:
    """Text from outside in one line, as a terminal and a log may have it: without control characters, which can forge
    lines and move the cursor, and cut where it has no end.
    """
    shown = "".join(c if c.isprintable() else " " for c in text[:_LONGEST])
    return shown if len(text) <= _LONGEST else shown + "…"


class HubError(HubsyncError):
    """What the Hub answered, or that it did not.

    Attributes:
        reason: what happened, without what differs from one try to the next.
        status: the HTTP status, None where there was no answer.
        request_id: the Hub's id of the request, for its support; None where it gave none.
    """

    def __init__(self, message: str, *, status: int | None = None, request_id: str | None = None) -> None:
        self.reason, self.status = one_line(message), status
        self.request_id = None if request_id is None else one_line(request_id)[:100]
        super().__init__(self.reason if request_id is None else f"{self.reason} (request {self.request_id})")


class TransientError(HubError):
    """Passes by itself: connection, time-out, 408, 409, 412, 423, 425, 429, 5xx.

    Attributes:
        retry_after_s: seconds the Hub asked to wait; None where it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, status=status, request_id=request_id)


class AmbiguousError(TransientError):
    """The request was sent and its answer lost: it may have taken effect. Reconcile before sending it again."""


class StaleParentError(TransientError):
    """412: the branch's head is not the parent that the commit named; or what was asked of is a commit that is gone."""


class UnreadableShard(TransientError):
    """A shard's file can't be read: its disk, or it is gone. It is looked at, and the others go on."""


class RateLimitedError(TransientError):
    """429. `commit_quota` tells the hourly commit quota from the API's request window."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        commit_quota: bool = False,
    ) -> None:
        self.commit_quota = commit_quota
        super().__init__(message, status=status, request_id=request_id, retry_after_s=retry_after_s)


class BlockedError(HubError):
    """Needs a person. The worker keeps accepting into the spool and tries again at a slow pace."""


class AuthenticationError(BlockedError):
    """401: no token, a bad one, or one that has expired. `hf auth login`, or set HF_TOKEN."""


class WriteForbiddenError(BlockedError):
    """403: the token may not write to this repo."""


class RepoMissingError(BlockedError):
    """The repo or the branch does not exist, or this token may not see it.

    Attributes:
        missing: what the Hub says is missing: "repo", "revision" or "file". None if the response does not say, like a
            proxy's 404.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        missing: Literal["repo", "revision", "file"] | None = None,
    ) -> None:
        self.missing = missing
        super().__init__(message, status=status, request_id=request_id)


class StorageQuotaError(BlockedError):
    """The account's storage is full."""


class DefectError(HubError):
    """413, 422, a path refused: this content will never be accepted, however often it is sent."""
