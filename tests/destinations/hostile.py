"""A fake Hub with scripted responses, for test_hostile and test_security."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import anyio
import httpx
import pytest

from hubsync import HubError
from hubsync.destinations.base import Landed
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.model.commit import Plan, SidecarFile
from hubsync.model.shard import Shard
from hubsync.model.target import Target

TOKEN = "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"
HUB = "https://hub.test"
SHA = "a" * 40
ROWS = b'{"id": 1}\n'


@dataclass
class FakeHub:
    """Responds like the Hub, except for what a test replaces. `seen` holds the requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    lfs: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, Callable[[httpx.Request], httpx.Response]] = field(default_factory=dict)
    seen: list[httpx.Request] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        request.read() if isinstance(request.stream, httpx.SyncByteStream) else None
        name = self.name(request)
        return self.replaced[name](request) if name in self.replaced else self.answer(name, request)

    @staticmethod
    def name(request: httpx.Request) -> str:
        if request.url.host != "hub.test":
            return "elsewhere"
        parts = (
            "preupload",
            "commit",
            "paths-info",
            "tree",
            "revision",
            "xet-write-token",
            "resolve",
            "batch",
            "verify",
        )
        return next((part for part in parts if f"/{part}" in request.url.path), "other")

    def answer(self, name: str, request: httpx.Request) -> httpx.Response:
        if name == "revision":
            return httpx.Response(200, json={"sha": SHA})
        if name == "preupload":
            mode = "lfs" if self.lfs else "regular"
            return httpx.Response(200, json={"files": [{"path": "data/x.jsonl", "uploadMode": mode}]})
        if name == "commit":
            return httpx.Response(200, json={"commitOid": SHA})
        if name == "tree":
            return httpx.Response(200, json=[entry(*file) for file in self.files.items()])
        if name == "paths-info":
            return httpx.Response(200, json=[entry(*file) for file in self.files.items()])
        if name == "resolve":
            path = unquote(request.url.path).partition(f"/resolve/{SHA}/")[2]
            if path not in self.files:
                return httpx.Response(404, headers={"x-error-code": "EntryNotFound"})
            return httpx.Response(200, content=self.files[path])
        if name == "batch":
            return httpx.Response(200, json=self.lfs)
        if name == "xet-write-token":
            return httpx.Response(200, json={"casUrl": "https://cas.test", "accessToken": "x", "exp": 2_000_000_000})
        return httpx.Response(200, headers={"etag": '"e"'})


def entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "oid": git_oid(content), "size": len(content), "lastCommit": {"id": SHA}}


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def talk(server: Callable[[httpx.Request], Any], ask: Callable[[HubDataset], Awaitable[Any]]) -> Any:
    """Return the result of asking a server, or the `HubError`. Any other error would end the worker."""

    async def main() -> Any:
        transport = httpx.MockTransport(server)
        hub = HubDataset(Target(HUB, "user/rows"), lambda: TOKEN, timeout_s=5, transport=transport)
        try:
            return await ask(hub)
        except HubError as error:
            return error
        finally:
            await hub.aclose()

    return anyio.run(main)


def ask(server: Callable[[httpx.Request], Any], **how: Any) -> Any:
    """Return the response to one request, or the `HubError`."""

    async def main() -> Any:
        http = HubHTTP(HUB, lambda: TOKEN, timeout_s=how.pop("timeout_s", 5), transport=httpx.MockTransport(server))
        try:
            return await http.send("it", how.pop("method", "GET"), how.pop("url", "api/x"), **how)
        except HubError as error:
            return error
        finally:
            await http.aclose()

    return anyio.run(main)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    file = tmp_path / "segment.jsonl"
    file.write_bytes(ROWS)
    return Shard(1, "w", file, "data/x.jsonl", len(ROWS), 1, hashlib.sha256(ROWS).hexdigest(), git_oid(ROWS), "regular")


@pytest.fixture
def plain_lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")


async def ask_watermarks(hub: HubDataset) -> object:
    return list((await hub.read_watermarks(SHA)).by_writer.values())


async def ask_card(hub: HubDataset) -> object:
    return await hub.read_file("README.md", SHA)


async def ask_check(hub: HubDataset) -> object:
    return await hub.ensure_repo(private=None)


async def ask_files(hub: HubDataset) -> object:
    return await hub.find_files(["data/x.jsonl"], SHA)


async def ask_commit(hub: HubDataset) -> object:
    outcome = await hub.commit(Plan(1, [], [SidecarFile("a", b"b")], SHA, "s"))
    return outcome.sha if isinstance(outcome, Landed) else outcome.error


OPERATIONS: dict[str, Callable[[HubDataset], Awaitable[object]]] = {
    "revision": ask_check,
    "preupload": ask_check,
    "commit": ask_commit,
    "paths-info": ask_files,
    "tree": ask_watermarks,
}


ENTRY = {"type": "file", "path": ".hubsync/w.json", "oid": SHA, "size": 3, "lastCommit": {"id": SHA}}
BATCH = {
    "objects": [
        {
            "oid": hashlib.sha256(ROWS).hexdigest(),
            "size": len(ROWS),
            "actions": {
                "upload": {"href": "https://store.test/x", "header": {"chunk_size": "5", "1": "https://store.test/1",
                                                                      "2": "https://store.test/2"}},
                "verify": {"href": f"{HUB}/verify", "header": {"a": "b"}},
            },
        }
    ]
}  # fmt: skip


def lfs_at(href: str, verify: str = f"{HUB}/verify", **header: str) -> dict[str, Any]:
    actions = {"upload": {"href": href, "header": header}, "verify": {"href": verify, "header": {"X-Verify": "v"}}}
    return {"objects": [{"oid": hashlib.sha256(ROWS).hexdigest(), "size": len(ROWS), "actions": actions}]}


class FakeXet:
    """A fake hf_xet that records where it would have sent rows."""

    sent_to: ClassVar[list[str]] = []

    def new_upload_commit(self, **how: Any) -> FakeXet:
        self.sent_to.append(how["endpoint"])
        if how["token"] == "raises":
            raise ConnectionError(f"{how['token']} {how['token_refresh_headers']}")
        return self

    def __enter__(self) -> FakeXet:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start_upload_file(self, file: str, *, sha256: str) -> FakeXet:
        return self

    def result(self) -> None:
        pass

    def sigint_abort(self) -> None:
        pass


@pytest.fixture
def xet(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("hf_xet.XetSession", FakeXet)
    monkeypatch.setattr(FakeXet, "sent_to", [])
    return FakeXet.sent_to


GRANT = {"casUrl": "https://cas.test", "accessToken": "secret", "exp": 2_000_000_000}
