"""How a job ends: SIGTERM with a grace, Ctrl-C once and twice, with the Hub up and down. No row is ever lost."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hubsync import AsyncUploader, Uploader
from hubsync._runtime import signals
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import FAST, Dataset
from tests.e2e.conftest import Jobs
from tests.e2e.test_many import accepted, until

FACES = ["thread", "asyncio", "trio"]


def start(jobs: Jobs, face: str, tmp_path: Path, grace_s: float) -> int:
    told = tmp_path / "told"
    if face == "thread":
        pid = jobs.start("lingering", tmp_path / "spool", told, grace_s)
    else:
        pid = jobs.start("lingering_async", face, tmp_path / "spool", told, grace_s)
    until(lambda: len(accepted(told)) == 50, jobs)
    return pid


def rows() -> Counter[str]:
    return Counter(f"a-{n}" for n in range(50))


@pytest.mark.slow("starts processes and sends them signals")
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_brings_up_what_it_can_within_the_grace(
    dataset: Dataset, jobs: Jobs, tmp_path: Path, face: str, first: signal.Signals
) -> None:
    pid = start(jobs, face, tmp_path, 25)
    jobs.kill(pid, first)
    assert jobs.end(pid) == (143 if first is signal.SIGTERM else -signal.SIGINT), jobs.log
    assert Counter(row["id"] for row in dataset.rows()) == rows()


@pytest.mark.slow("starts processes and sends them signals")
@pytest.mark.parametrize("face", FACES)
def test_what_does_not_fit_into_the_grace_stays_for_the_next_start(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path, face: str
) -> None:
    pid = start(jobs, face, tmp_path, 0.3)
    hub.faults.add(Fault.outage())
    jobs.kill(pid, signal.SIGTERM)
    assert jobs.end(pid) == 143, jobs.log
    assert "50 rows" in jobs.log
    assert f"hubsync drain {tmp_path / 'spool'}" in jobs.log
    hub.faults.clear()
    drain(tmp_path / "spool", timeout=60)
    assert Counter(row["id"] for row in dataset.rows()) == rows()


@pytest.mark.slow("starts processes and sends them signals")
def test_sigterm_while_the_block_is_being_left_still_has_its_grace(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    pid = jobs.start("ending", tmp_path / "spool", tmp_path / "told", tmp_path / "go on")
    until(lambda: len(accepted(tmp_path / "told")) == 50, jobs)
    outage = hub.faults.add(Fault.outage())
    (tmp_path / "go on").touch()
    until(lambda: "leaving" in accepted(tmp_path / "told") and hub.faults.struck(outage), jobs)
    jobs.kill(pid, signal.SIGTERM)
    until(lambda: "Uploading the rest" in jobs.log, jobs)
    hub.faults.clear()
    assert jobs.end(pid) == 143, jobs.log
    assert Counter(row["id"] for row in dataset.rows()) == rows()


@pytest.mark.slow("starts processes and sends them signals")
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_second_signal_ends_it_at_once(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path, face: str, first: signal.Signals
) -> None:
    pid = start(jobs, face, tmp_path, 3600)
    hub.faults.add(Fault.outage())
    jobs.kill(pid, first)
    until(lambda: "Uploading the rest" in jobs.log, jobs)
    time.sleep(signals._SAME_SIGNAL_S)
    jobs.kill(pid, first)
    assert jobs.end(pid) in (143, -signal.SIGINT), jobs.log
    hub.faults.clear()
    drain(tmp_path / "spool", timeout=60)
    assert Counter(row["id"] for row in dataset.rows()) == rows()


def test_the_second_sigterm_ends_it_also_where_the_drain_has_not_begun(
    hub: LocalHub, uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.shutdown, "_deadline", None)
    monkeypatch.setattr(signals, "_SAME_SIGNAL_S", 0)

    class Impatient(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Uploading the rest" in record.getMessage():
                signal.raise_signal(signal.SIGTERM)

    impatient = Impatient()
    logging.getLogger("hubsync").addHandler(impatient)
    up = uploader(grace_s=3600)
    try:
        with pytest.raises(SystemExit), up:
            up.put([{"id": 1}])
            hub.faults.add(Fault.outage())
            signal.raise_signal(signal.SIGTERM)
        assert signals.shutdown.seconds_left() == 0  # what is drained at the interpreter's exit is drained no longer
    finally:
        logging.getLogger("hubsync").removeHandler(impatient)
        hub.faults.clear()
        up.close()
    assert dataset.ids() == [1]


class Unlucky:
    """Its end falls together with the signal, and what is raised in there is dropped."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def __del__(self) -> None:
        if self._error is not None:
            raise self._error
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_falls_where_python_drops_what_it_raises_ends_the_job_all_the_same(
    uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.shutdown, "_deadline", None)
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with pytest.raises(SystemExit, match="143"), uploader(grace_s=3600) as up:
        up.put([{"id": 1}])
        Unlucky()
        threading.Event().wait()  # until the signal
    assert dataset.ids() == [1]
    assert (signals.shutdown.seconds_left() or 0) > 0  # one signal, and its grace counts
    assert not dropped
    assert sys.unraisablehook == dropped.append  # which is as it was


@pytest.mark.slow("starts a process")
def test_a_signal_that_was_dropped_as_the_block_ended_is_no_second_one(
    hub: LocalHub, uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.shutdown, "_deadline", None)
    again = threading.Timer(1, hub.faults.clear)
    with pytest.raises(SystemExit), uploader(grace_s=3600) as up:
        hub.faults.add(Fault.outage())
        up.put([{"id": 1}])
        again.start()
        Unlucky()
    assert dataset.ids() == [1]


def test_whoever_chains_the_hook_between_two_signals_is_not_called_in_circles(
    uploader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.shutdown, "_deadline", None)
    monkeypatch.setattr(signals, "_SAME_SIGNAL_S", 0)
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)
    with uploader(grace_s=3600):
        for _ in range(2):
            with pytest.raises(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(sys, "unraisablehook", lambda lost, hook=sys.unraisablehook: hook(lost))
        Unlucky(ValueError())
    assert len(dropped) == 1
    monkeypatch.undo()
    signals.shutdown._exit._is_hooked = False


@pytest.mark.slow("starts processes and sends them signals")
def test_a_signal_to_the_process_and_to_its_group_is_one(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    """As `timeout` sends it."""
    pid = start(jobs, "thread", tmp_path, 3600)
    jobs.kill(pid, signal.SIGTERM)
    jobs.kill(pid, signal.SIGTERM)
    assert jobs.end(pid) == 143, jobs.log
    assert Counter(row["id"] for row in dataset.rows()) == rows()


class Late(Exception):
    """A time limit for a step of the job, by a signal."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Late])
@pytest.mark.parametrize("ack", ["queued", "spooled"])
def test_an_exception_of_a_signal_may_fall_into_any_instruction_of_put(
    uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], ack: str
) -> None:
    def raise_it(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: None)  # in a callback of somebody's, it is dropped
    accepted = []
    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with uploader() as up:
            for n in range(1_500):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00002, 0.0008))
                        up.put([{"id": n}], ack=ack)
                        accepted.append(n)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except error:
                    pass
            up.put([{"id": -1}])
            up.flush()
            assert up.stats().queue[:3] == (0, 0, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
    found = Counter(dataset.ids())
    assert set(accepted) <= set(found)
    assert found[-1] == 1
    assert max(found.values()) == 1


def test_the_jobs_own_error_is_not_hidden_by_what_becomes_of_the_rows(
    hub: LocalHub, uploader: Any, dataset: Dataset
) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, uploader(grace_s=0.1) as up:
        up.put([{"id": 1}])
        hub.faults.add(Fault.outage())
        raise KeyboardInterrupt
    assert any("1 row " in note and "hubsync drain" in note for note in caught.value.__notes__)
    with pytest.raises(ZeroDivisionError), uploader() as up:
        hub.faults.clear()
        up.put([{"id": 2}])
        raise ZeroDivisionError
    assert dataset.ids() == [1, 2]


def test_ctrl_c_while_a_block_is_being_left_says_where_the_rows_are(hub: LocalHub, uploader: Any) -> None:
    with pytest.raises(KeyboardInterrupt) as caught, uploader(grace_s=0.1) as up:
        up.put([{"id": 1}])
        hub.faults.add(Fault.outage())
        threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    assert any("1 row " in note and "hubsync drain" in note for note in caught.value.__notes__)


def test_sigterm_is_left_alone_if_it_has_a_handler_or_the_grace_is_off(hub: LocalHub, uploader: Any) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with uploader():
            signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    with uploader(grace_s=None):
        assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_given_back_when_the_last_uploader_is_closed(hub: LocalHub, uploader: Any, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with uploader():
        with Uploader(
            "user/others", endpoint=hub.endpoint, token=hub.token, spool=tmp_path / "other", grace_s=5, **FAST
        ):
            assert signal.getsignal(signal.SIGTERM) == signals.shutdown.on_sigterm
        assert signal.getsignal(signal.SIGTERM) == signals.shutdown.on_sigterm
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_drains_all_that_are_open_whatever_their_faces(
    hub: LocalHub, uploader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals.shutdown, "_deadline", None)

    def within(name: str) -> AsyncUploader:
        return AsyncUploader(name, endpoint=hub.endpoint, token=hub.token, spool=tmp_path / name, **FAST)

    async def run() -> None:
        async with within("user/outer") as outer, within("user/inner") as inner:
            async with within("user/gone"):
                pass
            await outer.put([{"id": 1}])
            await inner.put([{"id": 1}])
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), uploader() as around:
        around.put([{"id": 1}])
        asyncio.run(run())
    assert signal.getsignal(signal.SIGTERM) == before
    assert [Dataset(hub, f"user/{name}").ids() for name in ("outer", "inner", "rows")] == [[1]] * 3


@pytest.mark.slow("starts processes and sends them signals")
def test_what_tasks_have_left_open_is_drained_at_the_interpreters_exit(
    hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    job = """
import asyncio, signal, sys
from hubsync import AsyncUploader
endpoint, token, spool = sys.argv[1:]
async def run():
    up = await AsyncUploader("user/rows", endpoint=endpoint, token=token, spool=spool).open()
    await up.put([{"id": 1}])
    signal.raise_signal(signal.SIGTERM)
asyncio.run(run())
"""
    command = [sys.executable, "-c", job, hub.endpoint, hub.token, tmp_path / "spool"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, dataset.ids()) == (143, [1]), done.stderr


FORGOTTEN = """
import atexit, sys
from hubsync import RetryPolicy, Uploader
endpoint, token, spool = sys.argv[1:]
atexit.register(print, "the end of all")
for name in ("rows", "others"):
    up = Uploader(f"user/{name}", endpoint=endpoint, token=token, spool=f"{spool}/{name}",
        retry=RetryPolicy(initial_s=0.01, max_s=0.05)).open()
    up.put([{"id": 1}])
"""


def read_until(what: str, job: subprocess.Popen[str]) -> None:
    """Read the job's log up to a line that contains `what`."""
    assert job.stderr is not None
    next(line for line in job.stderr if what in line)


@pytest.fixture
def forgetful(hub: LocalHub, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A job that has forgotten two uploaders, and whose interpreter is ending, while the Hub is gone."""
    for step in ("preupload", "commit"):
        hub.faults.add(Fault.outage(on=step))
    command = [sys.executable, "-c", FORGOTTEN, hub.endpoint, hub.token, str(tmp_path)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        read_until("was not closed", job)
        yield job
        job.kill()


@pytest.mark.slow("starts processes and sends them signals")
def test_sigterm_at_the_interpreters_exit_has_its_grace_and_says_so_in_the_exit_code(
    hub: LocalHub, dataset: Dataset, forgetful: subprocess.Popen[str]
) -> None:
    forgetful.send_signal(signal.SIGTERM)
    read_until("Uploading the rest", forgetful)
    hub.faults.clear()
    said, log = forgetful.communicate()
    assert (forgetful.returncode, said) == (143, "the end of all\n"), log
    assert "Traceback" not in log
    assert [Dataset(hub, f"user/{name}").ids() for name in ("rows", "others")] == [[1]] * 2


@pytest.mark.slow("starts processes and sends them signals")
def test_ctrl_c_at_the_interpreters_exit_leaves_all_and_says_where(
    hub: LocalHub, tmp_path: Path, forgetful: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful.send_signal(signal.SIGINT)
    said, log = forgetful.communicate()
    assert (forgetful.returncode, said) == (130, "the end of all\n"), log
    assert "Traceback" not in log
    hub.faults.clear()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    for name in ("rows", "others"):
        assert f"hubsync drain {tmp_path / name}" in log
        drain(tmp_path / name, timeout=60)
        assert Dataset(hub, f"user/{name}").ids() == [1]
