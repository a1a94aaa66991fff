"""What the bar and the line say, and when a line is written."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable

import pytest

from hubsync import ShardPolicy, Uploader
from hubsync.localhub import LocalHub
from hubsync.telemetry.progress import Figures, Progress, bar, line
from hubsync.telemetry.status import State
from hubsync.testing import ManualClock
from tests.zygote import Python

Make = Callable[..., Uploader]
NOW = Figures("user/rows", State(), 12_400, 11_900, 500, 1_200_000, 14.0)


def test_a_line_contains_all_figures() -> None:
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
def test_a_bar_is_one_line_of_at_most_the_terminals_width(width: int) -> None:
    state = State("backing off", "commit to user/rows: 503, " + "of many words " * 9, time.time())
    text = bar(NOW._replace(state=state), width).plain
    assert text.startswith("▲ user/rows ━")
    assert len(text) <= width
    assert "\n" not in text


def test_a_bar_shows_the_oldest_row_and_the_next_commit() -> None:
    text = bar(NOW._replace(state=State("ok", "commits keep to 120 an hour", time.time())), 200).plain
    assert re.search(r"━ 11,900 of 12,400 rows on the Hub; oldest 14 s; next commit \d\d:\d\d:\d\d$", text)


def test_a_servers_square_brackets_are_not_markup() -> None:
    text = bar(NOW._replace(repo="user/[red]rows", state=State("blocked", "it said [bold]no[/bold] [/]")), 200).plain
    assert "user/[red]rows" in text
    assert text.endswith("blocked: it said [bold]no[/bold] [/]")


def test_a_line_is_logged_every_thirty_seconds_while_something_changes(caplog: pytest.LogCaptureFixture) -> None:
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
    assert pass_time(300) == 1  # everything is on the Hub
    figures[0] = figures[0]._replace(accepted=12_401, committed=12_401)
    assert pass_time(300) == 1
    progress.close()
    figures[0] = NOW
    assert pass_time(300) == 0


def test_nothing_is_printed_if_the_log_does_not_show_info(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock()
    for wanted in (None, False):
        progress = Progress(lambda: NOW, wanted, clock.time)
        clock.advance(60)
        progress.tick()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("switch", ["", "1"])  # it disables only bars
def test_lines_are_printed_if_progress_was_asked_for_but_cannot_be_drawn(
    hub: LocalHub, python: Python, switch: str
) -> None:
    code = """
from hubsync import Uploader, ShardPolicy
from hubsync.testing import ManualClock
from tests.zygote import Python
import sys
clock = ManualClock()
with Uploader("user/rows", progress=True, clock=clock, shard=ShardPolicy(linger_s=1e9)) as up:
    up.put([{"id": 1}])
    while up._engine.monitor.progress._last_figures is None:
        clock.advance(1)
    clock.advance(4000)
"""
    environ = {**os.environ, **hub.environ(), "HF_HUB_DISABLE_PROGRESS_BARS": switch}
    done = python.run("-c", code, env=environ)
    assert done.stdout == ""
    assert re.match(r"user/rows: 1 row accepted, 0 on the Hub; 1 row \(9 bytes\) waits, the oldest for", done.stderr)


def test_a_job_logs_its_progress(uploader: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hubsync")
    clock = ManualClock()
    with uploader(clock=clock, shard=ShardPolicy(linger_s=1e9)) as up:  # it stays uncommitted, however fast the clock
        up.put([{"id": 1}, {"id": 2}])
        while not any("2 rows accepted" in record.message for record in caplog.records):
            clock.advance(1)
    logged = [record for record in caplog.records if "rows accepted" in record.message]
    assert logged[0].levelname == "INFO"
    assert "2 rows accepted, 0 on the Hub; 2 rows (18 bytes) wait, the oldest for" in logged[0].message
