"""The spool's quota holds for all its processes together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import ShardPolicy, SpoolPolicy, Uploader
from hubsync.errors import SpoolError
from hubsync.policies import MIB
from hubsync.spool.spool import Spool
from tests.conftest import Dataset
from tests.spool.conftest import all_sealed, batch, die, shards_of, writer_of

FILL = """
import sys
from pathlib import Path
from hubsync._runtime.clock import SystemClock
from hubsync.errors import SpoolError
from hubsync.policies import SpoolPolicy
from hubsync.spool.spool import Spool
from tests.spool.conftest import batch, writer_of

spool = Spool(Path(sys.argv[1]), target=None, policy=SpoolPolicy(max_bytes=4 << 20), clock=SystemClock())
writer = writer_of(spool)
print("open", flush=True)
sys.stdin.readline()
try:
    while True:
        writer.append([batch(*range(6000, 9000))])
except SpoolError as error:
    print(error)
"""
BATCH_BYTES = 3000 * len(b'{"id":6000}\n')


def held(spool: Path) -> int:
    return sum(file.stat().st_size for file in (spool / "segments").iterdir())


@pytest.mark.slow("starts several processes")
def test_six_processes_together_stay_within_it(open_spool: Callable[..., Spool], directory: Path) -> None:
    open_spool()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, str(directory)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(6)
    ]
    for job in jobs:
        assert job.stdout is not None
        assert job.stdout.readline() == "open\n"
    said = [job.communicate("go\n")[0] for job in jobs]
    assert all("holds its 4,194,304 bytes" in text for text in said)
    assert 4 * MIB - BATCH_BYTES < held(directory) <= 4 * MIB


def test_a_take_that_exceeds_it_is_accepted_in_part(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool(max_bytes=30)
    writer = writer_of(spool)
    accepted, _ = writer.append([batch(n, key=str(n)) for n in range(9)])
    assert len(accepted) == 3  # of nine bytes each
    with pytest.raises(SpoolError, match="holds its 30 bytes"):
        writer.append([batch(3, key="3")])
    assert [known.replayed for known in writer.append([batch(0, key="0"), batch(3, key="3")])[0]] == [True]
    assert not writer.knows("3")
    assert held(spool.directory) == 27


def test_an_empty_spool_takes_a_batch_of_any_size(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool(max_bytes=10)
    writer = writer_of(spool)
    assert len(writer.append([batch(1, 2, 3), batch(4)])[0]) == 1


def test_what_leaves_the_spool_makes_room(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool(max_bytes=20)
    writer = writer_of(spool, max_rows=1)
    writer.append([batch(1), batch(2)])
    die(writer)
    other = writer_of(spool)
    first, _ = all_sealed(spool)
    shards_of(spool).quarantine(first, "rejected shards count, too")
    with pytest.raises(SpoolError, match="9 bytes of them in the dead letter"):
        other.append([batch(3)])
    with spool.catalogue.transaction():
        spool.segments.discard(first.segment, "discarded")
    assert len(other.append([batch(3)])[0]) == 1


def test_a_job_goes_on_as_room_is_made(uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path) -> None:
    policy = SpoolPolicy(directory=tmp_path / "spool", max_bytes=20_000)
    with uploader(spool=policy, shard=ShardPolicy(linger_s=3600)) as up:
        for n in range(12):
            up.put([{"id": n, "text": "x" * 6_000}])
            assert held(tmp_path / "spool") <= 20_000
    assert dataset.ids() == list(range(12))
