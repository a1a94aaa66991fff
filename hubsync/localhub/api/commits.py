"""Preupload and commit: which files are large, and the atomic step from NDJSON operations to a new head.

A commit's body is read line by line: a file's bytes are decoded, hashed and on disk before the next line is parsed.
Nothing is visible until the one transaction at the end, which checks the parent, spends the quota, writes the trees
and moves the ref.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response

from hubsync.localhub.api import cards, discussions
from hubsync.localhub.protocol import HubError, Operation, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.store import Caller, Repo

_LINE_BYTES = 150 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_OID = re.compile(r"[0-9a-f]{40}\Z")


def preupload(hub: HubState, call: Call) -> Response:
    """Decide for each file whether it is regular, large or ignored, and show what the repo has at its path."""
    call.writable(pull_request=call.flag("create_pr"))
    tree, body, most = call.commit.tree, call.json(), hub.limits.preupload_files
    files = body.get("files")
    if not isinstance(files, list):
        raise HubError(400, '"files" must be an array')
    if len(files) > most:
        raise HubError(400, f'"files" must contain less than or equal to {most} items')

    def committed(path: str) -> str:
        return hub.text(hub.history.file(tree, path))

    ignore = committed(".gitignore") if body.get("gitIgnore") is None else str(body["gitIgnore"])
    attributes = str(body.get("gitAttributes") or committed(".gitattributes"))
    modes = [_upload_mode(hub, tree, ignore, attributes, item) for item in files]
    return json_response({"files": modes, "commitOid": call.commit.oid})


def _upload_mode(hub: HubState, tree: str, ignore: str, attributes: str, item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("size"), int) or item["size"] < 0:
        raise HubError(400, '"files" items need a "path", a "size" and a "sample"')
    path = _checked_path(item.get("path"))
    _decoded(str(item.get("sample") or ""), path)
    large = item["size"] >= hub.limits.regular_bytes or git.lfs_tracked(attributes, path)
    mode = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": git.ignored(ignore, path)}
    present = hub.history.file(tree, path)
    return mode if present is None else mode | {"oid": present.sha256 or present.oid}


def _checked_path(path: object) -> str:
    if problem := git.path_problem(path):
        raise HubError(422, problem)
    return str(path)


def _decoded(text: str, path: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise HubError(400, f"Invalid base64 content for {path}") from None


class _Value(msgspec.Struct):
    """The `value` of any operation line; its key decides which fields are required."""

    path: str | None = None
    content: str | None = None
    encoding: str = "base64"
    algo: str = "sha256"
    oid: str | None = None
    size: int | None = None
    summary: str | None = None
    description: str | None = None
    parentCommit: str | None = None


class _Line(msgspec.Struct):
    key: str
    value: _Value


@dataclass
class _Draft:
    """The lines read so far. `changes` maps a path to a file's oid, `removals` has (path, is folder)."""

    summary: str | None = None
    description: str = ""
    parent: str | None = None
    changes: dict[str, str | None] = field(default_factory=dict)
    contents: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    removals: list[tuple[str, bool]] = field(default_factory=list)
    readme: bytes | None = None
    inlined_bytes: int = 0
    lines: int = 0


async def commit(hub: HubState, call: Call) -> Response:
    """Apply all operations of a commit, or none."""
    create_pr = call.flag("create_pr")
    repo, caller = await hub.in_thread(call.writable, pull_request=create_pr)
    await hub.in_thread(hub.quota.check, caller)
    media_type = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in ("application/x-ndjson", "application/ndjson"):
        raise HubError(415, f"Unsupported content type {media_type!r}: a commit is application/x-ndjson")
    draft = _Draft()
    async for lines in _line_batches(call.request.stream()):
        await hub.in_thread(_read_lines, hub, repo, draft, lines)
    return await hub.in_thread(_land, hub, call, repo, caller, draft, create_pr)


async def _line_batches(stream: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Yield whole lines as they arrive, all that one piece of the body completes at a time."""
    rest = bytearray()
    async for piece in stream:
        cut = piece.rfind(b"\n")
        if cut < 0:
            rest += piece
        else:
            rest += piece[:cut]
            lines, rest = bytes(rest).split(b"\n"), bytearray(piece[cut + 1 :])
            yield lines
        if len(rest) > _LINE_BYTES:
            raise HubError(413, "Payload Too Large")
    if rest.strip():
        yield [bytes(rest)]


def _read_lines(hub: HubState, repo: Repo, draft: _Draft, lines: list[bytes]) -> None:
    for raw in lines:
        if not raw.strip():
            continue
        draft.lines += 1
        try:
            line = msgspec.json.decode(raw, type=_Line)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise HubError(400, f"Invalid NDJSON at line {draft.lines}: {error}") from None
        if (line.key == "header") != (draft.lines == 1):
            raise HubError(400, "The first line of a commit, and only the first, must be its header")
        if line.key == "header":
            _read_header(draft, line.value)
        else:
            _read_operation(hub, repo, draft, line)


def _read_header(draft: _Draft, value: _Value) -> None:
    if not value.summary or not value.summary.strip():
        raise HubError(400, '"summary" is not allowed to be empty')
    if value.parentCommit is not None and not _OID.match(value.parentCommit):
        raise HubError(400, '"parentCommit" must be a full commit id')
    draft.summary, draft.description, draft.parent = value.summary, value.description or "", value.parentCommit


def _read_operation(hub: HubState, repo: Repo, draft: _Draft, line: _Line) -> None:
    is_folder = line.key == "deletedFolder"
    path = _checked_path(line.value.path.rstrip("/") if is_folder and line.value.path else line.value.path)
    if line.key == "file":
        _add_regular(hub, draft, path, line.value)
    elif line.key == "lfsFile":
        _add_large(hub, repo, draft, path, line.value)
    elif line.key in ("deletedFile", "deletedFolder"):
        draft.removals.append((path, is_folder))
    else:
        raise HubError(400, f'Unknown operation "{line.key}"')


def _add_regular(hub: HubState, draft: _Draft, path: str, value: _Value) -> None:
    text, is_base64 = value.content, value.encoding == "base64"
    if text is None or value.encoding not in ("base64", "utf-8"):
        raise HubError(400, f'"content" of {path} must be a string, its "encoding" base64 or utf-8')
    data = _decoded(text, path) if is_base64 else text.encode()
    draft.inlined_bytes += len(data)
    if draft.inlined_bytes > hub.limits.inlined_bytes:
        raise HubError(413, "Payload Too Large")
    if len(data) > hub.limits.regular_bytes:
        most = f"{hub.limits.regular_bytes / (1 << 20):g} MiB"
        raise HubError(
            400,
            f"Your push was rejected because it contains files larger than {most}. "
            f"Please use https://huggingface.co/docs/hub/xet to store large files. Offending files: - {path}",
        )
    oid = hub.blobs.add_git(data)
    draft.changes[path] = oid
    draft.contents[oid] = (len(data), None)
    if path == "README.md":
        draft.readme = data


def _add_large(hub: HubState, repo: Repo, draft: _Draft, path: str, value: _Value) -> None:
    if value.algo != "sha256" or value.oid is None or not _SHA256.match(value.oid):
        raise HubError(400, f'"oid" of {path} must be a sha256 in lower-case hex')
    size = hub.store.granted(repo.id, value.oid)
    if size is None:
        raise HubError(
            400,
            "Your push was rejected because an LFS pointer pointed to a file that does not exist. For instance, this "
            f"can happen if you used git push --no-verify to push your changes. Offending file: - {path}",
        )
    if value.size is not None and value.size != size:
        raise HubError(400, f"LFS object {value.oid} has {size} bytes, not {value.size}: {path}")
    oid = git.object_oid("blob", git.lfs_pointer(value.oid, size))
    draft.changes[path] = oid
    draft.contents[oid] = (size, value.oid)


def _land(hub: HubState, call: Call, repo: Repo, caller: Caller, draft: _Draft, create_pr: bool) -> Response:
    """Check the draft against the head and, in the same transaction, move the head."""
    if draft.summary is None:
        raise HubError(400, "A commit needs a header line")
    if draft.readme is not None:
        errors, _ = cards.problems(draft.readme.decode("utf-8", "replace"), repo.type)
        if errors:
            raise HubError(400, "Invalid metadata in README.md.\n" + "\n".join(f"- {text}" for text in errors))
    revision = call.params["rev"]
    with hub.store.transaction():
        hub.quota.check(caller)
        base = hub.revision(repo, revision)
        ref = hub.history.branch(repo, revision)
        if ref is None:
            raise HubError(400, f"Invalid rev id: {revision} is not a branch", code="RevisionNotFound")
        if draft.parent is not None and draft.parent != base.oid:
            raise HubError(412, "The branch was updated since you opened this page. Please refresh and try again.")
        changes = _removals(hub, base.tree, draft) | draft.changes
        for oid, (size, sha256) in draft.contents.items():
            hub.history.add_content(oid, size, sha256)
        tree = hub.write_tree(base, changes, ref)
        landed = hub.history.add_commit(repo, tree, base.oid, caller.name, draft.summary, draft.description)
        body: dict[str, Any] = {
            "success": True,
            "commitOid": landed.oid,
            "commitUrl": f"{hub.endpoint}/{repo.web_path}/commit/{landed.oid}",
            "hookOutput": "",
        }
        if create_pr:
            body["pullRequestUrl"] = discussions.open_pull_request(hub, repo, caller.name, ref, base, landed)
        else:
            hub.history.set_ref(repo, ref, landed.oid)
            discussions.note_commit(hub, repo, ref, caller.name, landed)
        hub.quota.spend(caller)
    return json_response(body, headers={"X-Repo-Commit": landed.oid})


def _removals(hub: HubState, tree: str, draft: _Draft) -> dict[str, str | None]:
    """Return the removals as changes, each of a path that exists; the same commit may add it again."""
    for path, is_folder in draft.removals:
        entry = hub.history.entry(tree, path)
        # "deletedFile" may name a folder (huggingface_hub does that), "deletedFolder" may not name a file.
        if entry is None or (is_folder and not entry.is_directory):
            what = "folder" if is_folder else "file"
            raise HubError(404, f"A {what} with this name doesn't exist: {path}", code="EntryNotFound")
    return dict.fromkeys(path for path, _ in draft.removals)


ROUTES = [
    Route(Operation.PREUPLOAD, "POST", "/api/{type}/{repo}/preupload/{rev}", preupload),
    Route(Operation.COMMIT, "POST", "/api/{type}/{repo}/commit/{rev}", commit),
]
