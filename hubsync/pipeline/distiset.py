"""What a pipeline has made: a dataset for each leaf, as `datasets` knows them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


class Distiset(dict[str, Any]):
    """A `datasets.DatasetDict` for each leaf by its name; "default" where there is one leaf only.

    `scratch` holds the files that the datasets read from, as long as this lives.
    """

    scratch: tempfile.TemporaryDirectory[str] | None = None

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
    ) -> None:
        """Pushes every leaf, with all its rows, as a config of its own: `datasets.DatasetDict.push_to_hub`."""
        for config, splits in self.items():
            splits.push_to_hub(repo_id, config_name=config, private=private, token=token, **options)


def load(leaves: dict[str, Path], scratch: tempfile.TemporaryDirectory[str] | None, cache: Path) -> Distiset:
    """The distiset of JSON Lines files, one for each leaf."""
    import datasets

    made = Distiset()
    made.scratch = scratch
    for name, file in leaves.items():
        if file.stat().st_size:
            rows = datasets.Dataset.from_json(str(file), cache_dir=str(cache))
        else:
            rows = datasets.Dataset.from_list([])
        made[name] = datasets.DatasetDict({"train": rows})
    return made
