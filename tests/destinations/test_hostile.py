"""Responses that no Hub would send: each gives a typed error, and no unsafe redirect is followed.

Content that hubsync continues from or writes back is in test_hostile_reading.py.
"""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hubsync import HubError, TransientError
from hubsync.destinations.hub.responses import classify, retry_after
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import AmbiguousError, BlockedError, one_line
from hubsync.model.shard import Shard
from tests.destinations.hostile import (
    BATCH,
    ENTRY,
    GRANT,
    HUB,
    OPERATIONS,
    ROWS,
    SHA,
    TOKEN,
    FakeHub,
    ask,
    ask_watermarks,
    lfs_at,
    plain_lfs,
    shard,
    talk,
    xet,
)

__all__ = ["plain_lfs", "shard", "xet"]  # fixtures
DAY = 86_400.0

# Bodies.


def test_a_response_that_never_ends_times_out() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await anyio.sleep(0.001)

    for effect, kind in ((False, TransientError), (True, AmbiguousError)):
        error = ask(lambda request: httpx.Response(200, content=drip()), timeout_s=0.02, has_effect=effect)
        assert type(error) is kind
        assert "no complete response" in str(error)


@pytest.mark.slow("waits for a timeout")
def test_a_stalled_download_times_out_and_a_long_one_does_not() -> None:
    async def endless(piece: bytes) -> AsyncIterator[bytes]:
        for _ in range(10 if len(piece) > 1 else 10**9):
            yield piece
            await anyio.sleep(0.05)

    async def main(piece: bytes) -> object:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=endless(piece)))
        http = HubHTTP(HUB, lambda: TOKEN, timeout_s=0.02, transport=transport)
        try:
            return await http.download("it", "x", lambda piece: None)
        except HubError as error:
            return error
        finally:
            await http.aclose()

    assert "no complete response" in str(anyio.run(main, b"x"))
    assert anyio.run(main, b"x" * 100_000) is None


@pytest.mark.slow("sends for longer than the limit, which is long enough for a busy machine")
def test_an_upload_that_makes_progress_does_not_time_out() -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(40):
            await anyio.sleep(0.1)
            yield b"x"

    async def server(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return httpx.Response(200, json={})

    assert ask(server, timeout_s=0.3, method="POST", content=slow).status == 200


@pytest.mark.slow("unpacks 200 MB")
@pytest.mark.parametrize(("layers", "packed"), [(1, "gzip"), (2, "gzip, gzip"), (1, "br"), (1, "deflate")])
def test_a_decompression_bomb_costs_no_memory(layers: int, packed: str) -> None:
    bomb = b"\0" * 200_000_000
    for _ in range(layers):
        bomb = gzip.compress(bomb, 1)

    async def body() -> AsyncIterator[bytes]:
        yield bomb

    tracemalloc.start()
    try:
        error = ask(
            lambda request: httpx.Response(200, content=body(), headers={"content-encoding": packed}), max_body=1 << 20
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, TransientError)
    assert peak < 16_000_000


def test_a_small_gzip_response_is_read_and_a_truncated_one_is_not() -> None:
    def server(cut: int | None) -> Callable[[httpx.Request], httpx.Response]:
        async def body() -> AsyncIterator[bytes]:
            yield gzip.compress(b'{"a": [1, 2]}' + b" " * 3_000_000)[:cut]

        return lambda request: httpx.Response(200, content=body(), headers={"content-encoding": "gzip"})

    assert ask(server(None)).decode("it", Any) == {"a": [1, 2]}
    assert "broke off" in str(ask(server(-9)))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 60_000, b'{"sha":' * 50_000, b'{"sha": "\xff\xfe"}', b'"\xed\xa0\x80"', b"", b"NaN"]
)
def test_invalid_json_is_rejected(body: bytes) -> None:
    for name, asked in OPERATIONS.items():
        fake = FakeHub(replaced={name: lambda request: httpx.Response(200, content=body)})
        assert isinstance(talk(fake, asked), TransientError), name
    assert isinstance(ask(lambda request: httpx.Response(418, content=body)), BlockedError)


def test_no_cookie_is_kept() -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(307, headers={"set-cookie": "a=b; Path=/", "location": "/api/y"})

    ask(server)
    assert len(seen) > 1
    assert not [request for request in seen if "cookie" in request.headers]


# Shapes.


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([SHA, "..", "regular", "lfs", "https://evil.test/", "local:///tmp", "1" * 400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def mutated(value: Any) -> st.SearchStrategy[Any]:
    """Build `value` with one of its parts replaced, removed or repeated."""
    places = list(_places(value))

    def change(place: tuple[Any, ...], new: Any, how: str) -> Any:
        copy = json.loads(json.dumps(value))
        if not place:
            return new
        parent = copy
        for key in place[:-1]:
            parent = parent[key]
        if how == "replace":
            parent[place[-1]] = new
        elif how == "drop":
            del parent[place[-1]]
        elif isinstance(parent, list):
            parent.append(parent[place[-1]])
        return copy

    return st.builds(change, st.sampled_from(places), JSON, st.sampled_from(["replace", "drop", "repeat"]))


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


LARGE = {**ENTRY, "lfs": {"oid": "b" * 64, "size": 3, "pointerSize": 1}}
SHAPES: dict[str, Any] = {
    "revision": {"sha": SHA},
    "preupload": {"files": [{"path": ".hubsync/probe.json", "uploadMode": "regular", "oid": None}]},
    "commit": {"success": True, "commitOid": SHA},
    "paths-info": [ENTRY, LARGE],
    "tree": [ENTRY, LARGE],
}


@pytest.mark.slow("tries many documents")
@pytest.mark.parametrize("name", OPERATIONS)
@given(data=st.data())
def test_any_json_gives_a_result_or_a_typed_error(name: str, data: st.DataObject) -> None:
    body = json.dumps(data.draw(JSON | mutated(SHAPES[name]))).encode()
    fake = FakeHub(replaced={name: lambda request: httpx.Response(200, content=body)})
    result = talk(fake, OPERATIONS[name])
    if name == "commit":
        assert result == SHA or isinstance(result, AmbiguousError)
    for request in fake.seen:
        assert request.url.host == "hub.test"


@given(body=JSON | mutated(BATCH))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_lfs_response_gives_an_upload_or_a_typed_error(plain_lfs: None, shard: Shard, body: Any) -> None:
    fake = FakeHub(lfs={"objects": []}, replaced={"batch": lambda request: httpx.Response(200, json=body)})
    result = talk(fake, lambda hub: hub.stage([shard]))
    assert isinstance(result, HubError) or result[0].mode == "lfs"


def test_objects_missing_from_an_lfs_response_are_not_taken_as_uploaded(plain_lfs: None, shard: Shard) -> None:
    fake = FakeHub(lfs={"objects": []}, replaced={"batch": lambda request: httpx.Response(200, json={"objects": []})})
    assert isinstance(talk(fake, lambda hub: hub.stage([shard])), TransientError)


COUNTS = [
    {"chunk_size": "\xb2"},
    {"chunk_size": "9" * 5_000},
    {"chunk_size": "-5", "1": "x"},
    {"chunk_size": "5", "\xb2": "x"},
    {"chunk_size": "5", "9" * 5_000: "x"},
]


@pytest.mark.parametrize("header", COUNTS)
def test_invalid_part_counts_are_rejected(plain_lfs: None, shard: Shard, header: dict[str, str]) -> None:
    fake = FakeHub(lfs=lfs_at("https://store.test/x", **header))
    assert isinstance(talk(fake, lambda hub: hub.stage([shard])), TransientError)


@given(body=JSON | mutated(GRANT))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_xet_grant_is_used_or_gives_a_typed_error(xet: list[str], shard: Shard, body: Any) -> None:
    xet.clear()
    fake = FakeHub(lfs=BATCH, replaced={"xet-write-token": lambda request: httpx.Response(200, json=body)})
    result = talk(fake, lambda hub: hub.stage([shard]))
    assert isinstance(result, HubError) or result[0].mode == "lfs"
    assert all(url.startswith("https://") for url in xet)


# Redirects and addresses.


@pytest.mark.parametrize(
    "url",
    ["local:///home/user/.ssh", "memory://", "http://cas.test", "file:///etc", "//cas.test", "", "https://", "cas.test",
     "https://user:password@cas.test", "https://cas.test:99999"],
)  # fmt: skip
def test_an_unsafe_xet_store_gets_nothing(xet: list[str], shard: Shard, url: str) -> None:
    # `local:///some/where` has hf_xet write files there.
    body = {**GRANT, "casUrl": url}
    fake = FakeHub(lfs=BATCH, replaced={"xet-write-token": lambda request: httpx.Response(200, json=body)})
    assert isinstance(talk(fake, lambda hub: hub.stage([shard])), TransientError)
    assert xet == []


ELSEWHERE = [
    "https://evil.test/x",
    "//evil.test/x",
    "http://hub.test/x",
    "https://hub.test:8443/x",
    "https://hub.test@evil.test/x",
    "https://hub.test:x@evil.test/x",
    "https://evil.test\\@hub.test/x",
    "https://hub.test\\@evil.test/x",
    "https://evil.test#@hub.test/x",
    "https://evil.test?@hub.test/x",
    "https://hub.test.evil.test/x",
    "https://token@hub.test/x",
    "ftp://hub.test/x",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "https://[::1/x",
    "//[x",
    "https://h:99999/",
    "https://%2f/x",
    "https://hub.test:port/x",
    "https://\x00/x",
]


@pytest.mark.parametrize("location", ELSEWHERE)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_leads_away_from_the_hub(location: str, status: int) -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, headers={"location": location})

    error = ask(server)
    assert isinstance(error, TransientError)
    assert [str(request.url) for request in seen] == ["https://hub.test/api/x"]


@pytest.mark.parametrize(
    "url", ["https://evil.test/page2", "http://hub.test/page2", "https://hub.test@evil.test/page2"]
)
def test_every_page_of_a_listing_is_requested_from_the_hub(url: str) -> None:
    def first(request: httpx.Request) -> httpx.Response:
        more = {} if "cursor" in request.url.params else {"link": f'<{url}?cursor=a%2Fb&recursive=no>; rel="next"'}
        return httpx.Response(200, json=[ENTRY], headers=more)

    fake = FakeHub(replaced={"tree": first})
    files = talk(fake, lambda hub: hub.list_files(SHA))
    assert len(files) == 2
    assert [str(request.url) for request in fake.seen] == [
        f"{HUB}/api/datasets/user/rows/tree/{SHA}?recursive=true",
        f"{HUB}/api/datasets/user/rows/tree/{SHA}?recursive=true&cursor=a%2Fb",
    ]


@pytest.mark.parametrize(
    "link",
    ["<{}>; rel=next", '<{}>; title="n"; rel="next"', '<x>; rel="first", <{}>;rel = "next"', "<{}>; Rel='next'; x=1"],
)
def test_the_next_page_is_found_however_the_header_is_written(link: str) -> None:
    def first(request: httpx.Request) -> httpx.Response:
        more = {} if "cursor" in request.url.params else {"link": link.format(f"{HUB}/x?limit=2&cursor=a")}
        return httpx.Response(200, json=[ENTRY], headers=more)

    assert len(talk(FakeHub(replaced={"tree": first}), lambda hub: hub.list_files(SHA))) == 2


def test_a_next_page_without_a_cursor_does_not_end_the_listing() -> None:
    link = {"link": f'<{HUB}/x?page=2>; rel="next"'}
    fake = FakeHub(replaced={"tree": lambda request: httpx.Response(200, json=[ENTRY], headers=link)})
    assert isinstance(talk(fake, lambda hub: hub.list_files(SHA)), TransientError)


def test_an_endless_listing_is_abandoned() -> None:
    link = {"link": f'<{HUB}/x?cursor=c>; rel="next"'}
    fake = FakeHub(replaced={"tree": lambda request: httpx.Response(200, json=[], headers=link)})
    assert isinstance(talk(fake, ask_watermarks), TransientError)
    # Which a careless pattern would take minutes to look through.
    for evil in ("<" * 60_000, "<" + "?cursor=x" * 6_000, " " * 5_000 + link["link"]):
        replaced = {"tree": lambda request, evil=evil: httpx.Response(200, json=[], headers={"link": evil})}
        assert talk(FakeHub(replaced=replaced), ask_watermarks) == []


def test_a_blob_store_gets_its_own_header_and_never_the_token(plain_lfs: None, shard: Shard) -> None:
    fake = FakeHub(lfs=lfs_at("https://store.test/x?sig=1", Authorization="Basic abc", **{"Content-Length": "99"}))
    assert not isinstance(talk(fake, lambda hub: hub.stage([shard])), HubError)
    by_name = {FakeHub.name(request): request for request in fake.seen}
    put, verify = by_name["elsewhere"], by_name["verify"]
    assert (put.method, str(put.url)) == ("PUT", "https://store.test/x?sig=1")
    assert put.headers.get_list("authorization") == ["Basic abc"]
    assert put.headers.get_list("content-length") == [str(len(ROWS))]
    assert verify.headers.get_list("authorization") == [f"Bearer {TOKEN}"]
    assert (put.headers.get("x-verify"), verify.headers["x-verify"]) == (None, "v")
    assert TOKEN not in repr(put.headers.raw)


def test_a_given_authorization_header_replaces_the_token(plain_lfs: None, shard: Shard) -> None:
    fake = FakeHub(lfs=lfs_at(f"{HUB}/verify", Authorization="Basic abc"))
    talk(fake, lambda hub: hub.stage([shard]))
    put = next(request for request in fake.seen if request.method == "PUT")
    assert put.headers.get_list("authorization") == ["Basic abc"]


@pytest.mark.parametrize("href", [h for h in ELSEWHERE if not h.startswith("https://evil.test/") and "8443" not in h])
def test_rows_are_never_sent_to_an_unsafe_address(plain_lfs: None, shard: Shard, href: str) -> None:
    for lfs in (lfs_at(href), lfs_at("https://store.test/x", href)):
        fake = FakeHub(lfs=lfs)
        result = talk(fake, lambda hub: hub.stage([shard]))
        reached = {request.url.host for request in fake.seen}
        assert reached <= {"hub.test", "store.test", "hub.test.evil.test", "evil.test"}
        assert isinstance(result, TransientError) == (reached <= {"hub.test", "store.test"})
        assert not [r for r in fake.seen if r.url.host != "hub.test" and TOKEN in repr(r.headers.raw)]
        assert all(request.url.scheme == "https" for request in fake.seen)


def test_a_redirect_of_an_upload_by_a_store_is_not_followed(plain_lfs: None, shard: Shard) -> None:
    for target in ("https://other.test/", f"{HUB}/api/x"):
        sent_on = partial(httpx.Response, 307, headers={"location": target})
        fake = FakeHub(lfs=lfs_at("https://store.test/x"), replaced={"elsewhere": lambda request, on=sent_on: on()})
        assert isinstance(talk(fake, lambda hub: hub.stage([shard])), TransientError)
        assert {request.url.host for request in fake.seen} <= {"hub.test", "store.test"}


# Numbers and text.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1e308"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "315360000"}, DAY),
        ({"retry-after": "9" * 5_000}, DAY),
        ({"retry-after": "\xb2"}, None),
        ({"retry-after": "\u0663"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, DAY),
        ({"retry-after": "Fri, 31 Dec 99999999999 23:59:59 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 -0000"}, None),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0),
        ({"ratelimit": f'"api";r=0;t={"9" * 100}'}, DAY),
        ({"ratelimit": f'"api";r=0;t={"9" * 5_000}'}, DAY),
        ({"ratelimit": '"api";r=0;t=-1'}, None),
    ],
)
def test_no_server_stops_the_uploader_for_more_than_a_day(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, "") == seconds
    assert retry_after({}, "retry in 999999 hours") == DAY


DATES = st.from_regex(r"[A-Z][a-z]{2}, \d{1,12} [A-Z][a-z]{2} \d{1,12} \d\d:\d\d:\d\d .{0,6}")
WORDS = st.from_regex(r"retry in [0-9]{1,5000} (second|hour)s")


@given(value=st.text(max_size=40) | DATES, said=st.text(max_size=40) | WORDS)
def test_any_retry_header_gives_a_time_or_none(value: str, said: str) -> None:
    for headers in ({"retry-after": value}, {"ratelimit": f'"api";r=0;t={value}'}, {}):
        wait = retry_after(headers, said)
        assert wait is None or 0 <= wait <= DAY


def test_control_characters_of_a_server_do_not_reach_the_terminal() -> None:
    evil = "\x1b[2J\x1b]0;title\x07 line\r\nERROR hubsync: all is lost\u202e\u2028\x9b31m"
    errors: list[HubError] = [
        classify("it", 500, {"x-error-message": evil, "x-request-id": evil}, b""),
        classify("it", 500, {}, json.dumps({"error": evil}).encode()),
        classify("it", 500, {}, evil.encode()),
        ask(lambda request: httpx.Response(200, content=evil.encode(), headers={"content-type": "x\x1b[2J"})),
    ]
    errors[3] = _raised(errors[3])
    for error in errors:
        for text in (str(error), error.reason, str(error.request_id)):
            assert text.isprintable(), text
    assert "all is lost" in errors[0].reason
    assert len(classify("it", 500, {"x-request-id": "x" * 60_000}, b"").args[0]) < 3_000
    assert one_line("x" * 10_000).endswith("…")


def _raised(answer: Any) -> HubError:
    with pytest.raises(TransientError) as caught:
        answer.decode("it", Any)
    return caught.value
