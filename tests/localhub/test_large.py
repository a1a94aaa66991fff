"""Large files: Xet with the real hf_xet, LFS without it, and what both refuse."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import httpx
import lz4.frame
import pytest
from huggingface_hub import HfApi, constants

from hubsync.localhub import LocalHub
from hubsync.localhub.xet.formats import XetFormatError, hash_text, read_shard, unpack_chunks
from tests.localhub.conftest import REPO, commit, ndjson
from tests.waiting import PATIENCE_S


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def upload(api: HfApi, path: str, content: bytes) -> None:
    api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=REPO, repo_type="dataset")


@pytest.fixture
def no_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def raw_chunk(content: bytes) -> bytes:
    length = len(content).to_bytes(3, "little")
    return b"\0" + length + b"\0" + length + content


def words(text: str) -> bytes:
    return struct.pack("<4Q", *(int(text[start : start + 16], 16) for start in range(0, 64, 16)))


def shard(xorb: str, content: bytes, *, end: int = 1, unpacked: int | None = None, sha256: str | None = None) -> bytes:
    size = len(content) if unpacked is None else unpacked
    head = b"\0" * 32 + struct.pack("<QQ", 2, 0)
    info = words("1" * 64) + struct.pack("<II", 1 << 30, 1) + b"\0" * 8
    entry = words(xorb) + struct.pack("<IIII", 0, size, 0, end)
    extension = words(sha256 or hashlib.sha256(content).hexdigest()) + b"\0" * 16
    return head + info + entry + extension + b"\xff" * 32 + b"\0" * 16


class Cas:
    """A bare client of the CAS with a token for the repo."""

    def __init__(self, http: httpx.Client, scope: str = "write") -> None:
        answer = http.get(f"/api/datasets/{REPO}/xet-{scope}-token/main")
        self.url, self.headers = answer.json()["casUrl"], {"Authorization": f"Bearer {answer.json()['accessToken']}"}
        assert answer.headers["X-Xet-Cas-Url"] == self.url

    def post(self, path: str, body: bytes) -> httpx.Response:
        return httpx.post(self.url + path, content=body, headers=self.headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={**self.headers, **headers})


def test_a_file_is_uploaded_and_downloaded_through_xet(local_hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(3_000_000) + b"text " * 500_000
    upload(api, "big.bin", content)
    (info,) = api.get_paths_info(repo, "big.bin", repo_type="dataset")
    assert (info.size, info.lfs.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert info.xet_hash
    assert Path(api.hf_hub_download(repo, "big.bin", repo_type="dataset")).read_bytes() == content
    assert {"xorb", "shard", "reconstruction", "xorb-data"} <= local_hub.counters().keys()
    assert "lfs-batch" not in local_hub.counters()


def test_a_file_grown_at_its_end_uploads_only_the_new_bytes(local_hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(4_000_000)
    upload(api, "grows.bin", content)
    local_hub.clear_requests()
    upload(api, "grows.bin", content + noise(300_000, seed=1))
    sent = sum(served.bytes_in for served in local_hub.requests("xorb"))
    assert 300_000 <= sent < 1_000_000
    local = api.hf_hub_download(repo, "grows.bin", repo_type="dataset")
    assert Path(local).read_bytes() == content + noise(300_000, seed=1)


def test_floats_that_xet_groups_by_byte_are_downloaded_intact(api: HfApi, repo: str, http: httpx.Client) -> None:
    content = struct.pack("<200001f", *(1 + number / 1e6 for number in range(200_001))) + b"odd"
    upload(api, "floats.bin", content)
    plain = http.get(f"/datasets/{repo}/resolve/main/floats.bin", follow_redirects=True)
    assert plain.content == content


def test_a_xet_file_is_read_without_xet_and_in_ranges(api: HfApi, repo: str, http: httpx.Client) -> None:
    content = noise(2_500_000)
    upload(api, "a.bin", content)
    url = f"/datasets/{repo}/resolve/main/a.bin"
    redirect = http.get(url)
    assert redirect.status_code == 302
    assert redirect.headers["X-Linked-Size"] == str(len(content))
    assert redirect.links["xet-auth"]["url"].startswith(str(http.base_url))
    for start, end in ((0, 0), (65_000, 140_000), (2_499_999, 2_499_999), (1, 2_499_998)):
        part = http.get(url, headers={"Range": f"bytes={start}-{end}"}, follow_redirects=True)
        assert part.status_code == 206
        assert part.content == content[start : end + 1]
    assert http.get(url, headers={"Range": "bytes=2500000-"}, follow_redirects=True).status_code == 416


@pytest.mark.usefixtures("no_xet")
def test_a_file_is_uploaded_and_downloaded_through_lfs(local_hub: LocalHub, api: HfApi, repo: str) -> None:
    content = noise(200_000)
    upload(api, "a.bin", content)
    upload(api, "same.bin", content)
    assert len(local_hub.requests("lfs-upload")) == 1
    (info,) = api.get_paths_info(repo, "a.bin", repo_type="dataset")
    assert info.xet_hash is None
    assert Path(api.hf_hub_download(repo, "a.bin", repo_type="dataset")).read_bytes() == content
    assert "xet-token" not in local_hub.counters()


@pytest.mark.usefixtures("no_xet")
def test_lfs_uploads_in_parts(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "parts", lfs_multipart_bytes=100_000) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO, repo_type="dataset")
        content = noise(450_001)
        upload(api, "a.bin", content)
        assert len(hub.requests("lfs-upload")) == 6
        local = api.hf_hub_download(REPO, "a.bin", repo_type="dataset", cache_dir=tmp_path / "cache")
        assert Path(local).read_bytes() == content


def test_an_lfs_upload_must_have_the_announced_hash_and_size(repo: str, http: httpx.Client) -> None:
    oid = hashlib.sha256(b"announced").hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 9}], "hash_algo": "sha256"}
    answer = http.post(f"/datasets/{repo}.git/info/lfs/objects/batch", json=batch).json()
    actions = answer["objects"][0]["actions"]
    assert httpx.put(actions["upload"]["href"], content=b"different").status_code == 400
    assert httpx.put(actions["upload"]["href"], content=b"much too long").status_code == 413
    assert http.post(actions["verify"]["href"], json={"oid": oid, "size": 9}).status_code == 404
    assert httpx.put(actions["upload"]["href"] + "x", content=b"announced").status_code == 403
    assert httpx.put(actions["upload"]["href"], content=b"announced").status_code == 200
    assert http.post(actions["verify"]["href"], json={"oid": oid, "size": 9}).status_code == 200


def test_a_shard_makes_a_blob_that_a_commit_may_refer_to(api: HfApi, repo: str, http: httpx.Client) -> None:
    cas, content, xorb = Cas(http), b"content of one chunk", "2" * 64
    assert cas.post(f"/v1/xorbs/default/{xorb}", raw_chunk(content)).json() == {"was_inserted": True}
    assert cas.post(f"/v1/xorbs/default/{xorb}", raw_chunk(content)).json() == {"was_inserted": False}
    assert cas.post("/v1/shards", shard(xorb, content)).json() == {"result": 1}
    oid = hashlib.sha256(content).hexdigest()
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": oid, "size": len(content)}}
    assert commit(http, ndjson(line)).status_code == 200
    assert http.get(f"/datasets/{repo}/resolve/main/a.bin", follow_redirects=True).content == content


def test_a_shard_with_false_claims_is_refused(repo: str, http: httpx.Client) -> None:
    cas, content, xorb = Cas(http), b"content of one chunk", "2" * 64
    assert cas.post("/v1/shards", shard(xorb, content)).status_code == 400  # the xorb was never uploaded
    cas.post(f"/v1/xorbs/default/{xorb}", raw_chunk(content))
    assert cas.post("/v1/shards", shard(xorb, content, end=2)).status_code == 400
    assert cas.post("/v1/shards", shard(xorb, content, unpacked=5)).status_code == 400
    assert cas.post("/v1/shards", shard(xorb, content, sha256="3" * 64)).status_code == 400
    assert cas.post("/v1/shards", shard(xorb, content)[:-60]).status_code == 400
    assert cas.post("/v1/shards", b"").status_code == 400


@pytest.mark.parametrize("body", [b"", b"\0\1", raw_chunk(b"cut off")[:-1], b"\7" + raw_chunk(b"version")[1:]])
def test_a_malformed_xorb_is_refused(repo: str, http: httpx.Client, body: bytes) -> None:
    assert Cas(http).post(f"/v1/xorbs/default/{'2' * 64}", body).status_code == 400


def test_the_cas_accepts_only_its_own_tokens(repo: str, http: httpx.Client, local_hub: LocalHub) -> None:
    path = f"/v1/xorbs/default/{'2' * 64}"
    assert Cas(http, "read").post(path, raw_chunk(b"x")).status_code == 403
    cas = Cas(http)
    for header in ({}, {"Authorization": f"Bearer {local_hub.token}"}, {"Authorization": "Bearer a.b"}):
        assert httpx.post(cas.url + path, content=raw_chunk(b"x"), headers=header).status_code == 401


def test_a_xet_token_expires(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    path = f"/v1/xorbs/default/{'2' * 64}"
    with LocalHub(tmp_path / "hub", xet_token_ttl_s=60, clock=lambda: now[0]) as hub:
        http = httpx.Client(base_url=hub.endpoint, headers={"Authorization": f"Bearer {hub.token}"}, timeout=PATIENCE_S)
        http.post("/api/repos/create", json={"name": "rollouts", "type": "dataset"})
        cas = Cas(http)
        assert cas.post(path, raw_chunk(b"x")).status_code == 200
        now[0] += 60
        assert cas.post(path, raw_chunk(b"x")).status_code == 401
        http.close()


def test_a_reconstruction_names_the_chunks_of_a_range(repo: str, http: httpx.Client) -> None:
    cas, xorb = Cas(http), "2" * 64
    chunks = [noise(100, seed) for seed in range(4)]
    cas.post(f"/v1/xorbs/default/{xorb}", b"".join(map(raw_chunk, chunks)))
    cas.post("/v1/shards", shard(xorb, b"".join(chunks), end=4))
    path = f"/v1/reconstructions/{'1' * 64}"
    answer = cas.get(path, Range="bytes=150-250").json()
    assert answer["offset_into_first_range"] == 50
    assert answer["terms"] == [{"hash": xorb, "unpacked_length": 200, "range": {"start": 1, "end": 3}}]
    (fetch,) = answer["fetch_info"][xorb]
    extent = fetch["url_range"]
    data = httpx.get(fetch["url"], headers={"Range": f"bytes={extent['start']}-{extent['end']}"}).content
    assert b"".join(unpack_chunks(data)) == chunks[1] + chunks[2]
    assert cas.get(path, Range="bytes=400-500").status_code == 416
    assert cas.get(f"/v1/reconstructions/{'9' * 64}").status_code == 404


def test_chunks_are_unpacked_in_all_three_schemes() -> None:
    content = bytes(range(256)) * 4 + b"odd"
    grouped = b"".join(content[lane::4] for lane in range(4))
    size = len(content).to_bytes(3, "little")
    for scheme, packed in ((0, content), (1, lz4.frame.compress(content)), (2, lz4.frame.compress(grouped))):
        record = b"\0" + len(packed).to_bytes(3, "little") + bytes([scheme]) + size + packed
        assert b"".join(unpack_chunks(record)) == content


def test_hashes_are_written_in_little_endian_words() -> None:
    assert hash_text(bytes(range(32))) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"


def test_a_shard_of_another_version_is_not_read() -> None:
    with pytest.raises(XetFormatError):
        read_shard(b"\0" * 32 + struct.pack("<QQ", 3, 0))
