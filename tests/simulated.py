"""A destination in memory with a script of failures: for tests of the committer's decisions, where sockets add nothing.

The embedded Hub is the double everywhere else.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from hubsync.destinations.base import CommitOutcome, outcome_of
from hubsync.errors import AmbiguousError, RepoMissingError, StaleParentError
from hubsync.model.commit import BranchTip, Plan, Watermark
from hubsync.model.shard import Mode, RemoteFile, Shard, Staged
from hubsync.model.watermarks import RemoteWatermarks, decode_watermarks, is_watermark


class Body(NamedTuple):
    """A commit as it is on the wire: it may land after its sender is dead."""

    parent: str | None
    files: Mapping[str, bytes]
    plan: Plan


class ListedFile(NamedTuple):
    path: str
    size: int


class SimulatedHub:
    """One dataset branch. Survives the worker that talks to it, as the Hub does."""

    def __init__(self, mode: Mode = "regular") -> None:
        self.mode: Mode = mode
        self.files: dict[str, bytes] = {}
        self.history: list[dict[str, bytes]] = [{}]
        self.touched: dict[str, str] = {}
        self.commits: list[Plan] = []
        self.overwritten: list[str] = []
        self.calls: list[str] = []
        # How often each row is in the dataset, by its id.
        self.ids: Counter[object] = Counter()
        # What the next calls do, by operation: an exception to raise before any effect.
        self.script: dict[str, deque[Exception]] = {}
        # The answer of the next commits is lost after they landed.
        self.lose_answers = 0
        self.before_commit: Callable[[], None] | None = None
        self.after_commit: Callable[[], None] | None = None

    @property
    def sha(self) -> str:
        return f"{len(self.history):040x}"

    def fail(self, operation: str, *errors: Exception) -> None:
        self.script.setdefault(operation, deque()).extend(errors)

    def foreign_commit(self, path: str, content: bytes) -> None:
        """Somebody else commits."""
        self._land({path: content})

    def _land(self, files: Mapping[str, bytes]) -> str:
        for path, content in files.items():
            if path.endswith(".jsonl") and self.files.get(path) != content:
                self.ids.subtract(ids_in(self.files.get(path, b"")))
                self.ids.update(ids_in(content))
        self.files.update(files)
        self.history.append(dict(self.files))
        for path in files:
            self.touched[path] = self.sha
        return self.sha

    def _call(self, operation: str) -> None:
        self.calls.append(operation)
        if self.script.get(operation):
            raise self.script[operation].popleft()

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        self._call("ensure_repo")
        return BranchTip(self.sha)

    async def head(self) -> BranchTip:
        self._call("head")
        return BranchTip(self.sha)

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        self._call("stage")
        return [Staged(self.mode, self._oid(self.files.get(shard.path))) for shard in shards]

    async def commit(self, plan: Plan) -> CommitOutcome:
        return await outcome_of(self._commit(plan))

    async def _commit(self, plan: Plan) -> str:
        self._call("commit")
        if self.before_commit is not None:
            hook, self.before_commit = self.before_commit, None
            hook()
        sha = self.land(self.pack(plan))
        if self.after_commit is not None:
            hook, self.after_commit = self.after_commit, None
            hook()
        if self.lose_answers:
            self.lose_answers -= 1
            raise AmbiguousError("504", status=504)
        return sha

    def pack(self, plan: Plan) -> Body:
        """The bytes that are sent."""
        files = {note.path: note.content for note in plan.sidecars}
        files.update({shard.path: shard.file.read_bytes() for shard in plan.shards})
        return Body(plan.parent, files, plan)

    def land(self, body: Body) -> str:
        """Commit what was sent, if its parent is the head."""
        if body.parent != self.sha:
            raise StaleParentError("412", status=412)
        self.overwritten += [
            shard.path
            for shard in body.plan.shards
            if self.files.get(shard.path, body.files[shard.path]) != body.files[shard.path]
        ]
        self.commits.append(body.plan)
        for path in body.plan.deletions:
            content = self.files.pop(path)
            if path.endswith(".jsonl"):
                self.ids.subtract(ids_in(content))
        return self._land(body.files)

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        self._call("find_files")
        files = self.history[int(at, 16) - 1]
        return {
            path: RemoteFile(path, self._oid(files[path]) or "", self.touched[path]) for path in paths if path in files
        }

    async def count_files(self, folder: str, at: str, *, most: int, deep: bool) -> int:
        self._call("count_files")
        prefix = f"{folder}/" if folder else ""
        below = {path.removeprefix(prefix) for path in self.history[int(at, 16) - 1] if path.startswith(prefix)}
        return len(below if deep else {path.partition("/")[0] for path in below})

    async def read_file(self, path: str, at: str) -> bytes | None:
        self._call("read_file")
        return self.history[int(at, 16) - 1].get(path)

    async def list_files(self, at: str, folder: str = "") -> Sequence[ListedFile]:
        self._call("list_files")
        files = self.history[int(at, 16) - 1]
        return [ListedFile(path, len(content)) for path, content in files.items() if path.startswith(folder)]

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        content = await self.read_file(path, at)
        if content is not None:
            take(content)
        return content is not None

    async def read_watermarks(
        self, at: str, *, writers: Collection[str] | None = None, most: int | None = None
    ) -> RemoteWatermarks:
        self._call("read_watermarks")
        files = self.history[int(at, 16) - 1] if at else {}
        return RemoteWatermarks.of({p: decode_watermarks(c, p) for p, c in files.items() if is_watermark(p)})

    def marks(self) -> list[Watermark]:
        files = {path: decode_watermarks(content, path) for path, content in self.files.items() if is_watermark(path)}
        return list(RemoteWatermarks.of(files).by_writer.values())

    async def aclose(self) -> None:
        pass

    def _oid(self, content: bytes | None) -> str | None:
        if content is None:
            return None
        if self.mode == "lfs":
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def rows(self) -> list[dict[str, object]]:
        """Every row of every shard, in the order of paths."""
        return [
            msgspec.json.decode(line)
            for path in sorted(self.files)
            if path.endswith(".jsonl")
            for line in self.files[path].splitlines()
        ]


def ids_in(content: bytes) -> list[object]:
    return [msgspec.json.decode(line).get("id") for line in content.splitlines()]


def gone() -> RepoMissingError:
    return RepoMissingError("404", status=404)
