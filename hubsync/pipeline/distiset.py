"""The result of a run: the rows of each leaf, collected in a file and loaded as a dataset."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hubsync.encoding.rows import encode
from hubsync.pipeline.channels import Chunk, ReplayFilter
from hubsync.pipeline.durable import Position


class Collector:
    """Append a leaf's rows to a JSON Lines file, and store next to it how far in the stream they reach.

    Attributes:
        file: The rows.
        position: The stored position in the leaf's stream.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Continue the files of an earlier run; a row whose position was not stored is cut off."""
        self.file = directory / f"{name}.jsonl"
        self._position_file = directory / f"{name}.position"
        size, offset = 0, None
        with suppress(OSError, ValueError):
            size, offset = map(int, self._position_file.read_text().split())
        self.file.touch(mode=0o600)
        os.truncate(self.file, size)
        self.position = Position.from_offset(offset)
        self._filter = ReplayFilter(-1, self.position)
        self._stream = self.file.open("ab")

    def begin(self, start: int) -> None:
        """Expect a stream that restarts after the mark `start`."""
        self._filter = ReplayFilter(start, self.position)

    def add(self, chunk: Chunk) -> None:
        """Append the new rows of a chunk, then replace the position's file atomically."""
        rows = self._filter.new_rows(chunk).rows
        if self._filter.position <= self.position:
            return
        if rows:
            self._stream.write(encode(rows).lines)
            self._stream.flush()
        self.position = position = self._filter.position
        new = self._position_file.with_suffix(".new")
        new.write_text(f"{self._stream.tell()} {position.offset()}")
        os.replace(new, self._position_file)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Distiset(dict[str, Any]):
    """A `datasets.DatasetDict` per leaf, by the leaf's name; a single leaf is named "default".

    Attributes:
        scratch: The directory that holds the datasets' files while this object lives; None if the run has a cache.
    """

    scratch: tempfile.TemporaryDirectory[str] | None = None

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
    ) -> None:
        """Push every leaf, with all its rows, as a config of its own.

        Args:
            repo_id: The dataset, "namespace/name".
            private: Whether to create the repo as a private one; None for the account's default.
            token: None for the token of HF_TOKEN or `hf auth login`.
            options: Passed to `datasets.DatasetDict.push_to_hub`.
        """
        for config, splits in self.items():
            splits.push_to_hub(repo_id, config_name=config, private=private, token=token, **options)


def load(leaves: dict[str, Path], scratch: tempfile.TemporaryDirectory[str] | None, cache: Path) -> Distiset:
    """Return the distiset of JSON Lines files, one per leaf."""
    import datasets

    distiset = Distiset()
    distiset.scratch = scratch
    for name, file in leaves.items():
        if file.stat().st_size:
            rows = datasets.Dataset.from_json(str(file), cache_dir=str(cache))
        else:
            rows = datasets.Dataset.from_list([])
        distiset[name] = datasets.DatasetDict({"train": rows})
    return distiset
