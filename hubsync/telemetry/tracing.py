"""OpenTelemetry spans around staging, committing and draining."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from hubsync._runtime.secret import hide
from hubsync.errors import (
    AmbiguousError,
    BlockedError,
    DefectError,
    HubsyncError,
    NotDrained,
    RateLimitedError,
    StaleParentError,
    TransientError,
)

if TYPE_CHECKING:
    pass
from hubsync.telemetry.metrics import instruments

Outcome = Literal[
    "done", "rate limited", "stale parent", "answer lost", "passing", "blocked", "refused", "not drained", "cancelled",
    "failed",
]  # fmt: skip
_OUTCOMES: tuple[tuple[type[BaseException], Outcome], ...] = (
    (RateLimitedError, "rate limited"),
    (StaleParentError, "stale parent"),
    (AmbiguousError, "answer lost"),
    (TransientError, "passing"),
    (BlockedError, "blocked"),
    (DefectError, "refused"),
    (NotDrained, "not drained"),
    (TimeoutError, "not drained"),
    (Exception, "failed"),
)


def outcome_of(error: BaseException | None) -> Outcome:
    """Return the outcome of an operation that ended with this error, or with None."""
    if error is None:
        return "done"
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), "cancelled")


@contextmanager
def span(
    name: str, attributes: Mapping[str, str | int], *, duration: str = "", root: bool = False
) -> Iterator[Callable[[BaseException], None]]:
    """Record an operation as a span; `duration` names a histogram that records it as well.

    The block gets a function for an error that it does not raise. An error is recorded by its type and message, which
    contain no secret, and without its stack, which might.
    """
    found = instruments()
    if found is None:
        yield lambda error: None
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import StatusCode

    # A commit belongs to whoever put its rows, which is many: it is no child of what was going on when the job opened.
    context = Context() if root else None
    began = time.perf_counter()
    failed: BaseException | None = None
    with found.tracer.start_as_current_span(
        name, context, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as now:

        def fail(error: BaseException) -> None:
            nonlocal failed
            failed = error

        try:
            yield fail
        except BaseException as error:
            failed = error
            raise
        finally:
            outcome = outcome_of(failed)
            now.set_attribute("hubsync.outcome", outcome)
            if isinstance(failed, Exception):
                kind = type(failed).__name__
                text = hide(str(failed)) if isinstance(failed, HubsyncError) else kind
                now.set_attribute("error.type", kind)
                now.set_status(StatusCode.ERROR, text)
                now.add_event("exception", {"exception.type": kind, "exception.message": text})
            if duration:
                few = {key: attributes[key] for key in ("hubsync.repo", "hubsync.writer")}
                seconds = time.perf_counter() - began
                found.histograms[duration].record(seconds, {**few, "hubsync.outcome": outcome})
            del failed  # it would hold this frame, and this frame it
