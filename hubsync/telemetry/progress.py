"""Progress for people: a bar in a terminal or notebook, a line in the log elsewhere.

`Progress` decides what is shown when; `live_display` draws the bars of all uploaders of the process. The figures come
from memory, about twice a second, and never on the path of a `put`. The switches of huggingface_hub
(HF_HUB_DISABLE_PROGRESS_BARS, `disable_progress_bars()`) turn the bars into lines.
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
from hubsync.telemetry.status import State, StateKind

if TYPE_CHECKING:
    from rich.text import Text

_log = logging.getLogger("hubsync")

_LINE_INTERVAL_S = 30.0  # between two lines in the log
_LONG_DRAIN_S = 2.0  # a longer drain gets a bar


class Figures(NamedTuple):
    """The state of a spool, for people.

    Attributes:
        repo: The dataset.
        state: The state of the worker.
        accepted: Rows since the uploader opened, of all writers, including those that earlier jobs left.
        committed: How many of these are on the Hub.
        waiting: Rows that are not on the Hub.
        waiting_bytes: Their size.
        oldest_age_s: Seconds that the oldest of them has waited; None if no rows wait.
        dead: Shards in the dead letter.
        lost: Accepted rows that are lost with a damaged file.
        total: Rows that will be accepted in the end, if known.
    """

    repo: str
    state: State
    accepted: int
    committed: int
    waiting: int
    waiting_bytes: int
    oldest_age_s: float | None = None
    dead: int = 0
    lost: int = 0
    total: int | None = None


def line(now: Figures) -> str:
    """Return everything in one line of plain text."""
    parts = [f"{now.repo}: {count_text(now.accepted, 'row')} accepted, {now.committed:,} on the Hub"]
    if now.waiting:
        age = f", the oldest for {duration_text(now.oldest_age_s)}" if now.oldest_age_s is not None else ""
        parts.append(waiting_text(now.waiting, now.waiting_bytes) + age)
    else:
        parts.append("nothing waits")
    if now.state.kind != "ok":
        return "; ".join([*parts, *_dead(now), str(now.state)])
    return "; ".join([*parts, *_next_commit(now), *_dead(now)])


def bar(now: Figures, width: int) -> Text:
    """Return a bar and the most important figures in one line of at most `width` characters."""
    from rich.text import Text

    mark, color = _MARKS[now.state.kind]
    total = max(1, now.total or now.accepted)
    cells = max(4, min(24, width // 5))
    filled = round(cells * min(1.0, now.committed / total))
    parts = [f"{now.committed:,} of {total:,} rows on the Hub"]
    if now.state.kind == "ok":
        parts += [f"oldest {duration_text(now.oldest_age_s)}"] if now.oldest_age_s is not None else []
        parts += [*_next_commit(now), *_dead(now)]
    else:
        until = f", next try {time_text(now.state.until)}" if now.state.until is not None else ""
        parts += [*_dead(now), f"{now.state.kind}{until}" + (f": {now.state.reason}" if now.state.reason else "")]
    text = Text.assemble(
        (f"{mark} ", color), (now.repo, "bold"), " ", ("━" * filled, color), ("━" * (cells - filled), "bright_black"),
        " ", "; ".join(parts), no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    text.truncate(width, overflow="ellipsis")
    return text


def _next_commit(now: Figures) -> list[str]:
    if now.state.until is not None:
        return [f"next commit {time_text(now.state.until)}"]
    return [now.state.reason] if now.state.reason else []


def _dead(now: Figures) -> list[str]:
    dead = [f"{count_text(now.dead, 'shard')} in the dead letter"] if now.dead else []
    return [*dead, f"{count_text(now.lost, 'row')} lost"] if now.lost else dead


# A shape as well as a color, for readers who do not see the color.
_MARKS: dict[StateKind, tuple[str, str]] = {
    "ok": ("●", "green"),
    "offline": ("●", "blue"),
    "backing off": ("▲", "yellow"),
    "blocked": ("■", "red"),
    "spool full": ("■", "red"),
}


class Progress:
    """Shows the progress of one uploader, or of one drain."""

    def __init__(
        self,
        read: Callable[[], Figures],
        bars: bool | None,
        now: Callable[[], float],
        *,
        line_interval_s: float = _LINE_INTERVAL_S,
        print_line: Callable[[str], object] | None = None,
    ) -> None:
        """Show nothing yet.

        Args:
            read: Returns the figures, without waiting.
            bars: True for a bar until `close`, None for a bar while a drain takes long, False to show nothing.
            now: The clock.
            line_interval_s: Seconds between two lines, while there is no bar.
            print_line: Prints a line; None for the log.
        """
        self.context = contextvars.copy_context()
        self._read = read
        self._bars = bars
        self._now = now
        self._line_interval_s = line_interval_s
        self._print_line = print_line
        self._lock = threading.Lock()
        self._drains: list[float] = []  # when each began
        self._is_shown = False
        self._last_line_at = now() if print_line is None else float("-inf")
        self._last_figures: Figures | None = None

    def render(self, width: int) -> Text:
        """Return the bar, for `live_display`."""
        return bar(self._read(), width)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Mark that the caller waits until everything is committed."""
        self.context = contextvars.copy_context()
        began = self._now()
        self._drains.append(began)
        try:
            yield
        finally:
            self._drains.remove(began)  # the next `tick` hides the bar: a signal handler may have interrupted one

    @property
    def is_draining(self) -> bool:
        """Whether a caller waits until everything is committed."""
        return bool(self._drains)

    def tick(self) -> None:
        """Update what is shown; call it about twice a second. May block on the log, but not on a terminal."""
        if self._bars is False:
            return
        self._update_bar()
        if not 0 <= self._now() - self._last_line_at < self._line_interval_s:
            self._last_line_at = self._now()
            if not self._is_shown:
                self._write_line()

    def close(self) -> None:
        """Remove the bar; its last state remains if it was asked for."""
        self._update_bar(closing=True)
        self._bars = False

    def _update_bar(self, *, closing: bool = False) -> None:
        """Show or hide the bar, if that has changed."""
        with self._lock:
            is_long = bool(self._drains) and self._now() - min(self._drains) >= _LONG_DRAIN_S
            display = live_display.current()
            wanted = (self._bars or (self._bars is None and is_long)) and not closing and display.can_draw()
            if wanted and not self._is_shown:
                self._is_shown = True
                display.show(self)
            elif self._is_shown and not wanted:
                self._is_shown = False
                display.hide(self, keep=self._bars is True)

    def _write_line(self) -> None:
        """Write a line, unless nothing has happened since the last one."""
        write = self._print_line
        if write is None and _log.isEnabledFor(logging.INFO):
            write = partial(_log.info, "%s")
        elif write is None and self._bars:
            write = partial(print, file=sys.stderr)  # progress was asked for, and the log does not show it
        if write is None:
            return
        now, before = self._read(), self._last_figures
        self._last_figures = now
        if now.waiting or now.accepted != (before.accepted if before else 0) or (before and before.waiting):
            write(line(now))
