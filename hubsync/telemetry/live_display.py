"""One line in the terminal, or one output in the notebook, that shows the progress of all uploaders of a process.

A thread of its own draws it, so no other thread waits for a terminal that accepts no output. The line is as wide as the
terminal, so whatever the job prints begins on a new line, and nothing that it has printed is erased. rich is imported
when something is drawn for the first time.
"""

from __future__ import annotations

import contextvars
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_REFRESH_S = 0.25
_END_S = 2.0  # how long `hide` waits for the last drawing: a terminal can be stopped with Ctrl-S
_NOTEBOOK_WIDTH = 110


class Drawable(Protocol):
    """Something to draw. It renders itself from memory, at any time."""

    context: contextvars.Context  # of the notebook cell that it belongs to

    def render(self, width: int) -> Text:
        """Return a text of at most `width` characters without line breaks."""
        ...


class LiveDisplay:
    """Draws items side by side for as long as there are any. Use `current` to get the one of this process."""

    def __init__(self) -> None:
        """Create a display that is not drawn yet."""
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._items: list[Drawable] = []
        self._kept: list[Drawable] = []  # ended, to be drawn once more above the others
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_broken = False

    def can_draw(self) -> bool:
        """Return whether there is a terminal or a notebook, and progress bars are not disabled."""
        from huggingface_hub.utils import are_progress_bars_disabled  # type: ignore[attr-defined]  # not in __all__

        is_possible = in_notebook() or is_terminal(sys.stderr)
        return is_possible and not self._is_broken and not are_progress_bars_disabled("hubsync")

    def show(self, item: Drawable) -> None:
        """Draw an item from now on."""
        with self._lock:
            self._items.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(item,), name="hubsync progress", daemon=True)
                self._thread.start()

    def hide(self, item: Drawable, *, keep: bool) -> None:
        """Stop drawing an item; with `keep`, leave its last state on a line of its own."""
        with self._lock:
            if item not in self._items:
                return  # in a forked child
            self._items.remove(item)
            if keep:
                self._kept.append(item)
            thread = None if self._items else self._thread
        self._changed.set()
        if thread is not None:
            thread.join(_END_S)

    def _run(self, first: Drawable) -> None:
        try:
            canvas = _Notebook(first.context) if in_notebook() else _Terminal()
            while True:
                self._changed.clear()
                with self._lock:
                    items, kept, self._kept = list(self._items), self._kept, []
                canvas.draw(items, kept)
                with self._lock:
                    if not (items or self._items or self._kept):  # nothing is on the screen any more
                        self._thread = None
                        return
                self._changed.wait(_REFRESH_S)
        except (OSError, ValueError):  # the terminal is closed
            self._is_broken = True
            self._thread = None


class _Terminal:
    """A line on standard error, drawn by rich."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr, highlight=False)
        self._live: Live | None = None

    def draw(self, items: list[Drawable], kept: list[Drawable]) -> None:
        """Draw the items; remove the line if the list is empty."""
        from rich.live import Live

        # Not rich's width, which is that of $COLUMNS: it may be out of date.
        width = self._console.width = os.get_terminal_size(self._console.file.fileno()).columns or 80
        for item in kept:
            self._console.print(item.render(width))
        if items:
            line = _side_by_side(items, width)
            if self._live is None:
                self._live = Live(
                    console=self._console, auto_refresh=False, transient=True, redirect_stdout=False,
                    redirect_stderr=False,
                )  # fmt: skip
                self._live.start()
            self._live.update(line, refresh=True)
        elif self._live is not None:
            self._live.stop()
            self._live = None


class _Notebook:
    """An output of the notebook cell, updated in place. Needs no widgets."""

    def __init__(self, context: contextvars.Context) -> None:
        self._context = context.copy()  # says which cell
        self._handle: Any = None

    def draw(self, items: list[Drawable], kept: list[Drawable]) -> None:
        """Replace the output."""
        if items or kept:
            self._context.run(self._show, [*kept, *items])

    def _show(self, items: list[Drawable]) -> None:
        import IPython.display as ipython
        from rich.console import Console

        with open(os.devnull, "w") as nowhere:
            console = Console(width=_NOTEBOOK_WIDTH, record=True, file=nowhere, force_jupyter=False, highlight=False)
            for item in items:
                console.print(item.render(_NOTEBOOK_WIDTH))
        text = console.export_text(clear=False).rstrip()
        html = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        bundle = {"text/plain": text, "text/html": html}
        if self._handle is None:
            display: Any = ipython.display  # it has no types
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _side_by_side(items: list[Drawable], width: int) -> Text:
    """Return all items in one line that fills the width."""
    from rich.text import Text

    share = (width + 2) // len(items) - 2
    line = Text("  ").join(item.render(share) for item in items)
    line.truncate(width, overflow="ellipsis", pad=True)
    return line


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal that can move its cursor."""
    with suppress(AttributeError, ValueError, OSError):
        return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return False


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


_current = LiveDisplay()


def current() -> LiveDisplay:
    """Return the display of this process. A forked child gets a new one: it does not have the thread that draws."""
    global _current
    if _current.pid != os.getpid():
        _current = LiveDisplay()
    return _current
