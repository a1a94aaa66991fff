"""Squashing the history of a dataset on the embedded Hub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubsync import ShardPolicy, Uploader, reader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.squash import Squashed, squash

REPO = "user/rows"
Make = Callable[..., Uploader]


@pytest.fixture
def run(hub: LocalHub) -> Callable[..., Squashed]:
    def run(**changes: Any) -> Squashed:
        return squash(REPO, **{"endpoint": hub.endpoint, "token": hub.token, **changes})

    return run


def write(up: Uploader, *ids: int) -> None:
    for n in ids:
        up.put([{"id": n}])
        up.flush()


@pytest.mark.parametrize("fault", [None, Fault.reset(when="after", on="squash", times=1)])
def test_the_history_becomes_one_commit_and_a_running_job_continues(
    hub: LocalHub, uploader: Make, run: Callable[..., Squashed], fault: Fault | None
) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    with uploader(shard=ShardPolicy(linger_s=3600)) as up:
        write(up, 1, 2, 3)
        before = run()
        assert (before.commits > 3, before.commit) == (True, None)
        assert len(api.list_repo_commits(REPO, repo_type="dataset")) == before.commits
        if fault is not None:
            hub.faults.add(fault)
        after = run(apply=True)
        assert after == (REPO, "main", before.commits, api.dataset_info(REPO).sha)
        assert len(api.list_repo_commits(REPO, repo_type="dataset")) == 1
        write(up, 4)
    rows = reader.rows(REPO, endpoint=hub.endpoint, token=hub.token)
    assert [row["id"] for row in rows] == [1, 2, 3, 4]


def test_a_history_of_one_commit_is_left_alone(hub: LocalHub, run: Callable[..., Squashed]) -> None:
    HfApi(endpoint=hub.endpoint, token=hub.token).create_repo(REPO, repo_type="dataset")
    assert run(apply=True).commit is None
