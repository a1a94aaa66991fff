"""The destination for dataset repos: the Hub's own upload protocol, in async.

check, preupload, stage (Xet or LFS), one atomic commit on a named parent, and reading back what stands. Sends each
request once; what to do about an error is the committer's business. The protocol as seen is in `shared/hub-facts.md`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import anyio
import msgspec

from hubsync._runtime.exceptions import unwrapped_hub_errors
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.secret import Secret
from hubsync._runtime.threads import run_in_thread
from hubsync.destinations.base import CommitOutcome, outcome_of
from hubsync.destinations.hub.lfs import LfsStore, read_pieces
from hubsync.destinations.hub.transport import MAX_BODY, HubHTTP
from hubsync.destinations.hub.xet import XetStore, xet_available
from hubsync.errors import (
    AuthenticationError,
    DefectError,
    RepoMissingError,
    StaleParentError,
    TransientError,
    UnreadableShard,
    one_line,
)
from hubsync.model.commit import BranchTip, Plan, SidecarFile, Watermark, decode_watermark
from hubsync.model.hashing import git_blob_oid
from hubsync.model.shard import RemoteFile, Shard, Staged
from hubsync.model.target import Target

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("hubsync")
_PREUPLOAD = 256  # files in one preupload call, the Hub's bound
_PATHS = 100  # paths in one paths-info call
_SAMPLE = 512  # bytes of a file that preupload looks at
_PIECE = 3 << 17  # bytes made base64 at a time: a multiple of 3, and short work under the GIL
_COMMITS = 100  # in one page of the history
_PAGES = 20_000  # of a tree: 1,000 files each
_MARKS = 10_000  # writers of one dataset, the Hub's own bound for a folder
_MARKS_BYTES = 64 << 20  # of all their watermarks
_NEXT = re.compile(r"""<([^<>]*)>(?:\s*;[^,<>]*?)?;\s*rel\s*=\s*["']?next\b""", re.IGNORECASE)
_CURSOR = re.compile(r"[?&]cursor=([^&]+)")
_TOLD = re.compile(r"^(?P<rows>[0-9]{1,15}) rows, (?P<bytes>[0-9]{1,15}) bytes: (?P<path>.+)$", re.MULTILINE)
_LINK = 4096  # characters of a header that the pattern looks through, in milliseconds at worst

# The shapes of the Hub's answers. What is not so is refused as a whole, before anything is done with it.
_Sha = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]
_Oid = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{40}|[0-9a-f]{64})\Z")]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # what SQLite can hold


class _Info(msgspec.Struct):
    sha: _Sha


class _Committed(msgspec.Struct, rename="camel"):
    commit_oid: _Sha


class _Mode(msgspec.Struct, rename="camel"):
    path: _Path
    upload_mode: Literal["regular", "lfs"]
    oid: _Oid | None = None


class _Modes(msgspec.Struct):
    files: list[_Mode]


class _Large(msgspec.Struct):
    oid: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size: _Size


class Commit(msgspec.Struct):
    """A commit as the Hub lists it: `date` is ISO 8601, `message` its description."""

    id: _Sha
    date: Annotated[str, msgspec.Meta(max_length=100)] = ""
    message: str = ""


class _Entry(msgspec.Struct, rename="camel"):
    path: _Path
    oid: _Oid
    type: str = "file"
    size: _Size = 0
    lfs: _Large | None = None
    last_commit: Commit | None = None


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
        token: Callable[[], Secret | str | None],
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

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        """Makes sure that the repo exists (creating it) and that the token may write there.

        Raises:
            AuthenticationError, WriteForbiddenError, RepoMissingError: a person is needed.
            TransientError: the Hub can't be asked now.
        """
        if self._http.token() is None:
            raise AuthenticationError(
                f"no token to write to {self.target.repo} with: log in (hf auth login), set HF_TOKEN, or give token=…"
            )
        try:
            head = await self.head()
        except RepoMissingError as error:
            if error.missing == "revision":
                raise RepoMissingError(
                    f"{self.target.repo} has no branch {self.target.revision!r}; create it first: HfApi()."
                    f"create_branch({self.target.repo!r}, branch={self.target.revision!r}, repo_type='dataset')",
                    status=error.status,
                ) from None
            await self._create(private)
            head = await self._head_of_new()
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
            if error.status != 409 or "conflicting operation" in error.reason:  # else somebody was faster
                raise
        except DefectError as error:
            raise RepoMissingError(str(error), status=error.status) from None
        failpoint(Failpoint.REPO_CREATED)

    async def _head_of_new(self) -> BranchTip:
        """A repo that was made a moment ago may not be everywhere yet."""
        try:
            return BranchTip((await self.head()).sha, is_new=True)
        except RepoMissingError as error:
            raise TransientError(str(error), status=error.status) from None

    async def head(self) -> BranchTip:
        """The branch's newest commit."""
        what = f"{self.target.repo} at {self.target.revision}"
        answer = await self._http.send(what, "GET", f"{self._api}/revision/{self._rev}?expand=sha")
        return BranchTip(answer.decode(what, _Info).sha)

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Asks for each shard's mode and uploads what goes up as a blob. Idempotent."""
        with _readable():
            return await self._stage(shards)

    async def _stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        staged: list[Staged] = []
        for start in range(0, len(shards), _PREUPLOAD):
            part = shards[start : start + _PREUPLOAD]
            files = await run_in_thread(_samples, part)
            answer = await self._preupload(files)
            by_path = {item.path: Staged(item.upload_mode, item.oid) for item in answer}
            for shard in part:
                if shard.path not in by_path:
                    raise TransientError(f"preupload: no mode for {shard.path}.")
                staged.append(by_path[shard.path])
        blobs = [shard for shard, found in zip(shards, staged, strict=True) if found.mode == "lfs"]
        failpoint(Failpoint.PREUPLOADED)
        if blobs:
            await self._upload(blobs)
        return staged

    async def _upload(self, blobs: Sequence[Shard]) -> None:
        if self._xet is not None:
            try:
                await self._xet.upload(blobs)
                return
            except RepoMissingError as error:  # a Hub without Xet, or it is the repo: then LFS says so as well
                _log.info("%s; going on by LFS.", error)
        await self._lfs.upload(blobs)

    async def _preupload(self, files: Sequence[Mapping[str, Any]]) -> list[_Mode]:
        what = f"preupload to {self.target.repo}"
        answer = await self._http.send(what, "POST", f"{self._api}/preupload/{self._rev}", json={"files": files})
        return answer.decode(what, _Modes).files

    async def commit(self, plan: Plan) -> CommitOutcome:
        """Send a plan as one commit on its parent, once."""
        return await outcome_of(self._commit(plan))

    async def _commit(self, plan: Plan) -> str:
        what = f"commit to {self.target.repo}"
        header: dict[str, Any] = {"summary": plan.summary, "description": describe_plan(plan)}
        if plan.parent:
            header["parentCommit"] = plan.parent
        with _readable():
            answer = await self._http.send(
                what,
                "POST",
                f"{self._api}/commit/{self._rev}",
                content=partial(_ndjson, header, plan),
                headers={"content-type": "application/x-ndjson"},
                has_effect=True,
            )
        return answer.decode(what, _Committed, has_effect=True).commit_oid

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        """What stands at `paths` in the commit `at`."""
        found: dict[str, RemoteFile] = {}
        with _there():
            listed = await self._listed(paths, at)
        for item in listed:
            last = item.last_commit.id if item.last_commit else None
            found[item.path] = RemoteFile(item.path, item.lfs.oid if item.lfs else item.oid, last)
        return found

    async def _listed(self, paths: Sequence[str], at: str) -> list[_Entry]:
        found: list[_Entry] = []
        for start in range(0, len(paths), _PATHS):
            what = f"paths-info of {self.target.repo}"
            answer = await self._http.send(
                what,
                "POST",
                f"{self._api}/paths-info/{at}",
                form={"paths": list(paths[start : start + _PATHS]), "expand": "true"},
            )
            found += answer.decode(what, list[_Entry])
        return found

    async def read_file(self, path: str, at: str) -> bytes | None:
        """A small file's content in the commit `at`; None where there is none.

        It is what the Hub lists there, or it is refused: what is written back must not be a proxy's page, nor come from
        wherever a server points to.

        Raises:
            DefectError: it is larger than such a file ever is.
        """
        with _there():
            listed = next((item for item in await self._listed([path], at) if item.path == path), None)
            return None if listed is None else await self._content(_hub_file("paths-info", "", listed), at)

    async def _content(self, file: HubFile, at: str) -> bytes:
        what = f"{file.path} of {self.target.repo}"
        if file.size > MAX_BODY:
            raise DefectError(f"{what} has {file.size:,} bytes; more than {MAX_BODY:,} are not read.")
        content = io.BytesIO()  # which shows nothing of what a server may have sent back

        def take(piece: bytes) -> None:
            content.write(piece)
            if content.tell() > file.size:
                raise TransientError(f"{what}: what came is larger than what the Hub lists there.")

        if not await self.download(file.path, at, take) or _oid_of(content.getvalue(), file.oid) != file.oid:
            raise TransientError(f"{what}: what came is not what the Hub lists there.")
        return content.getvalue()

    async def read_watermarks(self, at: str) -> Sequence[Watermark]:
        """The watermarks of all writers in the commit `at`. One that can't be read is passed over, and said."""
        found = [file for file in await self.list_files(at, ".hubsync") if file.path.endswith(".json")]
        if len(found) > _MARKS:
            raise TransientError(f"{self.target.repo}: {len(found):,} watermarks; there can't be so many.")
        marks: list[Watermark] = []
        held = 0
        limiter = anyio.CapacityLimiter(8)

        async def fetch(file: HubFile) -> None:
            nonlocal held
            try:
                async with limiter:
                    content = await self._content(file, at)
                held += len(content)
                marks.append(decode_watermark(content, file.path))
            except (ValueError, DefectError) as error:
                what, why = one_line(file.path), one_line(str(error))
                _log.warning("%s of %s is no watermark (%s); passed over.", what, self.target.repo, why)
            if held > _MARKS_BYTES:
                raise TransientError(f"{self.target.repo}: the watermarks are more than {_MARKS_BYTES:,} bytes.")

        async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
            for file in found:
                tasks.start_soon(fetch, file)
        return marks

    async def list_files(self, at: str, folder: str = "") -> Sequence[HubFile]:
        """Every file in the commit `at`, or below a folder of it; none where there is no such folder."""
        found: list[HubFile] = []
        what = f"the files of {self.target.repo}"
        first = f"{self._api}/tree/{at}{'/' if folder else ''}{quote(folder)}?recursive=true"
        url: str | None = first
        pages: set[str] = set()
        while url:
            if url in pages or len(pages) == _PAGES:
                raise TransientError(f"{what}: the pages have no end.")
            pages.add(url)
            try:
                answer = await self._http.send(what, "GET", url)
            except RepoMissingError as error:
                if error.missing == "file" and len(pages) == 1:
                    return []
                raise
            page = answer.decode(what, list[_Entry])
            found += [_hub_file(what, folder, item) for item in page if item.type == "file"]
            # Of the next page's address only its mark counts: it is asked for where the first one was.
            following = _NEXT.search(answer.headers.get("link", "")[:_LINK])
            cursor = _CURSOR.search(following[1]) if following else None
            if following and not cursor:  # or what is missing would look as if it were not there
                raise TransientError(f"{what}: the next page has no cursor.")
            url = f"{first}&cursor={quote(unquote(cursor[1]), safe='')}" if cursor else None
        return found

    async def list_commits(self, at: str, page: int) -> tuple[list[Commit], bool]:
        """A page of the history up to the commit `at`, the newest first; and whether there are more."""
        what = f"the commits of {self.target.repo}"
        answer = await self._http.send(
            what, "GET", f"{self._api}/commits/{at}?limit={_COMMITS}{f'&p={page}' if page else ''}"
        )
        return answer.decode(what, list[Commit]), _NEXT.search(answer.headers.get("link", "")[:_LINK]) is not None

    async def last_commits(self, paths: Sequence[str], at: str) -> Mapping[str, Commit]:
        """The commit that last touched each of `paths`, as far as the Hub says."""
        return {item.path: item.last_commit for item in await self._listed(paths, at) if item.last_commit}

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        """Hands a file's content in the commit `at` to `take`, piece by piece; False where the Hub has none."""
        what = f"{path} of {self.target.repo}"
        try:
            await self._http.download(what, f"datasets/{self.target.repo}/resolve/{at}/{quote(path)}", take)
        except RepoMissingError as error:
            if error.missing == "file":
                return False
            raise
        return True

    async def aclose(self) -> None:
        """Lets go of its connections and of uploads under way."""
        if self._xet is not None:
            self._xet.abort()
        await self._http.aclose()


def describe_plan(plan: Plan) -> str:
    """A commit's description: what it brings, for people and for `parse_description`."""
    shards = [f"{shard.rows} rows, {shard.size} bytes: {shard.path}" for shard in plan.shards]
    return "\n".join([f"hubsync plan {plan.id} of term {plan.term}", *([""] if shards else []), *shards])


def parse_description(description: str) -> dict[str, tuple[int, int]]:
    """The rows and bytes of each shard by path, as a commit's description tells them: anybody may write one."""
    if not description.startswith("hubsync plan "):
        return {}
    return {found["path"]: (int(found["rows"]), int(found["bytes"])) for found in _TOLD.finditer(description)}


def _hub_file(what: str, folder: str, item: _Entry) -> HubFile:
    parts, below = item.path.split("/"), f"{folder}/" if folder else ""
    if any(part in ("", ".", "..") for part in parts) or "\0" in item.path or not item.path.startswith(below):
        raise TransientError(f"{what}: {item.path!r} is no path below {folder!r}.")
    if item.lfs:
        return HubFile(item.path, item.lfs.size, item.lfs.oid, is_large=True)
    return HubFile(item.path, item.size, item.oid, is_large=False)


def _oid_of(content: bytes, like: str) -> str:
    """The sha256 or the git oid, whichever `like` is."""
    if len(like) == 64:
        return hashlib.sha256(content).hexdigest()
    return git_blob_oid(content)


@contextlib.contextmanager
def _there() -> Iterator[None]:
    """A commit that the Hub no longer knows: history was squashed, or the repo made anew, and the head is another."""
    try:
        yield
    except RepoMissingError as error:
        if error.missing != "revision":
            raise
        raise StaleParentError(error.reason, status=error.status, request_id=error.request_id) from None


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """A shard's file that can't be read (its disk; or another process has committed and removed it) stops nothing for
    good. What was sent of a commit then is cut off, so it has not landed.
    """
    try:
        yield
    except OSError as error:
        raise UnreadableShard(f"a shard can't be read: {error}.") from error


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
    for note in plan.sidecars:
        yield _line("file", _inline(note))
        failpoint(Failpoint.HALF_SENT)
    for shard in plan.shards:
        if shard.mode == "lfs":
            yield _line("lfsFile", {"path": shard.path, "algo": "sha256", "oid": shard.sha256, "size": shard.size})
            continue
        yield b'{"key":"file","value":{"path":' + msgspec.json.encode(shard.path) + b',"encoding":"base64","content":"'
        async for piece in read_pieces(shard.file, 0, shard.size, _PIECE):
            yield base64.b64encode(piece)
        yield b'"}}\n'


def _inline(note: SidecarFile) -> dict[str, str]:
    return {"path": note.path, "encoding": "base64", "content": base64.b64encode(note.content).decode()}


def _line(key: str, value: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"key": key, "value": value}) + b"\n"
