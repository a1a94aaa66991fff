"""Others may change, break or delete the dataset's card: the dataset still loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import Uploader
from hubsync.localhub import Fault, LocalHub
from tests.conftest import Dataset
from tests.e2e.test_drift import Reader

Make = Callable[..., Uploader]


@pytest.fixture
def reader(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reader:
    return Reader(hub, monkeypatch, tmp_path)


@pytest.mark.parametrize("times", [1, 3])
def test_a_card_that_was_rejected_a_few_times_is_committed_later(
    uploader: Make, hub: LocalHub, reader: Reader, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After three rejections the rows are committed without the card; the next card contains their entries."""
    monkeypatch.setattr("hubsync.committer.card_updater._REST_S", 0.0)
    rows = [{"id": 0}]
    with uploader() as up:
        up.put(rows, ack="committed")
        hub.faults.add(Fault.status(422, on="commit", times=times))
        for n in range(1, 3):
            rows.append({"id": n, **({"new": "x", "more": {"a": 1}} if n == 1 else {})})
            up.put(rows[-1:], ack="committed", timeout=30)
    reader.sees(rows)


def test_the_next_accepted_card_contains_what_earlier_jobs_could_not_add(
    uploader: Make, hub: LocalHub, reader: Reader
) -> None:
    with uploader() as up:
        up.put([{"id": 0}], ack="committed")
        hub.faults.add(Fault.status(422, on="commit", times=3))
        up.put([{"id": 1, "new": "x"}], ack="committed", timeout=30)
    with uploader() as up:
        up.put([{"id": 2}], ack="committed", timeout=30)
    reader.sees([{"id": 0}, {"id": 1, "new": "x"}, {"id": 2}])


@pytest.mark.slow("loads with datasets, several times")
@pytest.mark.parametrize("more", [{}, {"new": 1}], ids=["as before", "a new column"])
def test_a_deleted_card_is_created_again_for_all_configs(
    uploader: Make, dataset: Dataset, reader: Reader, more: dict[str, int]
) -> None:
    with uploader() as one, uploader(config="other") as other:
        one.put([{"id": 1, "text": "a"}], ack="committed")
        other.put([{"id": 1, "n": 1}], ack="committed")
        dataset.api.delete_file("README.md", "user/rows", repo_type="dataset")
        one.put([{"id": 2, "text": "b", **more}], ack="committed")
        reader.sees([{"id": 1, "n": 1}], "other")
        other.put([{"id": 2, "n": 2, **more}], ack="committed")
    reader.sees([{"id": 1, "n": 1}, {"id": 2, "n": 2, **more}], "other")
    reader.sees([{"id": 1, "text": "a"}, {"id": 2, "text": "b", **more}])


@pytest.mark.slow("loads with datasets, several times")
def test_a_repo_created_again_gets_a_card_for_new_rows_only(uploader: Make, dataset: Dataset, reader: Reader) -> None:
    with uploader() as one, uploader(config="other") as other:
        one.put([{"id": 1, "text": "a"}], ack="committed")
        other.put([{"id": 1, "n": 1}], ack="committed")
        dataset.api.delete_repo("user/rows", repo_type="dataset")
        dataset.api.create_repo("user/rows", repo_type="dataset")
        other.put([{"id": 2, "n": 2}], ack="committed", timeout=30)
        reader.sees([{"id": 2, "n": 2}], "other")
        one.put([{"id": 2, "text": "b"}], ack="committed", timeout=30)
        reader.sees([{"id": 2, "text": "b"}])


@pytest.mark.slow("uploads a card of megabytes")
def test_a_card_that_is_too_large_to_read_does_not_stop_commits(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up.put([{"id": 1}], ack="committed", timeout=30)
        dataset.api.upload_file(
            path_or_fileobj=b"# mine\n" + b"x" * (9 << 20),
            path_in_repo="README.md", repo_id="user/rows", repo_type="dataset",
        )  # fmt: skip
        up.put([{"id": 2, "new": "x"}], ack="committed", timeout=30)
    assert dataset.ids() == [1, 2]


def test_a_new_column_is_committed_after_the_history_was_squashed(
    uploader: Make, dataset: Dataset, reader: Reader
) -> None:
    with uploader() as up:
        up.put([{"id": 1}], ack="committed")
        dataset.api.super_squash_history("user/rows", repo_type="dataset")
        up.put([{"id": 2, "new": "x"}], ack="committed", timeout=30)
    reader.sees([{"id": 1}, {"id": 2, "new": "x"}])
