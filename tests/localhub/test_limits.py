"""The commit quota and the request window, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hubsync.localhub import Fault, LocalHub
from tests.localhub.conftest import REPO, commit, file_line, ndjson


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
    with httpx.Client(base_url=hub.endpoint, headers={"Authorization": f"Bearer {hub.token}"}) as client:
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
    with httpx.Client(base_url=hub.endpoint, headers=other) as second:
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
