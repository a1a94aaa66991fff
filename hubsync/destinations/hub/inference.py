"""What `datasets` makes of a repo today: asked of `datasets` itself, on a copy of the repo's tree without its content.

`datasets` is imported only here, and only for a repo that hubsync did not create and whose card does not say it all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hubsync.errors import one_line


class InferenceError(ValueError):
    """`datasets` is not installed, or cannot load the repo."""


class Inferred(NamedTuple):
    """A config as `datasets` sees it.

    Attributes:
        builder: The kind of its files, such as "json", "parquet" or "imagefolder".
        files: The files of each split, in the order in which their rows are loaded.
        info: What it knows of the config apart from the files: `features` and `splits`, as a card writes them.
    """

    builder: str
    files: dict[str, list[str]]
    info: dict[str, Any]


def infer_config(repo: str, paths: Sequence[str], contents: Mapping[str, bytes], config: str | None) -> Inferred | None:
    """Return what `load_dataset(repo, config)` would load; None if it finds no files to load.

    Args:
        repo: The repo id.
        paths: All files of the repo.
        contents: The content of those that describe the others: the card, for example.
        config: The config; None for the only one of a repo without `configs:`.

    Raises:
        InferenceError: `datasets` is not installed, or cannot load it.
    """
    datasets = _datasets()
    with _scratch() as scratch:
        root = scratch / repo.split("/")[-1]
        root.mkdir()
        try:
            for path in paths:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(contents.get(path, b""))
        except OSError as error:
            raise InferenceError(f"the names of its files can't be copied here ({error})") from error
        try:
            builder = datasets.load_dataset_builder(str(root), config, cache_dir=str(scratch / "cache"))
        except (FileNotFoundError, getattr(datasets.exceptions, "DataFilesNotFoundError", FileNotFoundError)):
            return None
        except Exception as error:  # (whatever the repo makes of it)
            raise InferenceError(one_line(f"{type(error).__name__}: {error}")) from error
        files = {
            str(split): [Path(os.path.realpath(file)).relative_to(os.path.realpath(root)).as_posix() for file in found]
            for split, found in (builder.config.data_files or {}).items()
        }
        info: dict[str, Any] = {}
        if builder.info.features is not None:
            info["features"] = builder.info.features._to_yaml_list()
        if builder.info.splits:
            info["splits"] = builder.info.splits._to_yaml_list()
        return Inferred(builder.name, files, info)


def infer_features(builder: str, file: Path) -> list[dict[str, Any]] | None:
    """Return the features that `datasets` finds in one file, as a card writes them; None if it holds no rows.

    Raises:
        InferenceError: `datasets` is not installed, or cannot read the file.
    """
    datasets = _datasets()
    with _scratch() as scratch:
        try:
            rows = datasets.load_dataset(
                builder, data_files={"train": [str(file)]}, split="train", streaming=True, cache_dir=str(scratch)
            )
            features = rows.features or rows._resolve_features().features
        except Exception as error:  # (whatever the file holds)
            raise InferenceError(one_line(f"{file.name}: {type(error).__name__}: {error}")) from error
    found: list[dict[str, Any]] | None = None if features is None else features._to_yaml_list()
    return found


def _datasets() -> ModuleType:
    try:
        import datasets
        import datasets.exceptions
    except ImportError as error:
        raise InferenceError(f"it needs the package datasets ({error}): pip install datasets") from error
    module: ModuleType = datasets
    return module


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hubsync-") as directory:
        yield Path(directory)
