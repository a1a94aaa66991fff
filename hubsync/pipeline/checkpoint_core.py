"""What the checkpointers of `hubsync.pipeline` and `hubsync.integrations` share.

Each predecessor's rows have an uploader of their own, which writes them to the config `config-N`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from typing import Protocol

from hubsync._runtime.secret import Secret
from hubsync.destinations.resolve import is_offline
from hubsync.encoding.rows import Encoded
from hubsync.encoding.transform import Transform
from hubsync.errors import HubsyncError, NotDrained
from hubsync.model.layout import Format
from hubsync.policies import CommitPolicy, OnConflict, QueuePolicy, RetryPolicy, SchemaPolicy, ShardPolicy, SpoolPolicy
from hubsync.uploader.sync import Uploader


class CheckpointSettings(Protocol):
    """The fields that every checkpointer has, apart from the token."""

    repo_id: str
    input_batch_size: int
    private: bool | None
    split: str
    path: str | None
    format: Format
    endpoint: str | None
    revision: str
    spool: str | SpoolPolicy | None
    queue: QueuePolicy | None
    linger_s: float
    commit: CommitPolicy | None
    retry: RetryPolicy | None
    on_conflict: OnConflict | None


def uploader_for(
    settings: CheckpointSettings, number: int, token: Secret | None, transform: Transform | None = None
) -> Uploader:
    """Return the uploader for the rows of predecessor `number`, which is not open yet.

    Raises:
        ConfigError: A setting that can never work.
    """
    conflict = settings.on_conflict
    return Uploader(
        settings.repo_id,
        config=f"config-{number}",
        split=settings.split,
        path=settings.path or f"{{config}}/{{split}}-{{seq:05d}}.{settings.format}",
        format=settings.format,
        private=settings.private,
        token=token.reveal() if token is not None else None,
        endpoint=settings.endpoint,
        revision=settings.revision,
        spool=settings.spool,
        queue=settings.queue,
        shard=ShardPolicy(max_rows=settings.input_batch_size, linger_s=settings.linger_s),
        commit=settings.commit,
        retry=settings.retry,
        transform=transform,
        schema=None if conflict is None else SchemaPolicy(on_conflict=conflict, on_declared="dead letter"),
        grace_s=None,  # the framework handles signals
    )


def content_key(place: str, encoded: Encoded) -> str:
    """Return a key by which a batch counts as a replay if an equal one was put at the same place."""
    return f"{place}/{hashlib.sha256(encoded.content).hexdigest()}"


def drain(uploaders: Iterable[Uploader], timeout: float | None) -> list[HubsyncError]:
    """Close all uploaders within `timeout` seconds together; return what kept rows from the Hub.

    The uploaders share a spool, so of each kind of error only the last one is returned: it covers all.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    errors: dict[type[HubsyncError], HubsyncError] = {}
    for uploader in uploaders:
        try:
            try:
                if is_offline():
                    waiting = uploader.stats().spool
                    raise NotDrained(uploader.spool, waiting.rows, waiting.bytes, "HF_HUB_OFFLINE is set.")
            finally:
                uploader.close(None if deadline is None else max(0.0, deadline - time.monotonic()))
        except HubsyncError as error:
            errors[type(error)] = error
    return list(errors.values())
