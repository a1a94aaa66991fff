"""Which configs, splits and path patterns the dataset's card shows, and whether it lags behind the commits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.model.layout import Layout
from hubsync.model.shard import Shard
from hubsync.spool.database import Catalogue
from hubsync.spool.lease import CommitterLease
from hubsync.spool.segments import Segments

CardKey = tuple[str, str, str]  # config, split, glob


class CardEntries:
    """What the committer knows of the card. Changes need its lease."""

    def __init__(self, catalogue: Catalogue, segments: Segments, lease: CommitterLease) -> None:
        self._catalogue = catalogue
        self._segments = segments
        self._lease = lease

    def of(self, shards: Sequence[Shard]) -> list[CardKey]:
        """Return the entries that the card needs so that `shards` are found."""
        return list(dict.fromkeys(map(self.entry, shards)))

    def entry(self, shard: Shard) -> CardKey:
        """Return the entry that the card needs so that a shard is found."""
        return entry_of(self._segments.get(shard.segment).layout, shard.path)

    def missing(self, shards: Sequence[Shard]) -> list[CardKey]:
        """Return those of them that the card may not contain yet."""
        known = "SELECT 1 FROM cards WHERE config = ? AND split = ? AND glob = ?"
        return [entry for entry in self.of(shards) if self._catalogue.value(known, *entry) is None]

    def of_committed(self) -> dict[CardKey, str]:
        """Return the entries of everything this spool committed, each with the path of its newest shard."""
        return {entry_of(layout, path): path for layout, path in self._segments.newest_committed_paths()}

    def add(self, entries: Iterable[CardKey], *, replace: bool) -> None:
        """Record that the card contains these entries; with `replace`, no others."""
        with self._lease.transaction():
            if replace:
                self._catalogue.run("DELETE FROM cards")
            for entry in entries:
                self._catalogue.run("INSERT OR IGNORE INTO cards VALUES (?, ?, ?)", *entry)
        failpoint(Failpoint.CARD_RECORDED)

    @property
    def is_update_due(self) -> bool:
        """Whether shards were committed without the card that shows them."""
        return self._catalogue.get("card_owed") == "1"

    def set_update_due(self, is_due: bool) -> None:
        """Record whether the card lags behind the commits."""
        if is_due != self.is_update_due:
            with self._lease.transaction():
                self._catalogue.set("card_owed", str(int(is_due)))


def entry_of(layout: Layout, path: str) -> CardKey:
    """Return the entry that the card needs so that a shard is found."""
    return layout.config, layout.split, layout.glob_of(path)
