"""The uploader's face for threads, and what it shares with the one for tasks (`async_uploader`).

`Uploader` runs the worker in a thread with an event loop of its own. `put` encodes at the caller, hands the bytes over
and waits as far as `ack` says, which is never for the network.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio

from hubsync._runtime import signals
from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.exceptions import fresh_copy
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.formatting import count_text, seconds_text
from hubsync._runtime.secret import Secret
from hubsync._runtime.validation import check_seconds, check_type, is_encodable
from hubsync.encoding import codecs
from hubsync.encoding.rows import Encoded, Rows, encode
from hubsync.encoding.transform import Transform, check_transform
from hubsync.errors import (
    BlockedError,
    ClosedError,
    ConfigError,
    ForkedError,
    HubsyncError,
    NotDrained,
    OffsetUnknown,
    QueueFull,
    SpoolLost,
)
from hubsync.model.batch import Batch
from hubsync.model.layout import Format, Layout
from hubsync.model.receipt import Receipt
from hubsync.model.stats import Counts, QueueDepth, SpoolDepth
from hubsync.policies import (
    CommitPolicy,
    QueuePolicy,
    RetryPolicy,
    SchemaPolicy,
    ShardPolicy,
    SpoolPolicy,
    policies,
)
from hubsync.telemetry.status import State
from hubsync.telemetry.tracing import span
from hubsync.uploader.engine import Engine
from hubsync.uploader.schema_guard import Admission, SchemaGuard

_log = logging.getLogger("hubsync")


class Stats(NamedTuple):
    """A snapshot of one uploader and its spool.

    Attributes:
        state: What the worker does now, and why.
        queue: Batches, rows and bytes in memory, and how often a full queue blocked, raised or dropped.
        spool: Rows and bytes on disk that are not committed yet, of all writers; shards by state; totals committed.
        counts: What this uploader did: batches spooled and replayed, commits, retries, refusals.
        oldest_age_s: Age of the oldest row that is not committed yet, in seconds; None if all rows are committed.
    """

    state: State
    queue: QueueDepth
    spool: SpoolDepth
    counts: Counts
    oldest_age_s: float | None


class BaseUploader:
    """What the two faces share."""

    repo = "?"  # until its arguments are checked
    _worker: Engine | None = None
    _guard: SchemaGuard | None = None
    _thread: threading.Thread | None = None  # the worker's
    _closed = False
    _knows_offsets = False

    def __init__(
        self,
        repo: str,
        *,
        config: str = "default",
        split: str = "train",
        path: str | None = None,
        format: Format = "jsonl",
        private: bool | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        revision: str = "main",
        spool: str | Path | SpoolPolicy | None = None,
        queue: QueuePolicy | None = None,
        shard: ShardPolicy | None = None,
        commit: CommitPolicy | None = None,
        retry: RetryPolicy | None = None,
        transform: Transform | None = None,
        schema: SchemaPolicy | None = SchemaPolicy(),  # noqa: B008  (frozen)
        grace_s: float | None = 25.0,
        progress: bool | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Check the arguments. The disk and the network are used by `open` only.

        Args:
            repo: The dataset, "namespace/name". It is created if it does not exist.
            config: The config that the rows belong to.
            split: The split that the rows belong to.
            path: Template of the shards' paths, with the fields {config}, {split}, {writer} and {seq:05d}. None for
                "data/{split}-{writer}-{seq:05d}.jsonl", below "{config}/" unless that is "default".
            format: File format of the shards: "jsonl", "jsonl.gz", "jsonl.zst" (needs hf-hubsync[zstd]) or "parquet"
                (needs hf-hubsync[parquet]). Shards are compressed outside the job's path. See
                docs/how-to/choose-a-format.md.
            private: Whether a repo that is created now is private. The spool remembers it. None for what was chosen
                before, or the account's default.
            token: None for HF_TOKEN or the token that `hf auth login` stored, read again whenever it is needed.
            endpoint: The Hub's address; None for HF_ENDPOINT.
            revision: The branch to commit to.
            spool: The directory that holds rows until they are committed; None for one directory per repo.
            queue: Limits of the queue in memory; None for the defaults.
            shard: When a shard is complete; None for the defaults.
            commit: How many commits may be sent, and how large; None for the defaults.
            retry: Intervals between retries; None for the defaults.
            transform: A function that `put` calls with each row before anything is written. It returns the row to write
                instead, or None to leave it out. See docs/how-to/redact-rows.md.
            schema: What to do with rows that would stop the dataset from loading. None turns the check off, and the
                card then does not describe the columns.
            grace_s: Seconds to upload after SIGTERM or Ctrl-C; the rest stays in the spool. SIGTERM ends the block with
                `SystemExit(143)`, unless another handler is set. The default fits the 30 s that Kubernetes, SLURM and
                spot machines give. None leaves SIGTERM alone, and puts no limit on Ctrl-C.
            progress: True shows bars on stderr or in a notebook while the uploader is open; None only if a flush or
                close takes longer than 2 s; False never. Without bars, the log has an INFO line every 30 s.
            clock: The source of time, for tests.
            rng: The source of randomness, for tests.

        Raises:
            ConfigError: An argument can never work.
        """
        from hubsync.destinations.resolve import target_of

        self._secret = Secret.of(token) if isinstance(token, str) else None
        has_token = token is None or self._secret is not None
        del token  # a crash report of what is raised below would show it
        if not has_token:
            raise ConfigError("the token given is empty, or no string. None is for the one that huggingface_hub finds.")
        self.repo = repo
        self._target = target_of(repo, endpoint, revision)
        self._layout = Layout.of(config, split, path, format)
        codecs.check_installed(format)
        self._where = spool if isinstance(spool, SpoolPolicy) else SpoolPolicy(directory=spool)
        self._queue, self._shard, self._commit, self._retry = policies(queue, shard, commit, retry)
        check_transform(transform)
        self._transform = transform
        check_type(SchemaPolicy | None, "a SchemaPolicy(…), or None", schema=schema)
        self._schema = schema
        check_seconds(grace_s=grace_s)
        self._grace_s = grace_s
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or random.Random()
        check_type(bool | None, "True, False or None", private=private, progress=progress)
        self._private = private
        self._progress = progress
        self._opening = threading.Lock()
        self._pid = os.getpid()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._worker is not None else "not opened"
        return f"<{type(self).__name__} {self.repo} {state}>"

    @property
    def spool(self) -> Path:
        """The spool's directory. It can be read after `close` as well."""
        return (self._worker or self._ready()).spool.directory

    @property
    def writer(self) -> str:
        """This uploader's name among the dataset's writers."""
        return self._ready().writer.name

    def offset(self, source: str = "default") -> int | None:
        """Return the highest offset that is accepted and durable, here or in the dataset.

        This reads the spool's catalogue, as `known` does, and blocks while another process locks the catalogue. In an
        event loop, use `asyncio.to_thread(up.offset)`.

        Args:
            source: The name that was given to `put`.

        Returns:
            The offset, or None if no batch of this source was accepted.

        Raises:
            OffsetUnknown: The spool is new and the Hub has not answered yet.
            ClosedError: The uploader is not open.
        """
        worker = self._ready()
        self._know_offsets(worker)
        return worker.spool.offsets.highest(source)

    def known(self, key: str) -> bool:
        """Return True if this spool accepted a batch with this key, so that it need not be generated again.

        This may block like `offset`.

        Args:
            key: The key that was given to `put`.

        Raises:
            ClosedError: The uploader is not open.
        """
        check_type(str, "a string", key=key)
        return self._ready().writer.knows(key)

    def stats(self) -> Stats:
        """Return a snapshot of the queue, the spool, the worker's state and its counters.

        Raises:
            ClosedError: The uploader is not open.
        """
        worker = self._ready()
        queue, depth = worker.queue.depth(), self._depth(worker)
        age = depth.oldest_age_s(self._clock.time(), queue.oldest_at)
        return Stats(worker.status.state, queue, depth, copy.copy(worker.status.counts), age)

    def _depth(self, worker: Engine) -> SpoolDepth:
        return worker.spool.depth()

    def _build(self) -> Engine:
        from hubsync.destinations.resolve import destination_of
        from hubsync.spool.opening import open_spool

        spool = open_spool(self._target, self._where, self._clock, private=self._private)
        try:
            spool.schemas.set_policy(self._layout.config, "off" if self._schema is None else self._schema.on_conflict)
            self._guard = None if self._schema is None else SchemaGuard(spool, self._layout, self._schema)
            worker = Engine(
                spool,
                destination_of(self._target, self._secret, self._retry),
                layout=self._layout,
                queue=self._queue,
                shard=self._shard,
                commit=self._commit,
                retry=self._retry,
                clock=self._clock,
                rng=self._rng,
                progress=self._progress,
            )
            if self._guard is not None:
                worker.on_misfit = self._guard.forget
            return worker
        except BaseException:
            spool.close()
            raise

    def _begin(self, wake: Callable[[], object]) -> _Opening:
        """Opens in the thread that is the worker's from then on; `wake` is called there once it is open, or failed."""
        opening = _Opening(wake)
        name = f"hubsync {self.repo}"
        self._thread = threading.Thread(target=self._run, args=(opening,), name=name, daemon=True)
        self._thread.start()
        return opening

    def _run(self, opening: _Opening) -> None:
        try:
            worker = opening.built(self._build())
            anyio.run(partial(worker.run, task_status=opening))
        except BaseException as error:  # noqa: BLE001  (raised by `open`, or kept in worker.failure for the next call)
            opening.failed(error)
            _log.debug("the worker ended", exc_info=True)
        finally:
            opening.end()

    def _opened(self, opening: _Opening) -> None:
        if opening.error is not None:
            opening.give_up()
            raise opening.error
        self._worker, self._pid = opening.worker, os.getpid()
        signals.shutdown.register(self._at_exit, self._grace_s)

    def _join(self, worker: Engine) -> None:
        if self._thread is not None:
            self._thread.join()
        worker.spool.close()

    def _ready(self) -> Engine:
        worker = self._worker
        if os.getpid() != self._pid:
            raise ForkedError(
                f"this process was forked from the one that opened the uploader of {self.repo}; its rows were not "
                "accepted. Open an Uploader here: any number may share the repo and the spool."
            )
        if self._closed:
            raise ClosedError(f"the uploader of {self.repo} is closed and accepts nothing more: open another.")
        if worker is None:
            raise ClosedError(f"the uploader of {self.repo} is not open: write `with {type(self).__name__}(…) as up:`.")
        self._raise_failure(worker)
        return worker

    def _to_close(self) -> Engine | None:
        """The worker that is to be closed, and takes no more from now on: what came behind the last flush would stay in
        the spool. None where there is none, or it is closed, or the parent's of this fork.
        """
        if self._worker is None or self._closed or os.getpid() != self._pid:
            self._closed = True
            return None
        self._worker.queue.refuse()
        return self._worker

    def _know_offsets(self, worker: Engine) -> None:
        if not worker.offline and not worker.spool.is_seeded:
            raise OffsetUnknown(
                f"the spool {worker.spool.directory} is new and {self._target.endpoint} can't be reached, so it can't "
                f"be known which offsets {self.repo} holds already. Try again when the Hub answers, or put without "
                "offset."
            )

    def _checked(self, rows: Rows, offset: int | None, source: str, key: str | None) -> Encoded:
        if offset is not None and (isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < 2**63):
            raise ConfigError(f"an offset is an int from 0, not {offset!r}.")
        if not (isinstance(source, str) and is_encodable(source)):
            raise ConfigError(f"a source is a name, in text that UTF-8 can carry, not {source!r}.")
        if key is not None and not (isinstance(key, str) and key):
            raise ConfigError(f"a key is a non-empty string, not {key!r}.")
        # A step that knows its batches by their content has transformed and encoded them already.
        return rows if isinstance(rows, Encoded) else self.encode(rows)

    def _is_familiar(self, worker: Engine, encoded: Encoded, offset: int | None) -> bool:
        """Whether nothing of it is to be looked up in the catalogue, so that `_place` does not wait."""
        knows_offsets = offset is None or worker.offline or self._knows_offsets
        return knows_offsets and (self._guard is None or self._guard.is_familiar(encoded))

    def _place(self, worker: Engine, encoded: Encoded, offset: int | None) -> Admission:
        if offset is not None:
            self._know_offsets(worker)
            self._knows_offsets = True
        return _ANYWHERE if self._guard is None else self._guard.admit(encoded)

    def _batch(self, encoded: Encoded, place: Admission, offset: int | None, source: str, key: str | None) -> Batch:
        failpoint(Failpoint.ENCODED)
        receipt = Receipt(encoded.rows, len(encoded.lines))
        return Batch(encoded.lines, encoded.rows, receipt, source, offset, key, *place)

    def encode(self, rows: Rows) -> Encoded:
        """Encode a batch without accepting it, to learn its content first. `put` takes the result.

        Args:
            rows: What `put` takes.

        Raises:
            RowError: A row has no JSON form.
            TransformError: The uploader's `transform` raised.
        """
        profiler = self._guard.profiler if self._guard is not None else None
        return encode(rows, profiler, transform=self._transform)

    @contextmanager
    def _drained(self, worker: Engine, timeout: float | None) -> Iterator[None]:
        """Turns what can end a wait for commits into errors that say what is left, and how to bring it up."""
        check_seconds(timeout=timeout)
        try:
            with worker.progress.draining(), span("hubsync.drain", worker.source.attributes):
                yield
        except (TimeoutError, BlockedError, KeyboardInterrupt) as error:
            worker.see()  # waits for nobody
            left = worker.depth()
            if isinstance(error, TimeoutError):
                why = f"{seconds_text(timeout or 0)} were not enough ({worker.status.state})."
                raise NotDrained(worker.spool.directory, left.rows, left.bytes, why) from None
            what = f"Safe in {worker.spool.directory}: {count_text(left.rows, 'row')} ({left.bytes:,} bytes)."
            once = "Once this is mended, the" if isinstance(error, BlockedError) else "The"
            error.add_note(f"{what} {once} next job brings that up, or run: hubsync drain {worker.spool.directory}")
            raise

    def _may_take(self, error: BaseException) -> float | None:
        """Seconds that draining may take behind an error that has ended the job's block; None for no bound."""
        if (left := signals.shutdown.seconds_left()) is not None:
            return left
        return None if isinstance(error, (Exception, SystemExit)) else self._grace_s

    @contextmanager
    def _behind(self, error: BaseException, timeout: float | None) -> Iterator[None]:
        """Draining must not hide what has ended the job: that goes on, whatever comes of the rows."""
        worker = self._worker
        if worker is None or self._closed:
            yield
            return
        bound = "Ctrl-C" if timeout is None else f"{timeout:.0f} s, or Ctrl-C,"
        what, spool = type(error).__name__, worker.spool
        _log.warning("%s ended the job; draining first, %s. %s leaves it there.", what, spool.waiting_text(), bound)
        try:
            yield
        except HubsyncError as failed:
            _log.error("%s", failed)
            error.add_note(f"hubsync: {failed}")
        except (KeyboardInterrupt, SystemExit):
            _log.error(
                "told to end once more; %s. Bring it up: hubsync drain %s", spool.waiting_text(), spool.directory
            )
            raise
        else:  # who was warned is told that it is over
            _log.warning("drained: all is in the spool" if worker.offline else "drained: all is on the Hub")

    def _close(self, timeout: float | None) -> None:
        if (worker := self._to_close()) is None:
            return
        try:
            with self._drained(worker, timeout):
                if worker.failure is None:
                    self._drain(worker, timeout)
                    failpoint(Failpoint.DRAINED)
        finally:
            self._closed = True
            worker.stop()
            self._join(worker)
            signals.shutdown.unregister(self._at_exit)
        self._raise_failure(worker)

    def _raise_failure(self, worker: Engine) -> None:
        if isinstance(worker.failure, SpoolLost):
            raise fresh_copy(worker.failure)
        if worker.failure is not None:
            raise ClosedError(
                f"the uploader of {self.repo} has failed ({worker.failure!r}). What was accepted is safe in "
                f"{worker.spool.directory}; the next job brings it up, or run: hubsync drain {worker.spool.directory}"
            ) from worker.failure

    def _drain(self, worker: Engine, timeout: float | None) -> None:
        is_second = signals.shutdown.has_begun()
        try:
            drained = worker.flush(everything=True)
        except ClosedError:  # another thread closes it just now
            return
        with drained:
            try:
                drained.wait("committed", timeout)
            except SystemExit as ended:
                # SIGTERM while it drains: from now on the grace counts. The next signal ends it at once.
                if not is_second and (left := signals.shutdown.seconds_left()) is not None:
                    with self._behind(ended, left), self._drained(worker, left):
                        drained.wait("committed", left if timeout is None else min(left, timeout))
                raise

    def _at_exit(self, seconds: float) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        _log.warning("the uploader of %s was not closed; draining for up to %g s.", self.repo, seconds)
        try:
            self._close(seconds)
        except HubsyncError as error:
            _log.error("%s", error)
        except KeyboardInterrupt as error:
            _log.error("Ctrl-C ended the drain. %s", " ".join(getattr(error, "__notes__", ())))
            raise


class _Opening:
    """What becomes of an `open`, between who waits for it and the worker's thread. A `TaskStatus` besides."""

    def __init__(self, wake: Callable[[], object]) -> None:
        self.worker: Engine | None = None
        self.error: BaseException | None = None
        self._wake = wake
        self._given_up = self._ended = False
        self._lock = threading.Lock()

    def built(self, worker: Engine) -> Engine:
        with self._lock:
            self.worker = worker
            if self._given_up:
                worker.stop()
        return worker

    def started(self, value: object = None) -> None:
        self._wake()

    def failed(self, error: BaseException) -> None:
        if self.worker is not None:
            self.worker.failure = error = self.worker.failure or error
        self.error = error

    def end(self) -> None:
        """The thread has come to its end."""
        with self._lock:
            self._ended = True
            self._discard()
        self._wake()

    def give_up(self) -> None:
        """Nobody waits any more: what the thread opens, it closes."""
        with self._lock:
            self._given_up = True
            if self.worker is not None:
                self.worker.stop()
            self._discard()

    def _discard(self) -> None:
        if self._given_up and self._ended and self.worker is not None:
            self.worker.writer.close()  # where the event loop could not even begin
            self.worker.spool.close()


_ANYWHERE = Admission()
DROPPED = QueueFull("the queue was full and its policy is 'drop': the batch was not accepted.")
