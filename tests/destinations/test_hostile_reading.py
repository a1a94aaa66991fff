"""Hostile content of the dataset: the card, watermarks, listings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubsync import HubError, SpoolPolicy, TransientError, Uploader
from hubsync._runtime.clock import SystemClock
from hubsync.destinations.hub import card
from hubsync.errors import BlockedError
from hubsync.localhub import Fault, LocalHub
from hubsync.model.target import Target
from hubsync.model.watermarks import decode_watermarks
from hubsync.spool.spool import Spool
from tests.conftest import Dataset
from tests.destinations.hostile import ENTRY, HUB, TOKEN, FakeHub, ask_card, ask_watermarks, entry, talk


def large(path: str, content: bytes) -> dict[str, Any]:
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return {**entry(path, b"version pointer"), "lfs": lfs}


def test_a_card_kept_as_a_large_file_is_read_where_the_hub_keeps_it() -> None:
    content = b"# A large card"

    def server(request: httpx.Request) -> httpx.Response:
        if request.url.host == "cdn.test":
            return httpx.Response(200, content=content)
        if FakeHub.name(request) == "paths-info":
            return httpx.Response(200, json=[large("README.md", b"# A large card")])
        return httpx.Response(302, headers={"location": "https://cdn.test/x?X-Amz-Signature=abc"})

    seen: list[httpx.Request] = []
    result = talk(lambda request: (seen.append(request), server(request))[1], ask_card)
    assert result == b"# A large card"
    elsewhere = [request for request in seen if request.url.host != "hub.test"]
    assert len(elsewhere) == 1
    assert TOKEN not in repr(elsewhere[0].headers.raw)
    # Content that does not match the listed oid is rejected, wherever the redirect leads: it would be committed again.
    content = b"what only an internal server shows"
    assert isinstance(talk(server, ask_card), TransientError)


@pytest.mark.parametrize("location", ["http://cdn.test/x", "file:///etc/passwd", "https://hub.test@cdn.test/x", "//"])
def test_a_large_file_is_not_read_from_an_unsafe_address(location: str) -> None:
    fake = FakeHub(
        {"README.md": b"#"}, replaced={"resolve": lambda request: httpx.Response(302, headers={"location": location})}
    )
    assert isinstance(talk(fake, ask_card), TransientError)
    assert {request.url.host for request in fake.seen} == {"hub.test"}


def test_a_proxys_page_is_not_taken_as_the_card() -> None:
    for answer in (
        httpx.Response(200, text="<html>log in to the wifi"),
        httpx.Response(404, text="<html>not found"),
        httpx.Response(404, json={"error": "(EntryNotFound)"}),
    ):
        for name in ("resolve", "paths-info"):
            fake = FakeHub({"README.md": b"# A card"}, replaced={name: lambda request, answer=answer: answer})
            assert isinstance(talk(fake, ask_card), HubError)
    assert talk(FakeHub({"README.md": b"# A card"}), ask_card) == b"# A card"


def test_an_endless_card_is_not_read_to_its_end() -> None:
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"#" * 1_000

    server = FakeHub(
        {"README.md": b"#" * 5_000}, replaced={"resolve": lambda request: httpx.Response(200, content=endless())}
    )
    assert isinstance(talk(server, ask_card), TransientError)
    assert given == 6


def test_a_proxys_404_does_not_mean_that_watermarks_are_missing() -> None:
    fake = FakeHub(replaced={"tree": lambda request: httpx.Response(404, text="not here")})
    assert isinstance(talk(fake, ask_watermarks), BlockedError)
    none = httpx.Response(404, headers={"x-error-code": "EntryNotFound"})
    assert talk(FakeHub(replaced={"tree": lambda request: none}), ask_watermarks) == []


@pytest.mark.slow("meets each hostile answer")
def test_an_existing_card_survives_hostile_responses(
    uploader: Callable[..., Uploader], hub: LocalHub, dataset: Dataset
) -> None:
    uploader().open().close()
    card = b"---\nlicense: mit\n---\n# Mine\n"
    with uploader() as up:  # which has read the dataset before someone writes a card
        given = {"path_in_repo": "README.md", "repo_id": dataset.repo, "repo_type": "dataset"}
        dataset.api.upload_file(path_or_fileobj=card, **given)
        for operation in ("resolve", "paths-info"):
            for shape in ("html", "garbage", "huge", "redirect", "empty", "truncated", "wrong-shape"):
                hub.faults.add(Fault.hostile(shape, on=operation, times=1))  # type: ignore[arg-type]
            hub.faults.add(Fault.status(404, on=operation, times=1))
        up.put([{"id": 1}])
        while up.stats().spool.rows:
            with contextlib.suppress(BlockedError):  # by a 404; it is tried again
                up.flush()
    text = dataset.read("README.md").decode()
    assert "license: mit" in text
    assert "# Mine" in text
    assert "configs:" in text
    assert {fault["struck"] for fault in hub.faults.active()} == {1}


@pytest.mark.parametrize(
    "path",
    [".hubsync/../../x.json", "../x.json", "/etc/x.json", ".hubsync//x.json", ".hubsync/./x.json", "other/x.json",
     ".hubsync/x\0.json", ".hubsync", ""],
)  # fmt: skip
def test_a_path_outside_of_the_folder_is_rejected_and_not_requested(path: str) -> None:
    fake = FakeHub(replaced={"tree": lambda request: httpx.Response(200, json=[{**ENTRY, "path": path}])})
    assert isinstance(talk(fake, ask_watermarks), TransientError)
    assert "resolve" not in {FakeHub.name(request) for request in fake.seen}


GOOD = {"writer": "w", "epoch": 1, "next": {"data/*.jsonl": 3}, "rows": 7, "offsets": {"default": 9}}


@pytest.mark.parametrize(
    "change",
    [{"next": {"a": 10**30}}, {"next": {"a": 2**63 - 1}}, {"next": {"a": -1}}, {"next": {"a": None}}, {"next": [1]},
     {"offsets": {"a": -5}}, {"offsets": {"a": 2**63}}, {"offsets": {"a": 1.5}}, {"offsets": {"a": "1"}},
     {"rows": 10**40}, {"rows": -1}, {"epoch": "x"}, {"writer": "../../x"}, {"writer": "v"}, {"writer": None},
     {"writer": ""}, {"offsets": {"\ud800": 1}}],
)  # fmt: skip
def test_an_invalid_watermark_is_skipped(change: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "hubsync")
    fake = FakeHub(
        {
            ".hubsync/w.json": json.dumps({**GOOD, **change}).encode(),
            ".hubsync/good.json": json.dumps({**GOOD, "writer": "good"}).encode(),
            ".hubsync/nan.json": b'{"writer": "nan", "epoch": NaN}',
            ".hubsync/deep.json": b"[" * 100_000,
            ".hubsync/bytes.json": b'{"writer": "\xff"}',
        }
    )
    marks = talk(fake, ask_watermarks)
    assert [mark.writer for mark in marks] == ["good"]
    assert caplog.text.count("skipped") == 4


def test_watermarks_and_pages_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    def marks() -> Any:
        names = [f"w{n}" for n in range(9)]
        return talk(
            FakeHub({f".hubsync/{n}.json": json.dumps({**GOOD, "writer": n}).encode() for n in names}), ask_watermarks
        )

    def page(request: httpx.Request) -> httpx.Response:
        more = f'<{HUB}/x?cursor={len(fake.seen)}>; rel="next"'
        return httpx.Response(200, json=[], headers={"link": more})

    assert len(marks()) == 9
    monkeypatch.setattr("hubsync.destinations.hub.dataset._MAX_WATERMARK_BYTES", 100)
    assert isinstance(marks(), TransientError)
    monkeypatch.setattr("hubsync.destinations.hub.dataset._MAX_PAGES", 20)
    fake = FakeHub(replaced={"tree": page})
    assert isinstance(talk(fake, ask_watermarks), TransientError)
    assert len(fake.seen) == 20


@pytest.mark.parametrize(
    "text",
    [
        b"---\na: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a]\nconfigs: [*b, *b, *b]\n---\n",
        b"---\nconfigs: " + b"[" * 2_000 + b"\n---\n",
        b"---\nx: !!python/object/apply:os.abort []\n---\n",
        b"---\nconfigs:\n- \x1b]0;title\x07: {\n---\n",
        b"---\nconfigs: 2024-99-99 99:99:99\n---\n",
        b"---\n#" + b"#" * 2_000_000 + b"\n---\n",
        b"---\na: &a [x, x, x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (n, n, n - 1, n - 1, n - 1, n - 1) for n in range(98, 123))
        + b"---\n",
        b"---\na: &a [*a]\n---\n",
    ],
)
def test_a_hostile_card_is_not_changed(text: bytes) -> None:
    with pytest.raises(card.CardError) as caught:
        card.Card(text, "user/rows").merge([card.Entry("default", "train", "data/*.jsonl")])
    assert str(caught.value).isprintable()


def test_a_watermark_of_megabytes_is_read() -> None:
    offsets = {f"source number {n}": n for n in range(60_000)}
    marks = talk(FakeHub({".hubsync/w.json": json.dumps({**GOOD, "offsets": offsets}).encode()}), ask_watermarks)
    assert [mark.offsets for mark in marks] == [offsets]


MARKS = st.builds(
    lambda **fields: {"writer": "w", **fields},
    epoch=st.integers(-1, 2**64),
    next=st.dictionaries(st.text(max_size=4), st.integers(-1, 2**64), max_size=3),
    rows=st.integers(-1, 2**64),
    offsets=st.dictionaries(st.text(max_size=4), st.integers(-1, 2**64) | st.floats(), max_size=3),
)


@given(mark=MARKS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spool_can_continue_from_every_accepted_watermark(tmp_path: Path, mark: dict[str, Any]) -> None:
    try:
        found = decode_watermarks(json.dumps(mark).encode(), ".hubsync/w.json")[0]
    except ValueError:
        return
    spool = Spool(tmp_path / "spool", target=Target(HUB, "user/rows"), policy=SpoolPolicy(), clock=SystemClock())
    try:
        assert spool.lease.acquire()
        spool.seed([found])
        assert all((spool.offsets.highest(source) or 0) >= offset for source, offset in found.offsets.items())
    finally:
        spool.close()
