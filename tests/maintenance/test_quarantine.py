"""`hubsync dead-letter`: an operator inspects, edits, resubmits and discards rejected shards from a shell."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hubsync import RetryPolicy, Uploader
from hubsync._runtime import failpoints
from hubsync._runtime.clock import SystemClock
from hubsync._runtime.failpoints import Failpoint
from hubsync.dashboard.snapshot import snapshot
from hubsync.errors import ShardsRefused, SpoolError
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance import drain as draining
from hubsync.maintenance.drain import drain
from hubsync.maintenance.inspect import inspect_spool
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.verify import verify
from hubsync.spool.opening import open_spool
from tests.conftest import Commands, Dataset, Done
from tests.waiting import until

pytestmark = pytest.mark.slow("kills commands at their failpoints, and uploads after each")
Make = Callable[..., Uploader]
Letter = Callable[..., Done]
SHARED = "data/{split}-{seq:05d}.jsonl"
# Run before a command: it is killed at a failpoint,
DYING = """
import os, signal
from hubsync._runtime import failpoints
failpoints.listener = lambda reached: os.kill(os.getpid(), signal.SIGKILL) if reached.name == {!r} else None
"""


@pytest.fixture
def spool(tmp_path: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", hub.token)  # for `drain`
    return tmp_path / "spool"


@pytest.fixture
def letter(run: Commands, spool: Path, monkeypatch: pytest.MonkeyPatch) -> Letter:
    """`hubsync dead-letter WHAT SPOOL …`, killed at a failpoint if asked."""

    monkeypatch.setattr(draining, "RetryPolicy", partial(RetryPolicy, initial_s=0.01, max_s=0.05))

    def letter(what: str, *args: object, stdin: str = "", dies_at: Failpoint | None = None) -> Done:
        command = ("dead-letter", what, spool, *args)
        if dies_at is None:
            return run(*command, stdin=stdin, COLUMNS="400")
        return run.after(DYING.format(dies_at.name), *command, stdin=stdin, COLUMNS="400")

    return letter


@pytest.fixture
def check(hub: LocalHub, spool: Path) -> Callable[..., tuple[str, ...]]:
    """Verify the dataset with the spool and without it; return the notes."""

    def check() -> tuple[str, ...]:
        given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "content": True}
        report = verify("user/rows", spool=spool, **given)
        assert report.differences == ()
        assert verify("user/rows", **given).differences == ()
        return report.notes

    return check


def refuse(hub: LocalHub, up: Uploader, *rows: dict[str, Any], **given: Any) -> None:
    """Put rows as a shard that the Hub rejects."""
    fault = hub.faults.add(Fault.status(422, on="commit"))
    up.put(list(rows), **given)
    with pytest.raises(ShardsRefused):
        up.flush()
    hub.faults.remove(fault)


@pytest.fixture
def refused(hub: LocalHub, uploader: Make) -> list[int]:
    """A job that has ended: rows 0 to 5, of which 1, 2 and 4 are in two rejected shards, whose ids it returns."""
    with uploader(path=SHARED) as up:
        up.put([{"id": 0}], ack="committed", offset=0)
        refuse(hub, up, {"id": 1}, {"id": 2}, offset=2, key="k")
        up.put([{"id": 3}], ack="committed", offset=3)
        refuse(hub, up, {"id": 4}, offset=4)
        up.put([{"id": 5}], ack="committed", offset=5)
        return [shard.id for shard in inspect_spool(up.spool).dead_letter]


def dead_letter_files(spool: Path) -> list[str]:
    return sorted(path.name for path in (spool / "dead-letter").iterdir())


def is_drained(spool: Path) -> bool:
    return dead_letter_files(spool) == [] and list((spool / "segments").iterdir()) == []


# List.


def test_an_empty_dead_letter_is_not_a_failure(run: Commands, letter: Letter, uploader: Make) -> None:
    with uploader() as up:
        up.put([{"id": 0}])
    for done in (letter("list"), run("dead-letter", "list")):
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "The dead letter is empty.\n")
    assert (letter("list", "--json").returncode, letter("list", "--json").stdout) == (0, "")
    assert letter("export", "--all").returncode == 0
    assert letter("resubmit", "--all").returncode == 0


def test_a_list_shows_each_rejected_shard_and_the_reason(letter: Letter, refused: list[int], spool: Path) -> None:
    first, second = (json.loads(line) for line in letter("list", "--json").stdout.splitlines())
    assert first["spool"] == str(spool)
    assert (first["id"], first["path"], first["rows"], first["bytes"]) == (refused[0], "data/train-00001.jsonl", 2, 18)
    assert abs(first["at"] - time.time()) < 3600
    assert "422" in first["why"]
    assert second["id"] == refused[1]
    done = letter("list")
    assert done.returncode == 0
    where, head, *lines = done.stdout.splitlines()
    assert where == f"{spool}:"
    assert head.split() == ["id", "path", "rows", "size", "when", "why"]
    assert re.match(rf" *{refused[0]} +data/train-00001\.jsonl +2 +18 bytes +20\d\d-\d\d-\d\d .*422", lines[0])


def test_messages_about_the_dead_letter_name_the_command(
    run: Commands, hub: LocalHub, uploader: Make, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command = f"hubsync dead-letter list {spool}"
    with uploader() as up:
        hub.faults.add(Fault.status(422, on="commit"))
        receipt = up.put([{"id": 0}])
        with pytest.raises(ShardsRefused, match=re.escape(command)):
            up.flush()
        assert command in str(receipt.error)
        until(lambda: command in caplog.text)  # another thread logs it
    assert re.search(rf"^to do +{re.escape(command)}", run("status", spool).stdout, re.MULTILINE)
    done = run("drain", spool)
    assert done.returncode == 1
    assert done.stderr.endswith(f"For details: {command}\n")


# Export.


def test_an_export_is_byte_for_byte_what_was_put(letter: Letter, refused: list[int], tmp_path: Path) -> None:
    first, second = b'{"id":1}\n{"id":2}\n', b'{"id":4}\n'
    assert letter("export", refused[0]).stdout.encode() == first
    assert letter("export", refused[1], refused[0]).stdout.encode() == second + first
    assert letter("export", "--all", "--out", tmp_path / "all.jsonl").returncode == 0
    assert (tmp_path / "all.jsonl").read_bytes() == first + second
    assert (tmp_path / "all.jsonl").stat().st_mode & 0o077 == 0
    (tmp_path / "out").mkdir()
    assert letter("export", "--all", "--out", tmp_path / "out").returncode == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        f"{refused[0]:06d}-train-00001.jsonl": first, f"{refused[1]:06d}-train-00003.jsonl": second,
    }  # fmt: skip
    assert len(letter("list", "--json").stdout.splitlines()) == 2  # they stay


def test_an_export_overwrites_files_only_with_force(letter: Letter, refused: list[int], tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine")
    done = letter("export", "--all", "--out", out)
    assert (done.returncode, out.read_text()) == (1, "mine")
    assert done.stderr == f"hubsync: {out} exists and was not changed. Use another name, or --force.\n"
    assert letter("export", refused[1], "--out", out, "--force").returncode == 0
    assert out.read_text() == '{"id":4}\n'
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{refused[1]:06d}-train-00003.jsonl").write_text("mine")
    assert letter("export", "--all", "--out", tmp_path / "out").returncode == 1
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert letter("export", "--all", "--out", tmp_path / "no" / "such").returncode == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_wrong_usage_exits_2(run: Commands, letter: Letter, refused: list[int], spool: Path) -> None:
    assert letter("resubmit").returncode == 2
    assert letter("resubmit", refused[0], "--all").returncode == 2
    assert letter("resubmit", "all").returncode == 2
    assert run("dead-letter", "export", "--all").returncode == 2  # no spool in the default directory
    done = letter("export", 999)
    assert done.returncode == 1
    assert f"999 is not in the dead letter of {spool}; it holds {refused[0]}, {refused[1]}" in done.stderr
    assert run("dead-letter", "list", spool / "no").returncode == 1


def test_without_a_spool_the_only_one_with_a_dead_letter_is_used(run: Commands, hub: LocalHub, uploader: Make) -> None:
    with uploader(spool=None) as up:
        refuse(hub, up, {"id": 7})
        number = inspect_spool(up.spool).dead_letter[0].id
    assert json.loads(run("dead-letter", "list", "--json").stdout)["id"] == number
    assert run("dead-letter", "export", number).stdout == '{"id":7}\n'


# Resubmit.


def test_a_broken_spool_does_not_hide_the_others(
    run: Commands, refused: list[int], spool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "broken").mkdir(parents=True, mode=0o700)
    (home / "broken" / "catalogue.sqlite").write_bytes(b"no database" * 100)
    spool.rename(home / "sound")
    monkeypatch.setenv("HUBSYNC_HOME", str(home))
    for what, shown in (
        (("list", "--json"), '"path": "data/train-00001.jsonl"'),
        (("export", "--all"), '{"id":4}'),
        (("resubmit", "--all"), ""),
    ):
        done = run("dead-letter", *what)
        assert done.returncode == 1
        assert shown in done.stdout
        assert f"hubsync drain --rescue {home / 'broken'}" in done.stderr
    assert "Resubmitted: 2 shards" in done.stderr


def test_resubmitted_rows_are_in_the_dataset_once(
    letter: Letter, refused: list[int], dataset: Dataset, spool: Path, check: Callable[[], tuple[str, ...]]
) -> None:
    done = letter("resubmit", refused[0])
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "Resubmitted: 1 shard (2 rows, 18 bytes).",
        f"No job has this spool open. Upload them: hubsync drain {spool}",
    ]
    assert dataset.ids() == [0, 3, 5]
    done = letter("resubmit", "--all", "--drain")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "All of them are on the Hub.")
    assert dataset.ids() == list(range(6))
    assert dataset.paths() == [f"data/train-{n:05d}.jsonl" for n in range(5)]
    assert check() == ()
    assert is_drained(spool)
    report = inspect_spool(spool)
    assert (report.depth.rows, report.dead_letter, report.depth.committed_rows) == (0, (), 6)
    assert letter("resubmit", refused[0]).returncode == 1


def test_a_running_job_uploads_what_is_resubmitted(
    letter: Letter, hub: LocalHub, uploader: Make, dataset: Dataset, check: Callable[[], tuple[str, ...]]
) -> None:
    with uploader(path=SHARED) as up:
        up.put([{"id": 0}], ack="committed")
        refuse(hub, up, {"id": 1})
        up.put([{"id": 2}], ack="committed")
        done = letter("resubmit", "--all", "--drain")
        assert done.returncode == 0
        assert f"Process {os.getpid()}, which has" in done.stderr
        until(lambda: up.stats().spool.committed_rows == 3)
        assert up.stats().spool.dead == 0
    assert dataset.ids() == [0, 1, 2]
    assert check() == ()


def test_keys_offsets_and_receipts_stay_valid(
    letter: Letter, refused: list[int], uploader: Make, dataset: Dataset
) -> None:
    with uploader(path=SHARED) as up:
        assert up.offset() == 5
        replay = up.put([{"id": 1}, {"id": 2}], key="k")
        assert (replay.replayed, replay.state) == (True, "refused")
        letter("resubmit", "--all")
        until(lambda: up.stats().spool.dead == 0)
        up.flush()
        replay = up.put([{"id": 1}, {"id": 2}], key="k")
        assert (replay.replayed, replay.state) == (True, "committed")
        assert up.put([{"id": 4}], offset=4).replayed
        up.put([{"id": 6}], offset=6)
    assert dataset.ids() == list(range(7))


def test_a_shard_that_is_rejected_again_can_be_resubmitted_again(
    letter: Letter, refused: list[int], hub: LocalHub, dataset: Dataset, spool: Path
) -> None:
    before = {name: (spool / "dead-letter" / name).read_bytes() for name in dead_letter_files(spool)}
    fault = hub.faults.add(Fault.status(413, on="commit"))
    for _ in range(2):
        done = letter("resubmit", "--all", "--drain")
        assert (done.returncode, "Rejected again: 2 shards (3 rows, 27 bytes). See: " in done.stderr) == (1, True)
        assert {name: (spool / "dead-letter" / name).read_bytes() for name in dead_letter_files(spool)} == before
        assert "413" in letter("list").stdout
    hub.faults.remove(fault)
    assert letter("resubmit", "--all", "--drain").returncode == 0
    assert dataset.ids() == list(range(6))


def test_an_edited_file_is_reported_and_not_resubmitted_by_mistake(
    letter: Letter, refused: list[int], spool: Path, dataset: Dataset
) -> None:
    """Its bytes differ from what the catalogue counts, so no committer could send them."""
    for text in ('{"id":9}\n{"id":2}\n', '{"id":1,"more":true}\n{"id":2}\n'):
        grave = spool / "dead-letter" / f"{refused[0]:06d}-train-00001.jsonl"
        grave.write_text(text)
        done = letter("export", refused[0])
        assert done.stdout == text
        assert done.stderr.startswith(f"{grave} was edited after the Hub rejected it; exporting its current content (")
        done = letter("resubmit", refused[0], "--drain")
        assert done.returncode == 1
        command = done.stderr.rpartition("To upload what it holds now: ")[2].strip()
        assert command == f"hubsync dead-letter resubmit {spool} {refused[0]} --from {grave}"
        assert dataset.ids() == [0, 3, 5]
    assert letter(*command.split()[2:3], *command.split()[4:], "--drain").returncode == 0
    assert dataset.ids() == [0, 1, 2, 3, 5]


# Resubmit edited rows.


def test_edited_rows_replace_the_rejected_ones(
    letter: Letter,
    refused: list[int],
    dataset: Dataset,
    tmp_path: Path,
    spool: Path,
    check: Callable[[], tuple[str, ...]],
) -> None:
    edited = tmp_path / "edited.jsonl"
    lines = b'{"id": 1, "big": 1234567890123456789}\n\n  {"id":2,"t":"\xc3\xa9"}\r\n{"id":7}'
    edited.write_bytes(lines)
    done = letter("resubmit", refused[0], "--from", edited, "--drain")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"Resubmitted as data/train-00001.jsonl: 3 rows (65 bytes) of {edited}.\n")
    # Unchanged except for empty lines and surrounding whitespace.
    assert dataset.read("data/train-00001.jsonl") == b"".join(
        line.strip() + b"\n" for line in lines.splitlines() if line
    )
    assert dead_letter_files(spool) == [f"{refused[1]:06d}-train-00003.jsonl"]
    assert letter("resubmit", "--all", "--drain").returncode == 0
    assert check() == ()
    assert is_drained(spool)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"id":1}\n[1]\n', "line 2: not a JSON object."),
        (b'{"id":1}\n\n{"id":\n', "line 3: not valid JSON (Input data was truncated)."),
        (b'{"id":NaN}\n', "line 1: not valid JSON ("),
        (b'{"a":"\xff"}\n', "line 1: not valid JSON ("),
        (b'{"a":"\\ud83d"}\n', "line 1: "),
        (b"[" * 5_000 + b"\n", "line 1: not valid JSON ("),
        (b"\n\n", "holds no rows. To throw the shard away: hubsync dead-letter discard."),
    ],
    ids=["array", "torn", "NaN", "no UTF-8", "surrogate", "deep", "empty"],
)
def test_a_line_that_is_not_a_row_is_named_and_nothing_changes(
    letter: Letter, refused: list[int], tmp_path: Path, spool: Path, content: bytes, why: str
) -> None:
    edited = tmp_path / "edited.jsonl"
    edited.write_bytes(content)
    before = dead_letter_files(spool)
    done = letter("resubmit", refused[0], "--from", edited)
    assert (done.returncode, done.stderr.startswith(f"hubsync: {edited}")) == (1, True)
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert (dead_letter_files(spool), list((spool / "segments").iterdir())) == (before, [])
    assert len(letter("list", "--json").stdout.splitlines()) == 2


def test_edited_rows_that_are_rejected_again_are_in_the_dead_letter(
    letter: Letter, refused: list[int], hub: LocalHub, tmp_path: Path
) -> None:
    edited = tmp_path / "edited.jsonl"
    edited.write_text('{"id":"edited"}\n' * 2)
    hub.faults.add(Fault.status(422, on="commit"))
    assert letter("resubmit", refused[0], "--from", edited, "--drain").returncode == 1
    assert letter("export", refused[0]).stdout == '{"id":"edited"}\n' * 2


def test_the_rows_of_a_file_replace_exactly_one_shard(letter: Letter, refused: list[int], tmp_path: Path) -> None:
    edited = tmp_path / "edited.jsonl"
    edited.write_text('{"id":1}\n')
    assert letter("resubmit", *refused, "--from", edited).returncode == 2
    assert letter("resubmit", "--all", "--from", edited).returncode == 2
    assert letter("resubmit", refused[0], "--from", tmp_path / "no").returncode == 2


def test_fewer_rows_than_were_rejected_need_a_confirmation(
    letter: Letter, refused: list[int], tmp_path: Path, spool: Path, dataset: Dataset
) -> None:
    (tmp_path / "edited").write_text('{"id":1}\n')
    before = dead_letter_files(spool)
    done = letter("resubmit", refused[0], "--from", tmp_path / "edited")
    assert (done.returncode, "1 row instead of 2" in done.stderr, "--yes" in done.stderr) == (1, True, True)
    assert (dead_letter_files(spool), list((spool / "segments").iterdir())) == (before, [])
    assert letter("resubmit", refused[0], "--from", tmp_path / "edited", "--yes", "--drain").returncode == 0
    assert dataset.ids() == [0, 1, 3, 5]


# Discard.


def test_a_discard_asks_first_and_says_what_is_lost(
    letter: Letter, run: Commands, refused: list[int], spool: Path, uploader: Make, dataset: Dataset, hub: LocalHub
) -> None:
    for answer in ("n\n", ""):
        done = letter("discard", refused[0], stdin=answer)
        assert done.returncode == 1
        assert f"{refused[0]}  data/train-00001.jsonl: 2 rows, 18 bytes" in done.stderr
        assert "1 shard (2 rows, 18 bytes) will be lost. Delete?" in done.stderr
        assert len(dead_letter_files(spool)) == 2
    assert letter("discard", refused[0], stdin="y\n").returncode == 0
    assert letter("discard", refused[1], "--yes").returncode == 0
    assert letter("list").stderr == "The dead letter is empty.\n"
    assert is_drained(spool)
    assert (run("drain", spool).returncode, inspect_spool(spool).dead_letter) == (0, ())
    seen = snapshot(spool, 10)  # of the live page
    assert (seen.rejected, seen.depths["dead"].rows) == ([], 0)
    with uploader(path=SHARED) as up:
        replay = up.put([{"id": 1}, {"id": 2}], key="k")
        assert (replay.replayed, replay.state) == (True, "refused")
        assert "discarded 20" in str(replay.error)
    report = verify("user/rows", spool=spool, endpoint=hub.endpoint, token=hub.token)
    assert (report.differences, len(report.notes)) == ((), 2)
    assert "data/train-00001.jsonl is not in the dataset: discarded 20" in report.notes[0]
    assert "(2 rows, 18 bytes)" in report.notes[0]
    assert dataset.ids() == [0, 3, 5]


def test_a_shard_emptied_by_a_power_cut_can_only_be_discarded_or_edited(
    letter: Letter, refused: list[int], spool: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(spool / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE segments SET rows = 0, bytes = 0 WHERE id = ?", (refused[0],))
    (spool / "dead-letter" / f"{refused[0]:06d}-train-00001.jsonl").unlink()
    assert [json.loads(line)["rows"] for line in letter("list", "--json").stdout.splitlines()] == [0, 1]
    done = letter("resubmit", refused[0])
    assert (done.returncode, "data/train-00001.jsonl holds no rows" in done.stderr) == (1, True)
    assert letter("export", "--all").stdout == '{"id":4}\n'
    assert letter("resubmit", "--all").stderr.startswith("Resubmitted: 1 shard (1 row, 9 bytes).\n")
    (tmp_path / "again").write_text('{"id":1}\n')
    assert letter("resubmit", refused[0], "--from", tmp_path / "again", "--drain").returncode == 0
    assert dataset.ids() == [0, 1, 3, 4, 5]


# SIGKILL at each failpoint.


@pytest.fixture(params=["nobody", "a live job"])
def running(request: pytest.FixtureRequest, uploader: Make) -> Iterator[Uploader | None]:
    """An uploader that has the spool open, or None."""
    if request.param == "nobody":
        yield None
        return
    with uploader(path=SHARED) as up:
        yield up


@pytest.mark.parametrize("point", [Failpoint.RELINKED, Failpoint.RESUBMITTED], ids=lambda point: point.title)
def test_a_resubmit_that_is_killed_commits_its_rows_once(
    refused: list[int], running: Uploader | None, letter: Letter, point: Failpoint, dataset: Dataset, spool: Path,
    check: Callable[[], tuple[str, ...]],
) -> None:  # fmt: skip
    for _ in range(2):
        assert letter("resubmit", "--all", dies_at=point).returncode in (-signal.SIGKILL, 0)
    _recover_after_the_kill(running, letter, spool)
    assert dataset.ids() == list(range(6))
    assert check() == ()
    until(lambda: is_drained(spool))


@pytest.mark.parametrize(
    "point", [Failpoint.EDITED_COPIED, Failpoint.RELINKED, Failpoint.RESUBMITTED], ids=lambda point: point.title
)
def test_an_edit_that_is_killed_leaves_the_old_rows_or_the_new_ones(
    refused: list[int], running: Uploader | None, letter: Letter, point: Failpoint, dataset: Dataset, spool: Path,
    tmp_path: Path, check: Callable[[], tuple[str, ...]],
) -> None:  # fmt: skip
    edited = tmp_path / "edited.jsonl"
    edited.write_text('{"id":10}\n{"id":11}\n{"id":12}\n')
    assert letter("resubmit", refused[0], "--from", edited, dies_at=point).returncode == -signal.SIGKILL
    _recover_after_the_kill(running, letter, spool)
    took = point is Failpoint.RESUBMITTED
    assert dataset.ids() == ([0, 3, 4, 5, 10, 11, 12] if took else list(range(6)))
    assert check() == ()
    until(lambda: is_drained(spool))


def _recover_after_the_kill(running: Uploader | None, letter: Letter, spool: Path) -> None:
    assert letter("resubmit", "--all").returncode == 0
    if running is not None:
        until(lambda: running.stats().spool.dead == 0)
        running.close()
    drain(spool, timeout=60)


def test_a_discard_that_is_killed_is_finished_by_the_next_command(
    refused: list[int], letter: Letter, spool: Path, dataset: Dataset
) -> None:
    assert letter("discard", refused[0], "--yes", dies_at=Failpoint.DISCARDED).returncode == -signal.SIGKILL
    assert len(dead_letter_files(spool)) == 2
    assert letter("export", "--all").stdout == '{"id":4}\n'
    assert letter("resubmit", "--all", "--drain").returncode == 0
    assert dataset.ids() == [0, 3, 4, 5]
    assert is_drained(spool)


def test_taking_over_a_dead_writer_leaves_a_resubmit_in_progress_alone(
    refused: list[int], spool: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is linked, and the catalogue does not know it yet."""
    others: list[threading.Thread] = []

    def recover() -> None:
        other = open_spool(None, spool, SystemClock())
        other.recovery.adopt()
        other.recovery.sweep()
        other.close()

    def listen(point: Failpoint) -> None:
        if point is Failpoint.RELINKED:
            others.append(threading.Thread(target=recover))
            others[-1].start()
            others[-1].join(0.5)

    monkeypatch.setattr(failpoints, "listener", listen)
    with QuarantineCommands(spool) as dead:
        for shard in dead.shards():
            dead.resubmit(shard)
    assert len(others) == 2
    for other in others:
        other.join()
    drain(spool, timeout=60)
    assert dataset.ids() == list(range(6))


@pytest.mark.parametrize("how", ["as they are", "edited"])
def test_a_committer_that_rejects_it_again_at_once_keeps_its_rows(
    refused: list[int], spool: Path, uploader: Make, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Between the transaction and the removal of the old file."""
    hub.faults.add(Fault.status(422, on="commit"))
    with uploader(path=SHARED) as up, QuarantineCommands(spool) as dead:

        def listen(point: Failpoint) -> None:
            if point is Failpoint.RESUBMITTED:
                until(lambda: up.stats().spool.dead == 2)

        monkeypatch.setattr(failpoints, "listener", listen)
        (first, _) = dead.shards()
        rows = b'{"id":1}\n{"id":2}\n'
        if how == "edited":
            (spool / "edited").write_bytes(rows := b'{"id":10}\n')
            dead.resubmit_edited(first, spool / "edited")
        else:
            dead.resubmit(first)
        assert b"".join(dead.lines(dead.pick([first.id])[0])) == rows


def test_two_resubmits_of_one_shard_commit_it_once(refused: list[int], spool: Path, dataset: Dataset) -> None:
    with QuarantineCommands(spool) as one, QuarantineCommands(spool) as other:
        (shard, _) = other.shards()
        one.resubmit(one.shards()[0])
        with pytest.raises(SpoolError, match=r"is no longer in the dead letter|is gone from"):
            other.resubmit(shard)
        with pytest.raises(SpoolError, match="is no longer in the dead letter"):
            other.discard(shard)


# Spools that were rebuilt, and spools of an older version.


def test_what_a_rebuild_finds_in_the_dead_letter_can_be_resubmitted(
    refused: list[int], letter: Letter, spool: Path, dataset: Dataset
) -> None:
    """Its number and writer are unknown."""
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
    assert rebuild(spool) is not None
    assert len(letter("list", "--json").stdout.splitlines()) == 2
    done = letter("resubmit", "--all", "--drain")
    assert done.returncode == 0, done.stderr
    assert dataset.ids() == list(range(6))
    assert is_drained(spool)


def test_a_rebuild_keeps_numbers_and_discards_of_a_readable_catalogue(
    refused: list[int], letter: Letter, spool: Path, dataset: Dataset
) -> None:
    assert letter("discard", refused[1], "--yes").returncode == 0
    with closing(sqlite3.connect(spool / "catalogue.sqlite")) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        page = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'pending'").fetchone()[0]
    with (spool / "catalogue.sqlite").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    assert rebuild(spool) is not None
    assert letter("resubmit", "--all", "--drain").returncode == 0
    assert dataset.ids() == [0, 1, 2, 3, 5]
    assert "data/train-00001.jsonl" in dataset.paths()
    assert letter("list").stderr == "The dead letter is empty.\n"


def test_a_rebuild_during_a_resubmit_has_the_rows_once(
    refused: list[int], letter: Letter, spool: Path, dataset: Dataset
) -> None:
    assert letter("resubmit", "--all", dies_at=Failpoint.RELINKED).returncode == -signal.SIGKILL
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
    assert rebuild(spool) is not None
    assert letter("resubmit", "--all", "--drain").returncode == 0
    assert dataset.ids() == list(range(6))


def test_rejected_shards_of_an_older_hubsync_have_the_time_of_their_file(
    refused: list[int], letter: Letter, spool: Path
) -> None:
    with closing(sqlite3.connect(spool / "catalogue.sqlite")) as db, db:
        db.execute("UPDATE segments SET sealed_at = NULL WHERE state = 'dead'")
    shown = [json.loads(line)["at"] for line in letter("list", "--json").stdout.splitlines()]
    assert [abs(at - time.time()) < 3600 for at in shown] == [True, True]
