"""What the dashboard reads of a spool while a job has it open, and what it makes of that."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from hubsync import HubsyncError, ShardPolicy, Uploader
from hubsync.dashboard import history
from hubsync.dashboard import snapshot as snapshots
from hubsync.dashboard.history import STEP_S, SpoolHistories, _History, _series, _Step
from hubsync.dashboard.snapshot import Depth, Process, Snapshot, next_commit, snapshot
from hubsync.dashboard.view import Amount, Problem, SpoolDetail, SpoolInfo, SpoolView
from hubsync.localhub import Fault, LocalHub
from hubsync.model.target import Target
from hubsync.spool import database
from hubsync.spool.database import VERSION, read_only
from hubsync.spool.spool import Spool
from hubsync.telemetry.heartbeat import Heartbeat, read_heartbeats, write_heartbeat
from hubsync.telemetry.status import State, Status, Stored
from tests.dashboard.browser import wait_until
from tests.dashboard.conftest import Job

Make = Callable[..., Uploader]


def views(histories: SpoolHistories) -> list[SpoolView]:
    histories.refresh()
    return histories.views()


def only(histories: SpoolHistories) -> SpoolView:
    (view,) = views(histories)
    return view


def info(histories: SpoolHistories) -> SpoolInfo:
    """The only spool, which can be read."""
    found = only(histories).info
    assert found is not None
    return found


def problems(histories: SpoolHistories) -> dict[str, Problem]:
    """The problem of each spool that has one, by the name of its directory."""
    return {Path(view.spool).name: view.problem for view in views(histories) if view.problem}


def detail(histories: SpoolHistories) -> SpoolDetail:
    found = info(histories).detail
    assert found is not None
    return found


@pytest.fixture
def left(uploader: Make, tmp_path: Path) -> Path:
    """A spool that a job has left: three rows on the Hub, in two commits."""
    with uploader() as up:
        for rows in (1, 2):
            up.put([{"id": n} for n in range(rows)])
            up.flush()
    for lock in (tmp_path / "spool").rglob("*.lock"):
        os.utime(lock, (0, 0))  # the job ended long ago
    return tmp_path / "spool"


@pytest.mark.slow("waits until the heartbeat of a stopped job is old")
def test_a_job_in_another_process_is_followed_until_it_is_killed(hub: LocalHub, job: Job, tmp_path: Path) -> None:
    histories = SpoolHistories([tmp_path / "spool"])
    problem = only(histories).problem
    assert problem is not None
    assert problem.kind == "missing"
    with job(hub, "user/rows", tmp_path / "spool") as process:
        first = wait_until(lambda: (found := only(histories).info) and found.detail.commits and found, "a commit")
        assert (first.repo, first.alive, first.condition.kind) == ("user/rows", True, "uploading")
        (writer,) = first.detail.processes
        assert (writer.pid, writer.commits, writer.alive) == (process.pid, True, True)
        wait_until(
            lambda: (
                (found := info(histories)).committed.rows > first.committed.rows
                and len(found.detail.commits) > len(first.detail.commits)
                and found.detail.processes[0].rows > writer.rows
            ),
            "more rows, commits and counts",
        )
        process.send_signal(signal.SIGSTOP)
        stopped = wait_until(lambda: not (found := info(histories)).alive and found, "the heartbeat is old")
        assert stopped.detail.processes[0].exists
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: info(histories).alive, "a new heartbeat")
    dead = wait_until(lambda: not (found := info(histories)).alive and found, "the heartbeat is old")
    assert not dead.detail.processes[0].exists
    if dead.waiting.rows:
        assert dead.next.why.endswith(f"hubsync drain {tmp_path / 'spool'}")


def test_a_job_tells_its_queue_and_bounds_and_takes_that_away_when_it_ends(uploader: Make, tmp_path: Path) -> None:
    with uploader(shard=ShardPolicy(linger_s=7, max_bytes=1000)) as up:
        up.put([{"id": 1}])
        live = wait_until(
            lambda: (found := read_heartbeats(tmp_path / "spool"))
            and (live := next(iter(found.values()))).counts.spooled_rows
            and live, "the update shows that a row was spooled",
        )  # fmt: skip
        assert (live.pid, live.linger_s, live.shard_max_bytes) == (os.getpid(), 7, 1000)
        queue = detail(SpoolHistories([up.spool])).queue
        assert queue is not None
        assert queue.max_bytes == 64 * 1024 * 1024
    assert read_heartbeats(tmp_path / "spool") == {}


@pytest.mark.slow("waits for a heartbeat")
def test_a_job_whose_start_hangs_is_seen_to_be_alive(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.faults.add(Fault.hang())
    up = uploader()
    opened = threading.Event()

    def open_up() -> None:
        up.open()
        opened.set()

    opening = threading.Thread(target=open_up)
    opening.start()
    try:
        beats: set[float] = set()
        wait_until(
            lambda: beats.update(live.at for live in read_heartbeats(tmp_path / "spool").values()) or len(beats) > 2,
            "beats",
        )
        assert not opened.is_set()
        assert info(SpoolHistories([tmp_path / "spool"])).alive
    finally:
        hub.faults.clear()
        opening.join()
        up.close()


def test_what_a_job_tells_is_one_page_however_long_its_trouble(tmp_path: Path) -> None:
    (tmp_path / "writers").mkdir()
    for reason in ("no room", "\x01" * 10_000, "none"):
        live = Heartbeat(pid=1, at=2.0, since=1.0, state=State("spool full", reason, 3.0))
        write_heartbeat(tmp_path, "w", live)
        told_now = read_heartbeats(tmp_path)["w"]
        assert told_now.state.reason == reason[:400]
        assert (told_now.at, told_now.state.until) == (2.0, 3.0)
        assert (tmp_path / "writers" / "w.live").stat().st_size == 4096
    write_heartbeat(tmp_path / "gone", "w", live)  # a job does not stumble over it
    (tmp_path / "writers" / "w.live").write_bytes(b"{torn")
    assert read_heartbeats(tmp_path) == {}


def test_the_figures_are_those_of_the_spool(left: Path) -> None:
    found = info(SpoolHistories([left]))
    assert found.committed == Amount(shards=2, rows=3, bytes=27)
    assert (found.waiting.rows, found.oldest_age_s) == (0, None)
    shown = found.detail
    assert shown is not None
    assert [(commit.rows, commit.shards) for commit in shown.commits] == [(1, 1), (2, 1)]
    assert shown.quota.spent == 2
    assert [shard.state for shard in shown.shards] == ["committed", "committed"]
    assert shown.rejected == []
    assert found.minute.spooled_rows + found.minute.committed_rows > 0
    assert sum(shown.series.spooled_rows[:-1]) * STEP_S <= 3.01


def test_a_step_that_has_just_begun_is_no_peak() -> None:
    """A refresh may fall anywhere in a second, so a step's first one may bring the rows of two seconds."""
    steps = {99: _Step(spooled_rows=100), 100: _Step(spooled_rows=20)}
    spooled = _series(_History(steps=steps), 1001.0).spooled_rows
    assert spooled[-2:] == [10, pytest.approx(120 / 11, abs=0.01)]


def test_a_commit_is_counted_once_however_often_the_spool_is_read(left: Path) -> None:
    histories = SpoolHistories([left])
    last = [detail(histories) for _ in range(5)][-1]
    assert [(commit.rows, commit.shards) for commit in last.commits] == [(1, 1), (2, 1)]
    assert len(last.shards) == 2


def test_shards_and_commits_have_links(left: Path, hub: LocalHub) -> None:
    shown = detail(SpoolHistories([left]))
    newest = shown.shards[0]
    assert newest.url == f"{hub.endpoint}/datasets/user/rows/blob/main/{newest.path}"
    assert (shown.commits[0].url or "").startswith(f"{hub.endpoint}/datasets/user/rows/commit/")


def test_an_endpoint_that_is_no_web_address_has_no_links(left: Path) -> None:
    with sqlite3.connect(left / "catalogue.sqlite") as db:
        db.execute(
            "UPDATE meta SET value = ? WHERE key = 'target'",
            (msgspec.json.encode(Target("javascript:alert(1)//", "user/rows")).decode(),),
        )
    db.close()
    found = info(SpoolHistories([left]))
    assert found.detail is not None
    links = [shard.url for shard in found.detail.shards] + [commit.url for commit in found.detail.commits]
    assert [found.url, *links] == [None] * 5


def test_only_opened_spools_have_detail_once_there_are_many(left: Path) -> None:
    directories = [left, *(left.parent / f"copy-{n}" for n in range(3))]
    for directory in directories[1:]:
        shutil.copytree(left, directory)
    assert [view.info.detail is not None for view in views(SpoolHistories(directories[:3])) if view.info] == [True] * 3
    histories = SpoolHistories(directories)
    found = views(histories)
    assert [view.info.detail for view in found if view.info] == [None] * 4
    opened = [view.info.detail is not None for view in histories.views([found[2].id]) if view.info]
    assert opened == [False, False, True, False]


def test_a_finished_spool_is_read_again_only_when_its_files_change(
    left: Path, uploader: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = SpoolHistories([left])
    histories.refresh()
    read = []
    monkeypatch.setattr(history, "snapshot", lambda *given: read.append(given) or snapshot(*given))
    for _ in range(5):
        assert info(histories).committed.rows == 3
    assert read == []
    with uploader() as up:
        up.put([{"id": 1}])
        up.flush()
        assert info(histories).committed.rows == 4


def test_spools_that_need_someone_come_first(left: Path, uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.faults.add(Fault.status(422, on="commit"))
    with contextlib.suppress(HubsyncError), uploader(spool=tmp_path / "rejected") as up:
        up.put([{"id": 1}])
        up.flush()
    hub.faults.clear()
    with uploader(spool=tmp_path / "running"):
        order = [tmp_path / name for name in ("rejected", "running", "spool", "missing")]
        assert [Path(view.spool) for view in views(SpoolHistories(order[::-1]))] == order


def test_a_look_leaves_no_trace_and_takes_no_lock(left: Path) -> None:
    def traces() -> dict[str, tuple[int, bytes]]:
        files = [file for file in left.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = traces()
    for _ in range(3):
        only(SpoolHistories([left]))
    assert traces() == before
    assert all(file.stat().st_size == 0 for file in left.glob("*-wal"))
    with read_only(left / "catalogue.sqlite") as db, pytest.raises(sqlite3.OperationalError):
        db.rows("DELETE FROM meta")


def test_a_look_hinders_no_writer_and_no_checkpoint(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_KEPT_BYTES", 0)
    spool = Spool(left, target=None)
    with read_only(left / "catalogue.sqlite") as db:
        db.row("SELECT count(*) FROM segments")
        spool.catalogue.set("x", "1")
    spool.catalogue.checkpoint(shrink=True)
    assert (left / "catalogue.sqlite-wal").stat().st_size == 0
    spool.close()


def test_who_opens_a_new_spool_and_who_looks_do_not_meet(hub: LocalHub, tmp_path: Path) -> None:
    """SQLite refuses to switch to WAL while another process reads, without waiting: a job would not start."""
    histories = SpoolHistories([tmp_path / f"spool-{n}" for n in range(15)])
    done = threading.Event()

    def look_on() -> None:
        while not done.is_set():
            views(histories)

    looking = threading.Thread(target=look_on)
    looking.start()
    try:
        for n in range(15):
            Spool(tmp_path / f"spool-{n}", target=Target(hub.endpoint, "user/rows")).close()
    finally:
        done.set()
        looking.join()
    assert [view.problem for view in views(histories)] == [None] * 15


def test_a_spool_that_is_corrupt_newer_or_gone_is_a_card_that_says_so(left: Path) -> None:
    histories = SpoolHistories([left, left.parent / "other"])
    shutil.copytree(left, left.parent / "other")
    assert [view.problem for view in views(histories)] == [None, None]
    with contextlib.closing(sqlite3.connect(left / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert problems(histories)["spool"].kind == "newer version"
    for file in left.glob("catalogue.sqlite*"):
        file.unlink()
    (left / "catalogue.sqlite").write_bytes(b"no database at all, " * 500)
    assert problems(histories)["spool"].kind == "corrupt"
    assert "--rescue" in problems(histories)["spool"].text
    shutil.rmtree(left)
    assert {name: problem.kind for name, problem in problems(histories).items()} == {"spool": "missing"}
    shutil.copytree(left.parent / "other", left)
    assert problems(histories) == {}
    assert [view.info.committed.rows for view in views(histories) if view.info] == [3, 3]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", '{"kind": "dancing"}'),
        ("governor", "[1"),
        ("target", '{"endpoint": "http://[", "repo": "a/b"}'),
        ("committed_rows", "many"),
    ],
)
def test_what_is_not_understood_is_no_end_of_the_page(left: Path, key: str, value: str) -> None:
    shutil.copytree(left, left.parent / "other")
    with contextlib.closing(sqlite3.connect(left / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
    histories = SpoolHistories([left, left.parent / "other"])
    assert {name: problem.kind for name, problem in problems(histories).items()} == {"spool": "unreadable"}


def test_without_a_spool_all_at_the_usual_place_are_followed(uploader: Make) -> None:
    histories = SpoolHistories()
    assert views(histories) == []
    for repo in ("user/a", "user/b"):
        with uploader(repo, spool=None) as up:
            up.put([{"id": 1}])
            directory = up.spool
    assert [view.info.repo for view in views(histories) if view.info] == ["user/a", "user/b"]
    shutil.rmtree(directory)
    assert [view.info.repo for view in views(histories) if view.info] == ["user/a"]


def test_the_dead_letter_is_grouped_by_reason(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    histories = SpoolHistories([tmp_path / "spool"])
    for status, shards in ((422, 1), (413, 2)):
        for n in range(shards):
            hub.faults.add(Fault.status(status, on="commit"))
            with contextlib.suppress(HubsyncError), uploader() as up:
                views(histories)
                up.put([{"id": n}] * status)
                up.flush()
            hub.faults.clear()
    shown = detail(histories)
    for seen in (shown, detail(SpoolHistories([tmp_path / "spool"]))):
        assert seen.series.waiting_rows[-1] == 0  # rejected rows do not wait for the Hub
    assert [(group.shards, group.rows) for group in shown.rejected] == [(2, 826), (1, 422)]
    assert ["413" in shown.rejected[0].why, "422" in shown.rejected[1].why] == [True, True]
    assert all((group.path or "").startswith("data/") for group in shown.rejected)


def test_the_last_changes_of_the_state_outlive_the_job(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    for code in (503, 500):
        with uploader() as up:
            hub.faults.add(Fault.status(code, on="commit", times=1))
            up.put([{"id": code}])
            up.flush()
    changes = detail(SpoolHistories([tmp_path / "spool"])).changes
    assert [change.kind for change in changes] == ["ok", "backing off"] * 2
    assert "503" in changes[3].reason
    assert "500" in changes[1].reason


def test_only_so_many_changes_are_kept() -> None:
    saved: list[str] = []
    status = Status(saved.append, lambda: "", now=lambda: 1.0)
    for n in range(100):
        status.report("commit", State("backing off", f"try {n}"))
    stored = msgspec.json.decode(saved[-1], type=Stored)
    assert (len(stored.changes), stored.changes[-1].reason) == (20, "try 99")
    assert msgspec.json.decode(saved[-1], type=State) == State("backing off", "try 99")


@pytest.mark.parametrize("stored", [None, '{"kind": "ok"}', '{"kind": "dancing"}', "no JSON"])
def test_no_job_stumbles_over_a_state_of_another_version(stored: str | None) -> None:
    saved: list[str] = []
    status = Status(saved.append, lambda: "", stored=stored)
    status.report("commit", State("blocked", "401"))
    assert [change.reason for change in msgspec.json.decode(saved[-1], type=Stored).changes] == ["401"]


def test_no_look_but_the_first_reads_what_was_ever_committed(left: Path) -> None:
    """Each statement has an index, or a bound."""
    statements: list[str] = []
    with read_only(left / "catalogue.sqlite") as db:
        db._db.set_trace_callback(statements.append)
        snapshots._read(db, left, 400)
        db._db.set_trace_callback(None)
        about = [statement for statement in statements if "segments" in statement]
        assert len(about) >= 5
        for statement in about:
            plan = " ".join(row["detail"] for row in db.rows(f"EXPLAIN QUERY PLAN {statement}"))
            is_indexed = any(index in plan for index in ("pending", "urgent", "aged", "losses"))
            assert is_indexed or ("ORDER BY id DESC LIMIT" in statement and "TEMP B-TREE" not in plan), statement


def test_a_spool_of_the_first_version_is_shown_and_not_migrated(left: Path) -> None:
    with contextlib.closing(sqlite3.connect(left / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("ALTER TABLE segments DROP COLUMN schema")
        db.execute("DROP TABLE schemas")
        db.execute("PRAGMA user_version = 1")
        found = snapshot(left, 100)
        assert (len(found.recent), found.committed.rows) == (2, 3)
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


def test_a_long_backlog_hides_no_commit(left: Path) -> None:
    """What was committed is looked for before all that waits, too."""
    with contextlib.closing(sqlite3.connect(left / "catalogue.sqlite", isolation_level=None)) as db:
        db.executemany(
            "INSERT INTO segments (writer, file, config, split, template, state, opened_at, rows, bytes) "
            "VALUES ('w', 'f', 'default', 'train', '', 'sealed', ?, 10, 100)",
            [(time.time(),)] * 1000,
        )
    found = snapshot(left, 100)
    assert sorted(row.id for row in found.recent if row.state == "committed") == [1, 2]
    assert found.waiting.rows == 10_000


_OK = State()


def spool_with(
    *,
    state: State = _OK,
    live: bool = True,
    sending: float | None = None,
    governor: str | None = None,
    **depths: Depth,
) -> Snapshot:
    """A snapshot in which so much waits."""
    now = time.time()
    process = Process(
        1, "w", True, 0.0, True, Heartbeat(pid=1, at=now, since=now, linger_s=60, shard_max_bytes=64_000_000)
    )
    empty = dict.fromkeys(("open", "sealed", "staged", "dead"), Depth())
    return Snapshot(
        directory=Path("/spool"), at=now, target=Target("http://hub", "user/rows"),
        stored=Stored(state.kind, state.reason, state.until), depths=empty | depths, committed=Depth(), urgent=False,
        governor=governor, sending_since=sending, next_up=[], recent=[], rejected=[],
        processes=[process] if live else [],
    )  # fmt: skip


_NOW = time.time()
_FULL = f'{{"per_hour": 2, "spent": [{_NOW - 100}, {_NOW - 50}], "share": 1.0, "share_at": {_NOW}}}'


@pytest.mark.parametrize(
    ("found", "due", "words"),
    [
        (spool_with(), False, "Everything is on the Hub"),
        (spool_with(live=False), False, "nothing waits"),
        (spool_with(live=False, sealed=Depth(1, 5, 50, _NOW)), False, "hubsync drain /spool"),
        (spool_with(open=Depth(1, 5, 50, _NOW)), True, "sealed 60 s after its first row, or at 64 MB"),
        (spool_with(sealed=Depth(2, 5, 5e6, _NOW)), False, "2 shards being uploaded (5.0 MB)"),
        (spool_with(staged=Depth(1, 5, 50, _NOW)), True, "1 shard ready to be sent now"),
        (spool_with(staged=Depth(3, 5, 50, _NOW), governor=_FULL), True, "keep to 2 an hour"),
        (spool_with(staged=Depth(3, 5, 50, _NOW), sending=_NOW), True, "on its way"),
        (spool_with(state=State("backing off", "commit quota", _NOW + 9)), True, "by the hour"),
        (spool_with(state=State("backing off", "503", _NOW + 9)), True, "growing pauses"),
        (spool_with(state=State("blocked", "401", _NOW + 9)), True, "An operator"),
        (spool_with(state=State("offline", "HF_HUB_OFFLINE is set")), False, "HF_HUB_OFFLINE"),
        (spool_with(state=State("spool full", "no room.")), False, "no room."),
    ],
)
def test_why_the_next_commit_waits_is_told(found: Snapshot, due: bool, words: str) -> None:
    at, why = next_commit(found)
    assert words in why
    assert (at is not None) == due


def test_the_worst_of_the_spools_processes_shows() -> None:
    found = spool_with()
    full = Heartbeat(pid=2, at=0, since=0, state=State("spool full", "the disk is full"))
    found.processes.append(Process(2, "x", False, 0.0, True, full))
    assert found.state.kind == "spool full"
