"""A job sends few requests: each one that is not needed costs latency at the start and room in the Hub's window."""

from __future__ import annotations

import base64
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from hubsync import Uploader
from hubsync.localhub import LocalHub
from tests.conftest import Dataset


def job(hub: LocalHub, up: Uploader, batches: int = 20) -> Counter[str]:
    hub.clear_requests()
    with up:
        for n in range(batches):
            up.put([{"id": n}])
    return Counter(str(served.operation.value) for served in hub.requests())


def test_a_new_dataset_needs_one_request_of_each_kind(hub: LocalHub, uploader: Callable[..., Uploader]) -> None:
    assert job(hub, uploader()) == {"repo-info": 2, "repo-create": 1, "preupload": 1, "commit": 1}


def test_later_commits_need_two_requests(hub: LocalHub, uploader: Callable[..., Uploader]) -> None:
    with uploader() as up:
        up.put([{"id": 0}])
        up.flush()
        hub.clear_requests()
        for n in range(3):
            up.put([{"id": n}])
            up.flush()
        assert Counter(served.operation for served in hub.requests()) == {"preupload": 3, "commit": 3}


def test_a_restarted_job_reads_nothing_of_an_unchanged_dataset(
    hub: LocalHub, uploader: Callable[..., Uploader]
) -> None:
    job(hub, uploader())
    for _ in range(2):
        found = job(hub, uploader())
        found.pop("paths-info", None)  # of a shard that was open when the committer took over
        assert found == {"repo-info": 1, "preupload": 2, "commit": 1}


def test_a_job_that_comes_back_looks_once_at_a_dataset_that_someone_changed(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset
) -> None:
    job(hub, uploader())
    dataset.api.upload_file(path_or_fileobj=b"1\n", path_in_repo="notes.txt", repo_id="user/rows", repo_type="dataset")
    found = job(hub, uploader())
    # Access, what others committed under our name, the folder, the card; then its own two. A shard that was open when
    # the committer took over is also looked up.
    paths_info = found.pop("paths-info")
    assert found == {"repo-info": 1, "preupload": 2, "tree": 1, "resolve": 2, "commit": 1}
    assert paths_info in (2, 3)


def test_a_card_that_someone_wrote_into_a_new_dataset_is_kept(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset
) -> None:
    with uploader() as up:
        dataset.api.upload_file(
            path_or_fileobj=b"# Mine\n", path_in_repo="README.md", repo_id="user/rows", repo_type="dataset"
        )
        up.put([{"id": 1}])
    assert "# Mine" in dataset.read("README.md").decode()


def test_the_card_that_is_remembered_gets_the_next_jobs_split(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset
) -> None:
    job(hub, uploader())
    before = dataset.read("README.md").decode()
    job(hub, uploader(split="test"))
    ours = [served for served in hub.requests("resolve") if (served.user_agent or "").startswith("hubsync")]
    assert [served.path for served in ours if "README" in served.path] == []
    after = dataset.read("README.md").decode()
    assert [line for line in before.splitlines() if line not in after.splitlines()] == []
    assert ("split: test" in before, "split: test" in after) == (False, True)


def test_a_remembered_card_that_the_disk_damaged_is_read_again(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path
) -> None:
    job(hub, uploader())
    before = dataset.read("README.md")
    with closing(sqlite3.connect(tmp_path / "spool" / "catalogue.sqlite")) as db, db:
        text = db.execute("SELECT value FROM meta WHERE key = 'last_commit'").fetchone()[0]
        damaged = msgspec.json.decode(text) | {"card": base64.b64encode(b"x" + before[1:]).decode()}
        db.execute("UPDATE meta SET value = ? WHERE key = 'last_commit'", [msgspec.json.encode(damaged).decode()])
    job(hub, uploader(split="test"))
    assert dataset.read("README.md").startswith(before[:8])
