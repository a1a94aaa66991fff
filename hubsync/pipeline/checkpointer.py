"""The checkpointer: a step that uploads the rows passing through it and hands them on immediately.

The pipeline never waits for the Hub. Rows go to the uploader's spool on local disk and are committed while the
pipeline runs, in shards of `input_batch_size` rows.
"""

from __future__ import annotations

import logging
from typing import Any

from hubsync._runtime.secret import Secret
from hubsync._runtime.validation import check_repo_id
from hubsync.encoding.transform import Transform, check_transform
from hubsync.model.layout import Format
from hubsync.pipeline.checkpoint_core import content_key, drain, uploader_for
from hubsync.pipeline.durable import DurableStep, Position
from hubsync.pipeline.steps import PipelineError, Row, current_graph
from hubsync.policies import CommitPolicy, OnConflict, QueuePolicy, RetryPolicy, SpoolPolicy
from hubsync.uploader.sync import Uploader

_log = logging.getLogger("hubsync")


class HuggingFaceHubCheckpointer(DurableStep):
    """Upload the rows of each predecessor as a config: `config-0/train-00000.jsonl` and so on.

    `split`, `path`, `format`, `endpoint`, `revision`, `spool`, `queue`, `commit` and `retry` are as in
    `hubsync.Uploader`.

    Attributes:
        repo_id: The dataset; created if it does not exist.
        private: Whether to create the repo as a private one; None for the account's default.
        token: None for the token of HF_TOKEN or `hf auth login`.
        input_batch_size: Rows per shard.
        linger_s: Seconds that a row waits at most before its shard is uploaded, even if it is not full.
        transform: As in `hubsync.Uploader`, for the uploaded rows; the rows passed downstream stay unchanged.
        on_conflict: What happens to a batch whose types conflict with the dataset; see `SchemaPolicy`. In none
            but "refuse" does it end the run. None: types are not checked.
        drain_s: Seconds that the end of the run may wait for the Hub; None for no limit. Rows that are not uploaded by
            then stay in the spool, and the log says where.
    """

    repo_id: str
    private: bool | None = None
    token: None = None  # a given token is kept as a secret
    split: str = "train"
    path: str | None = None
    format: Format = "jsonl"
    endpoint: str | None = None
    revision: str = "main"
    spool: str | SpoolPolicy | None = None
    queue: QueuePolicy | None = None
    linger_s: float = 60.0
    commit: CommitPolicy | None = None
    retry: RetryPolicy | None = None
    transform: Transform | None = None
    on_conflict: OnConflict | None = "json"
    drain_s: float | None = None

    def __init__(self, *, repo_id: str, **fields: Any) -> None:
        """Check the arguments and join the pipeline.

        Raises:
            ConfigError: An argument that can never work.
            PipelineError: Another checkpointer of the pipeline has the same repo and branch.
        """
        # A Secret does not appear in reprs, crash reports or anything that serializes the step.
        self._secret = Secret(fields.pop("token")) if fields.get("token") is not None else None
        check_transform(fields.get("transform"))
        if isinstance(spool := fields.get("spool"), str):
            fields["spool"] = str(
                SpoolPolicy(directory=spool).directory
            )  # now, as the job may change its directory before it runs
        branch = (fields.get("endpoint", self.endpoint), check_repo_id(repo_id), fields.get("revision", self.revision))
        graph = current_graph.get()
        for other in graph.steps if graph is not None else ():
            if isinstance(other, HuggingFaceHubCheckpointer) and other._branch == branch:
                raise PipelineError(
                    f"two checkpointers upload to {repo_id} ({branch[-1]}), which would mix their configs. Give one "
                    "another repo_id, or connect both steps to one checkpointer."
                )
        super().__init__(repo_id=repo_id, **fields)
        self._branch: tuple[str | None, str, str] = branch
        self._uploaders: list[Uploader] = []

    def load(self) -> None:
        """Open an uploader per predecessor, so that a token that can't write fails now."""
        for number in range(max(1, len(self.predecessors))):
            self._uploaders.append(uploader_for(self, number, self._secret, self.transform).open())

    def stored_position(self, number: int, source: str) -> Position:
        """Return how far earlier runs have uploaded the rows of one predecessor."""
        return Position.from_offset(self._uploaders[number].offset(source))

    def store(self, number: int, rows: list[Row], source: str | None, place: str, position: Position) -> None:
        """Put the rows of one predecessor, by position if the run resumes, by content if it does not."""
        uploader = self._uploaders[number]
        if source is not None:
            uploader.put(rows, offset=position.offset(), source=source)
        else:
            encoded = uploader.encode(rows)
            uploader.put(encoded, key=content_key(f"{place}/{position.offset()}", encoded))

    def drain(self, timeout: float | None) -> None:
        """Upload the remaining rows. Rows that could not be uploaded stay in the spool; log why."""
        uploaders, self._uploaders = self._uploaders, []
        for error in drain(uploaders, timeout):
            _log.error("%s: %s", self.name, error)
            for note in getattr(error, "__notes__", ()):
                _log.error("%s", note)
