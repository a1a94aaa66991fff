"""A model of a few lines against the real worker: the set of rows that were accepted.

Hypothesis drives jobs on two machines through puts, replays, flushes, time, every answer that a Hub may give, commits
that land late, other people's commits, processes that stop, that die between or in the middle of steps, and disks
that are lost. After every step no row is in the dataset twice and nothing is there that was not put; in the end, when
the trouble is over, every row that was accepted is there.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hubsync import CompactPolicy, SchemaPolicy
from hubsync.committer import merger
from hubsync.destinations.hub import card
from hubsync.errors import OffsetOrderError
from hubsync.schema.types import infer, merge_structs
from tests.conftest import rounds
from tests.world import Dead, World

SLOTS = st.sampled_from([0, 0, 1, 2])
# What a row's second column holds: most of it goes together.
DRIFT: list[Any] = [None, None, 1, 2, 0.5, [], {}, "text"]
MERGES = [0]  # that landed, for the report
MOVES = [0]  # steps taken, for the report: puts, answers, ticks, deaths, starts


async def _inline(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return work(*args)


class Jobs(RuleBasedStateMachine):
    """Jobs that generate rows; `accepted` is the model."""

    def __init__(self) -> None:
        super().__init__()
        card.preload()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(anyio.to_thread, "run_sync", _inline)
        # Each heartbeat has a time of its own: the kernel's clock may be coarser than a step of this model.
        beats, utime = itertools.count(1), os.utime
        self.patch.setattr(os, "utime", lambda fd: utime(fd, ns=(0, next(beats))))
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="hubsync-model-", dir=shm))
        # Rows that are in the dataset in the end, by the disk that keeps them till then; and those whose put was cut
        # off by a crash, or whose disk was lost: they may be there.
        self.accepted: list[set[str]] = [set(), set()]
        self.doubtful: set[str] = set()
        self.count = 0
        self.generation = [0, 0]

    @initialize(
        template=st.sampled_from(["", "data/{split}-{seq:05d}.jsonl"]),
        lfs=st.booleans(),
        on_conflict=st.sampled_from([None, "dead letter", "new config"]),
        names=st.integers(0, 9),
        merges=st.booleans(),
    )
    def begin(self, template: str, lfs: bool, on_conflict: Any, names: int, merges: bool) -> None:
        rng = random.Random(names)  # of the writers, who are asked in their order: Hypothesis needs to repeat a run
        self.patch.setattr(secrets, "token_hex", lambda size: rng.randbytes(size).hex())
        schema = None if on_conflict is None else SchemaPolicy(on_conflict=on_conflict)
        self.world = World(self.directory, template, "lfs" if lfs else "regular", schema)
        self.card_is_ours = True
        if merges:
            self.world.compact = CompactPolicy(min_shards=2)
            self.patch.setattr(merger, "_COMMITS_BETWEEN", 1)
            self.patch.setattr(merger, "_COMMITS_IF_BUSY", 2)
            self.patch.setattr(merger, "_RETRY_S", 1.0)

    def _put(self, slot: int, row: str, **about: Any) -> None:
        disk = slot // 2
        self.count += 1
        self.world.moves += 1
        try:
            line = json.dumps({"id": row, "drifts": DRIFT[zlib.crc32(row.encode()) % len(DRIFT)]})
            receipt = self.world.start(slot).put(line.encode() + b"\n", **about)
        except Dead:
            self.world.kill(slot)
            if row not in self.accepted[disk]:
                self.doubtful.add(row)
            return
        if isinstance(receipt.error, OffsetOrderError):  # repeated within a run, which is a mistake of the job
            assert row in self.accepted[disk] | self.doubtful | set(map(str, self.world.hub.ids))
            return
        self.doubtful.discard(row)
        assert receipt.state in ("spooled", "committed", "refused")
        self.accepted[disk].add(row)

    def _paused(self, slot: int) -> bool:
        process = self.world.processes[slot]
        return process is not None and process.paused

    @rule(slot=SLOTS, times=st.integers(1, 4))
    def put(self, slot: int, times: int) -> None:
        for _ in range(times):
            if not self._paused(slot):
                self._put(slot, f"plain-{self.count}")

    @rule(slot=SLOTS, key=st.integers(0, 9))
    def put_by_key(self, slot: int, key: int) -> None:
        if not self._paused(slot):
            name = f"key-{slot // 2}-{self.generation[slot // 2]}-{key}"
            self._put(slot, name, key=name)

    @rule(slot=SLOTS, times=st.integers(1, 4), behind=st.sampled_from([0, 0, 1, 3]))
    def put_by_offset(self, slot: int, times: int, behind: int) -> None:
        """As a job does that asks where to go on, or that repeats a little before it goes on."""
        for _ in range(times):
            if self._paused(slot):
                return
            try:
                process = self.world.start(slot)
            except Dead:
                continue
            if not process.spool.is_seeded:
                return
            known = process.spool.offsets.highest(f"source-{slot}")
            if f"source-{slot}" in process.engine.spool_thread.writer.order._runs:
                behind = 0  # within a run, offsets rise
            offset = max(0, (-1 if known is None else known) + 1 - behind)
            self._put(slot, f"offset-{slot}-{offset}", offset=offset, source=f"source-{slot}")

    @rule(slot=SLOTS)
    def flush(self, slot: int) -> None:
        process = self.world.processes[slot]
        if process is not None and not process.paused:
            try:
                process.engine.flush(everything=True)
                process._spool()
            except Dead:
                self.world.kill(slot)

    @rule(seconds=st.sampled_from([0.5, 0.5, 1, 3, 25]))
    def time_passes(self, seconds: float) -> None:
        for _ in range(int(seconds * 2) if seconds <= 3 else 1):
            self.world.pass_time(min(seconds, 0.5) if seconds <= 3 else seconds)

    @rule(times=st.integers(1, 12))
    def answers(self, times: int) -> None:
        for _ in range(times):
            for call in self.world.calls():
                self.world.answer(call, "ok")
            self.world.run()

    @precondition(lambda self: self.world.compact is not None)
    @rule(
        slot=SLOTS,
        shards=st.integers(2, 5),
        steps=st.integers(0, 14),
        points=st.none() | st.integers(0, 8),
    )
    def shards_are_committed_and_merged(self, slot: int, shards: int, steps: int, points: int | None) -> None:
        """Up to a step, so that what comes next strikes at any point of a merge; or the process dies there."""
        for _ in range(shards):
            self.put(slot, 3)
            self.answers(4)
        if points is not None:
            self.world.light_fuse(points)
        for _ in range(steps):
            self.answers(1)
            self.world.pass_time(0.5)

    @precondition(lambda self: self.world.calls())
    @rule(
        which=st.integers(0, 9),
        answer=st.sampled_from(
            ["ok", "transient", "conflict", "limited", "quota", "blocked", "lost", "landed, lost", "late", "defect"]
        ),
    )
    def one_answer(self, which: int, answer: str) -> None:
        calls = self.world.calls()
        call = calls[which % len(calls)]
        if call.body is None and answer not in ("ok", "transient", "limited", "blocked"):
            answer = "transient"
        if call.body is not None and not call.body.plan.shards and answer in ("quota", "defect", "late"):
            answer = "lost"  # a claim that the quota refuses does not fence, and says so
        self.world.answer(call, answer)
        self.world.run()

    @precondition(lambda self: self.world.late)
    @rule(which=st.integers(0, 9))
    def lands_late(self, which: int) -> None:
        self.world.land_late(which)

    @rule(kind=st.sampled_from(["file", "card", "our path"]))
    def somebody_else_commits(self, kind: str) -> None:
        hub = self.world.hub
        ours = sum(path.startswith("data/train-0") for path in hub.files)
        path = {"file": "notes.md", "card": "README.md", "our path": f"data/train-{ours:05d}.jsonl"}[kind]
        self.card_is_ours = self.card_is_ours and kind != "card"
        if path not in hub.files or kind != "our path":
            hub.foreign_commit(path, b"" if kind == "our path" else b"# By a person, %d times\n" % len(hub.history))

    @rule(slot=SLOTS)
    def dies(self, slot: int) -> None:
        self.world.kill(slot)

    @rule(points=st.integers(0, 60))
    def will_die(self, points: int) -> None:
        self.world.light_fuse(points)

    @rule(slot=SLOTS)
    def stops_or_goes_on(self, slot: int) -> None:
        process = self.world.processes[slot]
        if process is not None:
            process.paused = not process.paused
            self.world.run()

    @rule(slot=st.sampled_from([0, 1]), ticks=st.integers(7, 14), puts=st.integers(0, 2))
    def stops_for_long(self, slot: int, ticks: int, puts: int) -> None:
        """A process stops while another one of its machine goes on, which takes over what it did."""
        stopped = self.world.processes[slot]
        if stopped is None or self._paused(1 - slot):
            return
        stopped.paused = True
        for tick in range(ticks):
            if tick < puts:
                self.put_by_offset(1 - slot, 1, 0)
            for call in self.world.calls():
                if call not in stopped.line.calls:
                    self.world.answer(call, "ok")
            self.world.pass_time(0.5)
        stopped.paused = False
        self.world.run()

    def _lose(self, disk: int) -> None:
        self.world.lose_disk(disk)
        if not any(mark.offsets for mark in self.world.hub.marks()):
            self.world.late.clear()  # the one case that is not covered: see docs/concepts/guarantees.md
        here = {row for row in self.accepted[disk] if self.world.hub.ids[row]}
        self.doubtful |= self.accepted[disk] - here
        self.accepted[disk] = here
        self.generation[disk] += 1

    @rule(disk=st.integers(0, 1), sure=st.sampled_from([False, False, True]))
    def disk_is_lost(self, disk: int, sure: bool) -> None:
        if sure:
            self._lose(disk)

    @rule(slot=st.sampled_from([0, 2]), puts=st.integers(0, 3), late=st.booleans())
    def machine_is_replaced(self, slot: int, puts: int, late: bool) -> None:
        """With a new disk, and at once: what the old one had sent may still be on its way."""
        self._lose(slot // 2)
        self.put(slot, 1)
        self.answers(4)
        self.put_by_offset(slot, puts, 0)
        if late and self.world.late:
            self.world.land_late(len(self.world.late) - 1)

    @invariant()
    def no_row_is_there_twice_and_none_that_was_not_put(self) -> None:
        ids = self.world.hub.ids
        twice = [row for row, times in ids.items() if times > 1]
        assert twice == []
        known = self.accepted[0] | self.accepted[1] | self.doubtful
        assert {row for row, times in ids.items() if times} <= known
        assert self.world.hub.overwritten == []

    @invariant()
    def the_dataset_can_be_loaded(self) -> None:
        """All rows of a config go together, and the card says so. Where a person takes that out of the card, machines
        that never met can't know of each other's.
        """
        hub = self.world.hub
        if self.world.schema is None or not self.card_is_ours:
            return
        features = card.Card(hub.files.get(card.PATH), "user/rows").features()
        for path, content in hub.files.items():
            if path.endswith(".jsonl"):
                config = "default" if path.startswith("data/") else path.partition("/")[0]
                kind = infer(json.loads(line) for line in content.splitlines())
                if kind.fields:
                    assert merge_structs(features[config], kind) is features[config], path

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._the_trouble_is_over()
        finally:
            if hasattr(self, "world"):
                MOVES[0] += self.world.moves
                self.world.close()
            self.patch.undo()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _the_trouble_is_over(self) -> None:
        """Everything lands, every process goes on, those that are dead are started again: and all is there."""
        world = self.world
        world.light_fuse(1 << 60)
        while world.late:
            world.land_late(0)
        for process in world.processes:
            if process is not None:
                process.paused = False
        for slot in (0, 2):
            self._put(slot, f"plain-{self.count}")
        for _ in range(400):
            for slot in (0, 2):
                if world.processes[slot] is None:
                    world.start(slot)
                self.flush(slot)
            self.answers(1)
            world.pass_time(1)
            if all(p is None or p.spool.depth().rows == 0 for p in world.processes) and not world.calls():
                break
        self.no_row_is_there_twice_and_none_that_was_not_put()
        there = {row for row, times in world.hub.ids.items() if times}
        for disk in (0, 1):
            assert self.accepted[disk] - there - self._buried(disk) == set()
            assert list((world.disks[disk] / "segments").iterdir()) == []
        MERGES[0] += sum(bool(plan.deletions) and not plan.sidecars for plan in world.hub.commits)

    def _buried(self, disk: int) -> set[str]:
        graves = (self.world.disks[disk] / "dead-letter").glob("*.jsonl")
        return {json.loads(line)["id"] for grave in graves for line in grave.open()}


BRIEF = settings(stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck), max_examples=3)


class TestAFewJobs(Jobs.TestCase):  # type: ignore[name-defined]
    settings = BRIEF


@pytest.mark.slow("takes thousands of steps")
class TestJobs(Jobs.TestCase):  # type: ignore[name-defined]
    settings = settings(BRIEF, max_examples=int(os.environ.get("HUBSYNC_MODEL_EXAMPLES", rounds(30, 300))))
