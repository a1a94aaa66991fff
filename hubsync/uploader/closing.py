"""Closing an uploader: turn what ends a wait for commits into errors that say what remains, and where.

Draining must not hide what ended the job: an exception of the block goes on, whatever happens to the rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from hubsync._runtime import signals
from hubsync._runtime.exceptions import fresh_copy
from hubsync._runtime.formatting import count_text, seconds_text, word
from hubsync._runtime.threads import call_in_new_thread
from hubsync._runtime.validation import check_seconds
from hubsync.errors import BlockedError, ClosedError, HubsyncError, NotDrained, SpoolLost
from hubsync.model.receipt import Until
from hubsync.telemetry.tracing import span
from hubsync.uploader.engine import Engine

_log = logging.getLogger("hubsync")


@contextmanager
def draining(engine: Engine, timeout: float | None) -> Iterator[None]:
    """Show progress within the block, and say what remains if it ends early.

    Raises:
        NotDrained: the block timed out.
    """
    check_seconds(timeout=timeout)
    try:
        with engine.monitor.progress.draining(), span("hubsync.drain", engine.monitor.source.attributes):
            yield
    except (TimeoutError, BlockedError, KeyboardInterrupt) as error:
        call_in_new_thread(engine.monitor.refresh)
        left, spool = engine.monitor.depth(), engine.spool.directory
        if isinstance(error, TimeoutError):
            why = f"{seconds_text(timeout or 0)} were not enough ({call_in_new_thread(engine.monitor.condition)})."
            if rows := engine.queue.depth().rows:
                why += f" {count_text(rows, 'row')} in memory {word(rows, 'is', 'are')} not in the spool yet."
            raise NotDrained(spool, left.rows, left.bytes, why) from None
        what = f"{count_text(left.rows, 'row')} ({left.bytes:,} bytes)"
        then = "Once that is fixed, the" if isinstance(error, BlockedError) else "The"
        error.add_note(f"Safe in {spool}: {what}. {then} next job uploads the rest, or run: hubsync drain {spool}")
        raise


def seconds_after(error: BaseException, grace_s: float | None) -> float | None:
    """Return how long draining may take after an error ended the job's block; None for no limit."""
    if (left := signals.shutdown.seconds_left()) is not None:
        return left
    return None if isinstance(error, (Exception, SystemExit)) else grace_s


@contextmanager
def after_error(engine: Engine | None, error: BaseException, timeout: float | None) -> Iterator[None]:
    """Drain within the block because `error` ended the job; report a failure of the drain without raising it.

    Args:
        engine: None if there is nothing to drain.
        error: the exception that goes on.
        timeout: how long draining may take, in seconds.
    """
    if engine is None:
        yield
        return
    engine.is_ended_by_error = True
    spool = engine.spool
    limit = "" if timeout is None else f", for up to {timeout:.0f} s"
    has_rows = bool(engine.status.counts.spooled_rows or engine.monitor.depth().rows or engine.queue.depth().rows)
    if has_rows:
        _log.warning(
            "%s ended the job. Uploading the rest%s: %s. Press Ctrl-C to stop; the rows stay in the spool.",
            type(error).__name__, limit, engine.waiting_text(),
        )  # fmt: skip
    try:
        yield
    except HubsyncError as failed:
        _log.error("%s", failed)
        error.add_note(f"hubsync: {failed}")
    except (KeyboardInterrupt, SystemExit):
        _log.error("Stopped by a second signal; %s. To upload them: hubsync drain %s",
                   engine.waiting_text(), spool.directory)  # fmt: skip
        raise
    else:
        if has_rows:
            _log.warning("Done: all rows are in the spool." if engine.is_offline else "Done: all rows are on the Hub.")


def drain(engine: Engine, timeout: float | None, until: Until = "committed") -> None:
    """Upload everything, or only spool it, waiting in this thread. After SIGTERM, the grace period applies.

    Raises:
        NotDrained: `timeout` seconds, or the grace period, passed.
        BlockedError: an operator must act.
        ShardsRefused: the Hub rejected single shards.
        SystemExit: SIGTERM.
    """
    is_second_signal = signals.shutdown.has_begun()
    try:
        flush = engine.flush(everything=until == "committed")
    except ClosedError:  # another thread is closing the uploader
        return
    began = time.monotonic()
    with flush:
        try:
            flush.wait(until, timeout)
            if until == "committed":
                engine.merge_rest(seconds_after_start(began, timeout))
        except SystemExit as ended:
            # SIGTERM during the drain starts the grace period; the next signal ends it at once.
            if not is_second_signal and (left := signals.shutdown.seconds_left()) is not None:
                with after_error(engine, ended, left), draining(engine, left):
                    flush.wait(until, left if timeout is None else min(left, timeout))
            raise


def seconds_after_start(began: float, timeout: float | None) -> float | None:
    """Return how much of `timeout` is left, if it began at this time of the monotonic clock."""
    return None if timeout is None else max(0.0, began + timeout - time.monotonic())


def raise_failure(engine: Engine, repo: str) -> None:
    """Raise an error if the engine has failed.

    Raises:
        SpoolLost: the spool is gone.
        ClosedError: anything else failed; what was accepted is safe.
    """
    if isinstance(engine.failure, SpoolLost):
        raise fresh_copy(engine.failure)
    if engine.failure is not None:
        spool = engine.spool.directory
        raise ClosedError(
            f"the uploader of {repo} has failed ({engine.failure!r}). What was accepted is safe in {spool}; the next "
            f"job uploads it, or run: hubsync drain {spool}"
        ) from engine.failure
