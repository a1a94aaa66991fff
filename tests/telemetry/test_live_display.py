"""The progress bar, in real terminals and in a notebook."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyte
import pytest

from hubsync.localhub import Fault, LocalHub
from tests.conftest import Dataset
from tests.waiting import until
from tests.zygote import Python

# The job continues with its next step at a line on its standard input: a test waits for what it sees, not for time.
JOB = """
import logging, sys
from hubsync import *
logging.basicConfig(level=logging.WARNING)
def step(): return sys.stdin.readline()
with Uploader("user/rows", shard=ShardPolicy(linger_s=0.1), commit=CommitPolicy(per_hour=100_000), {more}) as up:
    up.put([{{"id": n}} for n in range(3)])
    {body}
print("the end")
"""
ROWS_3 = "of 3 rows on the Hub"


class Terminal:
    """A process in a terminal of 100 columns, and the screen that its user sees."""

    def __init__(self, python: Python, code: str, environ: dict[str, str], *, piped_stdout: Path | None = None) -> None:
        self.screen = pyte.HistoryScreen(100, 30, history=1_000)
        self._stream = pyte.ByteStream(self.screen)
        self._fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        stdout = piped_stdout.open("w") if piped_stdout else slave
        self.process = python.start(
            "-c", code, stdin=slave, stdout=stdout, stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environ},
        )  # fmt: skip
        os.close(slave)
        self.raw = b""

    @property
    def text(self) -> str:
        return "\n".join(row.rstrip() for row in self.screen.display).strip()

    def read(self) -> bool:
        try:
            data = os.read(self._fd, 65_536)
        except OSError:  # EIO: the other end is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def until(self, pattern: str) -> None:
        """Read until the screen shows a pattern."""
        while not re.search(pattern, self.text):
            assert self.read(), f"it has ended without {pattern!r}:\n{self.text}"

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def go_on(self) -> None:
        self.type(b"\n")

    def close(self) -> None:
        """Close the terminal, as a broken ssh connection does."""
        os.close(self._fd)

    def end(self) -> str:
        """Wait for the process to succeed; return the screen."""
        while self.read():
            pass
        self.close()
        assert self.process.wait() == 0, self.text
        return self.text


@pytest.fixture
def terminal(hub: LocalHub, python: Python) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as running:

        def open_one(body: str = "step()", more: str = "progress=True", **given: Any) -> Terminal:
            environ = {**hub.environ(), "HF_HUB_DISABLE_PROGRESS_BARS": "", **given.pop("environ", {})}
            job = Terminal(python, JOB.format(body=body, more=more), environ, **given)
            running.enter_context(job.process)
            return job

        yield open_one


@pytest.mark.slow("draws in a terminal, a few times a second")
def test_a_bar_shows_the_rows_and_the_state(terminal: Any, hub: LocalHub) -> None:
    job = terminal("up.flush(); step(); up.put([{'id': 4}] * 1_000); step()")
    job.until(r"● user/rows ━+ 3 of 3 rows on the Hub")
    outage = hub.faults.add(Fault.outage())
    job.go_on()
    job.until(r"▲ user/rows ━+ 3 of 1,003 rows on the Hub; backing off")
    hub.faults.remove(outage)
    job.until(r"1,003 of 1,003 rows on the Hub")
    job.go_on()
    text = job.end()
    assert text.count("rows on the Hub") == 1  # the last state stays, the earlier ones do not
    assert text.endswith("the end")


@pytest.mark.slow("starts processes with a terminal")
def test_nothing_that_a_job_prints_or_logs_is_erased(terminal: Any) -> None:
    job = terminal("step(); print('printed'); logging.warning('logged'); print('again'); step()")
    job.until(ROWS_3)
    job.go_on()
    job.until(r"(?sm)^printed$.*^WARNING:root:logged$.*^again$")
    job.until(rf"again\n● user/rows .*{ROWS_3}")
    job.go_on()
    text = job.end()
    assert [line for line in text.splitlines() if "rows on the Hub" not in line] == [
        "printed", "WARNING:root:logged", "again", "the end",
    ]  # fmt: skip


@pytest.mark.slow("starts processes with a terminal")
def test_nothing_is_erased_as_the_bar_appears_or_disappears(terminal: Any) -> None:
    body = """
    step()
    for n in range(20):
        with Uploader("user/rows", progress=True):
            print("first", n)
        print("then", n)
"""
    job = terminal(body, more="progress=False")
    job.go_on()
    lines = [line for line in job.end().splitlines() if "user/rows" not in line]
    history = ["".join(row[n].data for n in range(100)).rstrip() for row in job.screen.history.top]
    printed = [line for line in [*history, *lines] if "user/rows" not in line and line]
    assert printed == [*(f"{word} {n}" for n in range(20) for word in ("first", "then")), "the end"]


@pytest.mark.slow("starts processes with a terminal")
def test_a_piped_stdout_gets_only_what_the_job_prints(terminal: Any, tmp_path: Path) -> None:
    job = terminal("step(); print('a result'); step()", piped_stdout=tmp_path / "out.txt")
    job.until(ROWS_3)
    job.go_on()
    job.go_on()
    assert "a result" not in job.end()
    assert (tmp_path / "out.txt").read_text() == "a result\nthe end\n"


@pytest.mark.slow("starts processes with a terminal")
def test_two_uploaders_share_a_line(terminal: Any) -> None:
    body = """
    other = Uploader("user/more", progress=True)
    with other:
        other.put([{"id": 1}])
        step()
    step()
"""
    job = terminal(body)
    job.until(r"● user/rows .*● user/more ")
    job.go_on()
    job.until(r"● user/more .* 1 of 1 rows on the Hub\n● user/rows ")
    job.go_on()
    job.end()


@pytest.mark.slow("draws in a terminal, a few times a second")
def test_by_default_a_bar_appears_while_a_drain_takes_long(terminal: Any, hub: LocalHub) -> None:
    hub.faults.add(Fault.status(503, on="commit"))
    job = terminal("step(); up.flush()", more="retry=RetryPolicy(max_s=1)")
    job.go_on()
    job.until(r"▲ user/rows .* 0 of 3 rows on the Hub; backing off")
    hub.faults.clear()
    assert job.end().endswith("the end")
    assert "rows on the Hub" not in job.text


def test_by_default_a_quick_job_draws_nothing(terminal: Any) -> None:
    job = terminal("up.flush()", more="")
    assert job.end() == "the end"
    assert b"\x1b" not in job.raw


@pytest.mark.parametrize(
    "environ", [{"HF_HUB_DISABLE_PROGRESS_BARS": "1"}, {"TERM": "dumb"}], ids=["by huggingface_hub", "a dumb terminal"]
)
def test_nothing_is_drawn_if_bars_are_disabled(terminal: Any, environ: dict[str, str]) -> None:
    job = terminal("up.flush(); step()", environ=environ)
    job.go_on()
    assert "━" not in job.end()
    assert b"\x1b" not in job.raw


@pytest.mark.slow("starts processes with a terminal")
def test_a_forked_child_can_print_and_show_its_own_progress(terminal: Any) -> None:
    body = """
    step()
    import os
    if os.fork() == 0:
        with Uploader("user/child", progress=True) as own:
            own.put([{"id": 1}])
        print("the child is done", flush=True)
        os._exit(0)
    os.wait()
    step()
"""
    job = terminal(body)
    job.until(ROWS_3)
    job.go_on()
    job.until("the child is done")
    job.until(rf"user/rows .*{ROWS_3}")
    job.go_on()
    job.end()


@pytest.mark.slow("starts processes with a terminal")
def test_a_terminal_that_accepts_no_output_delays_no_row(terminal: Any, dataset: Dataset, tmp_path: Path) -> None:
    job = terminal(f"step(); up.put([{{'id': 4}}]); up.flush(); open({str(tmp_path / 'done')!r}, 'w')")
    job.until(ROWS_3)
    job.type(b"\x13\n")  # Ctrl-S stops the output; then the job continues
    until(lambda: (tmp_path / "done").exists())
    assert len(dataset.rows()) == 4
    job.type(b"\x11")
    assert job.end().endswith("the end")


@pytest.mark.slow("starts processes with a terminal")
def test_a_job_survives_the_end_of_its_terminal(terminal: Any, dataset: Dataset, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    body = f"""
    import os, signal, time
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    while not os.path.exists({str(gone)!r}):
        time.sleep(0.01)
    up.flush()
    up.put([{{"id": 4}}])
"""
    job = terminal(body)
    job.until(ROWS_3)
    job.close()
    gone.touch()
    job.process.wait()
    assert len(dataset.rows()) == 4


@pytest.mark.slow("starts processes with a terminal")
def test_the_command_line_shows_a_drain(hub: LocalHub, python: Python, tmp_path: Path) -> None:
    spool = tmp_path / "left"
    code = f"""
import os
from hubsync import *
up = Uploader("user/rows", spool={str(spool)!r}).open()
up.put([{{"id": 1}}])
os._exit(0)
"""
    assert python.run("-c", code, env={**os.environ, **hub.environ()}).returncode == 0
    hub.faults.add(Fault.status(503, on="commit"))
    drain = f"import sys; sys.argv = ['hubsync', 'drain', {str(spool)!r}]; from hubsync.cli import main; main()"
    job = Terminal(python, drain, {**hub.environ(), "HF_HUB_DISABLE_PROGRESS_BARS": ""})
    job.until(r"▲ left ━+ 0 of 1 rows on the Hub; backing off")
    hub.faults.clear()
    assert job.end().endswith("all on the Hub.")


@pytest.mark.slow("starts a kernel")
def test_a_notebook_has_one_output_that_is_updated(hub: LocalHub, tmp_path: Path) -> None:
    import nbclient
    import nbformat

    source = f"""
from hubsync import *
with Uploader("user/rows", endpoint={hub.endpoint!r}, token={hub.token!r}, progress=True) as up:
    up.put([{{"id": 1}}])
    while up.stats().oldest_age_s is None or up.stats().oldest_age_s < 2:
        pass
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    environ = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "", "IPYTHONDIR": str(tmp_path)}
    nbclient.NotebookClient(notebook, timeout=60).execute(env=environ)
    (output,) = [found for found in notebook.cells[0].outputs if found.output_type == "display_data"]
    assert "1 of 1 rows on the Hub" in output.data["text/html"]
    assert re.fullmatch(r"● user/rows ━+ 1 of 1 rows on the Hub", output.data["text/plain"])
