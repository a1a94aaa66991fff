"""A job sends few requests: each one that is not needed costs latency at the start and room in the Hub's window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

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


def test_a_job_that_comes_back_looks_at_the_dataset_once(hub: LocalHub, uploader: Callable[..., Uploader]) -> None:
    job(hub, uploader())
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
