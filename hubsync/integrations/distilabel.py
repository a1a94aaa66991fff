"""A checkpointer for distilabel: a step that brings what passes to a dataset on the Hub, and passes it on at once.

    checkpoint = HuggingFaceHubCheckpointer(repo_id="user/rollouts", input_batch_size=250)
    generate >> checkpoint

The run never waits for the Hub, and never ends by it: distilabel swallows what `process` raises and sends an empty
batch on, and hangs where `unload` raises. So neither does; what goes wrong is logged at once, and told at the end.
"""

# Without `from __future__ import annotations`: distilabel looks at the annotations themselves.
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    from distilabel.constants import ROUTING_BATCH_FUNCTION_ATTR_NAME, STEP_ATTR_NAME
    from distilabel.mixins.runtime_parameters import RuntimeParameter
    from distilabel.steps import Step, StepInput
    from pydantic import ConfigDict, Field, PrivateAttr, SecretStr
except ImportError as error:
    raise ImportError(f"{error}. Install what it needs with: pip install 'hf-hubsync[distilabel]'") from error

from hubsync.destinations.resolve import is_offline
from hubsync.encoding.rows import Encoded, encode
from hubsync.encoding.transform import check_transform, transformed
from hubsync.errors import BatchTooLarge, ConfigError, HubsyncError, NotDrained, RowError, one_line
from hubsync.model.layout import Format
from hubsync.policies import CommitPolicy, OnConflict, QueuePolicy, RetryPolicy, SchemaPolicy, ShardPolicy, SpoolPolicy
from hubsync.uploader.sync import Uploader

Row = dict[str, Any]

_KINDS = 50  # of trouble that are told apart; a field's name may be a row's own


@dataclass(frozen=True)
class _Place:
    """Where the step stands in its pipeline. Only the process that runs the pipeline knows; the step takes it along.

    Attributes:
        pipeline: its name.
        inputs: the predecessor and its config's number, for each list that `process` is given.
        is_routed: batches come from some of the predecessors, and nobody says from which.
        is_dry_run: the rows are no part of the run.
    """

    pipeline: str = ""
    inputs: tuple[tuple[str, int], ...] = ()
    is_routed: bool = False
    is_dry_run: bool = False


class HuggingFaceHubCheckpointer(Step):
    """Each predecessor's rows go to a config of their own: `config-0/train-00000.jsonl`, `…-00001.jsonl`, …

    The configs are numbered in the order in which the pipeline's steps were made. Behind a routing function all rows go
    to `config-0`, since nobody says from which predecessor a batch comes.

    A run that died is run again with `use_cache=False` (distilabel's own resume hangs): a batch that this spool has
    taken already, at the same place and with the same rows, adds nothing. Where the rows are others each time, as an
    LLM's are, `run="a-name"` goes on by their count. With several replicas there is no order to know a batch by, and
    every run adds its rows.

    Attributes:
        repo_id: the dataset; made where it does not exist. Push the final Distiset to another one: it is Parquet, and
            `datasets` reads one format a repo.
        input_batch_size: rows of a shard.
        private: whether a repo that is made now is private; None for the account's default.
        split, format, path, endpoint, revision: as `hubsync.Uploader` has them.
        on_conflict: what becomes of a batch that does not go with the others, as `hubsync.SchemaPolicy` has it, but by
            default the dead letter: nothing is lost. None: nobody looks.
        run: the run's name, to count by. Rows at places that a run of this name has brought are passed over, whatever
            they are, also on another machine. It takes one replica, and a Hub that answers when a spool is new.

    What follows is this machine's: it is in no `pipeline.yaml`, changes no cache, and may be given to `Pipeline.run` as
    well (`parameters={"checkpoint": {"linger_s": 10}}`).

    Attributes:
        token: None for what HF_TOKEN or `hf auth login` hold.
        transform: as `hubsync.Uploader` has it, for what is checkpointed; what goes downstream stays. No file can
            hold a function, so a step that is read from one is refused.
        spool, queue, linger_s, commit, retry: as `hubsync.Uploader` has them.
        drain_s: seconds that the end of the run may wait for the Hub; None for as long as it takes. What is left then
            is in the spool, and the log says where.
    """

    # A validation error would show what was given, and a token with it.
    model_config = ConfigDict(hide_input_in_errors=True)

    repo_id: str
    private: bool | None = None
    split: str = "train"
    path: str | None = None
    format: Format = "jsonl"
    endpoint: str | None = None
    revision: str = "main"
    on_conflict: OnConflict | None = "dead letter"
    run: str | None = None
    is_transformed: bool = False  # written down for `transform`, so that a reloaded step can't go on without it

    # Left out of what is written down, and so out of the cache's signature. A field that was only left out of the
    # signature would be read back from the last run's pipeline.yaml, over what the user gives now.
    token: RuntimeParameter[SecretStr] | None = Field(
        default=None, exclude=True, repr=False, description="The token; by default HF_TOKEN or the login."
    )
    spool: RuntimeParameter[str | SpoolPolicy] | None = Field(
        default=None, exclude=True, description="The directory that keeps rows until they are committed."
    )
    queue: RuntimeParameter[QueuePolicy] | None = Field(
        default=None, exclude=True, description="Bounds of the queue in memory."
    )
    linger_s: RuntimeParameter[float] = Field(
        default=60.0, exclude=True, description="Seconds that a row may wait for its shard to be full."
    )
    commit: RuntimeParameter[CommitPolicy] | None = Field(
        default=None, exclude=True, description="How commits are spent."
    )
    retry: RuntimeParameter[RetryPolicy] | None = Field(default=None, exclude=True, description="Pace of the retries.")
    transform: Callable[[Any], Any] | None = Field(default=None, exclude=True, repr=False)
    drain_s: RuntimeParameter[float] | None = Field(
        default=300.0, exclude=True, description="Seconds that the end of the run may wait for the Hub."
    )

    _place: _Place = PrivateAttr(default=_Place())
    _lanes: list["_Lane"] = PrivateAttr(default_factory=list)
    _tally: "_Tally | None" = PrivateAttr(default=None)

    def __init__(self, **given: Any) -> None:
        # Hidden from here on: distilabel installs a traceback that shows the variables of every frame.
        if isinstance(given.get("token"), str):
            given["token"] = SecretStr(given["token"])
        super().__init__(**given)

    def model_post_init(self, context: Any, /) -> None:
        """Checks the arguments, before the pipeline knows the step.

        Raises:
            ValueError: an argument that can never work.
        """
        self._check_replicas()
        check_transform(self.transform)
        self.is_transformed = self.is_transformed or self.transform is not None
        self._uploader(0)
        super().model_post_init(context)

    def set_pipeline_artifacts_path(self, path: Path) -> None:
        """Looks at the pipeline. This is distilabel's last word to the step before it is sent to a process of its own,
        without the pipeline.

        Raises:
            ConfigError: another checkpointer of the pipeline brings rows to the same place, or `transform` is missing.
        """
        self._check_transform()
        super().set_pipeline_artifacts_path(path)
        if self.pipeline is not None:
            self._place = _place_of(self, self.pipeline)
        else:  # a second run of one Pipeline; a dry run came first, perhaps
            place = self._place
            self._place = _Place(place.pipeline, place.inputs, place.is_routed)

    def load(self) -> None:
        """Opens an uploader for each predecessor.

        Raises:
            BlockedError: a token that may not write, or a repo that can't be had.
            OffsetUnknown: `run` is given, the spool is new, and the Hub can't be asked what it holds.
            ConfigError: `run` is given, and several replicas; or `transform` is missing.
        """
        super().load()
        self._check_replicas()
        self._check_transform()
        self._tally = _Tally(self._logger)
        for predecessor, number in [("all", 0)] if self._place.is_routed else self._place.inputs or [("0", 0)]:
            self._open(predecessor, number)
        where = ", ".join(sorted(f"config-{lane.number} has those of {lane.predecessor!r}" for lane in self._lanes))
        self._logger.info("Rows are checkpointed in %s: %s.", self.repo_id, where)

    def process(self, *inputs: StepInput) -> Iterator[list[Row]]:
        """Passes all rows on, those of every predecessor in one list: distilabel takes no more than one."""
        if not self._place.is_dry_run:
            rows = [[row for batch in inputs for row in batch]] if self._place.is_routed else inputs
            for number, batch in enumerate(rows):
                self._checkpoint(number, batch)
        yield [row for batch in inputs for row in batch]

    def unload(self) -> None:
        """Drains, and tells how it went. Raises nothing, whatever state `load` left."""
        lanes, self._lanes = self._lanes, []
        tally, self._tally = self._tally, None
        logger = self._logger or logging.getLogger(f"distilabel.step.{self.name}")
        try:
            if tally is not None and lanes:
                left = _drain(lanes, self.drain_s)
                if self._place.is_dry_run:
                    logger.info("A dry run: nothing was checkpointed.")
                else:
                    tally.tell(self.repo_id, left)
        except Exception:
            logger.exception("The checkpoint's end went wrong; what was accepted is in the spool.")

    def _check_replicas(self) -> None:
        if self.run is not None and (self.resources.replicas or 1) > 1:
            raise ConfigError(
                f"run={self.run!r} goes on by the number of the rows, which several replicas can't know: give "
                "StepResources(replicas=1), or no run."
            )

    def _check_transform(self) -> None:
        """distilabel's own reload has put it back into the step by now; a step from elsewhere does not have it."""
        if self.is_transformed and self.transform is None:
            raise ConfigError(
                f"the step {self.name!r} was written down with a transform, which a file can't hold. Without it, what "
                "it masks or leaves out would go to the Hub. Make the step anew, with transform=…"
            )

    def _uploader(self, number: int) -> Uploader:
        return Uploader(
            self.repo_id,
            config=f"config-{number}",
            split=self.split,
            path=self.path or f"{{config}}/{{split}}-{{seq:05d}}.{self.format}",
            format=self.format,
            private=self.private,
            token=self.token.get_secret_value() if self.token is not None else None,
            endpoint=self.endpoint,
            revision=self.revision,
            spool=self.spool,
            queue=self.queue,
            shard=ShardPolicy(max_rows=self.input_batch_size, linger_s=self.linger_s),
            commit=self.commit,
            retry=self.retry,
            schema=SchemaPolicy(on_conflict=self.on_conflict) if self.on_conflict is not None else None,
            grace_s=None,  # distilabel's to handle
        )

    def _open(self, predecessor: str, number: int) -> "_Lane":
        assert self._tally is not None
        lane = _Lane(predecessor, number, self._uploader(number).open(), self._tally, self.transform)
        self._lanes.append(lane)  # before anything can fail: unload closes it
        if self.run is not None:
            lane.count(f"{self.run}/{self.name}/{predecessor}")
        elif self.resources.replicas in (None, 1):
            lane.key = f"{self._place.pipeline}/{self.name}/{predecessor}"
        return lane

    def _checkpoint(self, number: int, rows: list[Row]) -> None:
        """Brings one predecessor's rows, as far as they can be brought."""
        assert self._tally is not None
        try:
            # A step that runs without a pipeline learns from its first batch how many predecessors it has.
            lane = self._lanes[number] if number < len(self._lanes) else self._open(str(number), number)
            lane.take(rows)
        except Exception as error:  # noqa: BLE001  (else distilabel would lose the batch downstream as well)
            self._tally.miss(len(rows), error)


def _place_of(step: HuggingFaceHubCheckpointer, pipeline: Any) -> _Place:
    for other in (pipeline.dag.get_step(name)[STEP_ATTR_NAME] for name in pipeline.dag if name != step.name):
        if isinstance(other, HuggingFaceHubCheckpointer) and _goes_to(other) == _goes_to(step):
            raise ConfigError(
                f"the steps {step.name!r} and {other.name!r} both bring rows to {step.repo_id} ({step.revision}, split "
                f"{step.split}): their configs would mix. Give one another repo_id, or let one checkpointer stand "
                "behind both."
            )
    # Predecessors come in the order in which they were connected, but after a reload from the cache in the order in
    # which they were made. Only the latter stays the same, so it numbers the configs.
    predecessors = list(pipeline.dag.get_step_predecessors(step.name))
    made = [name for name in pipeline.dag if name in predecessors]
    return _Place(
        pipeline.name,
        tuple((name, made.index(name)) for name in predecessors),
        is_routed=bool(predecessors) and all(_is_routed(name, pipeline) for name in predecessors),
        is_dry_run=bool(getattr(pipeline, "_dry_run", False)),
    )


def _goes_to(step: HuggingFaceHubCheckpointer) -> tuple[str | None, str, str, str]:
    return step.endpoint, step.repo_id, step.revision, step.split


def _is_routed(name: str, pipeline: Any) -> bool:
    """Whether a step gets some of its batches only. distilabel's own mark for it is lost in a reload from the cache."""
    above = [pipeline.dag.get_step(other) for other in pipeline.dag.get_step_predecessors(name)]
    return any(ROUTING_BATCH_FUNCTION_ATTR_NAME in node for node in above)


class _Tally:
    """What became of the rows of one process. A trouble is logged when it first comes, and told at the end."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.accepted = 0
        self.passed_over = 0
        self.left_out = 0
        self._missing: dict[tuple[str, str], int] = {}
        self._reasons: dict[tuple[str, str], str] = {}

    def miss(self, rows: int, error: Exception) -> None:
        """Rows that are not checkpointed; they go on downstream."""
        what, where, why = type(error).__name__, "", one_line(str(error))
        if isinstance(error, RowError):
            where = re.sub(r"\[\d+\]", "[]", error.path)
            why = one_line(f"field {error.path!r}: {error.reason}" if error.path else error.reason)
        kind = (what, where)
        if kind not in self._missing and len(self._missing) >= _KINDS:
            kind, why = ("others", ""), "further kinds; see the log of the first."
        if kind not in self._missing:
            self._reasons[kind] = why
            self._logger.error("Not checkpointed (told once, and counted): %s: %s", what, why)
        self._missing[kind] = self._missing.get(kind, 0) + rows

    def tell(self, repo_id: str, left: list[HubsyncError]) -> None:
        """The summary: at INFO where all is well, else at ERROR."""
        if not (self.accepted or self.passed_over or self.left_out or self._missing or left):
            return  # it never began
        done = f"{self.accepted:,} rows were accepted"
        if self.passed_over:
            done += f", {self.passed_over:,} were there from an earlier run and passed over"
        if self.left_out:
            done += f", {self.left_out:,} were left out by transform"
        if not left and not self._missing:
            self._logger.info("Checkpoint complete: %s; all are in %s.", done, repo_id)
            return
        if not left:
            done += f" and are in {repo_id}"
        self._logger.error("Checkpoint incomplete: %s.", done)
        for error in left:
            self._logger.error("Not all is in %s: %s", repo_id, error)
            for note in getattr(error, "__notes__", ()):
                self._logger.error("%s", note)
        for kind, rows in self._missing.items():
            self._logger.error("%s rows were never checkpointed: %s: %s", f"{rows:,}", kind[0], self._reasons[kind])


class _Lane:
    """One predecessor's rows on their way to their config, and how many have come."""

    key: str | None = None  # what the keys of its batches begin with; None for no keys
    _source: str | None = None
    _known = -1  # the last place that an earlier run has brought

    def __init__(
        self,
        predecessor: str,
        number: int,
        uploader: Uploader,
        tally: _Tally,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.predecessor = predecessor
        self.number = number
        self.uploader = uploader
        self._tally = tally
        self._transform = transform
        self._next = 0

    def count(self, source: str) -> None:
        """Knows rows by their places from now on: goes on behind those that `source` has brought."""
        known = self.uploader.offset(source)
        self._source, self._known = source, -1 if known is None else known

    def take(self, rows: list[Row]) -> None:
        """Brings the next rows: those that are new, and that JSON can hold."""
        first, self._next = self._next, self._next + len(rows)
        # A short last batch of an earlier run ends within one of this.
        behind = min(len(rows), max(0, self._known + 1 - first))
        self._tally.passed_over += behind
        good = list(self._transformed(rows[behind:], first + behind))
        try:
            encoded = self._encoded(good)
        except RowError:
            good = [(place, row) for place, row in good if self._has_json_form(row)]
            encoded = self._encoded(good)
        if good:
            self._bring(good, encoded)

    def _transformed(self, rows: list[Row], first: int) -> Iterator[tuple[int, Row]]:
        """What is to be brought, each with its place."""
        for place, row in enumerate(rows, first):
            try:
                new = row if self._transform is None else transformed(row, self._transform, place)
            except RowError as error:
                self._tally.miss(1, error)
                continue
            if new is None:
                self._tally.left_out += 1
            else:
                yield place, new

    def _has_json_form(self, row: Row) -> bool:
        try:
            encode([row])
        except RowError as error:
            self._tally.miss(1, error)
            return False
        return True

    def _encoded(self, placed: Sequence[tuple[int, Row]]) -> Encoded:
        return self.uploader.encode([row for _, row in placed])

    def _bring(self, placed: Sequence[tuple[int, Row]], encoded: Encoded) -> None:
        try:
            if self._source is not None:
                receipt = self.uploader.put(encoded, offset=placed[-1][0], source=self._source)
            elif self.key is not None:
                digest = sha256(encoded.lines).hexdigest()
                receipt = self.uploader.put(encoded, key=f"{self.key}/{placed[0][0]}/{digest}")
            else:
                receipt = self.uploader.put(encoded)
        except BatchTooLarge as error:
            if len(placed) == 1:
                self._tally.miss(1, error)
                return
            middle = len(placed) // 2
            for half in (placed[:middle], placed[middle:]):
                self._bring(half, self._encoded(half))
            return
        except HubsyncError as error:
            self._tally.miss(len(placed), error)
            return
        if receipt.error is not None:
            self._tally.miss(len(placed), receipt.error)
        elif receipt.replayed:
            self._tally.passed_over += len(placed)
        else:
            self._tally.accepted += len(placed)


def _drain(lanes: list[_Lane], seconds: float | None) -> list[HubsyncError]:
    """Closes all uploaders within the time that all have together; answers what is not on the Hub, and why."""
    until = None if seconds is None else time.monotonic() + seconds
    left: dict[type[HubsyncError], HubsyncError] = {}
    for lane in lanes:
        try:
            try:
                if is_offline():
                    waiting = lane.uploader.stats().spool
                    raise NotDrained(lane.uploader.spool, waiting.rows, waiting.bytes, "HF_HUB_OFFLINE is set.")
            finally:
                lane.uploader.close(None if until is None else max(0.0, until - time.monotonic()))
        except HubsyncError as error:
            left[type(error)] = error  # they share a spool, so the last one says all
    return list(left.values())
