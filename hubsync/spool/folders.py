"""In which folder the next shard goes, so that no folder of the dataset meets the Hub's limit.

A layout's folder is shared by all its writers, so shards are counted by folder, when they get their paths. The
committer adds what it finds in the dataset: see `committer/folder_guard.py`.
"""

from __future__ import annotations

import msgspec

from hubsync.model.layout import PART_FILES, Layout, Part
from hubsync.spool.database import Catalogue


class FolderFill(msgspec.Struct, array_like=True):
    """The newest part of a layout's folder, and how many shards it has, at most."""

    part: int = 0
    files: int = 0
    is_above: bool = False


class Folders:
    """Counts the shards of each folder. Changes belong in the transaction that needs them."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def take(self, layout: Layout) -> Part:
        """Return the part for one more shard, and count it there."""
        fill = self._get(layout.folder)
        if fill.files >= PART_FILES:
            fill = FolderFill(fill.part + 1, 0, fill.is_above)
        fill.files += 1
        self._set(layout.folder, fill)
        return Part(fill.part, fill.is_above)

    def found(self, layout: Layout, path: str, files: int) -> None:
        """Record that the dataset has so many files in the part that contains a shard's path."""
        fill = self._get(layout.folder)
        if layout.part_folder(path) == layout.part_folder(layout.path("", 0, Part(fill.part, fill.is_above))):
            fill.files = max(fill.files, files)
            self._set(layout.folder, fill)

    def move_above(self, layout: Layout) -> None:
        """Record that a layout's folder can't take even a folder more: its parts go above it."""
        fill = self._get(layout.folder)
        self._set(layout.folder, FolderFill(fill.part, PART_FILES, is_above=True))

    def is_above(self, layout: Layout) -> bool:
        """Return whether the parts of a layout's folder are above it."""
        return self._get(layout.folder).is_above

    def forget(self) -> None:
        """Count again: the numbers of all series have changed."""
        self._catalogue.run("DELETE FROM meta WHERE key GLOB 'folder:*'")

    def _get(self, folder: str) -> FolderFill:
        stored = self._catalogue.get(f"folder:{folder}")
        if stored is not None:
            return msgspec.json.decode(stored, type=FolderFill)
        # Each number is at most one file, whoever made it: the dataset's watermarks are in this table as well.
        prefix = f"{folder}/" if folder else ""
        sql = "SELECT sum(next) FROM series WHERE substr(name, 1, ?) = ?"
        files = int(self._catalogue.value(sql, len(prefix), prefix) or 0)
        return FolderFill(files // PART_FILES, files % PART_FILES)

    def _set(self, folder: str, fill: FolderFill) -> None:
        self._catalogue.set(f"folder:{folder}", msgspec.json.encode(fill).decode())
