"""What a person sees of an uploader while it works: bars in a terminal or a notebook, a line in the log elsewhere.

It reads what is in memory, twice a second, and never on the way of a `put`. All uploaders of a process share one
drawing (`screen.py`). By default bars come only while a `flush` or `close` takes longer than two
seconds; huggingface_hub's switch (HF_HUB_DISABLE_PROGRESS_BARS, `disable_progress_bars()`) keeps them away, and leaves
the line.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hubsync._runtime.formatting import count_text, duration_text, time_text, waiting_text
from hubsync.telemetry import live_display
from hubsync.telemetry.status import State

if TYPE_CHECKING:
    from rich.console import RenderableType

_log = logging.getLogger("hubsync")

_LINE_S = 30.0  # between two lines in a log
_LONG_S = 2.0  # a drain that takes longer is shown


class Figures(NamedTuple):
    """How a spool stands, for people.

    Attributes:
        accepted, committed: rows since the uploader was opened, what earlier jobs left included; of all its writers.
        waiting, waiting_bytes: what is not on the Hub yet.
        oldest_age_s: how long the oldest of these has waited; None where none waits.
        dead: shards in the dead letter.
        total: rows that there will be, where that is known.
    """

    repo: str
    spool: str
    state: State
    accepted: int
    committed: int
    waiting: int
    waiting_bytes: int
    oldest_age_s: float | None = None
    dead: int = 0
    total: int | None = None


def line(now: Figures) -> str:
    """All of it in one line of plain text."""
    text = f"{now.repo}: {count_text(now.accepted, 'row')} accepted, {now.committed:,} on the Hub; {waiting(now)}"
    return f"{text}; {now.state}" if now.state.kind != "ok" else text


def waiting(now: Figures) -> str:
    """What waits, since when, and for what."""
    if not now.waiting:
        parts = ["nothing waits"]
    else:
        age = f", the oldest for {duration_text(now.oldest_age_s)}" if now.oldest_age_s is not None else ""
        parts = [waiting_text(now.waiting, now.waiting_bytes) + age]
    if now.state.kind == "ok" and now.state.until is not None:
        parts.append(f"next commit {time_text(now.state.until)}")
    elif now.state.kind == "ok" and now.state.reason:
        parts.append(now.state.reason)
    if now.dead:
        parts.append(f"{count_text(now.dead, 'shard')} in the dead letter")
    return "; ".join(parts)


_MARKS = {
    "ok": ("●", "green"),
    "offline": ("●", "blue"),
    "backing off": ("▲", "yellow"),
    "blocked": ("■", "red"),
    "spool full": ("■", "red"),
}


def drawn(now: Figures) -> RenderableType:
    """Two or three lines for a terminal: a bar, what is wrong, and what waits."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    mark, color = _MARKS[now.state.kind]
    whole = max(now.accepted, now.total or 0)
    bar = Table.grid(padding=(0, 2, 0, 0))
    bar.add_column(no_wrap=True, overflow="ellipsis", style="bold")
    bar.add_column(max_width=30)
    bar.add_column(no_wrap=True, overflow="ellipsis")
    done = ProgressBar(total=max(1, whole), completed=now.committed, complete_style=color, finished_style=color)
    bar.add_row(Text(now.repo), done, Text(f"{now.committed:,} of {whole:,} rows on the Hub"))
    said = Text()  # never as markup: a server's words may be among them
    if now.state.kind != "ok":
        said.append(now.state.kind, f"bold {color}")
        said.append(str(now.state).removeprefix(now.state.kind) + "\n")
    said.append(waiting(now))
    if now.state.kind != "ok" and now.waiting:
        said.append(f"; {'it is' if now.waiting == 1 else 'they are'} safe in {now.spool}")
    below = Table.grid(padding=(0, 1, 0, 0))
    below.add_column()
    below.add_column()
    below.add_column(overflow="fold")  # a long path is whole, on as many lines as it takes
    below.add_row(" ", Text(mark, color), said)
    return Group(bar, below)


class Progress:
    """Shows one uploader, or one drain."""

    def __init__(
        self,
        read: Callable[[], Figures],
        wanted: bool | None,
        now: Callable[[], float],
        *,
        line_s: float = _LINE_S,
        say: Callable[[str], object] | None = None,
    ) -> None:
        """`wanted`: False shows nothing, True bars all the time, None bars while it drains for long. Where
        there are none, a line goes to the log every `line_s` seconds, or to `say`.
        """
        self.read = read
        self.context = contextvars.copy_context()  # a notebook's cell is found by it
        self._wanted = wanted
        self._now = now
        self._line_s = line_s
        self._say = say
        self._lock = threading.Lock()
        self._drains: list[float] = []  # when each began
        self._shown = self._keep = False
        self._told_at = now() if say is None else float("-inf")
        self._told: Figures | None = None

    def render(self) -> RenderableType:
        return drawn(self.read())

    @contextmanager
    def draining(self) -> Iterator[None]:
        """While somebody waits for everything to be committed."""
        self.context = contextvars.copy_context()
        began = self._now()
        self._drains.append(began)
        try:
            yield
        finally:
            self._drains.remove(began)
            self._follow()

    def tick(self) -> None:
        """A look, to be had about twice a second. It blocks on nothing but a log's disk."""
        if self._wanted is False:
            return
        self._follow()
        if self._now() - self._told_at >= self._line_s or self._now() < self._told_at:
            self._told_at = self._now()
            if not (self._shown and live_display.current().is_up):
                self._tell()

    def close(self) -> None:
        """Takes the bars away."""
        self._wanted = False
        self._follow()

    def _follow(self) -> None:
        """Begins to draw, or ends it."""
        with self._lock:
            long = bool(self._drains) and self._now() - min(self._drains) >= _LONG_S
            wanted = bool(self._wanted or (self._wanted is None and long))
            if wanted == self._shown or (wanted and not live_display.current().may_draw()):
                return
            self._shown = wanted
            if wanted:
                self._keep = self._wanted is True  # what was asked for leaves its last state behind
                live_display.current().show(self)
            else:
                live_display.current().hide(self, keep=self._keep)

    def _tell(self) -> None:
        say = self._say
        if say is None and _log.isEnabledFor(logging.INFO):
            say = partial(_log.info, "%s")
        elif say is None and self._wanted:
            say = partial(print, file=sys.stderr)  # it was asked for, and no log shows it
        if say is None:
            return
        now = self.read()
        before, self._told = self._told, now
        if now.waiting or now.accepted != (before.accepted if before else 0) or (before and before.waiting):
            say(line(now))  # else there is nothing to tell
