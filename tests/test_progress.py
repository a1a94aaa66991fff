"""What a person sees: in a real terminal, in a pipe, in a notebook."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyte
import pytest

from hubsync import ShardPolicy, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.telemetry.progress import Figures, Progress, drawn, line
from hubsync.telemetry.status import State
from hubsync.testing import ManualClock
from tests.zygote import Python

Make = Callable[..., Uploader]
NOW = Figures("user/rows", "/spool", State(), 12_400, 11_900, 500, 1_200_000, 14.0)

# A job whose steps are told by lines on its standard input, so that a test waits for what it sees and not for time.
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


class Terminal:
    """A process in a terminal of 100 columns, and the screen that a person sees of it."""

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
            env={**os.environ, "TERM": "xterm-256color", **environ},
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
        """Reads on until the screen shows it."""
        while not re.search(pattern, self.text):
            assert self.read(), f"it has ended without {pattern!r}:\n{self.text}"

    def go_on(self) -> None:
        os.write(self._fd, b"\n")

    def end(self) -> str:
        """The screen once the process has ended well."""
        while self.read():
            pass
        os.close(self._fd)
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


def test_bars_show_rows_state_and_what_waits(terminal: Any, hub: LocalHub) -> None:
    job = terminal("up.flush(); step(); up.put([{'id': 4}] * 1_000); step()")
    job.until(r"user/rows +━+ +3 of 3 rows on the Hub\n +● nothing waits")
    outage = hub.faults.add(Fault.outage())
    job.go_on()
    job.until(r"3 of 1,003 rows on the Hub\n +▲ backing off: .*; next try")
    job.until(r"1,000 rows \(9\.0 kB\) wait, the oldest for \d+ s; (it is|they are) safe in")
    hub.faults.remove(outage)
    job.until(r"1,003 of 1,003 rows on the Hub")
    job.go_on()
    text = job.end()
    assert text.count("rows on the Hub") == 1  # the last state stays, and nothing of those before
    assert text.endswith("the end")


def test_what_the_job_prints_and_logs_stands_above_the_bars(terminal: Any) -> None:
    body = "step(); print('printed'); logging.warning('logged'); print('half', end=' '); print('whole'); step()"
    job = terminal(body)
    job.until("of 3 rows on the Hub")
    job.go_on()
    job.until(r"printed\nWARNING:root:logged\nhalf whole\nuser/rows +━")
    job.go_on()
    assert re.search(r"printed\nWARNING:root:logged\nhalf whole\nuser/rows .*\n.*\nthe end$", job.end())


def test_a_piped_stdout_gets_what_is_the_jobs_and_nothing_else(terminal: Any, tmp_path: Path) -> None:
    job = terminal("step(); print('a result'); step()", piped_stdout=tmp_path / "out.txt")
    job.until("of 3 rows on the Hub")
    job.go_on()
    job.go_on()
    assert "a result" not in job.end()
    assert (tmp_path / "out.txt").read_text() == "a result\nthe end\n"


def test_two_uploaders_are_one_drawing(terminal: Any) -> None:
    body = """
    other = Uploader("user/more", progress=True)
    with other:
        other.put([{"id": 1}])
        step()
    step()
"""
    job = terminal(body)
    job.until(r"user/rows .*\n.*\nuser/more .*\n")
    job.go_on()
    job.until(r"user/more .*1 of 1 rows on the Hub\n.*\nuser/rows ")
    job.go_on()
    job.end()


TQDM = """import tqdm
    bar = tqdm.tqdm(total=10)
    step()
    bar.close()"""

RICH = """from rich.progress import Progress
    bar = Progress()
    bar.start()
    bar.add_task("theirs")
    step()
    bar.stop()"""


@pytest.mark.parametrize("others", [TQDM, RICH], ids=["tqdm", "rich"])
def test_it_gives_way_to_bars_of_others_and_comes_back(terminal: Any, others: str) -> None:
    body = f"step()\n    {others}\n    step()"
    job = terminal(body)
    job.until("of 3 rows on the Hub")
    job.go_on()
    job.until("0/10|theirs")
    while "of 3 rows on the Hub" in job.text:
        assert job.read()
    assert re.search("0/10|theirs", job.text)  # whole, and not torn by ours
    job.go_on()
    job.until("of 3 rows on the Hub")
    job.go_on()
    job.end()


def test_by_default_bars_come_while_a_drain_takes_long_and_go_again(terminal: Any, hub: LocalHub) -> None:
    hub.faults.add(Fault.status(503, on="commit"))
    job = terminal("step(); up.flush()", more="retry=RetryPolicy(max_s=1)")
    job.go_on()
    job.until(r"0 of 3 rows on the Hub\n +▲ backing off: .*503")
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
def test_where_bars_are_not_wanted_there_are_none(terminal: Any, environ: dict[str, str]) -> None:
    job = terminal("up.flush(); step()", environ=environ)
    job.go_on()
    assert "━" not in job.end()
    assert b"\x1b" not in job.raw


def test_a_forked_child_prints_plainly(terminal: Any) -> None:
    body = """
    step()
    import os
    pid = os.fork()
    if pid == 0:
        print("the child")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    step()
"""
    job = terminal(body)
    job.until("of 3 rows on the Hub")
    job.go_on()
    job.until("the child")
    job.go_on()
    job.end()
    assert b"the child\r\n" in job.raw


def test_a_terminal_that_is_gone_ends_no_job(terminal: Any, dataset: Any, tmp_path: Path) -> None:
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
    job.until("of 3 rows on the Hub")
    os.close(job._fd)  # as when ssh breaks off
    gone.touch()
    job.process.wait()
    assert len(dataset.rows()) == 4


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
    job.until(r"left +━+ +0 of 1 rows on the Hub\n +▲ backing off")
    hub.faults.clear()
    assert job.end().endswith("all on the Hub.")


def test_a_notebook_has_one_output_that_is_brought_up_to_date(hub: LocalHub, tmp_path: Path) -> None:
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
    assert re.fullmatch(r"user/rows +━+ +1 of 1 rows on the Hub\n +● nothing waits", output.data["text/plain"])


# Plain logs.


def test_a_line_says_it_all() -> None:
    assert line(NOW) == (
        "user/rows: 12,400 rows accepted, 11,900 on the Hub; 500 rows (1.2 MB) wait, the oldest for 14 s"
    )
    later = NOW._replace(state=State("ok", "commits keep to 120 an hour", time.time()))
    assert re.search(r"the oldest for 14 s; next commit \d\d:\d\d:\d\d$", line(later))
    quota = NOW._replace(state=State("backing off", "commit quota", time.time()), oldest_age_s=7_500, dead=1)
    assert re.search(
        r"oldest for 2 h 5 min; 1 shard in the dead letter; backing off: commit quota; next try \S+$", line(quota)
    )


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_it_fits_any_terminal(width: int) -> None:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), force_terminal=True, record=True)
    state = State("backing off", "commit to user/rows: 503, " + "of many words " * 9, time.time())
    console.print(drawn(NOW._replace(state=state, spool="/a/long/way/down" * 8)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert "".join("".join(lines).split()).endswith("/a/long/way/down" * 8)


def test_a_servers_words_are_no_markup() -> None:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(drawn(NOW._replace(repo="user/[red]rows", state=State("blocked", "it said [bold]no[/bold] [/]"))))
    text = console.export_text()
    assert "user/[red]rows" in text
    assert "it said [bold]no[/bold] [/]" in text


def test_a_line_every_thirty_seconds_while_there_is_something_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hubsync")
    clock, figures = ManualClock(), [NOW]
    progress = Progress(lambda: figures[0], None, clock.time)

    def pass_time(seconds: int) -> int:
        before = len(caplog.records)
        for _ in range(seconds * 2):
            clock.advance(0.5)
            progress.tick()
        return len(caplog.records) - before

    assert pass_time(300) == 10
    figures[0] = NOW._replace(committed=12_400, waiting=0, waiting_bytes=0, oldest_age_s=None)
    assert pass_time(300) == 1  # that it is all there
    figures[0] = figures[0]._replace(accepted=12_401, committed=12_401)
    assert pass_time(300) == 1
    progress.close()
    figures[0] = NOW
    assert pass_time(300) == 0


def test_a_log_that_shows_no_info_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock()
    for wanted in (None, False):
        progress = Progress(lambda: NOW, wanted, clock.time)
        clock.advance(60)
        progress.tick()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("switch", ["", "1"])  # which is about bars
def test_a_job_that_asked_for_progress_has_lines_where_nothing_can_be_drawn(
    hub: LocalHub, python: Python, switch: str
) -> None:
    code = """
from hubsync import Uploader, ShardPolicy
from hubsync.testing import ManualClock
import sys
clock = ManualClock()
with Uploader("user/rows", progress=True, clock=clock, shard=ShardPolicy(linger_s=1e9)) as up:
    up.put([{"id": 1}])
    while up._engine.monitor.progress._told is None:
        clock.advance(1)
    clock.advance(4000)
"""
    environ = {**os.environ, **hub.environ(), "HF_HUB_DISABLE_PROGRESS_BARS": switch}
    done = python.run("-c", code, env=environ)
    assert done.stdout == ""
    assert re.match(r"user/rows: 1 row accepted, 0 on the Hub; 1 row \(9 bytes\) waits, the oldest for", done.stderr)


def test_a_real_job_tells_its_progress_in_the_log(uploader: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hubsync")
    clock = ManualClock()
    with uploader(clock=clock, shard=ShardPolicy(linger_s=1e9)) as up:  # it stays uncommitted, however fast the clock
        up.put([{"id": 1}, {"id": 2}])
        while not any("2 rows accepted" in record.message for record in caplog.records):
            clock.advance(1)
    told = [record for record in caplog.records if "rows accepted" in record.message]
    assert told[0].levelname == "INFO"
    assert "2 rows accepted, 0 on the Hub; 2 rows (18 bytes) wait, the oldest for" in told[0].message
