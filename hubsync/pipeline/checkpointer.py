"""The checkpointer: a step that brings what passes to a dataset on the Hub, and passes it on at once.

The pipeline never waits for the Hub: rows go to the uploader's spool, which is on local disk, and are committed while
the pipeline runs, in shards of `input_batch_size` rows.
"""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from hubsync._runtime.secret import Secret
from hubsync._runtime.validation import check_repo_id
from hubsync.encoding.transform import Transform, check_transform
from hubsync.errors import BlockedError, HubsyncError
from hubsync.model.layout import Format
from hubsync.pipeline.channels import Position
from hubsync.pipeline.graph import PipelineError, Row, Step
from hubsync.policies import CommitPolicy, OnConflict, QueuePolicy, RetryPolicy, SchemaPolicy, ShardPolicy, SpoolPolicy
from hubsync.uploader.sync import Uploader

_log = logging.getLogger("hubsync")


class HuggingFaceHubCheckpointer(Step):
    """Each predecessor's rows go to a config of their own: `config-0/train-00000.jsonl`, `…-00001.jsonl`, …

    Attributes:
        repo_id: the dataset; made where it does not exist.
        private: whether a repo that is made now is private; None for the account's default.
        token: None for what HF_TOKEN or `hf auth login` hold.
        input_batch_size: rows of a shard.
        split, format, path, endpoint, revision, spool, queue, linger_s, commit, retry: as `hubsync.Uploader` has them.
        transform: as `hubsync.Uploader` has it, for what goes to the Hub; what goes downstream is as it was.
        on_conflict: what becomes of a batch that does not go with the others, as `SchemaPolicy` has it, but by default
            the dead letter: the run goes on. None: nobody looks.
        drain_s: seconds that the end of the run may wait for the Hub; None for as long as it takes. What is left then
            is in the spool, and the log says where.
    """

    repo_id: str
    private: bool | None = None
    token: None = None  # given, it is kept as a secret
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
    on_conflict: OnConflict | None = "dead letter"
    drain_s: float | None = None

    def __init__(self, *, repo_id: str, **fields: Any) -> None:
        """Raises `PipelineError` where another checkpointer of the pipeline has the same repo and branch."""
        # Kept where no repr, no crash report and nobody who writes the step down finds it.
        self._secret = Secret(fields.pop("token")) if fields.get("token") is not None else None
        check_transform(fields.get("transform"))
        super().__init__(repo_id=check_repo_id(repo_id), **fields)
        for other in self.pipeline.steps:
            if other is not self and isinstance(other, HuggingFaceHubCheckpointer) and other._place == self._place:
                self.pipeline.steps.remove(self)
                raise PipelineError(
                    f"two checkpointers bring rows to {repo_id} ({self.revision}): their configs would mix. Give one "
                    "another repo_id, or let one checkpointer stand behind both steps."
                )
        self._uploaders: list[Uploader] = []

    @property
    def _place(self) -> tuple[str | None, str, str]:
        return (self.endpoint, self.repo_id, self.revision)

    def load(self) -> None:
        """Opens an uploader for each predecessor: a repo that the token can't write is an error now."""
        for number in range(max(1, len(self.predecessors))):
            uploader = Uploader(
                self.repo_id,
                config=f"config-{number}",
                split=self.split,
                path=self.path or f"{{config}}/{{split}}-{{seq:05d}}.{self.format}",
                format=self.format,
                private=self.private,
                token=self._secret.reveal() if self._secret is not None else None,
                endpoint=self.endpoint,
                revision=self.revision,
                spool=self.spool,
                queue=self.queue,
                shard=ShardPolicy(max_rows=self.input_batch_size, linger_s=self.linger_s),
                commit=self.commit,
                retry=self.retry,
                transform=self.transform,
                schema=SchemaPolicy(on_conflict=self.on_conflict) if self.on_conflict is not None else None,
                grace_s=None,  # the pipeline's to handle
            )
            self._uploaders.append(uploader.open())

    def known(self, number: int, source: str) -> Position:
        """How far an earlier run has brought the rows of one predecessor."""
        return Position.of(self._uploaders[number].offset(source))

    def put(self, number: int, rows: list[Row], source: str | None, place: str, position: Position) -> None:
        """Brings one predecessor's rows, which end at `position` of its stream. What is there already adds nothing.

        With a `source` it counts by position: a run goes on from there. Without, only what an earlier try of the same
        run has put at the same place, and was the same, is there already.
        """
        uploader = self._uploaders[number]
        if source is not None:
            uploader.put(rows, offset=position.offset(), source=source)
        else:
            encoded = uploader.encode(rows)
            content = hashlib.sha256(encoded.lines).hexdigest()
            uploader.put(encoded, key=f"{place}/{position.offset()}/{content}")

    def close(self, timeout: float | None) -> None:
        """Drains. Never raises: what is left is in the spool, and is said."""
        uploaders, self._uploaders = self._uploaders, []
        for uploader in uploaders:
            try:
                uploader.close(timeout)
            except HubsyncError as error:
                _log.error("%s: %s", self.name, error)
                for note in getattr(error, "__notes__", ()) if isinstance(error, BlockedError) else ():
                    _log.error("%s", note)
