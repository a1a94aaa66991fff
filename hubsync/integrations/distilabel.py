"""A checkpointer for distilabel: a step that uploads the rows passing through it and hands them on immediately.

    checkpoint = HuggingFaceHubCheckpointer(repo_id="user/rollouts", input_batch_size=250)
    generate >> checkpoint

The run never waits for the Hub, and the Hub never ends it. distilabel discards the batch if `process` raises, and hangs
if `unload` raises. So neither raises: errors are logged when they occur and summarized at the end.
"""

# Without `from __future__ import annotations`: distilabel inspects the annotations themselves.
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    from distilabel.constants import ROUTING_BATCH_FUNCTION_ATTR_NAME, STEP_ATTR_NAME
    from distilabel.mixins.runtime_parameters import RuntimeParameter
    from distilabel.steps import Step, StepInput
    from pydantic import ConfigDict, Field, PrivateAttr, SecretStr
except ImportError as error:
    raise ImportError(f"{error}. Install it with: pip install 'hf-hubsync[distilabel]'") from error

from hubsync._runtime.secret import Secret
from hubsync.encoding.transform import check_transform
from hubsync.errors import ConfigError
from hubsync.integrations.row_writer import Row, RowWriter, RunSummary
from hubsync.model.layout import Format
from hubsync.pipeline.checkpoint_core import drain, uploader_for
from hubsync.policies import CommitPolicy, OnConflict, QueuePolicy, RetryPolicy, SpoolPolicy
from hubsync.uploader.sync import Uploader


@dataclass(frozen=True)
class _Place:
    """The step's place in its pipeline. Only the process that runs the pipeline knows it; the step takes it along.

    Attributes:
        pipeline: Its name.
        inputs: Predecessor and config number for each list that `process` gets.
        is_routed: Each batch comes from one of the predecessors, and distilabel does not say which.
        is_dry_run: The rows do not belong to the run.
    """

    pipeline: str = ""
    inputs: tuple[tuple[str, int], ...] = ()
    is_routed: bool = False
    is_dry_run: bool = False


class HuggingFaceHubCheckpointer(Step):
    """Upload the rows of each predecessor as a config: `config-0/train-00000.jsonl` and so on.

    Configs are numbered in the order in which the pipeline's steps were created. After a routing function, all rows go
    to `config-0`, because distilabel does not say which predecessor a batch comes from.

    After a crash, run the pipeline again with `use_cache=False` (distilabel's own resume hangs). A batch that the spool
    accepted at the same position with the same rows adds nothing. If the rows differ in each run, as an LLM's do, pass
    `run="a-name"`: the new run skips as many rows as are stored. Several replicas have no common order of batches, so
    every run adds its rows.

    `split`, `path`, `format`, `endpoint` and `revision` are as in `hubsync.Uploader`.

    Attributes:
        repo_id: The dataset; created if it does not exist. Push the final Distiset to another repo: it is Parquet, and
            `datasets` reads one format per repo.
        input_batch_size: Rows per shard.
        private: Whether to create the repo as a private one; None for the account's default.
        on_conflict: What happens to a batch whose types conflict with the dataset; see `hubsync.SchemaPolicy`. In
            none but "refuse" does it end the run. None: types are not checked.
        run: The run's name. A later run with the same name skips the rows at positions that are stored, whatever they
            contain, even on another machine. Needs one replica, and a Hub that answers if the spool is new.

    The other settings belong to this machine. They are not written to `pipeline.yaml`, do not affect distilabel's
    cache, and can be passed to `Pipeline.run` (`parameters={"checkpoint": {"linger_s": 10}}`). `spool`, `queue`,
    `commit` and `retry` are as in `hubsync.Uploader`.

    Attributes:
        token: None for the token of HF_TOKEN or `hf auth login`.
        transform: As in `hubsync.Uploader`, for the uploaded rows; the rows passed downstream stay unchanged. A file
            can't hold a function, so a step loaded from one is refused.
        linger_s: Seconds that a row waits at most before its shard is uploaded, even if it is not full.
        drain_s: Seconds that the end of the run may wait for the Hub; None for no limit. Rows that are not uploaded by
            then stay in the spool, and the log says where.
    """

    # A validation error would show the given values, and a token among them.
    model_config = ConfigDict(hide_input_in_errors=True)

    repo_id: str
    private: bool | None = None
    split: str = "train"
    path: str | None = None
    format: Format = "jsonl"
    endpoint: str | None = None
    revision: str = "main"
    on_conflict: OnConflict | None = "json"
    run: str | None = None
    is_transformed: bool = False  # serialized instead of `transform`: a reloaded step must not run without it

    # `exclude` keeps these out of pipeline.yaml and the cache signature. If they were kept out of the signature only,
    # the values in the last run's pipeline.yaml would replace the user's.
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
        default=60.0, exclude=True, description="Seconds that a row may wait for its shard to fill up."
    )
    commit: RuntimeParameter[CommitPolicy] | None = Field(
        default=None, exclude=True, description="How commits are spent."
    )
    retry: RuntimeParameter[RetryPolicy] | None = Field(default=None, exclude=True, description="Pace of retries.")
    transform: Callable[[Any], Any] | None = Field(default=None, exclude=True, repr=False)
    drain_s: RuntimeParameter[float] | None = Field(
        default=300.0, exclude=True, description="Seconds that the end of the run may wait for the Hub."
    )

    _place: _Place = PrivateAttr(default=_Place())
    _writers: list[RowWriter] = PrivateAttr(default_factory=list)
    _summary: RunSummary | None = PrivateAttr(default=None)

    def __init__(self, **given: Any) -> None:
        # Hidden from here on: distilabel installs a traceback that shows the variables of every frame.
        if isinstance(given.get("token"), str):
            given["token"] = SecretStr(given["token"])
        super().__init__(**given)

    def model_post_init(self, context: Any, /) -> None:
        """Check the arguments before the step joins the pipeline.

        Raises:
            ValueError: An argument that can never work.
        """
        self._check_replicas()
        check_transform(self.transform)
        self.is_transformed = self.is_transformed or self.transform is not None
        self._uploader(0)
        super().model_post_init(context)

    def set_pipeline_artifacts_path(self, path: Path) -> None:
        """Note the step's place in the pipeline.

        This is distilabel's last call before it sends the step, without the pipeline, to another process.

        Raises:
            ConfigError: Another checkpointer of the pipeline uploads to the same place, or `transform` is missing.
        """
        self._check_transform()
        super().set_pipeline_artifacts_path(path)
        if self.pipeline is not None:
            self._place = _place_of(self, self.pipeline)
        else:  # the Pipeline runs a second time, perhaps after a dry run
            place = self._place
            self._place = _Place(place.pipeline, place.inputs, place.is_routed)

    def load(self) -> None:
        """Open an uploader per predecessor.

        Raises:
            BlockedError: The token can't write, or the repo can't be created.
            OffsetUnknown: `run` is given, the spool is new, and the Hub can't be asked which rows it has.
            ConfigError: `run` is given with several replicas, or `transform` is missing.
        """
        super().load()
        self._check_replicas()
        self._check_transform()
        self._summary = RunSummary(self._logger)
        for predecessor, number in [("all", 0)] if self._place.is_routed else self._place.inputs or [("0", 0)]:
            self._open(predecessor, number)
        configs = ", ".join(sorted(f"config-{w.number} from {w.predecessor!r}" for w in self._writers))
        self._logger.info("Checkpointing rows to %s: %s.", self.repo_id, configs)

    def process(self, *inputs: StepInput) -> Iterator[list[Row]]:
        """Pass on all rows in one list: distilabel consumes a single yield."""
        if not self._place.is_dry_run:
            rows = [[row for batch in inputs for row in batch]] if self._place.is_routed else inputs
            for number, batch in enumerate(rows):
                self._checkpoint(number, batch)
        yield [row for batch in inputs for row in batch]

    def unload(self) -> None:
        """Upload the remaining rows and log a summary. Never raises, even if `load` failed halfway."""
        writers, self._writers = self._writers, []
        summary, self._summary = self._summary, None
        logger = self._logger or logging.getLogger(f"distilabel.step.{self.name}")
        try:
            if summary is not None and writers:
                undrained = drain([writer.uploader for writer in writers], self.drain_s)
                if self._place.is_dry_run:
                    logger.info("Dry run: nothing was checkpointed.")
                else:
                    summary.log(self.repo_id, undrained)
        except Exception:
            logger.exception("Could not finish the checkpoint; accepted rows are in the spool.")

    def _check_replicas(self) -> None:
        if self.run is not None and (self.resources.replicas or 1) > 1:
            raise ConfigError(
                f"run={self.run!r} counts rows, which several replicas can't do together. Use "
                "StepResources(replicas=1), or leave out run."
            )

    def _check_transform(self) -> None:
        """Refuse a step that lost its transform in a file. A reload by distilabel itself has restored it by now."""
        if self.is_transformed and self.transform is None:
            raise ConfigError(
                f"the step {self.name!r} was saved with a transform, which a file can't hold. Without it, data that it "
                "masks or leaves out would be uploaded. Create the step again with transform=…"
            )

    def _uploader(self, number: int) -> Uploader:
        secret = Secret(self.token.get_secret_value()) if self.token is not None else None
        return uploader_for(self, number, secret)

    def _open(self, predecessor: str, number: int) -> RowWriter:
        assert self._summary is not None
        writer = RowWriter(predecessor, number, self._uploader(number).open(), self._summary, self.transform)
        self._writers.append(writer)  # before anything can fail: unload closes it
        if self.run is not None:
            writer.resume(f"{self.run}/{self.name}/{predecessor}")
        elif self.resources.replicas in (None, 1):
            writer.key = f"{self._place.pipeline}/{self.name}/{predecessor}"
        return writer

    def _checkpoint(self, number: int, rows: list[Row]) -> None:
        """Write the rows of one predecessor; count those that can't be written."""
        assert self._summary is not None
        try:
            # A step that runs without a pipeline learns from its first batch how many predecessors it has.
            known = number < len(self._writers)
            (self._writers[number] if known else self._open(str(number), number)).write(rows)
        except Exception as error:  # noqa: BLE001  (raised, it would make distilabel discard the batch downstream)
            self._summary.fail(len(rows), error)


def _place_of(step: HuggingFaceHubCheckpointer, pipeline: Any) -> _Place:
    for other in (pipeline.dag.get_step(name)[STEP_ATTR_NAME] for name in pipeline.dag if name != step.name):
        if isinstance(other, HuggingFaceHubCheckpointer) and _destination(other) == _destination(step):
            raise ConfigError(
                f"the steps {step.name!r} and {other.name!r} both upload to {step.repo_id} ({step.revision}, split "
                f"{step.split}), which would mix their configs. Give one another repo_id, or connect both "
                "predecessors to one checkpointer."
            )
    # Predecessors are listed in the order of their connections, but after a reload from the cache in the order of
    # their creation. Only the latter is stable, so it numbers the configs.
    predecessors = list(pipeline.dag.get_step_predecessors(step.name))
    created = [name for name in pipeline.dag if name in predecessors]
    return _Place(
        pipeline.name,
        tuple((name, created.index(name)) for name in predecessors),
        is_routed=bool(predecessors) and all(_is_routed(name, pipeline) for name in predecessors),
        is_dry_run=bool(getattr(pipeline, "_dry_run", False)),
    )


def _destination(step: HuggingFaceHubCheckpointer) -> tuple[str | None, str, str, str]:
    return step.endpoint, step.repo_id, step.revision, step.split


def _is_routed(name: str, pipeline: Any) -> bool:
    """Return whether a step gets only some of the batches. distilabel's own flag is lost in a reload from the cache."""
    above = [pipeline.dag.get_step(other) for other in pipeline.dag.get_step_predecessors(name)]
    return any(ROUTING_BATCH_FUNCTION_ATTR_NAME in node for node in above)
