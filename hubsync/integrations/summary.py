"""What happened to the rows of a run: the last lines of its log."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from hubsync._runtime.formatting import count_text
from hubsync.errors import HubsyncError, RowError, one_line

_MAX_KINDS = 50  # of failures that are counted separately: a field's name may be data


class RunSummary:
    """Count the rows of one process by outcome; log each kind of failure when it first occurs.

    Attributes:
        accepted: Rows put in this run.
        skipped: Rows that an earlier run had put.
        left_out: Rows for which `transform` returned None.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self.accepted = 0
        self.skipped = 0
        self.left_out = 0
        self._failed: dict[tuple[str, str], int] = {}
        self._reasons: dict[tuple[str, str], str] = {}

    def fail(self, rows: int, error: Exception) -> None:
        """Count rows that are not uploaded. They still go downstream."""
        name, field, reason = type(error).__name__, "", one_line(str(error))
        if isinstance(error, RowError):
            field = re.sub(r"\[\d+\]", "[]", error.path)
            reason = one_line(f"field {error.path!r}: {error.reason}" if error.path else error.reason)
        kind = (name, field)
        if kind not in self._failed and len(self._failed) >= _MAX_KINDS:
            kind, reason = ("others", ""), "more kinds of errors; the log shows the first of them."
        if kind not in self._failed:
            self._reasons[kind] = reason
            self._logger.error("Not uploaded (further rows with this error are counted): %s: %s", name, reason)
        self._failed[kind] = self._failed.get(kind, 0) + rows

    def log(self, repo_id: str, undrained: Sequence[HubsyncError]) -> None:
        """Log the summary: one line at INFO if everything is on the Hub, otherwise at ERROR.

        Args:
            repo_id: The dataset.
            undrained: What kept accepted rows from the Hub.
        """
        if not (self.accepted or self.skipped or self.left_out or self._failed or undrained):
            return  # the run ended before its first row
        done = f"{count_text(self.accepted, 'row')} accepted"
        if self.skipped:
            done += f", {self.skipped:,} skipped because an earlier run has uploaded them"
        if self.left_out:
            done += f", {self.left_out:,} left out by transform"
        if not undrained and not self._failed:
            self._logger.info("Checkpoint complete: %s; all are in %s.", done, repo_id)
            return
        where = f" Accepted rows are in {repo_id}." if not undrained else ""
        self._logger.error("Checkpoint incomplete: %s.%s", done, where)
        for error in undrained:
            self._logger.error("Not everything is in %s: %s", repo_id, error)
            for note in getattr(error, "__notes__", ()):
                self._logger.error("%s", note)
        for kind, rows in self._failed.items():
            self._logger.error("%s never uploaded: %s: %s", count_text(rows, "row"), kind[0], self._reasons[kind])
