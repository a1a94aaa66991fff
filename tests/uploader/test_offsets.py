"""Offsets: their order within a run, one uploader per source, ranks, and batches that finish in any order."""

from __future__ import annotations

import json
import pickle
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pyarrow
import pytest
from huggingface_hub import constants

from hubsync import (
    AsyncUploader,
    HubsyncError,
    OffsetOrderError,
    QueueFull,
    RetryPolicy,
    SchemaPolicy,
    SourceInUse,
    Uploader,
)
from hubsync.localhub import Fault, LocalHub
from hubsync.model.layout import Format
from hubsync.policies import Ack
from hubsync.spool import offsets
from hubsync.uploader.in_order import InOrder
from hubsync.uploader.ranks import default_source
from tests.conftest import FAST, Commands, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


@pytest.mark.parametrize("ack", ["spooled", "committed"])
def test_an_offset_below_the_last_one_of_this_run_is_refused(uploader: Make, dataset: Dataset, ack: Ack) -> None:
    with uploader() as up:
        up.put([{"id": 1}], offset=1)
        up.put([{"id": 5}], offset=5)
        with pytest.raises(OffsetOrderError, match="offset 3 of source 'default' came after 5") as raised:
            up.put([{"id": 3}], offset=3, ack=ack)
        up.put([{"id": 3}], offset=3, source="other")
        up.put([{"id": 6}], offset=6)
    error = pickle.loads(pickle.dumps(raised.value))
    assert (error.source, error.offset, error.last) == ("default", 3, 5)
    assert dataset.ids() == [1, 3, 5, 6]


def test_another_batch_with_the_last_offset_is_refused_and_the_same_one_is_a_replay(
    uploader: Make, dataset: Dataset
) -> None:
    with uploader() as up:
        up.put([{"id": 1}], offset=1)
        assert up.put([{"id": 1}], offset=1).replayed  # as after a timeout
        with pytest.raises(OffsetOrderError):
            up.put([{"id": 2}], offset=1)
    assert dataset.ids() == [1]


# Loops that count for themselves, one after another: not restarts, so their rows must not pass for replays.

SPOOLS = [pytest.param(True, id="one spool"), pytest.param(False, id="a spool for each")]
NO_REPLAY = "offset {} of source 'default' is no replay: {}, so the batch was not accepted"


@pytest.mark.parametrize("is_shared", SPOOLS)
def test_a_loop_that_starts_a_source_again_with_other_rows_is_refused(
    uploader: Make, dataset: Dataset, tmp_path: Path, is_shared: bool
) -> None:
    for rank in range(3):
        with uploader(spool=tmp_path / ("spool" if is_shared else f"spool-{rank}")) as up:
            for n in range(5):
                rows = [{"id": 10 * rank + n}]
                if rank == 0:
                    up.put(rows, offset=n)
                    continue
                why = NO_REPLAY.format(n, "an earlier run has put other rows with it")
                with pytest.raises(OffsetOrderError, match=why):
                    up.put(rows, offset=n)
                up.put(rows, offset=n, source=f"rank {rank}")
    assert dataset.ids() == [10 * rank + n for rank in range(3) for n in range(5)]


@pytest.mark.parametrize("is_shared", SPOOLS)
@pytest.mark.parametrize(
    ("runs", "left_out"),
    [
        pytest.param([range(0, 8, 2), range(1, 8, 2)], 1, id="every other offset"),
        pytest.param([range(5, 10), range(5)], 0, id="the second half first"),
        pytest.param([range(4), range(8, 12), range(4, 8)], 4, id="the middle last"),
    ],
)
def test_an_offset_that_earlier_runs_left_out_is_refused(
    uploader: Make, dataset: Dataset, tmp_path: Path, runs: list[range], left_out: int, is_shared: bool
) -> None:
    for number, run in enumerate(runs):
        with uploader(spool=tmp_path / ("spool" if is_shared else f"spool-{number}")) as up:
            if run is runs[-1]:
                with pytest.raises(OffsetOrderError, match=NO_REPLAY.format(left_out, "an earlier run left it out")):
                    up.put([{"id": left_out}], offset=left_out)
                continue
            for n in run:
                up.put([{"id": n}], offset=n)
    assert dataset.ids() == sorted(n for run in runs[:-1] for n in run)


def test_a_loop_that_puts_other_rows_without_waiting_fails_at_its_end(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up.put([{"id": 0}], offset=0)
    with pytest.raises(OffsetOrderError, match="is no replay"), uploader() as up:
        up.put([{"id": 1}], offset=0, ack="queued")
    assert dataset.ids() == [0]


def test_offline_ranks_one_after_another_are_refused(
    uploader: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The dataset's offsets are unknown; those of the spool are not."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with uploader() as up:
        up.put([{"id": 7}], offset=7)
    with uploader() as up, pytest.raises(OffsetOrderError, match="other rows"):
        up.put([{"id": 8}], offset=7)
    with uploader() as up:
        assert up.put([{"id": 5}], offset=5).replayed  # perhaps the dataset contains it
        assert up.put([{"id": 7}], offset=7).replayed


def test_a_watermark_tells_where_its_sources_start(uploader: Make, dataset: Dataset) -> None:
    for n in (0, 2, 3, 7, 9):
        with uploader() as up:
            up.put([{"id": n}], offset=n)
    [path] = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    found = json.loads(dataset.read(path))["starts"]["default"]
    assert [start[:2] for start in found] == [[0, -1], [2, 0], [7, 3], [9, 7]]
    assert [start[2] is None for start in found] == [False, False, True, True]


def test_a_watermark_tells_the_starts_of_a_thousand_sources_at_most(
    uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offsets, "_MOST_SOURCES", 2)
    with uploader() as up:
        for n in range(4):
            up.put([{"id": n}], offset=0, source=f"file {n}")
    [path] = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    assert [*json.loads(dataset.read(path))["starts"]] == ["file 0", "file 1"]


@pytest.mark.parametrize("is_shared", SPOOLS)
def test_a_replay_is_known_although_a_column_has_become_json_since(
    uploader: Make, dataset: Dataset, tmp_path: Path, is_shared: bool
) -> None:
    first, second = [{"id": 1, "v": "4"}, {"id": 2, "v": '"'}], [{"id": 3, "v": {"a": 4}}]
    with uploader(spool=tmp_path / "spool") as up:
        up.put(first, offset=0)
        up.put(second, offset=1)
    with uploader(spool=tmp_path / ("spool" if is_shared else "other")) as up:
        assert [up.put(rows, offset=n).replayed for n, rows in enumerate((first, second))] == [True, True]
    assert dataset.ids() == [1, 2, 3]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_tables_with_the_same_offsets_are_told_from_replays(uploader: Make, dataset: Dataset, format: Format) -> None:
    tables = [pyarrow.table({"id": pyarrow.array([n, n + 1], pyarrow.int16())}) for n in (0, 10)]
    with uploader(format=format) as up:
        up.put(tables[0], offset=0)
    with uploader(format=format) as up:
        assert up.put(tables[0], offset=0).replayed
        with pytest.raises(OffsetOrderError, match="other rows"):
            up.put(tables[1], offset=0)


def test_a_replay_after_a_restart_is_silent(uploader: Make, dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    with uploader() as up:
        for n in range(4):
            up.put([{"id": n}], offset=n)
    with uploader() as up:
        receipts = [up.put([{"id": n}], offset=n) for n in range(6)]
    assert [receipt.replayed for receipt in receipts] == [True] * 4 + [False] * 2
    assert dataset.ids() == [*range(6)]
    assert not [record for record in caplog.records if "offset" in record.getMessage()]


@pytest.mark.parametrize("how", ["flush", "close"])
def test_an_offset_out_of_order_that_no_put_waited_for_is_raised_by_the_next_flush(uploader: Make, how: str) -> None:
    up = uploader().open()
    up.put([{"id": 5}], offset=5)
    receipt = up.put([{"id": 3}], offset=3, ack="queued")
    with pytest.raises(OffsetOrderError):
        up.flush() if how == "flush" else up.close()
    assert receipt.state == "dropped"
    up.close()


def test_two_open_uploaders_of_one_process_cannot_share_a_source(uploader: Make, dataset: Dataset) -> None:
    with uploader() as one, uploader() as two:
        one.put([{"id": 0}], offset=0)
        with pytest.raises(SourceInUse, match="another open uploader of this process puts offsets of source 'default'"):
            two.put([{"id": 1}], offset=1)
        two.put([{"id": 2}], offset=0, source="two")
        one.close()
        two.put([{"id": 3}], offset=1)
    assert dataset.ids() == [0, 2, 3]


RANK = """
import sys
from hubsync import Uploader
spool, endpoint, token = sys.argv[1:4]
with Uploader("user/rows", endpoint=endpoint, token=token, spool=spool) as up:
    for n in range(5):
        up.put([{"id": int(sys.argv[4]) * 10 + n}], offset=n)
    print("put", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow("starts four processes")
def test_ranks_of_one_job_have_sources_of_their_own(
    run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    ranks = [
        run.python(
            "-c", RANK, str(tmp_path / "spool"), hub.endpoint, hub.token, str(rank), RANK=str(rank), WORLD_SIZE="4"
        )
        for rank in range(4)
    ]
    for process in ranks:
        assert process.stdout is not None
        assert process.stdout.readline().strip() in ("put", b"put")
    for process in ranks:
        process.communicate("")
        assert process.wait() == 0
    assert dataset.ids() == [rank * 10 + n for rank in range(4) for n in range(5)]


def test_processes_without_ranks_cannot_share_a_source(
    run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    """The second one fails; once the first one is killed, a third one repeats its work at once."""
    args = "-c", RANK, str(tmp_path / "spool"), hub.endpoint, hub.token
    first = run.python(*args, "0")
    assert first.stdout is not None
    assert first.stdout.readline().strip() in ("put", b"put")
    with run.python(*args, "1") as second:
        _, log = second.communicate("")
        assert second.wait() == 1
        assert "SourceInUse: another open uploader of process" in log
    first.kill()
    first.wait()
    with run.python(*args, "0") as third:
        third.communicate("")
        assert third.wait() == 0
    assert dataset.ids() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("environment", "source"),
    [
        ({}, "default"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, "default-rank3"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "default"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "8"}, "default-rank2"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_ID": "7"}, "default-array7"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "default-rank1"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "default-rank1"),
        ({"JOB_COMPLETION_INDEX": "5"}, "default-array5"),
        ({"RANK": "x"}, "default"),
    ],
)
def test_the_default_source_names_the_rank(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], source: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_source() == source


# Batches that finish in any order.


def test_a_thread_pool_puts_its_batches_in_order(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        ordered = up.in_order(max_batches=20)
        numbers = [*range(200)]
        for start in range(0, 200, 20):  # within what may wait, in any order
            part = numbers[start : start + 20]
            random.Random(start).shuffle(part)
            numbers[start : start + 20] = part
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(ordered.put, [{"id": n}], n) for n in numbers]:
                done.result(60)
        assert ordered.next == 200
        assert up.offset() == 199
    assert dataset.ids() == [*range(200)]


def test_a_batch_beyond_the_limit_blocks_until_the_missing_one_comes(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        ordered = up.in_order(max_batches=2)
        ordered.put([{"id": 1}], 1)
        ordered.put([{"id": 2}], 2)
        with pytest.raises(QueueFull, match="offset 0 of source 'default' did not come"):
            ordered.put([{"id": 3}], 3, timeout=0.05)
        late = threading.Thread(target=ordered.put, args=([{"id": 3}], 3))
        late.start()
        until(lambda: ordered._blocked)
        ordered.put([], 0)
        late.join(60)
    assert dataset.ids() == [1, 2, 3]


def test_a_missing_offset_is_raised_by_close(uploader: Make, dataset: Dataset) -> None:
    up = uploader().open()
    ordered = up.in_order()
    ordered.put([{"id": 0}], 0)
    ordered.put([{"id": 2}, {"id": 3}], 2)
    with pytest.raises(OffsetOrderError, match="offset 1 of source 'default' was never put, so 2 rows"):
        up.close()
    assert dataset.ids() == [0]


def test_two_batches_with_one_number_are_refused(uploader: Make) -> None:
    with uploader() as up:
        ordered = up.in_order()
        ordered.put([{"id": 1}], 1)
        with pytest.raises(OffsetOrderError, match="two batches have the offset 1"):
            ordered.put([{"id": 2}], 1)
        ordered.put([{"id": 0}], 0)
        with pytest.raises(OffsetOrderError):
            ordered.put([{"id": 9}], 0)


def test_a_batch_that_conflicts_names_its_offset_and_can_be_put_again(uploader: Make, dataset: Dataset) -> None:
    with uploader(schema=SchemaPolicy(on_conflict="refuse")) as up:
        ordered = up.in_order()
        ordered.put([{"id": 0}], 0)
        ordered.put([{"id": "text"}], 2)
        with pytest.raises(ValueError, match="id") as raised:
            ordered.put([{"id": 1}], 1)
        assert raised.value.__notes__ == ["It is the batch with offset 2 of source 'default'."]
        ordered.put([{"id": 2}], 2)
    assert dataset.ids() == [0, 1, 2]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_pool_of_tasks_puts_its_batches_in_order(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, backend: str
) -> None:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}

    async def run() -> None:
        async with AsyncUploader("user/rows", **given) as up:
            ordered = await up.in_order(max_batches=10)
            rng = random.Random(1)

            async def work(n: int) -> None:
                await anyio.sleep(rng.random() * 0.01)
                await ordered.put([{"id": n}], n)

            async with anyio.create_task_group() as tasks:
                for n in range(ordered.next, 100):
                    tasks.start_soon(work, n)

    anyio.run(run, backend=backend)
    assert dataset.ids() == [*range(100)]


POOL = """
import random, sys, time
from concurrent.futures import ThreadPoolExecutor
from hubsync import ShardPolicy, Uploader
spool, endpoint, token = sys.argv[1:4]
rng = random.Random()

def work(n):
    time.sleep(rng.random() * 0.01)
    ordered.put([{"id": n}], n)

with Uploader("user/rows", endpoint=endpoint, token=token, spool=spool, shard=ShardPolicy(max_rows=20)) as up:
    ordered = up.in_order()
    print(ordered.next, flush=True)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, n) for n in range(ordered.next, 400)]:
            done.result()
"""


@pytest.mark.slow("a job that is killed again and again")
def test_a_pool_that_is_killed_resumes_without_a_gap(
    run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    rng = random.Random(7)
    starts = []
    for kills in range(30):
        with run.python("-c", POOL, str(tmp_path / "spool"), hub.endpoint, hub.token) as job:
            assert job.stdout is not None
            starts.append(int(job.stdout.readline()))
            if kills < 4:
                try:
                    job.wait(rng.uniform(0.05, 0.25))
                except Exception:  # it still runs
                    job.kill()
                    job.wait()
                    continue
            else:
                _, log = job.communicate("")
                assert job.wait() == 0, log
                break
    assert starts == sorted(starts)
    assert len(starts) > 1
    assert dataset.ids() == [*range(400)]


def test_the_helper_says_what_it_waits_for(uploader: Make) -> None:
    with uploader() as up:
        ordered: InOrder = up.in_order("prompts")
        ordered.put([{"id": 1}], 1)
        assert repr(ordered) == "<in order, source 'prompts': next is 0, 1 wait for it>"
        ordered.put([{"id": 0}], 0)
        assert json.dumps(up.offset("prompts")) == "1"


@pytest.mark.parametrize(
    "fault", [Fault.reset(times=1), Fault.reset(on="preupload", times=3), Fault.hang(0.3, times=2)]
)
def test_offsets_are_known_although_the_first_requests_fail(
    hub: LocalHub, uploader: Make, dataset: Dataset, fault: Fault
) -> None:
    """With a new spool, the first requests decide where a job resumes."""
    with uploader() as up:
        up.put([{"id": 4}], offset=4)
    hub.faults.add(fault)
    with uploader(spool=None, retry=RetryPolicy(initial_s=0.01, max_s=0.05, request_timeout_s=0.2)) as up:
        assert up.offset() == 4
        up.put([{"id": 5}], offset=5)
    assert dataset.ids() == [4, 5]


def test_a_commit_that_lands_and_is_reset_at_the_start_is_waited_for(
    hub: LocalHub, uploader: Make, dataset: Dataset
) -> None:
    """The one that moves the head, so that nothing of the lost spool lands any more."""
    with uploader() as up:
        up.put([{"id": 4}], offset=4)
    hub.faults.add(Fault.reset(on="commit", when="after", times=1))
    with uploader(spool=None) as up:
        assert up.offset() == 4
    assert dataset.ids() == [4]


def test_a_blocked_hub_is_not_waited_for(hub: LocalHub, uploader: Make, dataset: Dataset) -> None:
    hub.faults.add(Fault.reset(times=1))
    hub.faults.add(Fault.status(403))
    with pytest.raises(HubsyncError), uploader() as up:
        up.offset()
    hub.faults.clear()
