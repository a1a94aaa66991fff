"""The embedded Hub refuses what the Hub refuses, with its statuses, headers and bodies."""

from __future__ import annotations

import re

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from hubsync.localhub import LocalHub
from tests.localhub.conftest import commit, file_line, ndjson

ESCAPES = ["../a", "/a", "a/../b", "a//b", "./a", ".git/config", "a/.GIT/b", "..\\a", "a/", "", "a\x00b", "x" * 300]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_outside_the_repo_is_refused(repo: str, http: httpx.Client, path: str) -> None:
    assert commit(http, ndjson(file_line(path))).status_code == 422
    files = [{"path": path, "size": 1, "sample": ""}]
    assert http.post(f"/api/datasets/{repo}/preupload/main", json={"files": files}).status_code == 422


def test_a_stale_parent_is_refused_and_nothing_is_visible(api: HfApi, repo: str, http: httpx.Client) -> None:
    stale = api.dataset_info(repo).sha
    landed = commit(http, ndjson(file_line("a.txt")))
    refused = commit(http, ndjson(file_line("b.txt"), parent=stale))
    assert refused.status_code == 412
    assert "Please refresh and try again." in refused.json()["error"]
    assert api.dataset_info(repo).sha == landed.json()["commitOid"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json\n",
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":\n',
        b'{"key":"file","value":{"path":"a","content":""}}\n',
        b'{"key":"header","value":{"summary":""}}\n',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"header","value":{"summary":"x"}}\n',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"renamedFile","value":{"path":"a"}}\n',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"%%%","encoding":"base64"}}\n',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a"}}\n',
    ],
)
def test_malformed_commits_are_refused_and_change_nothing(
    api: HfApi, repo: str, http: httpx.Client, body: bytes
) -> None:
    before = api.dataset_info(repo).sha
    assert commit(http, body).status_code == 400
    assert api.dataset_info(repo).sha == before


def test_a_commit_must_be_ndjson(repo: str, http: httpx.Client) -> None:
    assert http.post(f"/api/datasets/{repo}/commit/main", json={"summary": "x"}).status_code == 415


def test_a_blob_that_was_never_uploaded_cannot_be_committed(repo: str, http: httpx.Client) -> None:
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    assert commit(http, ndjson(line)).status_code == 400


def test_a_blob_of_another_repo_cannot_be_committed(api: HfApi, repo: str, http: httpx.Client) -> None:
    api.create_repo("user/other", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"secret" * 99, path_in_repo="a.bin", repo_id="user/other", repo_type="dataset")
    sha256 = api.get_paths_info("user/other", "a.bin", repo_type="dataset")[0].lfs.sha256
    line = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": sha256, "size": 594}}
    assert commit(http, ndjson(line)).status_code == 400
    assert commit(http, ndjson(line), repo="user/other").status_code == 200


def test_a_large_file_cannot_be_inlined(repo: str, http: httpx.Client) -> None:
    refused = commit(http, ndjson(file_line("a.txt", "x" * (10 * 1024 * 1024 + 1))))
    assert refused.status_code == 400
    assert "larger than 10 MiB" in refused.json()["error"]


def test_a_file_cannot_replace_a_folder_nor_a_folder_a_file(repo: str, http: httpx.Client) -> None:
    assert commit(http, ndjson(file_line("a/b"))).status_code == 200
    assert commit(http, ndjson(file_line("a"))).status_code == 400
    assert commit(http, ndjson(file_line("a/b/c"))).status_code == 400


def test_a_tag_cannot_be_committed_to(api: HfApi, repo: str, http: httpx.Client) -> None:
    api.create_tag(repo, tag="v1", repo_type="dataset")
    assert commit(http, ndjson(file_line("a")), revision="v1").headers["X-Error-Code"] == "RevisionNotFound"
    assert commit(http, ndjson(file_line("a")), revision="nowhere").status_code == 404


@pytest.mark.parametrize("name", ["", "a b", "a--b", "a..b", "-a", ".a", "a" * 97, "a.git", "ä", "a/b/c"])
def test_repo_names_that_the_hub_refuses_are_refused(http: httpx.Client, local_hub: LocalHub, name: str) -> None:
    assert http.post("/api/repos/create", json={"name": name, "type": "dataset"}).status_code == 400


@pytest.mark.parametrize("path", ["/user/rollouts", "", "/user/rollouts/tree/main", "/user/rollouts/refs"])
def test_a_bad_token_is_refused_even_for_a_public_repo(local_hub: LocalHub, repo: str, path: str) -> None:
    answer = httpx.get(f"{local_hub.endpoint}/api/datasets{path}", headers={"Authorization": "Bearer hf_wrong"})
    assert answer.status_code == 401
    assert answer.headers["X-Error-Message"] == "Invalid credentials in Authorization header"


def test_a_read_token_may_read_and_not_write(local_hub: LocalHub, repo: str) -> None:
    reader = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("user", role="read"))
    assert reader.dataset_info(repo).id == repo
    with pytest.raises(HfHubHTTPError) as refused:
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=repo, repo_type="dataset")
    assert refused.value.response.status_code == 403


def test_a_stranger_may_not_write_but_may_open_a_pull_request(local_hub: LocalHub, repo: str) -> None:
    other = HfApi(endpoint=local_hub.endpoint, token=local_hub.add_user("mallory"))
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        other.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=repo, repo_type="dataset")
    made = other.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id=repo, repo_type="dataset", create_pr=True)
    assert made.pr_num == 1
    with pytest.raises(HfHubHTTPError):
        other.create_repo("user/mine", repo_type="dataset")


def test_revoked_and_expired_tokens_are_refused(local_hub: LocalHub) -> None:
    gone, late = local_hub.add_user("gone"), local_hub.add_user("late", expires_at=1.0)
    local_hub.revoke(gone)
    for token in (gone, late):
        answer = httpx.get(f"{local_hub.endpoint}/api/whoami-v2", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401


def test_the_error_code_header_names_what_is_missing(repo: str, http: httpx.Client, local_hub: LocalHub) -> None:
    missing = http.get("/api/datasets/user/nothing")
    assert (missing.status_code, missing.headers["X-Error-Code"]) == (404, "RepoNotFound")
    anonymous = httpx.get(f"{local_hub.endpoint}/api/datasets/user/nothing")
    assert (anonymous.status_code, anonymous.headers["X-Error-Code"]) == (401, "RepoNotFound")
    revision = http.get(f"/api/datasets/{repo}/tree/nowhere")
    assert (revision.status_code, revision.headers["X-Error-Code"]) == (404, "RevisionNotFound")
    entry = http.get(f"/datasets/{repo}/resolve/main/nothing")
    assert (entry.status_code, entry.headers["X-Error-Code"]) == (404, "EntryNotFound")
    assert set(missing.json()) == {"error"}


def test_every_answer_carries_the_rate_limit_and_a_request_id(repo: str, http: httpx.Client) -> None:
    for path in (f"/api/datasets/{repo}", "/api/nothing", f"/datasets/{repo}/resolve/main/.gitattributes"):
        headers = http.get(path).headers
        assert re.fullmatch(r'"(api|resolvers)";r=\d+;t=\d+', headers["RateLimit"])
        assert re.fullmatch(r'"fixed window";"(api|resolvers)";q=\d+;w=300', headers["RateLimit-Policy"])
        assert headers["X-Request-Id"]


def test_a_gated_repo_shows_itself_but_not_its_files(local_hub: LocalHub, api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, repo_type="dataset", gated="auto")
    headers = {"Authorization": f"Bearer {local_hub.add_user('reader')}"}
    assert httpx.get(f"{local_hub.endpoint}/api/datasets/{repo}", headers=headers).status_code == 200
    refused = httpx.get(f"{local_hub.endpoint}/datasets/{repo}/resolve/main/.gitattributes", headers=headers)
    assert (refused.status_code, refused.headers["X-Error-Code"]) == (403, "GatedRepo")


def test_a_missing_revision_is_named_before_a_bad_name_of_a_tag(repo: str, http: httpx.Client) -> None:
    for revision, status in (("nowhere", 404), ("main", 400)):
        assert http.post(f"/api/datasets/{repo}/tag/{revision}", json={"tag": "not a tag"}).status_code == status


@pytest.mark.parametrize("license", ["MIT", "asdf", "[mit, asdf]", "{name: mit}"])
def test_a_card_with_an_unknown_license_is_refused(repo: str, http: httpx.Client, license: str) -> None:
    card = f"---\nlicense: {license}\n---\n"
    refused = commit(http, ndjson(file_line("README.md", card)))
    assert refused.status_code == 400
    assert '"license" must be one of [apache-2.0, mit, ' in refused.json()["error"]
    judged = http.post("/api/validate-yaml", json={"content": card, "repoType": "dataset"})
    assert (judged.status_code, len(judged.json()["errors"])) == (400, 1)


@pytest.mark.parametrize("license", ["mit", "openrail++", "[cc-by-4.0, other]", ""])
def test_a_card_with_known_licenses_is_accepted(repo: str, http: httpx.Client, license: str) -> None:
    assert commit(http, ndjson(file_line("README.md", f"---\nlicense: {license}\nx: 1\n---\n"))).status_code == 200


def test_too_many_files_in_one_preupload_are_refused(repo: str, http: httpx.Client) -> None:
    files = [{"path": f"{number}", "size": 1, "sample": ""} for number in range(257)]
    assert http.post(f"/api/datasets/{repo}/preupload/main", json={"files": files}).status_code == 400


@pytest.mark.parametrize(
    "path", ["tree/main/%00", "tree/%ED%A0%80", "tree/main?limit=x", "commits/main?p=-1", "discussions/x"]
)
def test_strange_addresses_are_refused_and_never_break_the_hub(repo: str, http: httpx.Client, path: str) -> None:
    assert http.get(f"/api/datasets/{repo}/{path}").status_code in (400, 404)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"tag": "\\ud800"}', b'{"tag": [1]}'])
def test_strange_bodies_are_refused_and_never_break_the_hub(repo: str, http: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert http.post(f"/api/datasets/{repo}/tag/main", content=body, headers=headers).status_code == 400
