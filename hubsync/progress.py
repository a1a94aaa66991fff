"""What the demo shows while it runs: bars in a terminal, a plain line every second elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars


class Progress:
    """Rows generated and rows on the Hub, side by side."""

    def __init__(self, rows: int, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._rows = rows
        self._live = self._console.is_terminal and not quiet
        self._told_at = 0.0
        columns = TextColumn("  {task.description:<10}"), BarColumn(), MofNCompleteColumn()
        self._bars = Bars(*columns, TextColumn("{task.fields[note]}"), console=self._console)
        self._generated = self._bars.add_task("generated", total=rows, note="")
        self._committed = self._bars.add_task("on the Hub", total=rows, note="")

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._bars.stop()

    def update(self, generated: int, committed: int, state: str) -> None:
        if self._live:
            self._bars.update(self._generated, completed=generated)
            self._bars.update(self._committed, completed=committed, note=state)
        elif time.monotonic() - self._told_at >= 1:
            self._told_at = time.monotonic()
            self._console.print(
                f"  {generated:,} of {self._rows:,} generated, {committed:,} on the Hub; {state}", markup=False
            )

    def say(self, text: str) -> None:
        """One thing that happens."""
        self._console.print(f"  * {text}", markup=False)
