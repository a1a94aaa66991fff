"""The commit quota and the request window, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hubsync.localhub import Fault, LocalHub
from tests.localhub.conftest import REPO, commit, file_line, ndjson
from tests.waiting import PATIENCE_S


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(tmp_path: Path, clock: Clock) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub", commits_per_hour=3, clock=clock) as hub:
        yield hub


@pytest.fixture
def http(hub: LocalHub) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=hub.endpoint, headers={"Authorization": f"Bearer {hub.token}"}, timeout=PATIENCE_S
    ) as client:
        client.post("/api/repos/create", json={"name": "rollouts", "type": "dataset"})
        yield client


def statuses(http: httpx.Client, count: int) -> list[int]:
    return [commit(http, ndjson(file_line("a", str(number)))).status_code for number in range(count)]


def test_the_quota_is_a_sliding_hour(http: httpx.Client, clock: Clock) -> None:
    assert statuses(http, 2) == [200, 200]
    clock.now += 1800
    assert statuses(http, 3) == [200, 429, 429]
    clock.now += 1801
    assert statuses(http, 3) == [200, 200, 429]


def test_the_quotas_429_describes_the_api_window_and_names_commits_in_its_body(http: httpx.Client) -> None:
    statuses(http, 3)
    refused = commit(http, ndjson(file_line("a")))
    assert "repository commits (3 per hour). Retry this action in about 1 hour." in refused.json()["error"]
    assert "r=0" not in refused.headers["RateLimit"]
    assert "Retry-After" not in refused.headers


def test_refused_commits_cost_nothing(hub: LocalHub, http: httpx.Client) -> None:
    hub.faults.add(Fault.status(503, on="commit", times=5))
    assert statuses(http, 5) == [503] * 5
    assert commit(http, ndjson(file_line("../a"))).status_code == 422
    assert statuses(http, 4) == [200, 200, 200, 429]


def test_uploading_a_blob_costs_nothing(hub: LocalHub, http: httpx.Client) -> None:
    for _ in range(9):
        assert http.get(f"/api/datasets/{REPO}/xet-write-token/main").status_code == 200
    assert statuses(http, 1) == [200]


def test_each_user_has_a_separate_quota(hub: LocalHub, http: httpx.Client) -> None:
    statuses(http, 4)
    other = {"Authorization": f"Bearer {hub.add_user('other')}"}
    hub.add_org("lab", ["user", "other"])
    http.post("/api/repos/create", json={"name": "shared", "organization": "lab", "type": "dataset"})
    with httpx.Client(base_url=hub.endpoint, headers=other, timeout=PATIENCE_S) as second:
        assert commit(second, ndjson(file_line("a")), repo="lab/shared").status_code == 200
    assert commit(http, ndjson(file_line("a")), repo="lab/shared").status_code == 429


def test_the_quota_survives_a_restart(tmp_path: Path, hub: LocalHub, http: httpx.Client, clock: Clock) -> None:
    statuses(http, 3)
    hub.close()
    with LocalHub(tmp_path / "hub", port=hub.port, commits_per_hour=3, clock=clock):
        assert statuses(http, 1) == [429]


def test_the_request_window_counts_down_and_refuses_with_a_limit(tmp_path: Path, clock: Clock) -> None:
    with LocalHub(tmp_path / "strict", requests_per_window=2, clock=clock) as hub:
        headers = {"Authorization": f"Bearer {hub.token}"}
        answers = [httpx.get(f"{hub.endpoint}/api/whoami-v2", headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert [answer.headers["RateLimit"].split(";")[1] for answer in answers] == ["r=1", "r=0", "r=0"]
        clock.now += 300
        assert httpx.get(f"{hub.endpoint}/api/whoami-v2", headers=headers).status_code == 200


def test_a_token_expires_by_the_clock(hub: LocalHub, http: httpx.Client, clock: Clock) -> None:
    token = hub.add_user("brief", expires_at=clock.now + 60)
    headers = {"Authorization": f"Bearer {token}"}
    assert http.get("/api/whoami-v2", headers=headers).status_code == 200
    clock.now += 60
    assert http.get("/api/whoami-v2", headers=headers).status_code == 401


# Hard limits, small enough for a test


@pytest.fixture
def strict(local_hub: LocalHub, http_local: httpx.Client) -> httpx.Client:
    local_hub.limits.update(
        folder_entries=3, preupload_files=2, lfs_batch_objects=2, requested_paths=2, page_entries=2, inlined_bytes=50,
        regular_bytes=40,
    )  # fmt: skip
    return http_local


@pytest.fixture
def http_local(local_hub: LocalHub) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=local_hub.endpoint, headers={"Authorization": f"Bearer {local_hub.token}"}, timeout=PATIENCE_S
    ) as client:
        client.post("/api/repos/create", json={"name": "rollouts", "type": "dataset"})
        yield client


def files(folder: str, *names: int) -> list[dict[str, Any]]:
    return [file_line(f"{folder}{name}", str(name)) for name in names]


def test_a_commit_may_not_leave_too_many_entries_in_a_folder(strict: httpx.Client) -> None:
    assert commit(strict, ndjson(*files("data/x/", 1, 2, 3))).status_code == 200
    refused = commit(strict, ndjson(*files("data/x/", 4), *files("data/y/", 1, 2, 3, 4), *files("data/z/", 1)))
    message = (
        "Your push was rejected because it contains too many files per directory. Each directory in your git repo can "
        "only contain up to 3 files. Offending reference: refs/heads/main "
        "Offending directories: /data/x/, /data/y/"
    )
    assert (refused.status_code, refused.json()) == (400, {"error": message})
    assert refused.headers["X-Error-Message"] == message
    assert [item["path"] for item in strict.get(f"/api/datasets/{REPO}/tree/main/data").json()] == ["data/x"]


def test_folders_count_as_entries_and_the_root_is_a_folder(strict: httpx.Client) -> None:
    assert commit(strict, ndjson(*files("a/", 1), *files("b/", 1))).status_code == 200  # in addition to .gitattributes
    refused = commit(strict, ndjson(*files("c/d/", 1)))
    assert refused.json()["error"].endswith("Offending directories: /")


def test_a_full_folder_can_still_be_changed_and_emptied(local_hub: LocalHub, http_local: httpx.Client) -> None:
    assert commit(http_local, ndjson(*files("x/", 1, 2, 3, 4, 5))).status_code == 200
    local_hub.limits.folder_entries = 3
    deleted = {"key": "deletedFile", "value": {"path": "x/1"}}
    assert commit(http_local, ndjson(file_line("x/2", "new"))).status_code == 200
    assert commit(http_local, ndjson(deleted, *files("x/", 6))).status_code == 200
    assert commit(http_local, ndjson(*files("x/deeper/", 1))).status_code == 400
    assert commit(http_local, ndjson({"key": "deletedFolder", "value": {"path": "x"}})).status_code == 200


def test_a_merge_keeps_to_the_folder_limit(local_hub: LocalHub, http_local: httpx.Client) -> None:
    opened = commit(http_local, ndjson(*files("x/", 1, 2)), revision="main?create_pr=1")
    assert opened.json()["pullRequestUrl"].endswith("/1")
    assert commit(http_local, ndjson(*files("x/", 3, 4))).status_code == 200
    local_hub.limits.folder_entries = 3
    merged = http_local.post(f"/api/datasets/{REPO}/discussions/1/merge", json={})
    assert (merged.status_code, "Offending directories: /x/" in merged.text) == (400, True)


def test_the_default_limit_of_a_folder_is_the_hubs(http_local: httpx.Client) -> None:
    lines = [{"key": "file", "value": {"path": f"x/{number}", "content": ""}} for number in range(10_000)]
    assert commit(http_local, ndjson(*lines)).status_code == 200
    assert "only contain up to 10000 files" in commit(http_local, ndjson(*files("x/", 10_000))).json()["error"]


def test_a_preupload_of_too_many_files_is_refused(strict: httpx.Client) -> None:
    body = {"files": [{"path": str(number), "size": 1, "sample": ""} for number in range(3)]}
    refused = strict.post(f"/api/datasets/{REPO}/preupload/main", json=body)
    assert (refused.status_code, "less than or equal to 2 items" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("form", ["json", "data"])
def test_a_request_for_too_many_paths_is_refused(strict: httpx.Client, form: str) -> None:
    body: dict[str, Any] = {form: {"paths": ["a", "b", "c"]}}
    refused = strict.post(f"/api/datasets/{REPO}/paths-info/main", **body)
    assert (refused.status_code, refused.json()["error"]) == (413, "too many parameters")


def test_an_lfs_batch_of_too_many_objects_is_refused(strict: httpx.Client) -> None:
    body = {"operation": "upload", "objects": [{"oid": f"{n:064x}", "size": 1} for n in range(3)]}
    assert strict.post(f"/datasets/{REPO}.git/info/lfs/objects/batch", json=body).status_code == 422


def test_a_tree_comes_in_pages_of_the_limit(strict: httpx.Client) -> None:
    commit(strict, ndjson(*files("x/", 1, 2, 3)))
    first = strict.get(f"/api/datasets/{REPO}/tree/main/x")
    assert [item["path"] for item in first.json()] == ["x/1", "x/2"]
    assert [item["path"] for item in strict.get(first.links["next"]["url"]).json()] == ["x/3"]
    assert strict.get(f"/api/datasets/{REPO}/tree/main/x?limit=3").status_code == 400


def test_inlined_content_and_regular_files_are_bounded(strict: httpx.Client) -> None:
    assert commit(strict, ndjson(file_line("a", "x" * 40))).status_code == 200
    large = commit(strict, ndjson(file_line("b", "x" * 41)))
    assert (large.status_code, "files larger than" in large.json()["error"]) == (400, True)
    assert commit(strict, ndjson(file_line("b", "x" * 30), file_line("c", "x" * 30))).status_code == 413
    files = [{"path": str(size), "size": size, "sample": ""} for size in (39, 40)]
    modes = strict.post(f"/api/datasets/{REPO}/preupload/main", json={"files": files}).json()["files"]
    assert [mode["uploadMode"] for mode in modes] == ["regular", "lfs"]


def test_the_control_api_shows_and_changes_the_limits(local_hub: LocalHub, http_local: httpx.Client) -> None:
    shown = http_local.get("/_localhub/limits").json()
    assert (shown["folder_entries"], shown["commits_per_hour"]) == (10_000, None)
    changed = http_local.patch("/_localhub/limits", json={"folder_entries": 1, "commits_per_hour": 2})
    assert (changed.status_code, changed.json()["folder_entries"]) == (200, 1)
    assert (local_hub.limits.folder_entries, local_hub.limits.commits_per_hour) == (1, 2)


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"folders": 1}', b'{"folder_entries": 0}', b'{"inlined_bytes": "1"}'])
def test_a_wrong_limit_is_refused_and_changes_nothing(
    local_hub: LocalHub, http_local: httpx.Client, body: bytes
) -> None:
    headers = {"Content-Type": "application/json"}
    before = http_local.get("/_localhub/limits").json()
    assert http_local.patch("/_localhub/limits", content=body, headers=headers).status_code == 400
    assert http_local.get("/_localhub/limits").json() == before
    with pytest.raises(AttributeError):
        local_hub.limits.folders = 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="folders"):
        LocalHub(local_hub.directory, folders=3)
