"""Shared by the tests of the embedded Hub: an HfApi and a bare HTTP client for the fixture `local_hub`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi

from hubsync.localhub import LocalHub
from tests.waiting import PATIENCE_S

REPO = "user/rollouts"


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.endpoint, token=local_hub.token)


@pytest.fixture
def repo(api: HfApi) -> str:
    api.create_repo(REPO, repo_type="dataset")
    return REPO


@pytest.fixture
def http(local_hub: LocalHub) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {local_hub.token}"}
    with httpx.Client(base_url=local_hub.endpoint, headers=headers, timeout=PATIENCE_S) as client:
        yield client


def ndjson(*lines: dict[str, Any], summary: str = "a commit", parent: str | None = None) -> bytes:
    header = {"summary": summary, "description": ""} | ({"parentCommit": parent} if parent else {})
    return b"".join(json.dumps(line).encode() + b"\n" for line in ({"key": "header", "value": header}, *lines))


def file_line(path: str, content: str = "x") -> dict[str, Any]:
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "utf-8"}}


def commit(http: httpx.Client, body: bytes, *, repo: str = REPO, revision: str = "main") -> httpx.Response:
    headers = {"Content-Type": "application/x-ndjson"}
    return http.post(f"/api/datasets/{repo}/commit/{revision}", content=body, headers=headers)
