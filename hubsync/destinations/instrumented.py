"""A destination with an OpenTelemetry span around each upload and commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hubsync.destinations.base import CommitOutcome, Destination, Landed
from hubsync.model.commit import BranchTip, Plan, Watermark
from hubsync.model.shard import RemoteFile, Shard, Staged
from hubsync.telemetry.metrics import instruments
from hubsync.telemetry.tracing import span


def instrumented(destination: Destination, attributes: Mapping[str, str]) -> Destination:
    """Return `destination` with spans; unchanged if OpenTelemetry is not installed."""
    return destination if instruments() is None else _Instrumented(destination, attributes)


class _Instrumented:
    def __init__(self, inner: Destination, attributes: Mapping[str, str]) -> None:
        self._inner = inner
        self._attributes = attributes

    def _about(self, shards: Sequence[Shard]) -> dict[str, str | int]:
        return {
            **self._attributes,
            "hubsync.shards": len(shards),
            "hubsync.rows": sum(shard.rows for shard in shards),
            "hubsync.bytes": sum(shard.size for shard in shards),
        }

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        with span("hubsync.stage", self._about(shards), duration="hubsync.stage.duration", root=True):
            return await self._inner.stage(shards)

    async def commit(self, plan: Plan) -> CommitOutcome:
        with span("hubsync.commit", self._about(plan.shards), duration="hubsync.commit.duration", root=True) as fail:
            outcome = await self._inner.commit(plan)
            if not isinstance(outcome, Landed):
                fail(outcome.error)
            return outcome

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        return await self._inner.ensure_repo(private=private)

    async def head(self) -> BranchTip:
        return await self._inner.head()

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        return await self._inner.find_files(paths, at)

    async def read_file(self, path: str, at: str) -> bytes | None:
        return await self._inner.read_file(path, at)

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        return await self._inner.download(path, at, take)

    async def read_watermarks(self, at: str) -> Sequence[Watermark]:
        return await self._inner.read_watermarks(at)

    async def aclose(self) -> None:
        await self._inner.aclose()
