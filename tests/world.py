"""A world for the model: processes, their disks, a Hub and a clock, where nothing moves unless a test moves it.

Everything of the uploader but its threads is the real thing: queue, spool on disk, SQLite, committer. A process is run
by hand, in its own event loop, until it has nothing left to do; every call to the Hub then waits to be answered. A
process dies at a failpoint (`hubsync._runtime.failpoints`), or between two steps.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubsync._runtime import failpoints
from hubsync._runtime.failpoints import Failpoint
from hubsync.destinations.base import CommitOutcome, outcome_of
from hubsync.encoding.rows import Encoded
from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    DefectError,
    HubError,
    RateLimitedError,
    StaleParentError,
    TransientError,
)
from hubsync.model.batch import Batch
from hubsync.model.commit import BranchTip, Plan
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.model.shard import Mode, RemoteFile, Shard, Staged
from hubsync.model.target import Target
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.policies import CommitPolicy, CompactPolicy, Policies, QueuePolicy, RetryPolicy, SchemaPolicy, ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.testing import ManualClock
from hubsync.uploader.engine import Engine, Placement
from hubsync.uploader.queue import Order
from hubsync.uploader.schema_guard import Admission, SchemaGuard
from tests.simulated import Body, SimulatedHub

TARGET = Target("http://127.0.0.1:1", "user/rows")


class Crash(BaseException):
    """The process ends here."""


class Dead(Exception):
    """The process ended in the middle of what it was asked to do."""


@dataclass
class Call:
    """A request that waits for its answer."""

    operation: str
    answered: asyncio.Future[str]
    body: Body | None = None


class Line:
    """A process' connection to the Hub: implements `Destination`."""

    def __init__(self, hub: SimulatedHub) -> None:
        self._hub = hub
        self.calls: list[Call] = []

    async def _ask(self, operation: str, body: Body | None = None) -> str:
        call = Call(operation, asyncio.get_running_loop().create_future(), body)
        self.calls.append(call)
        try:
            return await call.answered
        finally:
            if call in self.calls:
                self.calls.remove(call)

    async def _do(self, operation: str, work: Callable[[], Awaitable[Any]]) -> Any:
        if error := refusal(await self._ask(operation)):
            raise error
        return await work()

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        return await self._do("ensure_repo", lambda: self._hub.ensure_repo(private=private))

    async def head(self) -> BranchTip:
        return await self._do("head", self._hub.head)

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        return await self._do("stage", lambda: self._hub.stage(shards))

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        return await self._do("find_files", lambda: self._hub.find_files(paths, at))

    async def count_files(self, folder: str, at: str, *, most: int, deep: bool) -> int:
        return int(await self._do("count_files", lambda: self._hub.count_files(folder, at, most=most, deep=deep)))

    async def read_file(self, path: str, at: str) -> bytes | None:
        return await self._do("read_file", lambda: self._hub.read_file(path, at))

    async def list_files(self, at: str, folder: str = "") -> Sequence[Any]:
        return list(await self._do("list_files", lambda: self._hub.list_files(at, folder)))

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        return bool(await self._do("download", lambda: self._hub.download(path, at, take)))

    async def read_watermarks(
        self, at: str, *, writers: Collection[str] | None = None, most: int | None = None
    ) -> RemoteWatermarks:
        found: RemoteWatermarks = await self._do("read_watermarks", lambda: self._hub.read_watermarks(at))
        return found

    async def commit(self, plan: Plan) -> CommitOutcome:
        return await outcome_of(self._commit(plan))

    async def _commit(self, plan: Plan) -> str:
        """It takes effect when it is answered, even if its sender no longer waits: see `World.answer`."""
        try:
            body = self._hub.pack(plan)
        except OSError as error:
            raise TransientError(str(error)) from error
        answer = await self._ask("commit", body)
        if error := refusal(answer):
            raise error
        return answer

    async def aclose(self) -> None:
        pass


def refusal(answer: str) -> HubError | None:
    """Return the error that an answer means; None if it is not an error."""
    errors: dict[str, HubError] = {
        "transient": TransientError("503", status=503),
        "conflict": TransientError("409", status=409),
        "limited": RateLimitedError("429", status=429, retry_after_s=2.0),
        "quota": RateLimitedError("429", status=429, retry_after_s=30.0, commit_quota=True),
        "blocked": AuthenticationError("401", status=401),
        "defect": DefectError("422", status=422),
        "lost": AmbiguousError("reset"),
        "stale": StaleParentError("412", status=412),
    }
    if answer.startswith("quota "):
        retry_after_s = float(answer.removeprefix("quota "))
        return RateLimitedError("429", status=429, retry_after_s=retry_after_s, commit_quota=True)
    return errors.get(answer)


class Process:
    """One process with one uploader, run by hand."""

    def __init__(
        self, world: World, disk: Path, template: str, commit: CommitPolicy, schema: SchemaPolicy | None
    ) -> None:
        self.paused = False
        self.line = Line(world.hub)
        self._clock = world.clock
        retry = RetryPolicy(initial_s=0.5, max_s=4, blocked_s=10)
        spool = Spool(disk, target=TARGET, clock=world.clock)
        layout = Layout(template=template)
        spool.schemas.set_policy("default", "off" if schema is None else schema.on_conflict)
        self.guard = None if schema is None else SchemaGuard(spool, layout, schema)
        self.engine = Engine(
            spool, self.line, Placement(layout, layout.format, is_custom=True),
            Policies(QueuePolicy(), ShardPolicy(max_rows=3, linger_s=20), commit, retry, world.compact),
            random.Random(1), on_schema_mismatch=self.guard.forget if self.guard is not None else lambda: None,
        )  # fmt: skip
        self.spool = spool
        self.loop = asyncio.new_event_loop()
        self.engine.bind(lambda callback: callback)
        self.tasks = [self.loop.create_task(service()) for service in self.engine.services()]

    def run(self) -> bool:
        """Until there is nothing left to do; whether there was anything. Raises `Dead` where it died of it."""
        moved = False
        while self.loop._ready or self._has_items():  # type: ignore[attr-defined]
            moved = True
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if self._has_items():
                self._spool()
        for task in self.tasks:
            if task.done():
                error = task.exception()
                if error is None or not _is_crash(error):
                    raise AssertionError("a part of the engine ended") from error
                raise Dead
        return moved

    def _has_items(self) -> bool:
        queue = self.engine.queue
        return queue._last() is not queue._taken

    def _spool(self) -> None:
        try:
            self.engine.spool_thread.process(self.engine.queue.take())
        except Crash:
            raise Dead from None

    def put(self, row: bytes, *, offset: int | None = None, source: str = "default", key: str | None = None) -> Receipt:
        """As `Uploader.put` with ack="spooled"."""
        receipt = Receipt(1, len(row))
        place = Admission() if self.guard is None else self.guard.admit(Encoded(row, 1))
        row = row if place.lines is None else place.lines
        assert self.engine.queue.put(Batch(row, 1, receipt, source, offset, key, *place[:3]))
        self._spool()
        assert receipt.state != "queued"
        return receipt

    def order(self, work: Callable[[], object]) -> None:
        self.engine.queue.order(Order(work))
        self._spool()

    def die(self) -> None:
        """SIGKILL: the locks go, the memory goes, what is on the disk stays."""
        for writer in self.engine.spool_thread.writers:
            writer.close()
        self.spool.lease.release()
        self.spool.catalogue.close()
        # What runs now is only Python's tidying up; it has no disk and no Hub any more.
        # A cancelled scope cancels again and again; a bare task is cancelled once, which a lost lease may cover.
        while left := [task for task in self.tasks if not task.done()]:
            for task in left:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(left, timeout=0))
        for task in self.tasks:
            if not task.cancelled():
                task.exception()  # seen
        self.loop.close()


def _is_crash(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(Crash) is not None
    return isinstance(error, Crash)


class World:
    """Some processes, some disks, one Hub."""

    def __init__(
        self, directory: Path, template: str = "", mode: Mode = "regular", schema: SchemaPolicy | None = None
    ) -> None:
        self.hub = SimulatedHub(mode)
        self.clock = ManualClock()
        self.template = template
        self.schema = schema
        self.commit = CommitPolicy(per_hour=100_000, max_files=3)
        self.compact: CompactPolicy | None = None
        self.disks = [directory / "disk 0", directory / "disk 1"]
        self.processes: list[Process | None] = [None] * 3
        self.late: list[Body] = []  # commits that are on their way, whose sender waits no more
        self.moves = 0
        self._fuse: int | None = None
        failpoints.listener = self._reached

    def disk_of(self, slot: int) -> Path:
        """The first two processes share a disk; the third is on another machine."""
        return self.disks[slot // 2]

    def start(self, slot: int) -> Process:
        found = self.processes[slot]
        if found is None:
            try:
                found = Process(self, self.disk_of(slot), self.template, self.commit, self.schema)
            except Crash:
                raise Dead from None
            self.moves += 1
            self.processes[slot] = found
        return found

    def pass_time(self, seconds: float) -> None:
        self.moves += 1
        self.clock.advance(seconds)
        self.run()

    def kill(self, slot: int) -> None:
        process, self.processes[slot] = self.processes[slot], None
        if process is not None:
            self.moves += 1
            self.late += [call.body for call in process.line.calls if call.body is not None]
            process.die()

    def lose_disk(self, number: int) -> None:
        for slot in range(3):
            if self.disk_of(slot) == self.disks[number]:
                self.kill(slot)
        shutil.rmtree(self.disks[number], ignore_errors=True)

    def light_fuse(self, points: int) -> None:
        """The process that reaches the so-manieth failpoint from now on dies there."""
        self._fuse = points

    def _reached(self, point: Failpoint) -> None:
        if self._fuse is not None:
            self._fuse -= 1
            if self._fuse < 0:
                self._fuse = None
                raise Crash

    def calls(self) -> list[Call]:
        """The requests that wait for an answer."""
        return [c for p in self.processes if p is not None for c in p.line.calls if not c.answered.done()]

    def answer(self, call: Call, answer: str) -> None:
        """Respond to a request with "ok" or an error's name; for a commit also with "landed, lost" or "late"."""
        self.moves += 1
        if call.body is None:
            call.answered.set_result(answer)
        elif answer == "late":
            self.late.append(call.body)
            call.answered.set_result("lost")
        elif answer in ("ok", "landed, lost"):
            try:
                sha = self.hub.land(call.body)
            except StaleParentError:
                call.answered.set_result("stale")
            else:
                call.answered.set_result(sha if answer == "ok" else "lost")
        else:
            call.answered.set_result(answer)

    def land_late(self, number: int) -> None:
        """A commit arrives long after it was given up."""
        self.moves += 1
        body = self.late.pop(number % len(self.late))
        with suppress(StaleParentError):
            self.hub.land(body)

    def run(self) -> None:
        """Let every process that is not paused run until it has nothing left to do."""
        moved = True
        while moved:
            moved = False
            for slot, process in enumerate(self.processes):
                if process is not None and not process.paused:
                    try:
                        moved = process.run() or moved
                    except Dead:
                        self.kill(slot)
                        moved = True

    def close(self) -> None:
        for slot in range(3):
            self.kill(slot)
        failpoints.listener = None
