"""Removing a spool excludes every process that opens it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubsync import Uploader
from hubsync.errors import SpoolBusy
from hubsync.model.target import Target
from hubsync.spool.removal import remove_spool, sweep_removed
from hubsync.spool.spool import Spool
from tests.conftest import Dataset, rounds
from tests.zygote import Python

TARGET = Target("http://127.0.0.1:9", "user/rows")


def remove(directory: Path) -> None:
    remove_spool(directory, lambda db: None)


def test_a_spool_that_another_process_has_open_is_not_removed(tmp_path: Path, python: Python) -> None:
    Spool(tmp_path / "spool", target=TARGET).close()
    code = "import sys; from hubsync.maintenance.prune import *; from hubsync.spool.opening import open_spool\n"
    code += "from hubsync._runtime.clock import SystemClock\n"
    code += "spool = open_spool(None, sys.argv[1], SystemClock()); print(1, flush=True); input()"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with python.start("-c", code, tmp_path / "spool", **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(SpoolBusy):
            remove(tmp_path / "spool")
        process.communicate("\n")
    assert (tmp_path / "spool" / "catalogue.sqlite").exists()
    remove(tmp_path / "spool")
    assert list(tmp_path.iterdir()) == []


def test_what_an_interrupted_removal_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".removed-spool-1234").mkdir()
    sweep_removed(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow("a job opens its spool many times while another process removes it")
def test_a_job_that_opens_a_spool_while_it_is_removed_loses_nothing(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path
) -> None:
    code = """
import sys, json
from pathlib import Path
from hubsync.maintenance.prune import prune
removed = 0
while not Path(sys.argv[2]).exists():
    removed += sum(one.is_removed for one in prune([Path(sys.argv[1])], dry_run=False))
print(removed)
"""
    count = rounds(15, 200)
    spool, stop = tmp_path / "home" / "spool", tmp_path / "stop"
    spool.parent.mkdir()
    args = [sys.executable, "-c", code, str(spool), str(stop)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
        try:
            for n in range(count):
                with uploader(spool=spool) as up:
                    up.put([{"id": n}])
        finally:
            stop.touch()
        assert process.communicate()[0].strip() not in ("", "0")
    assert dataset.ids() == list(range(count))
