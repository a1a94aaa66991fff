"""After every unknown outcome each row is in the dataset once, and no file of others is lost."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from hubsync import (
    AsyncUploader,
    ClosedError,
    CommitPolicy,
    DatasetConflict,
    NotDrained,
    RetryPolicy,
    ShardPolicy,
    ShardsRefused,
    Uploader,
    WriteForbiddenError,
)
from hubsync._runtime.clock import SystemClock
from hubsync.destinations import resolve as connecting
from hubsync.errors import AmbiguousError, DefectError, RateLimitedError, TransientError, UnreadableShard
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.spool.spool import Spool
from hubsync.uploader import engine
from tests.simulated import SimulatedHub
from tests.waiting import until_async

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=pytest.mark.slow("the same tests with trio"))])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedHub]:
    hub = SimulatedHub()
    monkeypatch.setattr(connecting, "destination_of", lambda *args: hub)
    yield hub
    assert hub.overwritten == []


def open_uploader(tmp_path: Path, **changes: Any) -> AsyncUploader:
    given: dict[str, Any] = {
        "endpoint": "http://127.0.0.1:1",
        "spool": tmp_path / "spool",
        "shard": ShardPolicy(linger_s=3600, max_rows=1),
        "commit": CommitPolicy(per_hour=1_000_000),
        "retry": RetryPolicy(initial_s=0.001, max_s=0.002, blocked_s=0.01),
        "rng": random.Random(1),
        **changes,
    }
    return AsyncUploader("user/rows", **given)


def ids(hub: SimulatedHub) -> list[object]:
    return sorted(row["id"] for row in hub.rows())  # type: ignore[type-var]


async def test_a_flush_ends_a_long_wait_before_a_retry(simulated: SimulatedHub, tmp_path: Path) -> None:
    patient = RetryPolicy(initial_s=3600, max_s=3600)
    async with open_uploader(tmp_path, retry=patient, rng=random.Random(2)) as up:
        simulated.fail("commit", TransientError("503", status=503))
        await up.put([{"id": 1}])
        await until_async(lambda: up.stats().state.kind == "backing off")
        await up.flush()
        assert ids(simulated) == [1]


@pytest.mark.parametrize(
    "trouble",
    [
        ("stage", [TransientError("503")] * 3),
        ("commit", [TransientError("409", status=409), RateLimitedError("429", retry_after_s=0.0)]),
        pytest.param(
            ("commit", [RateLimitedError("429", retry_after_s=0.0, commit_quota=True)]),
            marks=pytest.mark.slow("waits a second, the shortest wait after a refusal by the quota"),
        ),
        ("commit", [AmbiguousError("reset")] * 3),
        ("head", [TransientError("503")]),
        ("read_file", [TransientError("503")]),
        ("ensure_repo", [TransientError("refused")]),
        ("read_watermarks", [TransientError("refused")]),
    ],
)
async def test_transient_errors_are_retried_until_they_pass(
    simulated: SimulatedHub, tmp_path: Path, trouble: tuple[str, list[Exception]]
) -> None:
    simulated.fail(trouble[0], *trouble[1])
    async with open_uploader(tmp_path) as up:
        for n in range(3):
            await up.put([{"id": n}])
    assert ids(simulated) == [0, 1, 2]


async def test_a_commit_whose_response_is_lost_is_not_sent_again(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.lose_answers = 1
    async with open_uploader(tmp_path) as up:
        receipt = await up.put([{"id": 1}])
        await up.flush()
        assert receipt.sha == simulated.touched[simulated.commits[0].shards[0].path]
    assert len(simulated.commits) == 1
    assert simulated.calls.count("commit") == 1


@pytest.mark.parametrize("is_folded", [False, True])
async def test_a_commit_that_was_compacted_before_its_lost_response_is_not_sent_again(
    simulated: SimulatedHub, tmp_path: Path, is_folded: bool
) -> None:
    def compact() -> None:
        merged = b"".join(simulated.files.pop(path) for path in sorted(simulated.files) if path.endswith(".jsonl"))
        simulated.foreign_commit("data/merged.jsonl", merged)
        if is_folded:
            marks = RemoteWatermarks({mark.path: mark for mark in simulated.marks()})
            files, deleted = marks.fold()
            for path in deleted:
                del simulated.files[path]
            for file in files:
                simulated.foreign_commit(file.path, file.content)

    async with open_uploader(tmp_path, shard=ShardPolicy(linger_s=3600, max_rows=2)) as up:
        await up.put([{"id": 1}, {"id": 2}])
        await up.flush()
        simulated.after_commit = compact
        simulated.lose_answers = 1
        receipt = await up.put([{"id": 3}])
        await up.flush()
        assert receipt.sha is not None
        await up.put([{"id": 4}])
    assert ids(simulated) == [1, 2, 3, 4]
    assert len(simulated.commits) == 3


async def test_a_foreign_commit_in_between_loses_nothing(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.before_commit = lambda: simulated.foreign_commit("theirs.md", b"theirs")
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
    assert ids(simulated) == [1]
    assert simulated.files["theirs.md"] == b"theirs"


async def test_an_edit_of_the_card_in_between_is_kept(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.before_commit = lambda: simulated.foreign_commit("README.md", b"# A person's words\n")
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
    assert b"# A person's words" in simulated.files["README.md"]
    assert b"data/train-*.jsonl" in simulated.files["README.md"]


@pytest.mark.parametrize("moment", ["before", "between"])
async def test_a_file_that_hubsync_does_not_own_is_never_overwritten(
    simulated: SimulatedHub, tmp_path: Path, moment: str
) -> None:
    def theirs() -> None:
        for n in range(150):
            simulated.foreign_commit(f"data/train-{n:05d}.jsonl", b'{"id":-1}\n')

    if moment == "before":
        theirs()
    else:
        simulated.before_commit = theirs
    async with open_uploader(tmp_path, path="data/{split}-{seq:05d}.jsonl") as up:
        for n in range(3):
            await up.put([{"id": n}])
    assert ids(simulated) == [-1] * 150 + [0, 1, 2]


async def test_a_shard_that_is_in_the_dataset_already_is_not_uploaded_again(
    simulated: SimulatedHub, tmp_path: Path
) -> None:
    simulated.foreign_commit("data/train-00000.jsonl", b'{"id":1}\n')
    async with open_uploader(tmp_path, path="data/{split}-{seq:05d}.jsonl") as up:
        receipt = await up.put([{"id": 1}])
        await up.flush()
    assert receipt.sha == simulated.touched["data/train-00000.jsonl"]
    assert ids(simulated) == [1]


async def test_only_the_defective_shard_of_a_commit_is_quarantined(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = simulated._commit

    async def refusing(plan: Any) -> str:
        if any(b'"id":3}' in shard.file.read_bytes() for shard in plan.shards):
            raise DefectError("422, this one is bad", status=422)
        return await commit(plan)

    monkeypatch.setattr(simulated, "_commit", refusing)
    up = open_uploader(tmp_path)
    with pytest.raises(ShardsRefused, match="422, this one is bad"):
        async with up:
            receipts = [await up.put([{"id": n}], ack="queued") for n in range(8)]
    assert ids(simulated) == [0, 1, 2, 4, 5, 6, 7]
    assert receipts[3].state == "refused"
    (grave,) = (tmp_path / "spool" / "dead-letter").iterdir()
    assert grave.read_bytes() == b'{"id":3}\n'
    assert list((tmp_path / "spool" / "segments").iterdir()) == []


async def test_a_revoked_token_stops_commits_and_nothing_else(simulated: SimulatedHub, tmp_path: Path) -> None:
    up = open_uploader(tmp_path)
    async with up:
        simulated.fail("commit", *[WriteForbiddenError("403")] * 10_000)  # until the script is cleared
        await up.put([{"id": 1}])
        with pytest.raises(WriteForbiddenError) as blocked:
            await up.flush()
        assert "hubsync drain" in "".join(blocked.value.__notes__)
        await up.put([{"id": 2}])
        await until_async(lambda: up.stats().spool.rows == 2)  # a row may count twice until the next look at the spool
        simulated.script["commit"].clear()
        # An attempt that is on its way still gets the 403, and closing would raise it.
        await until_async(lambda: ids(simulated) == [1, 2])
    assert ids(simulated) == [1, 2]


async def test_a_state_that_lasts_is_logged_once(
    simulated: SimulatedHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_uploader(tmp_path) as up:
        for n in range(5):
            simulated.fail("commit", WriteForbiddenError("403", request_id=f"request-{n}"))
        await up.put([{"id": 1}])  # max_rows=1: sealed at once
        await until_async(lambda: simulated.commits)
    assert [r.levelname for r in caplog.records if "blocked" in r.message] == ["ERROR"]
    assert [r.levelname for r in caplog.records if "going on" in r.message] == ["WARNING"]


async def test_an_invalid_token_fails_at_the_start(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.fail("ensure_repo", WriteForbiddenError("403"))
    with pytest.raises(WriteForbiddenError):
        async with open_uploader(tmp_path):
            pytest.fail("not reached")


async def test_a_catalogue_that_cannot_grow_pauses_everything_and_loses_nothing(
    simulated: SimulatedHub, tmp_path: Path
) -> None:
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 0}], key="0")
        await up.flush()
        assert up._engine is not None
        catalogue = up._engine.spool.catalogue
        catalogue.run(f"PRAGMA max_page_count = {catalogue.value('PRAGMA page_count')}")
        receipts = [await up.put([{"id": n}], key=f"{n}" * 500, ack="queued") for n in range(1, 300)]
        await until_async(lambda: up.stats().state.kind == "spool full")
        assert receipts[-1].state == "queued"
        catalogue.run("PRAGMA max_page_count = 1000000")
        await up.flush()
        assert {receipt.state for receipt in receipts} == {"committed"}
    assert ids(simulated) == list(range(300))


async def test_an_unreadable_card_does_not_stop_commits(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.before_commit = lambda: simulated.foreign_commit("README.md", b"---\na: [unclosed\n---\n")
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
    assert ids(simulated) == [1]
    assert simulated.files["README.md"] == b"---\na: [unclosed\n---\n"


@pytest.mark.parametrize("yaml", [b"a: [unclosed", b"configs: 5", b"configs:\n- data_files: a.jsonl", b"- a list"])
async def test_an_unreadable_card_is_refused_at_open(simulated: SimulatedHub, tmp_path: Path, yaml: bytes) -> None:
    simulated.foreign_commit("README.md", b"---\n" + yaml + b"\n---\n")
    with pytest.raises(DatasetConflict, match="Fix the YAML in its README"):
        async with open_uploader(tmp_path):
            pass
    assert simulated.files.keys() == {"README.md"}


async def test_many_shards_share_one_commit(simulated: SimulatedHub, tmp_path: Path) -> None:
    patient = RetryPolicy(initial_s=3600, max_s=3600)
    simulated.fail("commit", TransientError("503", status=503))  # else the first commit takes what is staged by then
    async with open_uploader(tmp_path, commit=CommitPolicy(per_hour=4), retry=patient, rng=random.Random(2)) as up:
        for n in range(50):
            await up.put([{"id": n}], ack="queued")
        await until_async(lambda: up.stats().state.kind == "backing off" and up.stats().spool.staged == 50)
        await up.flush()
    assert ids(simulated) == list(range(50))
    assert len(simulated.commits) == 1


async def test_a_job_that_lost_its_spool_resumes_from_the_dataset(simulated: SimulatedHub, tmp_path: Path) -> None:
    for life in ("one", "two"):
        async with open_uploader(tmp_path, spool=tmp_path / life, path="data/{split}-{seq:05d}.jsonl") as up:
            start = -1 if (known := await up.offset()) is None else known
            if start >= 0:
                assert (await up.put([{"id": 0}], offset=0)).replayed
            for n in range(start + 1, start + 4):
                await up.put([{"id": n}], offset=n)
    assert ids(simulated) == list(range(6))


async def test_an_engine_that_fails_raises_and_no_call_hangs(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.fail("commit", ZeroDivisionError("a bug"))
    up = open_uploader(tmp_path)
    with pytest.raises((NotDrained, ClosedError), match="a bug"):  # the engine may fail before `flush`, or during it
        async with up:
            await up.put([{"id": 1}])
            await up.flush()
    async with open_uploader(tmp_path):
        pass
    assert ids(simulated) == [1]


def test_an_engine_that_fails_raises_in_the_sync_face_as_well(simulated: SimulatedHub, tmp_path: Path) -> None:
    simulated.fail("commit", ZeroDivisionError("a bug"))
    up = Uploader("user/rows", endpoint="http://127.0.0.1:1", spool=tmp_path / "spool").open()
    up.put([{"id": 1}])
    with pytest.raises(NotDrained, match="a bug"):
        up.flush()
    with pytest.raises(ClosedError, match="safe"):
        up.put([{"id": 2}])
    with pytest.raises(ClosedError, match="safe"):
        up.close()


async def test_a_card_that_the_hub_rejects_quarantines_no_rows(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = simulated._commit

    async def refusing(plan: Any) -> str:
        if any(note.path == "README.md" for note in plan.sidecars):
            raise DefectError("400, invalid metadata in README.md", status=400)
        return await commit(plan)

    monkeypatch.setattr(simulated, "_commit", refusing)
    async with open_uploader(tmp_path) as up:
        for n in range(5):
            await up.put([{"id": n}])
    assert ids(simulated) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "refusal",
    [
        WriteForbiddenError("403", status=403),
        DefectError("422, the card perhaps", status=422),
        TransientError("409", status=409),
    ],
    ids=["a person is needed", "the card is refused", "another commit is on its way"],
)
async def test_a_file_added_while_a_commit_was_rejected_is_not_overwritten(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    async with open_uploader(tmp_path, path="data/{split}-{seq:05d}.jsonl") as up:
        await up.put([{"id": 0}])
        await up.flush()

        async def refuse(plan: Any) -> str:
            monkeypatch.undo()
            simulated.foreign_commit("data/train-00001.jsonl", b'{"id":1000}\n')
            raise refusal

        monkeypatch.setattr(simulated, "_commit", refuse)
        await up.put([{"id": 1, "new": 1}])
        with contextlib.suppress(WriteForbiddenError):
            await up.flush()
    assert ids(simulated) == [0, 1, 1000]


async def test_a_preupload_answered_by_a_stale_replica_overwrites_nothing(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that the path is free, and so does the head that is read with it."""
    stage = simulated.stage

    async def stale(shards: Any) -> Any:
        return [replace(found, remote_oid=None) for found in await stage(shards)]

    async with open_uploader(tmp_path, path="data/{split}-{seq:05d}.jsonl") as up:
        await up.put([{"id": 0}])
        await up.flush()
        simulated.foreign_commit("data/train-00002.jsonl", b'{"id":1000}\n')
        await up.put([{"id": 1}])
        await up.flush()  # so that the foreign commit is noticed
        monkeypatch.setattr(simulated, "stage", stale)
        await up.put([{"id": 2}])
    assert ids(simulated) == [0, 1, 2, 1000]


async def test_a_staged_shard_whose_file_is_gone_does_not_delay_others(simulated: SimulatedHub, tmp_path: Path) -> None:
    pack = simulated.pack

    def read(plan: Any) -> Any:
        try:
            return pack(plan)
        except OSError as error:
            raise UnreadableShard(str(error)) from error

    simulated.pack = read  # type: ignore[method-assign]
    simulated.fail("commit", *(WriteForbiddenError("403", status=403) for _ in range(1000)))
    async with open_uploader(tmp_path, retry=RetryPolicy(initial_s=0.001, max_s=0.002, blocked_s=3600)) as up:
        await up.put([{"id": 1}])
        with pytest.raises(WriteForbiddenError):
            await up.flush()
        for file in (tmp_path / "spool" / "segments").iterdir():
            file.unlink()
        simulated.script["commit"].clear()  # only now: an attempt that is woken in between must fail as well
        await up.put([{"id": 2}])
        with contextlib.suppress(ShardsRefused):
            await up.flush(timeout=20)
    assert ids(simulated) == [2]


async def test_a_flush_ends_if_the_file_of_its_segment_is_lost(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committer finds it while the flush waits, since all slots for uploads were busy before."""
    stage, go_on, looks = simulated.stage, anyio.Event(), []
    monkeypatch.setattr(engine, "_FOLLOW_S", 0.0123)

    class Counting(SystemClock):
        async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
            looks.extend([seconds] if seconds == 0.0123 else [])
            await super().sleep(seconds, until)

    async def slowly(shards: Any) -> Any:
        while not go_on.is_set():  # noqa: ASYNC110  (the event belongs to another loop)
            await anyio.sleep(0.01)
        return await stage(shards)

    monkeypatch.setattr(simulated, "stage", slowly)
    async with open_uploader(tmp_path, clock=Counting()) as up, anyio.create_task_group() as tasks:
        for n in range(3):
            await up.put([{"id": n}])
            await until_async(lambda n=n: len(up._engine._committer._stager._lots) == n + 1)
        lost = await up.put([{"id": 3}])

        async def flush() -> None:
            with pytest.raises(ShardsRefused, match="lost"):
                await up.flush(timeout=60)

        tasks.start_soon(flush)
        await until_async(lambda: up._engine.delivery._flushes and all(up._engine.delivery._flushes.values()))
        seen = len(looks)
        await until_async(lambda: len(looks) > seen + 3)  # this process knows by now that no other one commits
        (tmp_path / "spool" / "segments" / f"{up.writer}-00000004.jsonl").unlink()
        go_on.set()
    assert ids(simulated) == [0, 1, 2]
    assert lost.state == "refused"


async def test_shards_behind_one_that_cannot_be_committed_do_not_delay_others(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if more than one commit of the same source waits behind it."""
    stage = simulated.stage

    async def fail(shards: Any) -> Any:
        if any(shard.segment == 1 for shard in shards):
            raise DefectError("alone", status=422) if len(shards) > 1 else TransientError("this one never arrives")
        return await stage(shards)

    monkeypatch.setattr(simulated, "stage", fail)
    commit = CommitPolicy(per_hour=1_000_000, max_files=3)
    async with open_uploader(tmp_path, commit=commit) as up:
        for n in range(6):
            await up.put([{"id": n}], offset=n, source="slow")
        receipt = await up.put([{"id": 100}], offset=0, source="another")
        await receipt.wait_async("committed", timeout=20)
        assert ids(simulated) == [100]
        monkeypatch.undo()
    assert ids(simulated) == [0, 1, 2, 3, 4, 5, 100]


async def test_watermarks_are_read_from_the_commit_that_the_fence_follows(
    simulated: SimulatedHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stale replica answers every other request: the offsets must not be older than the fence."""
    async with open_uploader(tmp_path) as up:
        for n in range(3):
            await up.put([{"id": n}], offset=n)
            await up.flush()
    asked: list[str] = []
    watermarks, commit = simulated.read_watermarks, simulated._commit

    async def note(at: str, **how: Any) -> Any:
        asked.append(at)
        return await watermarks(at, **how)

    async def claim(plan: Any) -> str:
        asked.append(plan.parent)
        return await commit(plan)

    monkeypatch.setattr(simulated, "read_watermarks", note)
    monkeypatch.setattr(simulated, "_commit", claim)
    async with open_uploader(tmp_path, spool=tmp_path / "another") as up:
        assert await up.offset() == 2
    assert len(set(asked)) == 1


@pytest.mark.slow("waits a second, the shortest wait after a refusal by the quota")
async def test_a_refusal_before_the_takeover_keeps_the_commits_of_the_last_hour(
    simulated: SimulatedHub, tmp_path: Path
) -> None:
    def spent() -> list[float]:
        spool = Spool(tmp_path / "spool", target=None)
        try:
            return list(msgspec.json.decode(spool.catalogue.get("governor") or "")["spent"])
        finally:
            spool.close()

    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 1}])
    before = spent()
    refused = RateLimitedError("429", retry_after_s=0.0, commit_quota=True)
    simulated.fail("ensure_repo", refused, refused)
    async with open_uploader(tmp_path) as up:
        await up.put([{"id": 2}])
    assert simulated.calls.count("ensure_repo") == 4
    assert spent()[:-1] == before
