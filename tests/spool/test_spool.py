"""The spool's directory: its modes, its target, and creating it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubsync import SpoolError, SpoolMismatch, SpoolPolicy
from hubsync._runtime import files
from hubsync.model.commit import Watermark
from hubsync.model.layout import Layout
from hubsync.model.target import Target
from hubsync.spool.database import Catalogue
from hubsync.spool.spool import Spool
from hubsync.testing import ManualClock
from tests.spool.conftest import TARGET, all_sealed, batch, shards_of, writer_of


def test_only_the_owner_can_read_the_directory_and_its_files(open_spool: Callable[..., Spool], directory: Path) -> None:
    os.umask(0)
    try:
        writer_of(open_spool()).append([batch(1)])
    finally:
        os.umask(0o022)
    for path in [directory, *directory.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_new_spool_continues_from_the_watermarks_of_the_dataset(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    layout = Layout("default", "train", "data/{split}-{seq:05d}.jsonl")
    assert not spool.is_seeded
    assert spool.lease.acquire()
    spool.seed([Watermark("dead", 3, {"data/train-*.jsonl": 12}, 90, {"default": 40, "b": 2}), Watermark("x", 1)])
    writer = writer_of(spool, layout)
    (replay, new), _ = writer.append([batch(1, offset=40), batch(2, offset=41)])
    writer.seal()
    assert (replay.replayed, new.replayed, spool.is_seeded) == (True, False, True)
    assert all_sealed(spool)[0].path == "data/train-00012.jsonl"


def test_a_spool_of_another_repo_is_not_touched(open_spool: Callable[..., Spool]) -> None:
    open_spool().close()
    for other in (Target("http://127.0.0.1:1", "user/other"), Target("http://127.0.0.1:2", "user/rows"),
                  Target("http://127.0.0.1:1", "user/rows", "dev")):  # fmt: skip
        with pytest.raises(SpoolMismatch, match="hubsync drain"):
            open_spool(other)
    assert open_spool(None).target == TARGET


def test_one_of_two_jobs_that_create_a_spool_for_different_repos_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)
    get, outcomes = Catalogue.get, {}

    def meet(catalogue: Catalogue, key: str) -> str | None:
        found = get(catalogue, key)
        if key == "target" and found is None:
            both.wait()  # neither has created it
        return found

    def job(repo: str) -> None:
        try:
            spool = Spool(directory, target=Target(TARGET.endpoint, repo))
            outcomes[repo] = spool.target.repo
            spool.close()
        except SpoolMismatch:
            outcomes[repo] = "refused"

    monkeypatch.setattr(Catalogue, "get", meet)
    jobs = [threading.Thread(target=job, args=(repo,)) for repo in ("user/public", "user/private")]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert sorted(outcomes.values()) in (["refused", "user/public"], ["refused", "user/private"])
    assert all(found in (repo, "refused") for repo, found in outcomes.items())


def test_a_new_directory_and_its_parents_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    where = tmp_path / "new" / "spool"
    Spool(where, target=TARGET, policy=SpoolPolicy(durability="fsync")).close()
    assert synced[:3] == [where, where.parent, tmp_path]


def test_a_directory_that_cannot_be_created_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="spool="):
        Spool(tmp_path / "file" / "spool", target=TARGET)


def test_rows_that_are_committed_meanwhile_are_missing_from_no_depth(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, other = open_spool(), open_spool()
    writer_of(spool, max_rows=1).append([batch(1)])
    shards_of(other).mark_staged({s.segment: "lfs" for s in all_sealed(other)})
    plan = other.plans.write(other.shards.ready(9, 9), None, None, "")
    landed = {shard.segment: "sha" for shard in plan.shards}

    def and_then_commit(read: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found = read(*args)
            if landed:
                other.plans.settle(plan, dict(landed))
                landed.clear()
            return found

        return run

    monkeypatch.setattr(spool.catalogue, "rows", and_then_commit(spool.catalogue.rows))
    monkeypatch.setattr(spool.catalogue, "get", and_then_commit(spool.catalogue.get))
    depth = spool.depth()
    assert depth.rows + depth.committed_rows >= 1
    assert spool.depth().rows == 0


def test_hashes_of_a_file_that_was_replaced_meanwhile_are_not_recorded(open_spool: Callable[..., Spool]) -> None:
    """A committer may stall while it hashes, and its successor compresses the segment."""
    spool = open_spool()
    (_,), (segment,) = writer_of(spool, max_rows=1).append([batch(1)])
    with spool.catalogue.transaction():
        spool.segments.compress(segment, file="new.1.jsonl.gz", size=9, sha256="new", git_oid="of new")
    spool.segments.set_hashes(segment, "old", "of old")
    row = spool.segments.get(segment)
    assert (row.sha256, row.git_oid) == ("new", "of new")
    spool.segments.set_hashes(segment, "new", "found later")
    assert spool.segments.get(segment).git_oid == "found later"


def test_the_catalogue_and_the_writer_agree_when_a_segment_was_opened(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its age decides when it is sealed, however long the disk takes to create its file."""
    spool = open_spool(durability="fsync")
    clock = spool.clock
    assert isinstance(clock, ManualClock)
    monkeypatch.setattr("hubsync.spool.writer.fsync_directory", lambda path: clock.advance(7))
    writer = writer_of(spool)
    writer.append([batch(1)])
    assert writer.opened_at == spool.depth().oldest_at


def test_every_segment_that_was_sealed_is_listed_once(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubsync.spool.segments._PAGE", 2)
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    writer.append([batch(n) for n in range(5)])
    writer_of(spool).append([batch(5)])
    assert [row.id for row in spool.segments.with_path()] == [1, 2, 3, 4, 5]


_CREATED_AT_ONCE = """
import multiprocessing, sys
from pathlib import Path
from hubsync.spool.spool import Spool
from hubsync.model.target import Target

def create(directory, barrier):
    barrier.wait()
    Spool(directory, target=Target("http://127.0.0.1:1", "user/rows")).close()

context = multiprocessing.get_context("fork")
for n in range(40):
    barrier = context.Barrier(4)
    processes = [context.Process(target=create, args=(Path(sys.argv[1], str(n)), barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
"""


@pytest.mark.slow("starts 160 processes")
def test_processes_that_create_a_spool_at_the_same_moment_all_open_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CREATED_AT_ONCE, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
