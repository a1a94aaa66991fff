"""The dataset card, which makes `datasets.load_dataset` find every config and split from the first commit on.

hubsync adds what is missing to the card's `configs:` and `dataset_info:`, and keeps every word and key that people
wrote. huggingface_hub reads and writes the YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from hubsync.errors import one_line
from hubsync.schema.features import from_features, to_features
from hubsync.schema.types import Conflict, StructOf, merge_structs

PATH = "README.md"
_MAX_BYTES = 1 << 20  # YAML is parsed in Python, which blocks the job's threads


class Entry(NamedTuple):
    """One split of one config, and the glob that finds its shards."""

    config: str
    split: str
    glob: str


class CardError(ValueError):
    """The existing card cannot be read, so hubsync does not change it."""


def preload() -> Any:
    """Import huggingface_hub's card class and return it.

    The import is slow, so it happens late; but it must not happen first at interpreter exit, when Python refuses it.
    """
    from huggingface_hub import DatasetCard

    return DatasetCard


class Card:
    """A dataset's card. Its YAML is parsed once, because parsing blocks the job's threads."""

    def __init__(self, existing: bytes | None, repo: str) -> None:
        """Parse the card that exists in the dataset; None creates a new one.

        Raises:
            CardError: Its YAML is invalid.
        """
        if existing is not None and len(existing) > _MAX_BYTES:
            raise CardError(f"{PATH} has {len(existing):,} bytes; hubsync does not change one over {_MAX_BYTES:,}.")
        self._repo = repo
        self._is_new = existing is None
        if existing is None:
            text = "---\nconfigs: []\n---\n" + _BODY.format(name=repo.split("/")[-1], repo=repo)
        else:
            text = existing.decode("utf-8", "surrogateescape")
        with _as_card_error():
            self._card = preload()(text, ignore_metadata_errors=False)

    def entries(self) -> list[Entry]:
        """Return the card's patterns for configs and splits, one entry each.

        Raises:
            CardError: The card's `configs:` are invalid.
        """
        with _as_card_error():
            return [
                Entry(_name(config), split, pattern)
                for config in self._configs()
                for split, pattern in _patterns(config.get("data_files") or [])
            ]

    def features(self) -> dict[str, StructOf]:
        """Return the column types that the card declares, by config. Features that hubsync does not know are left out.

        Raises:
            CardError: The card's `dataset_info:` is invalid.
        """
        found = {}
        with _as_card_error():
            for info in self._infos():
                with suppress(ValueError):
                    found[_name(info)] = from_features(info.get("features") or [])
        return found

    def format_conflict(self, ours: Sequence[Entry]) -> str | None:
        """Return what is wrong if the card shows files of another kind than `ours`; `datasets` reads one kind per repo.

        Raises:
            CardError: The card's `configs:` are invalid.
        """
        kinds = {_file_kind(entry.glob) for entry in ours}
        other = next((e.glob for e in self.entries() if (kind := _file_kind(e.glob)) and kind not in kinds), None)
        if other is None or not ours:
            return None
        return (
            f"{self._repo} contains {other}, and now {ours[0].glob}: load_dataset reads one kind of file per repo, so "
            "it can no longer load this one. Use the old format, or another repo."
        )

    def merge(self, entries: Sequence[Entry], features: Mapping[str, StructOf] = MappingProxyType({})) -> bytes | None:
        """Add `entries` to the card's `configs:` and `features`, by config, to its `dataset_info:`.

        Returns:
            The new card; None if it already contains all of them.

        Raises:
            CardError: The card's `configs:` or `dataset_info:` are invalid.
        """
        with _as_card_error():
            configs, infos = self._configs(), self._infos()
            new_entries = [entry for entry in entries if _add_entry(configs, entry)]
            new_features = [c for c, columns in features.items() if columns.fields and _add_features(infos, c, columns)]
            if new_features:
                self._card.data["dataset_info"] = infos
            elif not (new_entries or self._is_new):
                return None
            self._card.data["configs"] = configs
            return self._text().encode("utf-8", "surrogateescape")

    def _text(self) -> str:
        text = str(self._card)
        if "\x85" in text:  # perhaps a column's name: PyYAML reads it as a line break, but does not escape it
            from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

            end = "\r\n" if "\r\n" in text else "\n"
            yaml = yaml_dump(self._card.data.to_dict(), sort_keys=False, line_break=end, allow_unicode=False).strip()
            text = f"---{end}{yaml}{end}---{end}{self._card.text}"
        return text

    def _configs(self) -> list[Any]:
        return _as_list(self._card.data.get("configs"))

    def _infos(self) -> list[Any]:
        return _as_list(self._card.data.get("dataset_info"))


@contextmanager
def _as_card_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the YAML can have any shape
        raise CardError(one_line(f"{PATH}: {type(error).__name__}: {error}")) from error


def _as_list(value: Any) -> list[Any]:
    """Return the items of a key that may hold one of them or a list."""
    return [value] if isinstance(value, dict) else list(value or [])


def _name(item: Any) -> str:
    return str(item.get("config_name", "default"))


def _file_kind(glob: str) -> str | None:
    if re.search(r"\.(jsonl|ndjson|json)(\.\w+)?$", glob):
        return "json"
    return "parquet" if glob.endswith(".parquet") else None


def _add_features(infos: list[Any], config: str, columns: StructOf) -> bool:
    """Add a config's column types; return whether that changes anything."""
    info = next((info for info in infos if info.get("config_name", "default") == config), None)
    if info is None:
        for other in infos:
            other.setdefault("config_name", "default")  # optional only while there is one config
        infos.append({"config_name": config, "features": to_features(columns)})
        return True
    try:
        known = from_features(info.get("features") or [])
        merged = merge_structs(known, columns)
    except (ValueError, Conflict):  # somebody else declared them: keep them
        return False
    if merged is known:
        return False
    info["features"] = to_features(merged)
    return True


def _patterns(files: Any) -> list[tuple[str, str]]:
    """Return each split and pattern in a config's `data_files`."""
    found = []
    for item in files if isinstance(files, list) else [files]:
        # A bare pattern belongs to the split `train`.
        split, paths = (item.get("split", "train"), item["path"]) if isinstance(item, dict) else ("train", item)
        found += [(str(split), str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    return found


def _add_entry(configs: list[Any], entry: Entry) -> bool:
    """Add an entry; return whether that changes anything."""
    config = next((config for config in configs if config.get("config_name", "default") == entry.config), None)
    ours = {"split": entry.split, "path": entry.glob}
    if config is None:
        configs.append({"config_name": entry.config, "data_files": [ours]})
        return True
    files = config.get("data_files")
    if files is None:
        config["data_files"] = [ours]
        return True
    if isinstance(files, str) or not any(isinstance(file, dict) for file in files):
        # A bare pattern, or a list of them, belongs to the split `train`.
        files = [{"split": "train", "path": files}]
    split = next((file for file in files if isinstance(file, dict) and file.get("split") == entry.split), None)
    if split is None:
        config["data_files"] = [*files, ours]
        return True
    paths = [split["path"]] if isinstance(split["path"], str) else list(split["path"])
    if any(path == entry.glob or glob_pattern(path).fullmatch(entry.glob.replace("*", "x")) for path in paths):
        return False
    split["path"] = [*paths, entry.glob]
    config["data_files"] = files
    return True


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return a pattern for the paths that `datasets` finds by `glob`: `*` stays within a folder, `**` does not."""
    regex = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob.removeprefix("./")):
        if part.startswith("["):
            inside = part[1:-1].replace("\\", r"\\")
            regex += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            regex += {"**/": r"(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(regex)


_BODY = """
# {name}

This dataset grows while a job runs: hubsync uploads its rows, shard by shard.

```python
from datasets import load_dataset

dataset = load_dataset("{repo}")
```
"""
