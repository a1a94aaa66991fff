"""One predecessor's rows on the way to their config, for frameworks that would lose rows if a step raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hubsync.encoding.rows import Encoded, encode
from hubsync.encoding.transform import Transform, transformed
from hubsync.errors import BatchTooLarge, HubsyncError, RowError
from hubsync.integrations.summary import RunSummary
from hubsync.pipeline.checkpoint_core import content_key
from hubsync.uploader.sync import Uploader

Row = dict[str, Any]


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
            OffsetUnknown: The spool is new and the Hub can't be reached.
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
