"""A spool that an earlier version wrote opens, and all its rows arrive exactly once.

The spool and its dataset are stored in `tests/data/`; README.md there describes what they hold.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubsync import Uploader
from hubsync._runtime.clock import SystemClock
from hubsync.committer.rate_limiter import RateLimiter, last_policy
from hubsync.dashboard.snapshot import snapshot
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.verify import verify
from hubsync.model.stats import SpoolDepth
from hubsync.model.target import Target
from hubsync.spool.opening import open_spool
from hubsync.spool.segments import Segment
from hubsync.telemetry.heartbeat import read_heartbeats
from tests.conftest import FAST, Commands, Dataset

ARCHIVE = Path(__file__).parents[1] / "data" / "spool_81481e5" / "spool.tar.gz"

COMMITTED = [0, 1, 2, 3, 7, 8, 10, 11]
RESPONSE_LOST = [20, 21]
WAITING = [22, 23, 24, 25, 26, 30, 31, 32, 33, 34]
CONFLICT, REJECTED, DISCARDED, TORN = 4, 5, 6, 27  # one row each
SEGMENT_OF = {"conflict": 4, "rejected": 5, "discarded": 6, "response lost": 8}
KEYS = ["first", "empty", "conflict", "rejected", "discarded", "response lost", "staged", "open"]


@pytest.fixture
def spool(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old spool, with its dataset on the test's Hub."""
    monkeypatch.setenv("HF_TOKEN", hub.token)  # for `drain`
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", filter="tar")
    spool = tmp_path / "old" / "spool"
    move_to(hub.endpoint, spool)
    restore_dataset(hub, tmp_path / "old" / "dataset")
    return spool


def move_to(endpoint: str, spool: Path) -> None:
    """Let a spool belong to another endpoint, as if its Hub had a new address."""
    target = msgspec.json.encode(Target(endpoint, "user/rows")).decode()
    with closing(sqlite3.connect(spool / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'target'", [target])
    for note in (spool / "writers").glob("*.json"):
        note.write_text(json.dumps({**json.loads(note.read_text()), "target": json.loads(target)}))


def restore_dataset(hub: LocalHub, directory: Path) -> None:
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("user/rows", repo_type="dataset", private=True)
    files = [path for path in directory.rglob("*") if path.is_file()]
    additions = [CommitOperationAdd(str(path.relative_to(directory)), path) for path in sorted(files)]
    api.create_commit("user/rows", additions, commit_message="restored", repo_type="dataset")


@pytest.fixture
def reopened(spool: Path, hub: LocalHub) -> Iterator[Uploader]:
    """An uploader of this version, on the old spool."""
    with Uploader("user/rows", endpoint=hub.endpoint, token=hub.token, spool=spool, **FAST) as up:
        yield up


def status(run: Commands, spool: Path) -> dict[str, Any]:
    done = run("status", spool, "--json")
    assert done.returncode in (0, 1), done.stderr  # 1: something needs attention
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def segment(spool: Path, number: int) -> Segment:
    opened = open_spool(None, spool, SystemClock())
    try:
        return opened.segments.get(number)
    finally:
        opened.close()


def upload(spool: Path) -> SpoolDepth:
    return drain(spool, retry=FAST["retry"])


def assert_verified(hub: LocalHub, spool: Path) -> None:
    report = verify("user/rows", spool=spool, endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()


def test_status_reads_it(spool: Path, run: Commands) -> None:
    found = status(run, spool)
    assert found["rows_waiting"] == len(RESPONSE_LOST + WAITING)
    assert found["shards"] == {"open": 2, "sealed": 2, "staged": 3, "dead": 2}
    assert found["committed"] == {"rows": 8, "bytes": 198, "shards": 4}
    assert (found["state"], found["committer_pid"], found["writer_pids"]) == ("ok", None, [])
    conflict, rejected = found["dead_letter"]
    assert (conflict["id"], conflict["path"]) == (4, "data/train-b5245b80-00002.jsonl")
    assert conflict["why"] == "field 'text': it is int64, and the column holds string (line 1)"
    assert rejected["id"] == 5
    assert "422" in rejected["why"]


def test_the_dashboard_reads_it(spool: Path) -> None:
    found = snapshot(spool, 100)
    rows = {state: depth.rows for state, depth in found.depths.items()}
    assert rows == {"open": 2, "sealed": 4, "staged": 6, "dead": 2}


def test_heartbeats_of_its_killed_writers_are_read(spool: Path) -> None:
    found = read_heartbeats(spool)
    assert found.keys() == {"8d20d8ec", "b5245b80"}
    assert all(heartbeat.shard_max_bytes == 64 << 20 for heartbeat in found.values())


def test_the_rate_limiter_continues_with_its_policy_and_share(spool: Path) -> None:
    opened = open_spool(None, spool, SystemClock())
    stored = opened.catalogue.get("governor")
    opened.close()
    policy = last_policy(stored)
    assert policy.per_hour == 100_000
    # A refused commit has halved its share, which grows again within hours.
    quota = RateLimiter(policy, SystemClock(), stored).last_hour()[1]
    assert 50_000 <= quota <= 100_000


@pytest.mark.slow("uploads a whole spool")
def test_drain_uploads_every_row_once(spool: Path, run: Commands, hub: LocalHub, dataset: Dataset) -> None:
    done = run("drain", spool)
    assert done.returncode == 1, done.stderr  # the dead letter is not empty
    assert dataset.ids() == sorted(COMMITTED + RESPONSE_LOST + WAITING)
    assert {row["id"] for row in dataset.rows("eval/")} == {n for n in dataset.ids() if 10 <= n < 20 or n >= 30}
    assert all(row["text"] == f"row {row['id']}" for row in dataset.rows())
    found = status(run, spool)
    assert (found["rows_waiting"], found["committed"]["rows"], found["shards"]["dead"]) == (0, 20, 2)
    assert list((spool / "segments").iterdir()) == []
    assert_verified(hub, spool)


def test_its_commit_whose_response_was_lost_is_not_repeated(spool: Path, dataset: Dataset) -> None:
    restored = dataset.api.list_repo_commits("user/rows", repo_type="dataset")[0]
    upload(spool)
    settled = segment(spool, SEGMENT_OF["response lost"])
    assert (settled.state, settled.sha) == ("committed", restored.commit_id)


@pytest.mark.slow("uploads a whole spool")
def test_its_open_plan_is_sent_again_if_it_never_arrived(spool: Path, dataset: Dataset) -> None:
    lost = "data/train-8d20d8ec-00000.jsonl"
    dataset.api.delete_file(lost, "user/rows", repo_type="dataset", commit_message="it never arrived")
    upload(spool)
    assert dataset.ids() == sorted(COMMITTED + RESPONSE_LOST + WAITING)
    assert lost in dataset.paths()


def test_a_new_uploader_knows_its_keys_and_offsets(reopened: Uploader) -> None:
    assert [reopened.known(key) for key in KEYS] == [True] * len(KEYS)
    assert not reopened.known("torn")
    assert (reopened.offset(), reopened.offset("eval"), reopened.offset("other")) == (9, 3, None)


def test_a_new_uploader_continues_it(spool: Path, hub: LocalHub, reopened: Uploader, dataset: Dataset) -> None:
    replays = [
        reopened.put([{"id": 0, "text": "row 0"}], key="first"),
        reopened.put([{"id": DISCARDED, "text": "row 6"}], key="discarded"),
        reopened.put([{"id": 26, "text": "row 26"}], offset=9),
        reopened.put([{"id": 34, "text": "row 34"}], source="eval", offset=3),
    ]
    accepted = reopened.put([{"id": TORN, "text": "row 27"}], key="torn", offset=10)
    reopened.close()
    assert [receipt.replayed for receipt in replays] == [True] * 4
    assert not accepted.replayed
    upload(spool)
    assert dataset.ids() == sorted([*COMMITTED, *RESPONSE_LOST, *WAITING, TORN])
    assert_verified(hub, spool)


@pytest.mark.slow("uploads a whole spool")
def test_its_rejected_shards_can_be_resubmitted(
    spool: Path, run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    edited = tmp_path / "edited.jsonl"
    edited.write_text('{"id":4,"text":"row 4"}\n')
    assert run("dead-letter", "resubmit", spool, SEGMENT_OF["rejected"]).returncode == 0
    assert run("dead-letter", "resubmit", spool, SEGMENT_OF["conflict"], "--from", edited).returncode == 0
    assert upload(spool).dead == 0
    assert dataset.ids() == sorted([*COMMITTED, *RESPONSE_LOST, *WAITING, CONFLICT, REJECTED])
    assert status(run, spool)["dead_letter"] == []
    assert list((spool / "dead-letter").iterdir()) == []
    assert_verified(hub, spool)


@pytest.mark.slow("uploads a whole spool")
def test_its_conflicting_shard_is_rejected_again_if_it_is_not_edited(
    spool: Path, run: Commands, dataset: Dataset
) -> None:
    assert run("dead-letter", "resubmit", spool, SEGMENT_OF["conflict"]).returncode == 0
    assert upload(spool).dead == 2
    assert CONFLICT not in dataset.ids()
    assert [shard["id"] for shard in status(run, spool)["dead_letter"]] == [4, 5]


@pytest.mark.slow("uploads a whole spool")
def test_its_discarded_shard_stays_discarded(spool: Path, run: Commands, dataset: Dataset) -> None:
    assert run("dead-letter", "resubmit", spool, SEGMENT_OF["discarded"]).returncode == 1
    upload(spool)
    assert DISCARDED not in dataset.ids()
    assert segment(spool, SEGMENT_OF["discarded"]).state == "dead"


@pytest.mark.slow("uploads a whole spool")
def test_it_can_be_rebuilt_from_its_files(spool: Path, run: Commands, hub: LocalHub, dataset: Dataset) -> None:
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
    done = run("drain", "--rescue", spool)
    upload(spool)
    assert dataset.ids() == sorted(COMMITTED + RESPONSE_LOST + WAITING), done.stderr


@pytest.mark.slow("uploads a whole spool")
def test_responses_that_are_lost_while_it_drains_repeat_no_row(spool: Path, hub: LocalHub, dataset: Dataset) -> None:
    fault = hub.faults.add(Fault.reset(when="after", on="commit", times=2))
    upload(spool)
    assert hub.faults.struck(fault) == 2
    assert dataset.ids() == sorted(COMMITTED + RESPONSE_LOST + WAITING)
