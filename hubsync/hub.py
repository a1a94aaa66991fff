"""The destination for dataset repos: the Hub's own upload protocol, in async.

check, preupload, stage (Xet or LFS), one atomic commit on a named parent, and reading back what stands. Sends each
request once; what to do about an error is the committer's business. The protocol as seen is in `shared/hub-facts.md`.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec

from hubsync.blobs import LfsStore, XetStore, read_pieces, xet_available
from hubsync.crashpoints import CrashPoint, reach
from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    DefectError,
    HubError,
    RepoMissingError,
    TransientError,
)
from hubsync.http import Answer, HubHTTP
from hubsync.plan import Head, Note, Plan, Shard, Staged, Standing, Watermark
from hubsync.spool import Target

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("hubsync")
_PREUPLOAD = 256  # files in one preupload call, the Hub's bound
_PATHS = 100  # paths in one paths-info call
_SAMPLE = 512  # bytes of a file that preupload looks at
_PIECE = 3 << 17  # bytes made base64 at a time: a multiple of 3, and short work under the GIL
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class HubFile(NamedTuple):
    """A file as the Hub lists it: `oid` is the git blob's of a regular file, the content's sha256 of a large one."""

    path: str
    size: int
    oid: str
    is_large: bool


class HubDataset:
    """One branch of one dataset repo. Implements `plan.Destination`."""

    def __init__(
        self,
        target: Target,
        token: Callable[[], str | None],
        *,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.target = target
        self._http = HubHTTP(target.endpoint, token, timeout_s=timeout_s, transport=transport)
        self._rev = quote(target.revision, safe="")
        self._api = f"api/datasets/{target.repo}"
        self._xet = XetStore(self._http, f"{self._api}/xet-write-token/{self._rev}") if xet_available() else None
        self._lfs = LfsStore(self._http, f"datasets/{target.repo}.git/info/lfs/objects/batch", target.revision)

    async def check(self, *, private: bool | None) -> Head:
        """Makes sure that the repo exists (creating it) and that the token may write there.

        Raises:
            AuthenticationError, WriteForbiddenError, RepoMissingError: a person is needed.
            TransientError: the Hub can't be asked now.
        """
        if not self._http.authorization():
            raise AuthenticationError(
                f"no token to write to {self.target.repo} with: log in (hf auth login), set HF_TOKEN, or give token=…"
            )
        try:
            head = await self.head()
        except RepoMissingError as error:
            if "RevisionNotFound" in str(error):
                raise RepoMissingError(
                    f"{self.target.repo} has no branch {self.target.revision!r}; create it first: HfApi()."
                    f"create_branch({self.target.repo!r}, branch={self.target.revision!r}, repo_type='dataset')",
                    status=error.status,
                ) from None
            await self._create(private)
            head = await self.head()
        # Asking for an upload mode changes nothing, and is refused to a token that may not write.
        await self._preupload([{"path": ".hubsync/probe.json", "size": 2, "sample": "e30="}])
        return head

    async def _create(self, private: bool | None) -> None:
        namespace, name = self.target.repo.split("/")
        body: dict[str, Any] = {"type": "dataset", "name": name, "organization": namespace}
        if private is not None:
            body["private"] = private
            body["visibility"] = "private" if private else "public"
        try:
            await self._http.send(f"creating {self.target.repo}", "POST", "api/repos/create", json=body)
        except TransientError as error:
            if error.status != 409:  # somebody was faster
                raise
        except DefectError as error:
            raise RepoMissingError(str(error), status=error.status) from None
        reach(CrashPoint.REPO_CREATED)

    async def head(self) -> Head:
        """The branch's newest commit."""
        what = f"{self.target.repo} at {self.target.revision}"
        answer = await self._http.send(what, "GET", f"{self._api}/revision/{self._rev}?expand=sha")
        sha = _field(answer, what, "sha", str)
        if not re.fullmatch(r"[0-9a-f]{40}", sha):
            raise TransientError(f"{what}: {sha!r} is no commit.")
        return Head(sha)

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Asks for each shard's mode and uploads what goes up as a blob. Idempotent."""
        with _readable():
            return await self._stage(shards)

    async def _stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        staged: list[Staged] = []
        for start in range(0, len(shards), _PREUPLOAD):
            part = shards[start : start + _PREUPLOAD]
            files = await anyio.to_thread.run_sync(_samples, part)
            answer = await self._preupload(files)
            by_path = {item["path"]: Staged(item["uploadMode"], item.get("oid")) for item in answer}
            for shard in part:
                if shard.path not in by_path or by_path[shard.path].mode not in ("regular", "lfs"):
                    raise TransientError(f"preupload: no mode for {shard.path}.")
                staged.append(by_path[shard.path])
        blobs = [shard for shard, found in zip(shards, staged, strict=True) if found.mode == "lfs"]
        reach(CrashPoint.MODES_ASKED)
        if blobs:
            await (self._xet or self._lfs).upload(blobs)
        return staged

    async def _preupload(self, files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        what = f"preupload to {self.target.repo}"
        answer = await self._http.send(what, "POST", f"{self._api}/preupload/{self._rev}", json={"files": files})
        found: list[dict[str, Any]] = _field(answer, what, "files", list)
        if not all(isinstance(f, dict) and "path" in f and "uploadMode" in f for f in found):
            raise TransientError(f"{what}: an answer that can't be read.")
        return found

    async def commit(self, plan: Plan) -> str:
        """Sends the plan once. An `AmbiguousError` means that it may have landed."""
        what = f"commit to {self.target.repo}"
        header: dict[str, Any] = {"summary": plan.summary, "description": f"hubsync plan {plan.id} of term {plan.term}"}
        if plan.parent:
            header["parentCommit"] = plan.parent
        with _readable():
            answer = await self._http.send(
                what,
                "POST",
                f"{self._api}/commit/{self._rev}",
                content=_ndjson(header, plan),
                headers={"content-type": "application/x-ndjson"},
                effect=True,
            )
        sha: str = _field(answer, what, "commitOid", str, effect=True)
        return sha

    async def standing(self, paths: Sequence[str], at: str) -> Mapping[str, Standing]:
        """What stands at `paths` in the commit `at`."""
        found: dict[str, Standing] = {}
        for start in range(0, len(paths), _PATHS):
            what = f"paths-info of {self.target.repo}"
            answer = await self._http.send(
                what,
                "POST",
                f"{self._api}/paths-info/{at}",
                form={"paths": list(paths[start : start + _PATHS]), "expand": "true"},
            )
            try:
                for item in answer.json(what):
                    oid = (item.get("lfs") or {}).get("oid") or item["oid"]
                    last = (item.get("lastCommit") or {}).get("id")
                    found[item["path"]] = Standing(item["path"], oid, last)
            except (KeyError, TypeError, AttributeError):
                raise TransientError(f"{what}: an answer that can't be read.") from None
        return found

    async def read(self, path: str, at: str) -> bytes | None:
        """A small file's content in the commit `at`; None where there is none."""
        try:
            answer = await self._http.send(
                f"{path} of {self.target.repo}", "GET", f"datasets/{self.target.repo}/resolve/{at}/{quote(path)}"
            )
        except RepoMissingError as error:
            if _is_no_entry(error):
                return None
            raise
        return answer.body

    async def watermarks(self) -> Sequence[Watermark]:
        """The watermarks of all writers at the branch's head. One that can't be read is passed over, and said."""
        head = await self.head()
        assert head.sha is not None
        paths = [file.path for file in await self.files(head.sha, ".hubsync") if file.path.endswith(".json")]
        marks: list[Watermark] = []
        limiter = anyio.CapacityLimiter(8)

        async def fetch(path: str) -> None:
            async with limiter:
                content = await self.read(path, str(head.sha))
            try:
                marks.append(msgspec.json.decode(content or b"", type=Watermark))
            except msgspec.DecodeError as error:
                _log.warning("%s of %s is no watermark (%s); passed over.", path, self.target.repo, error)

        async with flat_errors(), anyio.create_task_group() as tasks:
            for path in paths:
                tasks.start_soon(fetch, path)
        return marks

    async def files(self, at: str, folder: str = "") -> Sequence[HubFile]:
        """Every file in the commit `at`, or below a folder of it; none where there is no such folder."""
        found: list[HubFile] = []
        what = f"the files of {self.target.repo}"
        url: str | None = f"{self._api}/tree/{at}{'/' if folder else ''}{quote(folder)}?recursive=true"
        pages = set()
        while url:
            if url in pages:
                raise TransientError(f"{what}: the pages go in a circle.")
            pages.add(url)
            try:
                answer = await self._http.send(what, "GET", url)
            except RepoMissingError as error:
                if _is_no_entry(error) and len(pages) == 1:
                    return []
                raise
            try:
                found += [_hub_file(item) for item in answer.json(what) if item["type"] == "file"]
            except (KeyError, TypeError, ValueError, AttributeError):
                raise TransientError(f"{what}: an answer that can't be read.") from None
            following = _NEXT.search(answer.headers.get("link", ""))
            url = following[1] if following else None
        return found

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        """Hands a file's content in the commit `at` to `take`, piece by piece; False where the Hub has none."""
        what = f"{path} of {self.target.repo}"
        try:
            await self._http.download(what, f"datasets/{self.target.repo}/resolve/{at}/{quote(path)}", take)
        except RepoMissingError as error:
            if _is_no_entry(error):
                return False
            raise
        return True

    async def aclose(self) -> None:
        """Lets go of its connections and of uploads under way."""
        if self._xet is not None:
            self._xet.abort()
        await self._http.aclose()


class flat_errors:
    """Raises a task group's first `HubError` as itself: the committer tells errors apart by type."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        while isinstance(error, BaseExceptionGroup):
            ours, _ = error.split(HubError)
            if ours is None:
                return
            error = ours.exceptions[0]
            if isinstance(error, HubError):
                raise error


def _is_no_entry(error: RepoMissingError) -> bool:
    """Whether only the path is missing, and not the repo or the revision."""
    return error.status == 404 and not error.reason.endswith(("(RepoNotFound)", "(RevisionNotFound)"))


def _hub_file(item: Mapping[str, Any]) -> HubFile:
    large = item.get("lfs")
    if large:
        return HubFile(str(item["path"]), int(large["size"]), str(large["oid"]), is_large=True)
    return HubFile(str(item["path"]), int(item["size"]), str(item["oid"]), is_large=False)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """A shard's file that can't be read (its disk; or another process has committed and removed it) stops nothing for
    good. What was sent of a commit then is cut off, so it has not landed.
    """
    try:
        yield
    except OSError as error:
        raise TransientError(f"a shard can't be read: {error}.") from error


def _field(answer: Answer, what: str, name: str, kind: type[Any], *, effect: bool = False) -> Any:
    value = answer.json(what, effect=effect)
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise (AmbiguousError if effect else TransientError)(f"{what}: the answer lacks {name!r}.", status=200)
    return found


def _samples(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    files = []
    for shard in shards:
        with shard.file.open("rb") as stream:
            sample = base64.b64encode(stream.read(_SAMPLE)).decode()
        files.append({"path": shard.path, "size": shard.size, "sample": sample})
    return files


async def _ndjson(header: Mapping[str, Any], plan: Plan) -> AsyncIterator[bytes]:
    """The commit's body, line by line: inlined files are read and made base64 piece by piece, never held whole."""
    yield _line("header", header)
    for note in plan.notes:
        yield _line("file", _inline(note))
        reach(CrashPoint.HALF_SENT)
    for shard in plan.shards:
        if shard.mode == "lfs":
            yield _line("lfsFile", {"path": shard.path, "algo": "sha256", "oid": shard.sha256, "size": shard.size})
            continue
        yield b'{"key":"file","value":{"path":' + msgspec.json.encode(shard.path) + b',"encoding":"base64","content":"'
        async for piece in read_pieces(shard.file, 0, shard.size, _PIECE):
            yield base64.b64encode(piece)
        yield b'"}}\n'


def _inline(note: Note) -> dict[str, str]:
    return {"path": note.path, "encoding": "base64", "content": base64.b64encode(note.content).decode()}


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"key": key, "value": value}) + b"\n"
