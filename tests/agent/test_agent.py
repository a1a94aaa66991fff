"""The agent uploads what jobs only spool, whatever is wrong with single spools."""

from __future__ import annotations

import json
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubsync import AsyncUploader, BlockedError, ConfigError, NotDrained, Uploader
from hubsync.agent import agent as module
from hubsync.agent.health import serve_health
from hubsync.errors import SpoolBusy
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.inspect import inspect_spool
from tests.agent.conftest import StartAgent, _running
from tests.conftest import FAST, Commands, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


@pytest.fixture
def job(hub: LocalHub) -> Make:
    """Makes uploaders that leave the commits to the agent, in the default spool."""
    return lambda repo="user/rows", **changes: Uploader(repo, committer="agent", **{**FAST, **changes})


def test_the_agent_uploads_what_a_job_spools(job: Make, start_agent: StartAgent, dataset: Dataset) -> None:
    agent = start_agent()
    with job() as up:
        up.put([{"id": 1}])
        assert up.put([{"id": 2}], ack="committed").sha is not None
        up.put([{"id": 3}])
        up.flush()
        assert dataset.ids() == [1, 2, 3]
        up.put([{"id": 4}])
    assert dataset.ids() == [1, 2, 3, 4]
    until(lambda: agent.health().committed_rows == 4)


def test_a_job_with_an_agent_never_holds_the_lease_and_closes_its_connections(
    job: Make, start_agent: StartAgent
) -> None:
    start_agent()
    with job() as up:
        up.put([{"id": 1}], ack="committed")
        assert up._engine is not None
        assert up._engine._committer is None
        assert not up._engine.spool.lease.is_held


def test_without_an_agent_the_rows_wait_and_the_log_says_what_to_run(
    job: Make, start_agent: StartAgent, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with job() as up:
        up.put([{"id": 1}])
        until(lambda: "no agent runs" in caplog.text)
        with pytest.raises(NotDrained, match=r"no agent runs .* run: HUBSYNC_HOME=.* hubsync agent"):
            up.flush(timeout=0.05)
        assert "no agent runs" in str(inspect_spool(up.spool).condition)
        start_agent()
        up.flush()
        assert dataset.ids() == [1]
    assert {r.levelno for r in caplog.records if "no agent runs" in r.message} == {logging.WARNING}


def test_closing_without_waiting_leaves_the_rest_to_the_agent(
    job: Make, start_agent: StartAgent, hub: LocalHub, dataset: Dataset
) -> None:
    outage = hub.faults.add(Fault.status(503, on="commit"))
    start_agent()
    with job() as up:
        up.put([{"id": 1}], ack="queued")
        up.close(wait=False)
    assert inspect_spool(up.spool).depth.rows == 1
    hub.faults.remove(outage)
    until(lambda: inspect_spool(up.spool).depth.rows == 0)
    assert dataset.ids() == [1]


def test_closing_without_waiting_and_without_an_agent_says_where_the_rows_are(
    uploader: Make, caplog: pytest.LogCaptureFixture, hub: LocalHub
) -> None:
    hub.faults.add(Fault.status(503, on="commit"))
    with uploader() as up:
        up.put([{"id": 1}])
        up.close(wait=False)
    assert f"1 row not on the Hub yet, and safe in {up.spool}. To upload them: hubsync drain" in caplog.text


@pytest.mark.anyio
async def test_the_face_for_tasks_leaves_the_rest_to_the_agent_as_well(
    start_agent: StartAgent, dataset: Dataset, hub: LocalHub
) -> None:
    start_agent()
    async with AsyncUploader("user/rows", committer="agent", **FAST) as up:
        await up.put([{"id": 1}], ack="committed")
        await up.put([{"id": 2}], ack="queued")
        await up.close(wait=False)
    until(lambda: inspect_spool(up.spool).depth.rows == 0)
    assert dataset.ids() == [1, 2]


def test_offsets_of_a_lost_disk_are_known_before_the_first_put(
    job: Make, start_agent: StartAgent, tmp_path: Path
) -> None:
    start_agent()
    with job(spool=tmp_path / "first") as up:
        up.put([{"id": 1}], offset=7)
    with job(spool=tmp_path / "second") as up:
        assert up.offset() == 7
        assert up.put([{"id": 1}], offset=7).replayed


def test_a_token_that_may_not_write_is_refused_before_any_row(job: Make) -> None:
    with pytest.raises(BlockedError):
        job(token="hf_of_no_user").open()


def test_an_unknown_committer_is_refused() -> None:
    with pytest.raises(ConfigError, match='"thread" or "agent"'):
        Uploader("user/rows", committer="process")  # type: ignore[arg-type]


def test_the_agent_finds_spools_that_are_elsewhere(
    job: Make, start_agent: StartAgent, tmp_path: Path, dataset: Dataset, uploader: Make, hub: LocalHub
) -> None:
    outage = hub.faults.add(Fault.outage())
    given = tmp_path / "given"
    with uploader(spool=given / "one") as left:
        left.put([{"id": 2}])
        left.close(wait=False)
    hub.faults.remove(outage)
    start_agent(given)
    with job(spool=tmp_path / "announced") as up:
        up.put([{"id": 1}])
    until(lambda: dataset.ids() == [1, 2])


def test_an_idle_spool_is_closed_until_it_changes(
    job: Make, start_agent: StartAgent, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_spool = module.open_spool
    monkeypatch.setattr(module, "open_spool", lambda *args: opened.append(args) or open_spool(*args))
    agent = start_agent()
    with job() as up:
        up.put([{"id": 1}], ack="committed")
        known = agent._known[up.spool]
        until(lambda: known.seen is not None and not known.is_taken)
    until(lambda: agent.health().served == 0 and module.signature(up.spool) == known.seen)
    looked_at, turns = agent.health().looked_at, len(opened)
    until(lambda: agent.health().looked_at > looked_at + 0.2)
    assert len(opened) == turns
    with job() as up:
        up.put([{"id": 2}])
    assert dataset.ids() == [1, 2]


def test_spools_that_cannot_be_served_stop_no_other(
    job: Make, start_agent: StartAgent, hub: LocalHub, dataset: Dataset, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, uploader: Make, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_MOST_OPEN", 1)
    home = tmp_path / "state"
    with LocalHub(tmp_path / "gone") as gone, uploader("user/rows", endpoint=gone.endpoint, token=gone.token,
                                                       spool=home / "unreachable") as up:  # fmt: skip
        gone.faults.add(Fault.outage())
        up.put([{"id": 1}])
        up.close(wait=False)
    outage = hub.faults.add(Fault.outage())
    with uploader("user/blocked", spool=home / "blocked") as up:
        up.put([{"id": 1}])
        up.close(wait=False)
    hub.faults.remove(outage)
    hub.faults.add(Fault.status(403, on="*", repo="user/blocked"))
    (home / "broken").mkdir(parents=True)
    (home / "broken" / "catalogue.sqlite").write_bytes(b"no catalogue" * 1000)
    agent = start_agent()
    for n in range(3):
        with job() as up:
            up.put([{"id": n}])
    assert dataset.ids() == [0, 1, 2]
    until(lambda: agent.health().failing == 1)
    assert "The agent cannot serve" in caplog.text
    assert "hubsync drain --rescue" in caplog.text


def test_the_agent_leaves_a_spool_to_a_job_that_commits(
    uploader: Make, start_agent: StartAgent, dataset: Dataset, tmp_path: Path
) -> None:
    with uploader(spool=tmp_path / "state" / "own") as up:
        until(lambda: up._engine is not None and up._engine.spool.lease.is_held)
        agent = start_agent()
        until(lambda: agent._known[up.spool].elsewhere is not None if up.spool in agent._known else False)
        up.put([{"id": 1}], ack="committed")
        assert up._engine is not None
        assert up._engine.spool.lease.is_held
    assert agent.health().committed_rows == 0


def test_a_second_agent_says_so_and_ends(start_agent: StartAgent, run: Commands) -> None:
    start_agent()
    with pytest.raises(SpoolBusy, match="is already the agent of"), _running():
        pass
    done = run("agent")
    assert (done.returncode, "is already the agent of" in done.stderr) == (1, True)


def test_status_shows_that_an_agent_serves_the_spool(
    job: Make, start_agent: StartAgent, run: Commands, hub: LocalHub
) -> None:
    start_agent()
    with job() as up:
        up.put([{"id": 1}], ack="committed")
        assert "the agent" in run("status", up.spool).stdout


def test_the_health_page_says_what_the_agent_does(start_agent: StartAgent) -> None:
    agent = start_agent()
    with serve_health("127.0.0.1", 0, agent.health) as address, urllib.request.urlopen(address) as answer:
        found: dict[str, Any] = json.load(answer)
    assert (found["status"], found["spools"], found["failing"]) == ("ok", 0, 0)
