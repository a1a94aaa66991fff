"""The result of a pipeline run: one dataset per leaf."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


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
