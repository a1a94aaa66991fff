"""Write rows for a framework that discards rows if a step raises: count and log errors instead of raising them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hubsync._runtime.formatting import count_text
from hubsync.encoding.rows import Encoded, encode
from hubsync.encoding.transform import Transform, transformed
from hubsync.errors import BatchTooLarge, HubsyncError, RowError, one_line
from hubsync.pipeline.checkpoint_core import content_key
from hubsync.uploader.sync import Uploader

Row = dict[str, Any]
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


class RowWriter:
    """Put rows one batch at a time; count a row that can't be put instead of raising its error.

    Attributes:
        predecessor: Name of the step that the rows come from.
        number: Number of their config, `config-N`.
        uploader: The open uploader of that config.
        key: Prefix of the batches' keys, which make a repeated batch a replay; None for no keys.
    """

    key: str | None = None

    def __init__(
        self,
        predecessor: str,
        number: int,
        uploader: Uploader,
        summary: RunSummary,
        transform: Transform | None = None,
    ) -> None:
        self.predecessor = predecessor
        self.number = number
        self.uploader = uploader
        self._summary = summary
        self._transform = transform
        self._next = 0  # the position of the next row
        self._source: str | None = None
        self._known = -1  # the last position that an earlier run has put

    def resume(self, source: str) -> None:
        """Count rows from now on: skip as many as earlier runs have put under the name `source`.

        Raises:
            OffsetUnknown: The spool is new, and the Hub has not told yet which rows it has.
        """
        known = self.uploader.offset(source)
        self._source, self._known = source, -1 if known is None else known

    def write(self, rows: list[Row]) -> None:
        """Put the next rows, except those that an earlier run has put and those that can't become JSON."""
        first, self._next = self._next, self._next + len(rows)
        # The short last batch of an earlier run may end within this one.
        skipped = min(len(rows), max(0, self._known + 1 - first))
        self._summary.skipped += skipped
        placed = list(self._transformed(rows[skipped:], first + skipped))
        try:
            encoded = self._encode(placed)
        except RowError:
            placed = [(position, row) for position, row in placed if self._can_encode(row)]
            encoded = self._encode(placed)
        if placed:
            self._put(placed, encoded)

    def _transformed(self, rows: list[Row], first: int) -> Iterator[tuple[int, Row]]:
        """Yield the rows to put, each with its position."""
        for position, row in enumerate(rows, first):
            try:
                new = row if self._transform is None else transformed(row, self._transform, position)
            except RowError as error:
                self._summary.fail(1, error)
                continue
            if new is None:
                self._summary.left_out += 1
            else:
                yield position, new

    def _can_encode(self, row: Row) -> bool:
        try:
            encode([row])
        except RowError as error:
            self._summary.fail(1, error)
            return False
        return True

    def _encode(self, placed: Sequence[tuple[int, Row]]) -> Encoded:
        return self.uploader.encode([row for _, row in placed])

    def _put(self, placed: Sequence[tuple[int, Row]], encoded: Encoded) -> None:
        try:
            if self._source is not None:
                receipt = self.uploader.put(encoded, offset=placed[-1][0], source=self._source)
            elif self.key is not None:
                receipt = self.uploader.put(encoded, key=content_key(f"{self.key}/{placed[0][0]}", encoded))
            else:
                receipt = self.uploader.put(encoded)
        except BatchTooLarge as error:
            if len(placed) == 1:
                self._summary.fail(1, error)
                return
            middle = len(placed) // 2
            for half in (placed[:middle], placed[middle:]):
                self._put(half, self._encode(half))
            return
        except HubsyncError as error:
            self._summary.fail(len(placed), error)
            return
        if receipt.error is not None:
            self._summary.fail(len(placed), receipt.error)
        elif receipt.replayed:
            self._summary.skipped += len(placed)
        else:
            self._summary.accepted += len(placed)
