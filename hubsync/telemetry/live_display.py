"""The one drawing of a process in its terminal or notebook, made by one thread; whoever is drawn waits for nothing.

It keeps out of the way: while somebody else draws (a tqdm bar, a rich display) it takes its own away, and comes back
later. What the job prints meanwhile appears above it, and only where stdout is the same terminal. rich is imported
with the first drawing.
"""

from __future__ import annotations

import contextvars
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from hubsync._runtime.fork import after_fork_in_child

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_REFRESH_S = 0.25
_CALM_S = 1.0  # how long nobody else must have drawn before we do
_LAST_S = 2.0  # how long the end waits for the last drawing: a terminal may be held by Ctrl-S


class Drawn(Protocol):
    """Something that can be drawn, from memory and at any time."""

    context: contextvars.Context

    def render(self) -> RenderableType: ...


class Screen:
    """Any number of things in one drawing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[Drawn] = []
        self._last: list[tuple[Drawn, RenderableType]] = []  # to be left behind
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None
        self._canvas: _Terminal | _Notebook | None = None
        self._is_gone = False

    @property
    def is_up(self) -> bool:
        """Whether it is seen now, and not given way."""
        canvas = self._canvas
        return canvas is not None and canvas.is_up

    def may_draw(self) -> bool:
        """Whether there is a terminal or a notebook, and nobody forbids it."""
        import huggingface_hub.utils

        # By its variable or its function.
        is_forbidden = huggingface_hub.utils.are_progress_bars_disabled("hubsync")  # type: ignore[attr-defined]  # it is exported all the same
        return not (self._is_gone or is_forbidden) and (in_notebook() or is_terminal(sys.stderr))

    def show(self, item: Drawn) -> None:
        """Draws `item` from now on."""
        with self._lock:
            self._items.append(item)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hubsync progress", daemon=True)
                self._thread.start()

    def hide(self, item: Drawn, *, keep: bool) -> None:
        """Draws it no longer; with `keep`, as it is now it is left behind in the terminal."""
        last = item.render()
        with self._lock:
            if item not in self._items:
                return  # in a forked child
            self._items.remove(item)
            if keep:
                self._last.append((item, last))
            ended = None if self._items else self._thread
            self._bell.set()
        if ended is not None:
            ended.join(_LAST_S)

    def _run(self) -> None:
        canvas = self._canvas = _Notebook() if in_notebook() else _Terminal()
        try:
            while True:
                with self._lock:
                    items, last = list(self._items), self._last
                    self._last = []
                canvas.draw(items, last)
                if not items:
                    canvas.end()
                    with self._lock:
                        if not self._items:  # else somebody has come meanwhile
                            self._thread = None
                            return
                self._bell.wait(_REFRESH_S)
                self._bell.clear()
        except (OSError, ValueError):  # the terminal is gone, or closed: then nobody sees it any more
            self._is_gone = True
        finally:
            self._canvas = self._thread = None
            canvas.end()


class _Terminal:
    """A rich display on stderr, with a console of its own: a user's on the global one meets no error by ours."""

    def __init__(self) -> None:
        from rich.console import Console

        self._file = sys.stderr
        self._console = Console(file=self._file, highlight=False)
        self._live: Live | None = None
        self._above: list[tuple[str, _Above]] = []
        self._handlers: list[tuple[logging.StreamHandler[Any], Any, _Above]] = []
        self._others_at = float("-inf")

    @property
    def is_up(self) -> bool:
        return self._live is not None

    def draw(self, items: list[Drawn], last: list[tuple[Drawn, RenderableType]]) -> None:
        from rich.console import Group

        if others_draw():
            self._others_at = time.monotonic()
            self.end()
            return
        if not items:
            self.end()
        for _, left in last:
            self._console.print(left)
        if not items or time.monotonic() - self._others_at < _CALM_S:
            return
        if self._live is None:
            self._begin(Group(*(item.render() for item in items)))
        else:
            self._live.update(Group(*(item.render() for item in items)), refresh=True)

    def _begin(self, first: RenderableType) -> None:
        from rich.live import Live

        self._live = Live(
            first, console=self._console, auto_refresh=False, transient=True,
            redirect_stdout=False, redirect_stderr=False,  # rich would send a piped stdout to the terminal
        )  # fmt: skip
        for name in ("stdout", "stderr"):  # first: what is printed below a drawing goes with it
            stream = getattr(sys, name)
            if _same_terminal(stream, self._file):
                above = _Above(stream, self._console)
                setattr(sys, name, above)
                self._above.append((name, above))
                self._take_handlers(stream, above)
        self._live.start(refresh=True)

    def _take_handlers(self, stream: TextIO, above: _Above) -> None:
        """A handler of the log keeps the stream that it began with."""
        for logger in (logging.getLogger(), logging.getLogger("hubsync")):
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    handler.setStream(above)
                    self._handlers.append((handler, stream, above))

    def end(self) -> None:
        """Takes everything away again, but for what others have put in place meanwhile."""
        live, self._live = self._live, None
        if live is not None:
            with suppress(OSError, ValueError):  # the terminal is gone
                live.stop()
        for handler, stream, above in self._handlers:
            if handler.stream is above:
                handler.setStream(stream)
        for name, above in self._above:
            above.close_gate()
            if getattr(sys, name) is above:
                setattr(sys, name, above.rich_proxied_file)
        self._handlers, self._above = [], []


class _Above:
    """A stream whose lines appear above the drawing. Once that is over, they go where they always went."""

    def __init__(self, file: TextIO, console: Console) -> None:
        from rich.file_proxy import FileProxy

        self.rich_proxied_file = file  # what rich calls it, so that a user's console writes straight there
        self._proxy = FileProxy(console, file)
        self._gate = True

    def close_gate(self) -> None:
        with suppress(OSError, ValueError):
            self._proxy.flush()
        self._gate = False

    def write(self, text: str) -> int:
        return (cast(TextIO, self._proxy) if self._gate else self.rich_proxied_file).write(text)

    def writelines(self, lines: Any) -> None:
        for text in lines:
            self.write(text)

    def flush(self) -> None:
        """Whole lines are written already; a part of one waits for its end while there is a drawing."""
        if not self._gate:
            self.rich_proxied_file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _Notebook:
    """rich's HTML in one output of the cell, brought up to date in place; needs no widgets."""

    is_up = True

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, items: list[Drawn], last: list[tuple[Drawn, RenderableType]]) -> None:
        if not items and not last:
            return
        first = (items or [item for item, _ in last])[0]
        first.context.copy().run(self._show, [*(left for _, left in last), *(item.render() for item in items)])

    def _show(self, parts: list[RenderableType]) -> None:
        import IPython.display
        from rich.console import Console

        ipython: Any = IPython.display
        with open(os.devnull, "w") as nowhere:
            console = Console(width=100, record=True, file=nowhere, force_jupyter=False, highlight=False)
            for part in parts:
                console.print(part)
        text = console.export_text(clear=False).rstrip()
        html = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        bundle = {"text/plain": text, "text/html": html}
        if self._handle is None:
            self._handle = ipython.display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def end(self) -> None:
        pass


def is_terminal(stream: Any) -> bool:
    """Whether something can be drawn there."""
    with suppress(AttributeError, ValueError, OSError):
        return bool(stream.isatty()) and os.environ.get("TERM", "") not in ("dumb", "unknown")
    return False


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


def others_draw() -> bool:
    """Whether somebody else draws now: a tqdm bar is there, or a rich display has stdout or stderr."""
    tqdm: Any = sys.modules.get("tqdm.std")
    if tqdm is not None and len(getattr(tqdm.tqdm, "_instances", ())):
        return True
    from rich.file_proxy import FileProxy

    return isinstance(sys.stdout, FileProxy) or isinstance(sys.stderr, FileProxy)


def _same_terminal(stream: Any, other: Any) -> bool:
    with suppress(AttributeError, ValueError, OSError):
        return os.isatty(stream.fileno()) and os.fstat(stream.fileno()).st_rdev == os.fstat(other.fileno()).st_rdev
    return False


_current = Screen()


def current() -> Screen:
    """The one of this process."""
    return _current


@after_fork_in_child
def _begin_anew() -> None:
    """A forked child has no thread that draws; what it prints goes where it always went."""
    global _current
    canvas = _current._canvas
    if isinstance(canvas, _Terminal):
        for _, above in canvas._above:
            above._gate = False
    _current = Screen()
