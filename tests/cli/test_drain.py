"""`hubsync drain`: the rows left in spools are uploaded."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import NotDrained, Uploader
from hubsync.localhub import Fault, LocalHub
from tests.cli.lines import jsonl
from tests.conftest import Commands, Dataset


def test_the_rows_of_an_offline_job_are_uploaded(run: Commands, dataset: Dataset, tmp_path: Path) -> None:
    offline = run("pipe", "user/rows", stdin=jsonl(0, 5), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert "drain" in offline.stderr
    fact = json.loads(run("status", "--json").stdout)
    assert (fact["rows_waiting"], fact["committer_pid"]) == (5, None)
    assert "hubsync drain" in run("status").stdout
    done = run("drain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rows_left"] == 0
    assert dataset.ids() == list(range(5))


@pytest.mark.slow("starts several processes")
def test_a_repo_is_created_as_private_as_the_job_asked_for(run: Commands, dataset: Dataset) -> None:
    run("pipe", "user/rows", "--private", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    run("pipe", "user/rows", stdin=jsonl(3, 5), HF_HUB_OFFLINE="1")
    assert run("drain").returncode == 0
    assert dataset.api.dataset_info("user/rows").private
    dataset.api.delete_repo("user/rows", repo_type="dataset")
    done = run("pipe", "user/rows", stdin=jsonl(5, 6))
    assert "user/rows was deleted and is created again. 5 rows committed earlier are not in it" in done.stderr
    assert dataset.api.dataset_info("user/rows").private


@pytest.mark.slow("starts several processes")
def test_a_corrupt_spool_does_not_hide_or_block_the_others(run: Commands, dataset: Dataset, tmp_path: Path) -> None:
    for repo in ("user/other", "user/rows"):
        run("pipe", repo, stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    (first, second) = sorted((tmp_path / "state").iterdir())
    (first / "catalogue.sqlite").write_bytes(b"no database" * 1000)
    shown = run("status", "--json")
    assert shown.returncode == 1
    facts = [json.loads(line) for line in shown.stdout.splitlines()]
    assert "is corrupt" in facts[0]["error"]
    assert (facts[1]["spool"], facts[1]["rows_waiting"]) == (str(second), 3)
    assert "is corrupt" in run("status").stdout
    done = run("drain")
    assert done.returncode == 4
    assert f"{first}: not uploaded: " in done.stderr
    assert f"{second}: all on the Hub." in done.stderr
    assert dataset.ids() == [0, 1, 2]


@pytest.mark.slow("starts several processes")
def test_a_spool_whose_hub_is_down_does_not_delay_the_others(
    run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    home = {"HUBSYNC_HOME": str(tmp_path / "home")}
    run("pipe", "user/away", "--timeout", 0, stdin=jsonl(0, 1), HF_ENDPOINT="http://127.0.0.1:9", **home)
    run("pipe", "user/rows", stdin=jsonl(0, 2), HF_HUB_OFFLINE="1", **home)
    with run.start("drain", **home) as draining:
        try:
            while json.loads(run("status", "--json", **home).stdout.splitlines()[-1])["rows_waiting"]:
                assert draining.poll() is None
        finally:
            draining.send_signal(signal.SIGINT)
            _, said = draining.communicate()
    assert draining.returncode == 130
    assert "Interrupted: 1 row not on the Hub yet" in said
    assert dataset.ids() == [0, 1]


@pytest.mark.slow("starts several processes")
def test_a_spool_whose_hub_is_gone_is_left_and_the_others_are_drained(
    run: Commands, dataset: Dataset, tmp_path: Path
) -> None:
    run("pipe", "user/gone", "--timeout", 0, stdin=jsonl(0, 1), HF_ENDPOINT="http://127.0.0.1:9")
    run("pipe", "user/rows", stdin=jsonl(0, 2), HF_HUB_OFFLINE="1")
    soon = "from hubsync.cli import drain; drain._SILENT_S = 0.5"
    done = run.after(soon, "drain")
    assert done.returncode == 4
    assert "not uploaded: 1 row (9 bytes) is not on the Hub yet: the Hub was away for 0.5 s (waiting: " in done.stderr
    assert "127.0.0.1:9" in done.stderr
    assert dataset.ids() == [0, 1]
    again = run.after(soon, "drain")
    assert (again.returncode, "1 spool: nothing to upload." in again.stderr) == (4, True)


@pytest.mark.slow("starts several processes")
def test_a_spool_whose_token_is_refused_does_not_stop_the_others(
    run: Commands, hub: LocalHub, dataset: Dataset
) -> None:
    for repo in ("other/forbidden", "user/rows"):
        run("pipe", repo, stdin=jsonl(0, 2), HF_HUB_OFFLINE="1")
    done = run("drain")
    assert done.returncode == 4
    assert "other--forbidden" in done.stderr.split("not uploaded")[0].splitlines()[-1]
    assert dataset.ids() == [0, 1]
    facts = [json.loads(line) for line in run("status", "--json").stdout.splitlines()]
    assert sorted(fact["condition"] for fact in facts) == ["blocked", "finished"]


@pytest.mark.slow("starts several processes")
def test_the_exit_codes_of_one_spool(run: Commands, hub: LocalHub, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    run("pipe", "user/rows", "--spool", spool, stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    hub.faults.add(Fault.outage())
    assert run("drain", spool, "--timeout", 0.5).returncode == 3
    hub.faults.clear()
    assert run("drain", spool, HF_TOKEN="hf_wrong").returncode == 1
    hub.faults.add(Fault.status(422, on="commit"))
    done = run("drain", spool)
    assert (done.returncode, "all on the Hub but 3 rows in 1 shard" in done.stderr) == (1, True)
    hub.faults.clear()
    assert run("dead-letter", "resubmit", spool, "--all", "--drain").returncode == 0
    assert run("drain", spool).returncode == 0


@pytest.mark.slow("waits for drains that run out of time")
def test_a_drain_without_commit_quota_says_so(
    run: Commands, hub: LocalHub, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    up = uploader().open()
    hub.faults.add(Fault.rate_limit("commits", on="commit"))
    up.put([{"id": 1}])
    with pytest.raises(NotDrained):
        up.close(timeout=1)
    hub.faults.clear()
    assert "backing off: commit quota" in run("drain", tmp_path / "spool", "--timeout", 1).stderr
    assert json.loads(run("status", tmp_path / "spool", "--json").stdout)["state"] == "backing off"


def test_an_interrupted_drain_says_what_is_left_and_where(run: Commands, hub: LocalHub, tmp_path: Path) -> None:
    run("pipe", "user/rows", "--spool", tmp_path / "spool", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    hub.faults.add(Fault.outage())
    with run.start("drain", tmp_path / "spool") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{tmp_path / 'spool'}\n"
        process.stderr.readline()  # the first line of progress: it has begun
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert f"3 rows not on the Hub yet, and safe in {tmp_path / 'spool'}." in said
