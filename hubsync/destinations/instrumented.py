"""A destination that notes what waits for a response, with an OpenTelemetry span around each upload and commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from hubsync._runtime.formatting import count_text
from hubsync.destinations.base import CommitOutcome, Destination, Landed
from hubsync.model.commit import BranchTip, Plan
from hubsync.model.shard import ListedFile, RemoteFile, Shard, Staged
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.telemetry.status import Status
from hubsync.telemetry.tracing import span


class InstrumentedDestination:
    """Forwards to a destination. See `Destination` for the methods."""

    def __init__(self, inner: Destination, status: Status, attributes: Mapping[str, str]) -> None:
        """Wrap a destination.

        Args:
            inner: The destination.
            status: Notes the requests that wait.
            attributes: Of the spans.
        """
        self._inner = inner
        self._status = status
        self._attributes = attributes

    def _about(self, shards: Sequence[Shard]) -> dict[str, str | int]:
        return {
            **self._attributes,
            "hubsync.shards": len(shards),
            "hubsync.rows": sum(shard.rows for shard in shards),
            "hubsync.bytes": sum(shard.size for shard in shards),
        }

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        with (
            self._status.doing(f"the upload of {count_text(len(shards), 'shard')}"),
            span("hubsync.stage", self._about(shards), duration="hubsync.stage.duration", root=True),
        ):
            return await self._inner.stage(shards)

    async def commit(self, plan: Plan) -> CommitOutcome:
        with (
            self._status.doing(f"a commit of {count_text(len(plan.shards), 'shard')}"),
            span("hubsync.commit", self._about(plan.shards), duration="hubsync.commit.duration", root=True) as fail,
        ):
            outcome = await self._inner.commit(plan)
            if not isinstance(outcome, Landed):
                fail(outcome.error)
            return outcome

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        with self._status.doing("the check of access"):
            return await self._inner.ensure_repo(private=private)

    async def head(self) -> BranchTip:
        with self._status.doing("a request for the newest commit"):
            return await self._inner.head()

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        with self._status.doing("a request for the files"):
            return await self._inner.find_files(paths, at)

    async def count_files(self, folder: str, at: str, *, most: int, deep: bool) -> int:
        return await self._inner.count_files(folder, at, most=most, deep=deep)

    async def list_files(self, at: str, folder: str = "") -> Sequence[ListedFile]:
        with self._status.doing("a request for the files"):
            return await self._inner.list_files(at, folder)

    async def read_file(self, path: str, at: str) -> bytes | None:
        with self._status.doing(f"a request for {path}"):
            return await self._inner.read_file(path, at)

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        with self._status.doing(f"a request for {path}"):
            return await self._inner.download(path, at, take)

    async def read_watermarks(
        self, at: str, *, writers: Collection[str] | None = None, most: int | None = None
    ) -> RemoteWatermarks:
        with self._status.doing("a request for the watermarks"):
            return await self._inner.read_watermarks(at, writers=writers, most=most)

    async def aclose(self) -> None:
        await self._inner.aclose()
