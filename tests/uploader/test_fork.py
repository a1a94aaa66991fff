"""A forked child opens an uploader on the spool of its parent."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import Uploader
from hubsync.localhub import LocalHub
from hubsync.maintenance.drain import drain
from hubsync.spool.database import Catalogue
from tests.conftest import Dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a child that is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return pid


def test_rows_of_a_child_survive_the_close_of_its_parent(tmp_path: Path) -> None:
    opened, closed = os.pipe(), os.pipe()
    catalogue = Catalogue(tmp_path / "c.sqlite")

    def work() -> None:
        own = Catalogue(tmp_path / "c.sqlite")
        own.set("child", "early")
        os.write(opened[1], b"x")
        os.read(closed[0], 1)
        with own.transaction():
            own.set("child", "late")

    pid = forked(work)
    os.read(opened[0], 1)
    catalogue.close()
    os.write(closed[1], b"x")
    os.waitpid(pid, 0)
    assert Catalogue(tmp_path / "c.sqlite").get("child") == "late"


def test_no_fork_happens_inside_a_transaction(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c.sqlite")
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with catalogue.transaction():
            begun.set()
            go_on.wait(0.5)

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()

    def work() -> None:
        db = sqlite3.connect(tmp_path / "c.sqlite", timeout=2, isolation_level=None)
        db.execute("PRAGMA user_version")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO meta VALUES (?, ?)", ("child", "was here"))
        db.execute("COMMIT")

    os.waitpid(forked(work), 0)
    thread.join()
    assert catalogue.get("child") == "was here"


def test_rows_of_a_forked_child_are_not_lost_when_its_parent_ends_first(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = os.pipe(), os.pipe()
    up = uploader().open()
    up.put([{"id": 0}])

    def work() -> None:
        own = uploader().open()
        own.put([{"id": 1}])
        os.write(opened[1], b"x")
        os.read(closed[0], 1)
        own.put([{"id": 2}])
        os.write(opened[1], b"x")

    pid = forked(work)
    os.read(opened[0], 1)
    up.close()
    os.write(closed[1], b"x")
    os.read(opened[0], 1)
    os.waitpid(pid, 0)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    drain(tmp_path / "spool")
    assert dataset.ids() == [0, 1, 2]
