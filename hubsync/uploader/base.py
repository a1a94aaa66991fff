"""The uploader's face for threads, and what it shares with the one for tasks (`async_uploader`).

`Uploader` runs the engine in a thread with an event loop of its own. `put` encodes at the caller, hands the bytes over
and waits as far as `ack` says, which is never for the network.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn, get_args

import anyio

from hubsync._runtime import logs, signals
from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.exceptions import fresh_copy
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.secret import Secret
from hubsync._runtime.threads import call_in_new_thread, own_thread
from hubsync._runtime.validation import check_seconds, check_type, is_encodable
from hubsync.encoding import codecs
from hubsync.encoding.rows import Encoded, Rows, encode
from hubsync.encoding.tables import Types
from hubsync.encoding.transform import Transform, check_transform
from hubsync.encoding.typed import Features, declared_types
from hubsync.errors import (
    ClosedError,
    ConfigError,
    ForkedError,
    HubsyncError,
    QueueFull,
    ReentrantCall,
    WaitTimeout,
)
from hubsync.model.batch import Batch
from hubsync.model.layout import Format, Layout
from hubsync.model.receipt import Receipt
from hubsync.model.stats import Counts, QueueDepth, SpoolDepth
from hubsync.policies import (
    Ack,
    CommitPolicy,
    CommitterPlace,
    CompactPolicy,
    Policies,
    QueuePolicy,
    RetryPolicy,
    SchemaPolicy,
    ShardPolicy,
    SpoolPolicy,
    close_timeout_s,
)
from hubsync.schema.types import EMPTY, StructOf, json_places
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import State
from hubsync.uploader.closing import after_error, drain, draining, raise_failure
from hubsync.uploader.engine import Engine, Placement
from hubsync.uploader.in_order import Reorderer
from hubsync.uploader.offsets_wait import OffsetsWait
from hubsync.uploader.opening import Opening
from hubsync.uploader.ranks import default_source
from hubsync.uploader.schema_guard import Admission, SchemaGuard

_log = logging.getLogger("hubsync")


class Stats(NamedTuple):
    """A snapshot of one uploader and its spool.

    Attributes:
        state: What the engine does now, and why.
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
    _engine: Engine | None = None
    _guard: SchemaGuard | None = None
    _thread: threading.Thread | None = None  # the engine's
    _closed = False
    _final: Stats | None = None  # of an uploader that is closed
    _knows_offsets = False
    _offsets_wait: OffsetsWait

    def __init__(
        self,
        repo_id: str,
        *,
        config: str = "default",
        split: str = "train",
        path: str | None = None,
        format: Format | None = None,
        private: bool | None = None,
        token: str | None = None,
        endpoint: str | None = None,
        revision: str = "main",
        spool: str | Path | SpoolPolicy | None = None,
        queue: QueuePolicy | None = None,
        shard: ShardPolicy | None = None,
        commit: CommitPolicy | None = None,
        retry: RetryPolicy | None = None,
        compact: CompactPolicy | None = None,
        committer: CommitterPlace = "thread",
        transform: Transform | None = None,
        schema: SchemaPolicy | None = SchemaPolicy(),  # noqa: B008  (frozen)
        features: Features | None = None,
        json_columns: Collection[str] = (),
        grace_s: float | None = 25.0,
        progress: bool | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Check the arguments. The disk and the network are used by `open` only.

        Args:
            repo_id: The dataset, "namespace/name". It is created if it does not exist. Without a namespace, it is that
                of the token's account, which `open` asks the Hub for.
            config: The config that the rows belong to.
            split: The split that the rows belong to.
            path: Template of the shards' paths, with the fields {config}, {split}, {writer} and {seq:05d}. None for
                "data/{split}-{writer}-{seq:05d}.jsonl", below "{config}/" unless that is "default".
            format: File format of the shards: "jsonl", "jsonl.gz", "jsonl.zst" (needs hf-hubsync[zstd]) or "parquet"
                (needs hf-hubsync[parquet]). None follows the files that the dataset holds, and is "jsonl" for a new
                one. Shards are compressed outside the job's path. See docs/how-to/choose-a-format.md.
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
            compact: When to merge small shards into large files while the job runs; None to leave them as they are.
            committer: "thread": this process uploads the rows. "agent": it only spools them, and `hubsync agent`, one
                process for all jobs of this host and user, uploads them. See docs/how-to/run-an-agent.md.
            transform: A function that `put` calls with each row before anything is written. It returns the row to write
                instead, or None to leave it out. See docs/how-to/redact-rows.md.
            schema: What to do with rows that would stop the dataset from loading. None turns the check off, and the
                card then does not describe the columns.
            features: Types of columns, for rows that are plain dicts: a `datasets.Features`, a `pyarrow.Schema`, or a
                mapping of names to types, such as "int32", "timestamp[ms]" or "image". A row whose values do not fit
                is refused. See docs/concepts/schemas.md.
            json_columns: Names of columns that hold values of any shape, in addition to those of `schema`. See
                docs/concepts/schemas.md.
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
            raise ConfigError("token must be a non-empty string, or None for the token that huggingface_hub finds.")
        self.repo = repo_id
        self._target = target_of(repo_id, endpoint, revision, may_lack_namespace=True)
        self._layout = Layout.of(config, split, path, format)
        codecs.check_installed(self._layout.format)
        asked = self._layout.format if path is not None else format
        self._placement = Placement(self._layout, asked, path is not None, schema is not None)
        self._where = spool if isinstance(spool, SpoolPolicy) else SpoolPolicy(directory=spool)
        self._policies = Policies.of(queue, shard, commit, retry, compact)
        if committer not in get_args(CommitterPlace):
            raise ConfigError(f'committer must be "thread" or "agent", not {committer!r}.')
        self._uses_agent = committer == "agent"
        if self._uses_agent and compact is not None:
            raise ConfigError('the agent merges no shards: use committer="thread" with compact=…, or hubsync compact.')
        self._close_timeout_s = close_timeout_s(self._policies.retry)
        check_transform(transform)
        self._transform = transform
        try:
            self._declared = declared_types(features)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"features: {error}.") from None
        check_type(SchemaPolicy | None, "a SchemaPolicy(…), or None", schema=schema)
        names = SchemaPolicy(json_columns=json_columns).json_columns
        self._schema = schema and replace(schema, json_columns=[*schema.json_columns, *names])
        check_seconds(grace_s=grace_s)
        self._grace_s = grace_s
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or random.Random()
        check_type(bool | None, "True, False or None", private=private, progress=progress)
        self._private = private
        self._progress = progress
        self._opening = threading.RLock()
        self._is_opening = False
        self._pid = os.getpid()
        self._source = default_source()
        self._ordered: list[Reorderer] = []

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._engine is not None else "not opened"
        return f"<{type(self).__name__} {self.repo} {state}>"

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            f"an {type(self).__name__} cannot be pickled, copied or sent to another process: it owns threads and "
            "files. Open one in each process, in the worker's function or initializer. Any number of them may share "
            "the repo and the spool."
        )

    @property
    def spool(self) -> Path:
        """The spool's directory. It can be read after `close` as well."""
        return (self._engine or self._ready()).spool.directory

    @property
    def writer(self) -> str:
        """This uploader's name among the dataset's writers."""
        return self._ready().writer_name

    def stats(self) -> Stats:
        """Return a snapshot of the queue, the spool, the engine's state and its counters; after `close`, the last one.

        Raises:
            ClosedError: The uploader was not opened.
        """
        if self._final is not None:
            return self._final
        engine = self._ready()
        return self._snapshot(engine, self._depth(engine))

    def _snapshot(self, engine: Engine, depth: SpoolDepth) -> Stats:
        queue = engine.queue.depth()
        age = depth.oldest_age_s(self._clock.time(), queue.oldest_at)
        return Stats(engine.status.state, queue, depth, copy.copy(engine.status.counts), age)

    def _depth(self, engine: Engine) -> SpoolDepth:
        return engine.monitor.depth() if own_thread.depth else call_in_new_thread(engine.spool.depth)

    # Opening.

    def _build(self) -> Engine:
        from hubsync.destinations.resolve import destination_of, with_namespace
        from hubsync.spool.opening import open_spool

        self._target = with_namespace(self._target, self._secret)
        self.repo = self._target.repo
        spool = open_spool(self._target, self._where, self._clock, private=self._private)
        try:
            spool.schemas.set_policy(self._layout.config, "off" if self._schema is None else self._schema.on_conflict)
            self._declare_columns(spool)
            self._guard = None if self._schema is None else SchemaGuard(spool, self._layout, self._schema)
            return Engine(
                spool,
                destination_of(self._target, self._secret, self._policies.retry),
                self._placement,
                self._policies,
                self._rng,
                uses_agent=self._uses_agent,
                progress=self._progress,
                on_schema_mismatch=self._guard.forget if self._guard is not None else lambda: None,
            )
        except BaseException:
            spool.close()
            raise

    def _declare_columns(self, spool: Spool) -> None:
        """Record the types of `features=`, which stay; where JSON is in them, values of any shape may come."""
        fields = self._declared.fields
        plain = [name for name in fields if not json_places(StructOf({name: fields[name]})).fields]
        if plain and not spool.schemas.declared(self._layout.config).issuperset(plain):
            with spool.catalogue.transaction():
                spool.schemas.declare(self._layout.config, plain)

    def _begin(self, wake: Callable[[], object]) -> Opening:
        """Build and run the engine in a new thread; `wake` is called there once it is open, or has failed."""
        opening = Opening(wake)
        self._opened_at = time.monotonic()
        name = f"hubsync {self.repo}"
        self._thread = threading.Thread(target=self._run, args=(opening,), name=name, daemon=True)
        self._thread.start()
        return opening

    def _run(self, opening: Opening) -> None:
        with own_thread:
            try:
                engine = opening.built(self._build())
                anyio.run(partial(engine.run, task_status=opening))
            except BaseException as error:  # noqa: BLE001  (raised by `open`, or kept for the next call)
                opening.failed(error)
                _log.debug("the engine ended", exc_info=True)
            finally:
                opening.ended()

    def _opened(self, opening: Opening) -> None:
        if (error := opening.error) is not None:
            opening.abandon()
            if isinstance(error, HubsyncError):  # the stacks of hubsync's threads would hide the message
                raise fresh_copy(error) from error.__cause__
            raise error
        self._engine, self._pid = opening.engine, os.getpid()
        if self._engine is not None:
            self._offsets_wait = OffsetsWait(self._engine, self._policies.retry.open_timeout_s, self._opened_at)
            self._layout = self._engine.layout
            if self._guard is not None:
                self._guard.relocate(self._layout)
        signals.shutdown.register(self._at_exit, self._grace_s)

    def _ready(self, *, waits: bool = False) -> Engine:
        """Return the engine of an open uploader, or raise an error that says why it can't be used.

        Args:
            waits: the call waits for hubsync's threads, so it can't be made in one of them.
        """
        engine = self._engine
        if os.getpid() != self._pid:
            raise ForkedError(
                f"this process was forked from the one that opened the uploader of {self.repo}; its rows were not "
                "accepted. Open an Uploader here: any number of processes may share the repo and the spool."
            )
        if self._closed:
            raise ClosedError(f"the uploader of {self.repo} is closed and accepts nothing more. Open another one.")
        if engine is None:
            raise ClosedError(f"the uploader of {self.repo} is not open: write `with {type(self).__name__}(…) as up:`.")
        raise_failure(engine, self.repo)
        if waits and own_thread.depth:
            raise _reentrant("it would wait for itself")
        return engine

    # Putting.

    def encode(self, rows: Rows) -> Encoded:
        """Encode a batch without accepting it, to learn its content first. `put` takes the result.

        Args:
            rows: What `put` takes.

        Raises:
            RowError: A row has no JSON form.
            TransformError: The uploader's `transform` raised.
        """
        profiler = self._guard.profiler if self._guard is not None else None
        known = self._guard.typed_columns if self._guard is not None else EMPTY
        widens = self._schema is not None and self._schema.on_conflict == "json"
        types = Types(self._layout.format == "parquet", self._declared, known, widens)
        return encode(rows, profiler, transform=self._transform, types=types)

    def _checked(self, rows: Rows, offset: int | None, source: str | None, key: str | None) -> Encoded:
        if offset is not None and (isinstance(offset, bool) or not isinstance(offset, int) or not 0 <= offset < 2**63):
            raise ConfigError(f"offset must be an int from 0, not {offset!r}.")
        if source is not None and not (isinstance(source, str) and source and is_encodable(source)):
            raise ConfigError(f"source must be None or a non-empty string that UTF-8 can encode, not {source!r}.")
        if key is not None and not (isinstance(key, str) and key):
            raise ConfigError(f"key must be a non-empty string, not {key!r}.")
        # A step that identifies its batches by their content has transformed and encoded them already.
        return rows if isinstance(rows, Encoded) else self.encode(rows)

    def _familiar(self, engine: Engine, encoded: Encoded, offset: int | None) -> Admission | None:
        """Return where a batch goes; None if only the catalogue tells, so that `_admit` may block."""
        place = ANYWHERE if self._guard is None else self._guard.admit_familiar(encoded)
        if place is not None and (offset is None or engine.is_offline or self._knows_offsets):
            return place
        if own_thread.depth:
            raise _reentrant("a batch with new columns, or the first one with an offset, must wait for the spool")
        return None

    def _admit(self, engine: Engine, encoded: Encoded) -> Admission:
        if self._guard is None:
            return ANYWHERE
        place = self._guard.admit(encoded)
        engine.status.counts.widened_columns = self._guard.widened
        return place

    def _batch(
        self, encoded: Encoded, place: Admission, offset: int | None, source: str | None, key: str | None, ack: Ack
    ) -> Batch:
        failpoint(Failpoint.ENCODED)
        lines = encoded.lines if place.lines is None else place.lines
        receipt = Receipt(encoded.rows, len(lines))
        return Batch(
            lines, encoded.rows, receipt, source or self._source, offset, key,
            place.types, place.layout, place.set_aside, waits=ack != "queued",
        )  # fmt: skip

    # Closing.

    def _begin_close(self) -> Engine | None:
        """Accept no more batches: after the last flush they would stay in the spool. Return the engine to close.

        None if the uploader was not opened, is closed, or belongs to the parent of this fork.
        """
        if self._engine is None or self._closed or os.getpid() != self._pid:
            self._closed = True
            return None
        if own_thread.depth:
            raise _reentrant("it would wait for itself")
        self._engine.queue.refuse()
        return self._engine

    def _close(self, timeout: float | None, *, wait: bool = True) -> None:
        if (engine := self._begin_close()) is None:
            return
        timeout = self._close_timeout_s if timeout is None else timeout
        try:
            with draining(engine, timeout):
                if engine.failure is None:
                    drain(engine, timeout, "committed" if wait else "spooled")
                    failpoint(Failpoint.DRAINED)
        finally:
            self._closed = True
            engine.stop()
            self._join(engine)
            signals.shutdown.unregister(self._at_exit)
            logs.wait_for_logs()
        self._raise_failure(engine)
        if not wait and self._final is not None:
            engine.report_left(self._final.spool.rows)

    def _raise_failure(self, engine: Engine) -> None:
        raise_failure(engine, self.repo)
        for gap in filter(None, (ordered.gap() for ordered in self._ordered)):
            raise gap

    def _join(self, engine: Engine) -> None:
        if self._thread is not None:
            self._thread.join()
        with suppress(HubsyncError, OSError):  # the spool may be lost
            self._final = self._snapshot(engine, engine.spool.depth())
        engine.spool.close()

    def _after_error(self, error: BaseException, timeout: float | None) -> AbstractContextManager[None]:
        return after_error(None if self._closed else self._engine, error, timeout)

    def _at_exit(self, seconds: float) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        _log.warning("The uploader of %s was not closed. Uploading the rest, for up to %g s.", self.repo, seconds)
        try:
            self._close(seconds)
        except HubsyncError as error:
            _log.error("%s", error)
        except KeyboardInterrupt as error:
            _log.error("Ctrl-C ended the upload. %s", " ".join(getattr(error, "__notes__", ())))
            raise


def _reentrant(why: str) -> ReentrantCall:
    name = threading.current_thread().name
    return ReentrantCall(
        f"this was called in a thread of hubsync itself ({name}), for example by a __del__ or a weak reference's "
        f"callback that a garbage collection ran there: {why}. Nothing was changed. Call it from a thread of the job."
    )


@contextmanager
def dropped_if_full(engine: Engine) -> Iterator[None]:
    """Leave it to the receipt that a full spool dropped a batch, if the queue's policy is "drop".

    A wait that times out because the spool is full says why it is.
    """
    try:
        yield
    except WaitTimeout as error:
        if engine.status.state.kind == "spool full":
            error.add_note(f"{engine.status.state}.")
        raise
    except QueueFull:
        if engine.queue.policy.when_full != "drop":
            raise


ANYWHERE = Admission()
DROPPED = QueueFull("the queue was full and its policy is 'drop': the batch was not accepted.")
