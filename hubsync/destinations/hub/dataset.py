"""The destination for dataset repos: the Hub's upload protocol.

`HubDataset` sends each request once; the committer decides what to do about an error. A shard is uploaded in three
steps: preupload asks how the Hub stores it, Xet or LFS uploads it as a blob, and one atomic commit on a named parent
makes it visible. Small files are sent inside the commit.
"""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import quote, unquote

import anyio
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync._runtime.secret import Secret
from hubsync._runtime.threads import run_in_thread
from hubsync.destinations.base import CommitOutcome, outcome_of
from hubsync.destinations.hub.lfs import LfsStore, read_pieces
from hubsync.destinations.hub.transport import MAX_BODY, HubHTTP, Response
from hubsync.destinations.hub.xet import XetStore, xet_available
from hubsync.errors import (
    AuthenticationError,
    DefectError,
    HubError,
    RepoMissingError,
    StaleParentError,
    TransientError,
    UnreadableShard,
    one_line,
)
from hubsync.model.commit import BranchTip, Plan, Watermark
from hubsync.model.hashing import git_hash, oid_hash
from hubsync.model.shard import RemoteFile, Shard, Staged
from hubsync.model.target import Target
from hubsync.model.watermarks import FOLDER, RemoteWatermarks, decode_watermarks, is_folded, is_watermark, may_hold

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger("hubsync")
_PREUPLOAD_FILES = 256  # files in one preupload request, the Hub's limit
_SAMPLE_BYTES = 512  # of a file, which preupload looks at
_PATHS = 100  # paths in one paths-info request
_BASE64_BYTES = 3 << 17  # encoded at a time: a multiple of 3, and a short hold of the GIL
_CREATED_WITH = {".gitattributes"}  # the files of a new repo
_KEPT_FILES = 1_000  # of a listing that is kept
_COMMITS_PER_PAGE = 100
_MAX_PAGES = 20_000  # of a tree: 1,000 files each
_MAX_WATERMARK_BYTES = 1 << 30  # of all writers: none that hubsync wrote may be left out
_AT_ONCE = 8  # files that are read at the same time
_NEXT_PAGE = re.compile(r"""<([^<>]*)>(?:\s*;[^,<>]*?)?;\s*rel\s*=\s*["']?next\b""", re.IGNORECASE)
_CURSOR = re.compile(r"[?&]cursor=([^&]+)")
_MAX_LINK = 4096  # characters of a header that the pattern searches, in milliseconds at worst
_DESCRIBED = re.compile(r"^(?P<rows>[0-9]{1,15}) rows, (?P<bytes>[0-9]{1,15}) bytes: (?P<path>.+)$", re.MULTILINE)

# The shapes of the Hub's responses. A response of another shape is rejected as a whole, before any of it is used.
_Sha = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{40}\Z")]
_Oid = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{40}|[0-9a-f]{64})\Z")]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # what SQLite can hold


class _Sibling(msgspec.Struct):
    rfilename: str


class _Revision(msgspec.Struct):
    sha: _Sha
    siblings: list[_Sibling] | None = None


class _Ref(msgspec.Struct):
    name: str


class _Refs(msgspec.Struct):
    branches: list[_Ref] = []
    tags: list[_Ref] = []


class _Committed(msgspec.Struct, rename="camel"):
    commit_oid: _Sha


class _UploadMode(msgspec.Struct, rename="camel"):
    path: _Path
    upload_mode: Literal["regular", "lfs"]
    oid: _Oid | None = None


class _Preupload(msgspec.Struct):
    files: list[_UploadMode]


class _LfsPointer(msgspec.Struct):
    oid: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    size: _Size


class Commit(msgspec.Struct):
    """A commit in the Hub's history: `date` is ISO 8601, `message` its description."""

    id: _Sha
    date: Annotated[str, msgspec.Meta(max_length=100)] = ""
    message: str = ""


class _Entry(msgspec.Struct, rename="camel"):
    path: _Path
    oid: _Oid
    type: str = "file"
    size: _Size = 0
    lfs: _LfsPointer | None = None
    last_commit: Commit | None = None


class HubFile(NamedTuple):
    """A file in the Hub's listing: `oid` is the git oid of a regular file, the sha256 of a large one."""

    path: str
    size: int
    oid: str
    is_large: bool


class HubDataset:
    """One branch of a dataset repo. Implements `Destination`."""

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
        self._listing: tuple[str, Sequence[HubFile]] = ("", ())  # a commit whose files were listed; it never changes
        self._marks: dict[HubFile, list[Watermark] | str] = {}  # as read last, of all files of `_marked`
        self._marked: tuple[str, Sequence[HubFile]] = ("", ())  # a commit's files of watermarks, folded ones first
        self._lfs = LfsStore(self._http, f"datasets/{target.repo}.git/info/lfs/objects/batch", target.revision)

    @cached_property
    def _xet(self) -> XetStore | None:
        """Loaded at the first upload: a process that only checks access never needs it."""
        return XetStore(self._http, f"{self._api}/xet-write-token/{self._rev}") if xet_available() else None

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        """Create the repo if it does not exist, and check that the token may write to it.

        Raises:
            AuthenticationError: There is no valid token.
            WriteForbiddenError: The token may not write to the repo.
            RepoMissingError: The branch does not exist, or the repo cannot be created.
            TransientError: The Hub is unreachable.
        """
        repo, branch = self.target.repo, self.target.revision
        if self._http.token() is None:
            raise AuthenticationError(f"no token to write to {repo}. Run hf auth login, set HF_TOKEN, or pass token=….")
        try:
            tip = await self.head()
        except RepoMissingError as error:
            if error.missing == "revision":
                raise RepoMissingError(
                    f"{repo} has no branch {branch!r}. Create it first: "
                    f"HfApi().create_branch({repo!r}, branch={branch!r}, repo_type='dataset')",
                    status=error.status,
                ) from None
            is_new = await self._create(private)
            tip = await self._tip_of_new_repo(is_new=is_new)
            if is_new:
                return tip
        if branch != "main" and not branch.startswith("refs/"):
            await self._check_branch()
        # Asking for an upload mode changes nothing, and fails if the token may not write.
        await self._preupload([{"path": ".hubsync/probe.json", "size": 2, "sample": "e30="}])
        return tip

    async def _check_branch(self) -> None:
        """Raise `RepoMissingError` if the revision is not a branch."""
        repo, revision = self.target.repo, self.target.revision
        what = f"the branches of {repo}"
        refs = (await self._http.send(what, "GET", f"{self._api}/refs")).decode(what, _Refs)
        if revision in (ref.name for ref in refs.branches):
            return
        kind = "tag" if revision in (ref.name for ref in refs.tags) else "commit"
        raise RepoMissingError(
            f"revision {revision!r} of {repo} is a {kind}, to which nothing can be added. Nothing was changed. Pass "
            "the name of a branch.", missing="revision",
        )  # fmt: skip

    async def _create(self, private: bool | None) -> bool:
        """Create the repo; return False if another process was faster."""
        namespace, name = self.target.repo.split("/")
        body: dict[str, Any] = {"type": "dataset", "name": name, "organization": namespace}
        if private is not None:
            body["private"] = private
            body["visibility"] = "private" if private else "public"
        try:
            await self._http.send(f"creating {self.target.repo}", "POST", "api/repos/create", json=body)
        except TransientError as error:
            if error.status != 409 or "conflicting operation" in error.reason:  # else another process created it
                raise
            return False
        except DefectError as error:
            raise RepoMissingError(str(error), status=error.status) from None
        failpoint(Failpoint.REPO_CREATED)
        return True

    async def _tip_of_new_repo(self, *, is_new: bool) -> BranchTip:
        try:
            found = await self._revision("expand=sha&expand=siblings")
        except RepoMissingError as error:  # a repo that was just created may not be on all servers yet
            raise TransientError(str(error), status=error.status) from None
        names = None if found.siblings is None else {sibling.rfilename for sibling in found.siblings}
        is_empty = is_new and names is not None and names <= _CREATED_WITH
        if is_empty:  # its other files are of no interest
            self._listing = found.sha, []
        return BranchTip(found.sha, is_new, is_empty)

    async def head(self) -> BranchTip:
        """Return the branch's newest commit."""
        return BranchTip((await self._revision("expand=sha")).sha)

    async def _revision(self, query: str) -> _Revision:
        what = f"{self.target.repo} at {self.target.revision}"
        response = await self._http.send(what, "GET", f"{self._api}/revision/{self._rev}?{query}")
        return response.decode(what, _Revision)

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Ask how the Hub stores each shard, and upload those that it stores as blobs. Idempotent."""
        with _reading_shards():
            staged: list[Staged] = []
            for start in range(0, len(shards), _PREUPLOAD_FILES):
                part = shards[start : start + _PREUPLOAD_FILES]
                modes = await self._preupload(await run_in_thread(_samples, part))
                by_path = {file.path: Staged(file.upload_mode, file.oid) for file in modes}
                for shard in part:
                    if shard.path not in by_path:
                        raise TransientError(f"preupload: the response does not mention {shard.path}.")
                    staged.append(by_path[shard.path])
            failpoint(Failpoint.PREUPLOADED)
            if blobs := [shard for shard, found in zip(shards, staged, strict=True) if found.mode == "lfs"]:
                await self._upload(blobs)
            return staged

    async def _upload(self, blobs: Sequence[Shard]) -> None:
        if self._xet is not None:
            try:
                await self._xet.upload(blobs)
                return
            except RepoMissingError as error:  # a Hub without Xet, or no repo: then LFS reports that, too
                _log.info("%s; using LFS instead.", error)
        await self._lfs.upload(blobs)

    async def _preupload(self, files: Sequence[Mapping[str, Any]]) -> list[_UploadMode]:
        what = f"preupload to {self.target.repo}"
        response = await self._http.send(what, "POST", f"{self._api}/preupload/{self._rev}", json={"files": files})
        return response.decode(what, _Preupload).files

    async def commit(self, plan: Plan) -> CommitOutcome:
        """Send the plan once, as one commit on its parent."""
        return await outcome_of(self._commit(plan))

    async def _commit(self, plan: Plan) -> str:
        what = f"commit to {self.target.repo}"
        header = {"summary": plan.summary, "description": describe_plan(plan)}
        if plan.parent:
            header["parentCommit"] = plan.parent
        with _reading_shards():
            response = await self._http.send(
                what,
                "POST",
                f"{self._api}/commit/{self._rev}",
                content=partial(_ndjson, header, plan),
                headers={"content-type": "application/x-ndjson"},
                has_effect=True,
            )
        return response.decode(what, _Committed, has_effect=True).commit_oid

    async def squash(self, message: str) -> None:
        """Replace the branch's history by one commit with the same files."""
        what = f"squashing {self.target.repo}"
        path = f"{self._api}/super-squash/{self._rev}"
        await self._http.send(what, "POST", path, json={"message": message}, has_effect=True)

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        """Return the files that exist at `paths` in the commit `at`, by path."""
        with _commit_exists():
            found = await self._paths_info(paths, at)
        return {
            file.path: RemoteFile(
                file.path, file.lfs.oid if file.lfs else file.oid, file.last_commit.id if file.last_commit else None
            )
            for file in found
        }

    async def _paths_info(self, paths: Sequence[str], at: str) -> list[_Entry]:
        what = f"paths-info of {self.target.repo}"
        found: list[_Entry] = []
        for start in range(0, len(paths), _PATHS):
            form = {"paths": list(paths[start : start + _PATHS]), "expand": "true"}
            response = await self._http.send(what, "POST", f"{self._api}/paths-info/{at}", form=form)
            found += response.decode(what, list[_Entry])
        return found

    async def read_file(self, path: str, at: str) -> bytes | None:
        """Return the content of a small file in the commit `at`; None if it does not exist.

        The content is checked against the oid that the Hub lists. hubsync commits it again, so it must not be a
        proxy's page, nor come from an arbitrary server that a redirect named.

        Raises:
            DefectError: The file is larger than 8 MiB.
        """
        with _commit_exists():
            found = next((file for file in await self._paths_info([path], at) if file.path == path), None)
            return None if found is None else await self._read(_hub_file("paths-info", "", found), at)

    async def _read(self, file: HubFile, at: str, *, most: int = MAX_BODY) -> bytes:
        what = f"{file.path} of {self.target.repo}"
        if file.size > most:
            raise DefectError(f"{what} has {file.size:,} bytes; more than {most:,} are not read.")
        content = io.BytesIO()  # its repr does not show what a server may have sent back
        oid = oid_hash(file.oid, file.size)

        def write(piece: bytes) -> None:
            content.write(piece)
            oid.update(piece)
            if content.tell() > file.size:
                raise TransientError(f"{what}: the content is larger than the size that the Hub lists.")

        if not await self.download(file.path, at, write) or oid.hexdigest() != file.oid:
            raise TransientError(f"{what}: the content does not match the oid that the Hub lists.")
        return content.getvalue()

    async def read_watermarks(
        self, at: str, *, writers: Collection[str] | None = None, most: int | None = None
    ) -> RemoteWatermarks:
        """Return the watermarks in the commit `at`. Log those that are invalid.

        Earlier versions wrote a file for each writer, so there may be thousands. What was read is kept, and not read
        again unless it has changed.
        """
        with _commit_exists():
            files = await self._watermark_files(at)
            if writers is not None:
                files = [file for file in files if may_hold(file.path, writers)]
            unread = [file for file in files if file not in self._marks]
            if most is not None:
                unread = unread[: most + sum(is_folded(file.path) for file in unread)]
            await self._read_watermark_files(unread, at)
        known = {file.path: self._marks[file] for file in files if file in self._marks}
        return RemoteWatermarks.of(known, len(files) - len(known))

    async def _watermark_files(self, at: str) -> Sequence[HubFile]:
        if self._marked[0] != at:
            files = [file for file in await self.list_files(at, FOLDER) if is_watermark(file.path)]
            if sum(file.size for file in files) > _MAX_WATERMARK_BYTES:
                raise TransientError(f"{self.target.repo}: the watermarks have over {_MAX_WATERMARK_BYTES:,} bytes.")
            self._marked = at, sorted(files, key=lambda file: not is_folded(file.path))
            self._marks = {file: self._marks[file] for file in files if file in self._marks}
        return self._marked[1]

    async def _read_watermark_files(self, files: Sequence[HubFile], at: str) -> None:
        """Read files, a few at once. After an error, those that are under way are still read, so that they are kept."""
        waiting, errors = iter(files), list[HubError]()

        async def read() -> None:
            while not errors and (file := next(waiting, None)) is not None:
                try:
                    self._marks[file] = found = await self.read_watermark_file(file, at)
                except HubError as error:
                    errors.append(error)
                    return
                if isinstance(found, str):
                    path = one_line(file.path)
                    _log.warning("%s of %s is not a watermark (%s); skipped.", path, self.target.repo, found)

        async with anyio.create_task_group() as tasks:
            for _ in files[:_AT_ONCE]:
                tasks.start_soon(read)
        if errors:
            raise errors[0]

    async def read_watermark_file(self, file: HubFile, at: str) -> list[Watermark] | str:
        """Return the watermarks in a file of the commit `at`; or why it holds none."""
        try:
            content = await self._read(file, at, most=_MAX_WATERMARK_BYTES)
            return await run_in_thread(decode_watermarks, content, file.path)
        except (ValueError, DefectError) as error:
            return one_line(str(error))

    async def list_files(self, at: str, folder: str = "") -> Sequence[HubFile]:
        """Return every file in the commit `at`, or below one of its folders; empty if the folder does not exist."""
        what = f"the files of {self.target.repo}"
        listed_at, listed = self._listing
        if listed_at == at:
            return [file for file in listed if not folder or file.path.startswith(f"{folder}/")]
        entries = [entry async for page in self._tree(at, folder, recursive=True) for entry in page]
        files = [_hub_file(what, folder, entry) for entry in entries if entry.type == "file"]
        if not folder and len(files) <= _KEPT_FILES:
            self._listing = at, files
        return files

    async def count_files(self, folder: str, at: str, *, most: int, deep: bool) -> int:
        """Return how many entries a folder has in the commit `at`; above `most`, any number above it."""
        count = 0
        with _commit_exists():
            async with contextlib.aclosing(self._tree(at, folder, recursive=deep)) as pages:
                async for page in pages:
                    count += len(page)
                    if count > most:
                        break
        return count

    async def _tree(self, at: str, folder: str, *, recursive: bool) -> AsyncGenerator[list[_Entry]]:
        """Yield the pages of a folder's listing; none if it does not exist."""
        what = f"the files of {self.target.repo}"
        first = f"{self._api}/tree/{at}{'/' if folder else ''}{quote(folder)}?recursive={str(recursive).lower()}"
        url: str | None = first
        seen: set[str] = set()
        while url:
            if url in seen or len(seen) == _MAX_PAGES:
                raise TransientError(f"{what}: the pages never end.")
            seen.add(url)
            try:
                response = await self._http.send(what, "GET", url)
            except RepoMissingError as error:
                if error.missing == "file" and len(seen) == 1:
                    return
                raise
            yield response.decode(what, list[_Entry])
            # Of the next page's URL only the cursor is used, on the first page's address.
            link = _next_page(response)
            cursor = _CURSOR.search(link) if link is not None else None
            if link is not None and cursor is None:  # else the files of the other pages would seem not to exist
                raise TransientError(f"{what}: the next page has no cursor.")
            url = f"{first}&cursor={quote(unquote(cursor[1]), safe='')}" if cursor else None

    async def list_commits(self, at: str, page: int) -> tuple[list[Commit], bool]:
        """Return a page of the history up to the commit `at`, newest first, and whether there are more pages."""
        what = f"the commits of {self.target.repo}"
        query = f"limit={_COMMITS_PER_PAGE}{f'&p={page}' if page else ''}"
        response = await self._http.send(what, "GET", f"{self._api}/commits/{at}?{query}")
        return response.decode(what, list[Commit]), _next_page(response) is not None

    async def last_commits(self, paths: Sequence[str], at: str) -> Mapping[str, Commit]:
        """Return the commit that last changed each of `paths`, where the Hub reports it."""
        return {file.path: file.last_commit for file in await self._paths_info(paths, at) if file.last_commit}

    async def download(self, path: str, at: str, write: Callable[[bytes], object]) -> bool:
        """Pass a file's content in the commit `at` to `write`, piece by piece; return False if it does not exist."""
        what = f"{path} of {self.target.repo}"
        try:
            await self._http.download(what, f"datasets/{self.target.repo}/resolve/{at}/{quote(path)}", write)
        except RepoMissingError as error:
            if error.missing == "file":
                return False
            raise
        return True

    async def aclose(self) -> None:
        """Stop uploads and close the connections."""
        if (xet := vars(self).get("_xet")) is not None:
            xet.abort()
        await self._http.aclose()


def describe_plan(plan: Plan) -> str:
    """Return a commit's description: its shards, for people and for `parse_description`."""
    shards = [f"{shard.rows} rows, {shard.size} bytes: {shard.path}" for shard in plan.shards]
    return "\n".join([f"hubsync plan {plan.id} of term {plan.term}", *([""] if shards else []), *shards])


def parse_description(description: str) -> dict[str, tuple[int, int]]:
    """Return the rows and bytes of each shard by path. Do not trust them: anyone may write such a description."""
    if not description.startswith("hubsync plan "):
        return {}
    return {found["path"]: (int(found["rows"]), int(found["bytes"])) for found in _DESCRIBED.finditer(description)}


def _next_page(response: Response) -> str | None:
    found = _NEXT_PAGE.search(response.headers.get("link", "")[:_MAX_LINK])
    return found[1] if found else None


def _hub_file(what: str, folder: str, entry: _Entry) -> HubFile:
    parts, below = entry.path.split("/"), f"{folder}/" if folder else ""
    if any(part in ("", ".", "..") for part in parts) or "\0" in entry.path or not entry.path.startswith(below):
        raise TransientError(f"{what}: {entry.path!r} is not a path below {folder!r}.")
    if entry.lfs:
        return HubFile(entry.path, entry.lfs.size, entry.lfs.oid, is_large=True)
    return HubFile(entry.path, entry.size, entry.oid, is_large=False)


@contextlib.contextmanager
def _commit_exists() -> Iterator[None]:
    """Report a commit that no longer exists as a stale parent: history was squashed, or the repo created again."""
    try:
        yield
    except RepoMissingError as error:
        if error.missing != "revision":
            raise
        raise StaleParentError(error.reason, status=error.status, request_id=error.request_id) from None


@contextlib.contextmanager
def _reading_shards() -> Iterator[None]:
    """Report a file that cannot be read: a bad disk, or another process has committed and removed it.

    A commit that was being sent is cut off, so it has not landed.
    """
    try:
        yield
    except OSError as error:
        raise UnreadableShard(f"a shard cannot be read: {error}.") from error


def _samples(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    files = []
    for shard in shards:
        with open_regular(shard.file) as stream:
            sample = base64.b64encode(stream.read(_SAMPLE_BYTES)).decode()
        files.append({"path": shard.path, "size": shard.size, "sample": sample})
    return files


async def _ndjson(header: Mapping[str, str], plan: Plan) -> AsyncIterator[bytes]:
    """Yield the commit's body, line by line. Shards inside it are read and encoded in pieces, never held whole."""
    yield _line("header", header)
    for sidecar in plan.sidecars:
        content = base64.b64encode(sidecar.content).decode()
        yield _line("file", {"path": sidecar.path, "encoding": "base64", "content": content})
        failpoint(Failpoint.HALF_SENT)
    for path in plan.deletions:
        yield _line("deletedFile", {"path": path})
    for shard in plan.shards:
        if shard.mode == "lfs":
            yield _line("lfsFile", {"path": shard.path, "algo": "sha256", "oid": shard.sha256, "size": shard.size})
            continue
        yield b'{"key":"file","value":{"path":' + msgspec.json.encode(shard.path) + b',"encoding":"base64","content":"'
        found = git_hash(shard.size)
        async for piece in read_pieces(shard.file, 0, shard.size, _BASE64_BYTES):
            found.update(piece)
            yield base64.b64encode(piece)
        if shard.git_oid not in (None, found.hexdigest()):  # the body is not complete yet, so nothing is committed
            raise UnreadableShard(f"{shard.file} changed after it was staged.")
        yield b'"}}\n'


def _line(key: str, value: Mapping[str, str | int]) -> bytes:
    return msgspec.json.encode({"key": key, "value": value}) + b"\n"
