"""What is read of a spool while a job has it, and what is made of it."""

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
from typing import Any

import msgspec
import pytest

from hubsync import HubsyncError, ShardPolicy, Uploader
from hubsync.dashboard import snapshot as snapshots
from hubsync.dashboard.history import STEP_S, STEPS, Watch, _Memory, _series, _Step
from hubsync.dashboard.snapshot import Depth, Process, Snapshot, next_commit, snapshot
from hubsync.localhub import Fault, LocalHub
from hubsync.model.target import Target
from hubsync.spool import database
from hubsync.spool.database import VERSION, read_only
from hubsync.spool.spool import Spool
from hubsync.telemetry.heartbeat import Heartbeat, read_heartbeats, write_heartbeat
from hubsync.telemetry.status import State, Status, Stored
from tests.dashboard.browser import job, wait_until

Make = Callable[..., Uploader]


def one(watch: Watch) -> dict[str, Any]:
    (card,) = watch.look()
    return card


@pytest.fixture
def left(uploader: Make, tmp_path: Path) -> Path:
    """A spool that a job has left: three rows on the Hub, in two commits."""
    with uploader() as up:
        for rows in (1, 2):
            up.put([{"id": n} for n in range(rows)])
            up.flush()
    return tmp_path / "spool"


@pytest.mark.slow("waits until a job that stopped is seen to be silent")
def test_a_job_in_another_process_is_followed_until_it_is_killed(hub: LocalHub, tmp_path: Path) -> None:
    watch = Watch([tmp_path / "spool"])
    assert one(watch)["problem"]["kind"] == "not there"
    with job(hub, "user/rows", tmp_path / "spool") as process:
        first = wait_until(lambda: (card := one(watch)).get("commits") and card, "a commit")
        assert (first["repo"], first["alive"], first["state"]["kind"]) == ("user/rows", True, "ok")
        (writer,) = first["processes"]
        assert (writer["pid"], writer["commits"], writer["alive"]) == (process.pid, True, True)
        wait_until(
            lambda: (
                (card := one(watch))["committed"]["rows"] > first["committed"]["rows"]
                and len(card["commits"]) > len(first["commits"])
                and card["processes"][0]["rows"] > writer["rows"]
            ),
            "more rows, commits and counts",
        )
        process.send_signal(signal.SIGSTOP)
        stopped = wait_until(lambda: not (card := one(watch))["alive"] and card, "it is seen that it stopped")
        assert stopped["processes"][0]["there"]
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: one(watch)["alive"], "it goes on")
    dead = wait_until(lambda: not (card := one(watch))["alive"] and card, "it is seen that it is dead")
    assert not dead["processes"][0]["there"]
    if dead["waiting"]["rows"]:
        assert dead["next"]["why"].endswith(f"hubsync drain {tmp_path / 'spool'}")


def test_a_job_tells_its_queue_and_bounds_and_takes_that_away_when_it_ends(uploader: Make, tmp_path: Path) -> None:
    with uploader(shard=ShardPolicy(linger_s=7, max_bytes=1000)) as up:
        up.put([{"id": 1}])
        live = wait_until(
            lambda: (found := read_heartbeats(tmp_path / "spool"))
            and (live := next(iter(found.values()))).counts.spooled_rows
            and live, "it tells that a row was spooled",
        )  # fmt: skip
        assert (live.pid, live.linger_s, live.shard_max_bytes) == (os.getpid(), 7, 1000)
        assert one(Watch([up.spool]))["queue"]["max_bytes"] == 64 * 1024 * 1024
    assert read_heartbeats(tmp_path / "spool") == {}


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
        assert one(Watch([tmp_path / "spool"]))["alive"]
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


def test_what_it_tells_counts_what_happened(left: Path) -> None:
    card = one(Watch([left]))
    assert card["committed"] == {"shards": 2, "rows": 3, "bytes": 27}
    assert [(c["rows"], c["shards"]) for c in card["commits"]] == [(1, 1), (2, 1)]
    assert card["quota"]["spent"] == 2
    assert [shard["state"] for shard in card["shards"]] == ["committed", "committed"]
    assert (card["waiting"]["rows"], card["oldest_age_s"], card["dead"]) == (0, None, [])
    spooled = sum(card["series"]["spooled_rows"][:-1]) * STEP_S
    assert sum(card["series"]["minute"][name] for name in ("spooled_rows", "committed_rows")) > 0
    assert spooled <= 3.01


def test_a_step_that_has_just_begun_is_no_peak() -> None:
    """A look falls somewhere in a second, so that a step's first one may bring two seconds' rows within one."""
    steps = {99: _Step(spooled_rows=100), 100: _Step(spooled_rows=20)}
    spooled = _series(_Memory(steps=steps), 1001.0)["spooled_rows"]
    assert spooled[-2:] == [10, pytest.approx(120 / 11, abs=0.01)]


def test_a_commit_is_counted_once_however_often_one_looks(left: Path) -> None:
    watch = Watch([left])
    first = [one(watch) for _ in range(5)][-1]
    assert [(c["rows"], c["shards"]) for c in first["commits"]] == [(1, 1), (2, 1)]
    assert len(first["shards"]) == 2


def test_shards_and_commits_have_links(left: Path, hub: LocalHub) -> None:
    card = one(Watch([left]))
    newest = card["shards"][0]
    assert newest["url"] == f"{hub.endpoint}/datasets/user/rows/blob/main/{newest['path']}"
    assert card["commits"][0]["url"].startswith(f"{hub.endpoint}/datasets/user/rows/commit/")


def test_an_endpoint_that_is_no_web_address_has_no_links(left: Path) -> None:
    with sqlite3.connect(left / "catalogue.sqlite") as db:
        db.execute(
            "UPDATE meta SET value = ? WHERE key = 'target'",
            (msgspec.json.encode(Target("javascript:alert(1)//", "user/rows")).decode(),),
        )
    db.close()
    card = one(Watch([left]))
    assert [card["url"], *(s["url"] for s in card["shards"]), *(c["url"] for c in card["commits"])] == [None] * 5


def test_a_look_leaves_no_trace_and_takes_no_lock(left: Path) -> None:
    def traces() -> dict[str, tuple[int, bytes]]:
        files = [file for file in left.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = traces()
    for _ in range(3):
        one(Watch([left]))
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
    """SQLite refuses to become WAL while another reads, and waits for nobody: a job would not start."""
    watch = Watch([tmp_path / f"spool-{n}" for n in range(15)])
    done = threading.Event()

    def look_on() -> None:
        while not done.is_set():
            watch.look()

    looking = threading.Thread(target=look_on)
    looking.start()
    try:
        for n in range(15):
            Spool(tmp_path / f"spool-{n}", target=Target(hub.endpoint, "user/rows")).close()
    finally:
        done.set()
        looking.join()
    assert [card["problem"] for card in watch.look()] == [None] * 15


def test_a_spool_that_is_corrupt_newer_or_gone_is_a_card_that_says_so(left: Path) -> None:
    watch = Watch([left, left.parent / "other"])
    shutil.copytree(left, left.parent / "other")
    assert [card["problem"] for card in watch.look()] == [None, None]
    with contextlib.closing(sqlite3.connect(left / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert watch.look()[0]["problem"]["kind"] == "newer version"
    for file in left.glob("catalogue.sqlite*"):
        file.unlink()
    (left / "catalogue.sqlite").write_bytes(b"no database at all, " * 500)
    assert watch.look()[0]["problem"]["kind"] == "corrupt"
    assert "--rescue" in watch.look()[0]["problem"]["text"]
    shutil.rmtree(left)
    gone, other = watch.look()
    assert (gone["problem"]["kind"], other["problem"]) == ("not there", None)
    shutil.copytree(left.parent / "other", left)
    assert watch.look()[0]["committed"]["rows"] == 3


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
    odd, other = Watch([left, left.parent / "other"]).look()
    assert odd["problem"]["kind"] == "can't be read"
    assert other["problem"] is None


def test_without_a_spool_all_at_the_usual_place_are_followed(uploader: Make) -> None:
    watch = Watch()
    assert watch.look() == []
    for repo in ("user/a", "user/b"):
        with uploader(repo, spool=None) as up:
            up.put([{"id": 1}])
            directory = up.spool
    assert [card["repo"] for card in watch.look()] == ["user/a", "user/b"]
    shutil.rmtree(directory)
    assert [card["repo"] for card in watch.look()] == ["user/a"]


def test_the_dead_letter_and_its_reasons_are_shown(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    hub.faults.add(Fault.status(422, on="commit"))
    watch = Watch([tmp_path / "spool"])
    with contextlib.suppress(HubsyncError), uploader() as up:
        watch.look()
        up.put([{"id": 1}])
        up.flush()
    card = one(watch)
    for seen in (card, one(Watch([tmp_path / "spool"]))):
        assert seen["series"]["waiting_rows"] == [0] * STEPS  # for the Hub, which is not what a dead shard waits for
    ((path, rows, why),) = [(d["path"], d["rows"], d["why"]) for d in card["dead"]]
    assert path.startswith("data/")
    assert (rows, "422" in why) == (1, True)


def test_the_last_changes_of_the_state_outlive_the_job(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    for code in (503, 500):
        with uploader() as up:
            hub.faults.add(Fault.status(code, on="commit", times=1))
            up.put([{"id": code}])
            up.flush()
    changes = one(Watch([tmp_path / "spool"]))["changes"]
    assert [change["kind"] for change in changes] == ["ok", "backing off"] * 2
    assert "503" in changes[3]["reason"]
    assert "500" in changes[1]["reason"]


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
            assert "pending" in plan or ("ORDER BY id DESC LIMIT" in statement and "TEMP B-TREE" not in plan), statement


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
    assert sorted(row["id"] for row in found.recent if row["state"] == "committed") == [1, 2]
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
        governor=governor, sending_since=sending, next_up=[], recent=[], dead=[], processes=[process] if live else [],
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
