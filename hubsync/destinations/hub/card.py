"""The dataset card, which makes `datasets.load_dataset` find every config and split from the first commit on.

hubsync adds what is missing to the card's `configs:` and `dataset_info:`. Every other byte stays as people wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from hubsync.destinations.hub.globs import covers, glob_pattern, may_meet, normalized
from hubsync.errors import one_line
from hubsync.schema.features import from_features, to_features
from hubsync.schema.types import Conflict, StructOf, merge_structs

__all__ = ["PATH", "Added", "Card", "CardError", "Entry", "glob_pattern", "preload"]

PATH = "README.md"
_SIZES = ("splits", "download_size", "dataset_size")  # of `dataset_info`; `datasets` loads nothing if they are wrong
_PARAMETERS = {
    "field",
    "encoding",
    "encoding_errors",
    "columns",
    "filters",
}  # of a config that change how files are read


class Entry(NamedTuple):
    """One split of one config, and the glob that finds its shards."""

    config: str
    split: str
    glob: str


class Added(NamedTuple):
    """Rows that a commit adds to a split, with their size in bytes.

    Attributes:
        is_counted: whether the card keeps the split's sizes. It does for Parquet, where `push_to_hub` needs them.
    """

    config: str
    split: str
    rows: int
    bytes: int
    is_counted: bool


class Sizes(NamedTuple):
    """What a card says of a config's sizes.

    Attributes:
        rows: The rows of each split.
        bytes: The size of all files; None if it does not say.
    """

    rows: Mapping[str, object]
    bytes: int | None


class CardError(ValueError):
    """The existing card cannot be read, so hubsync does not change it."""


def preload() -> None:
    """Import the YAML parser: the import must not happen first at interpreter exit, when Python refuses it."""
    from hubsync.destinations.hub.front_matter import FrontMatter

    FrontMatter("---\na: 1\n---\n")


class Card:
    """A dataset's card. Its YAML is parsed once, because parsing blocks the job's threads.

    Changes are collected; `content` returns the card with all of them.

    Attributes:
        first: the config that must come first once it is added; None if the order stays.
        filled: configs with splits that have files, although the card lists none.
        default_before: the config that `load_dataset` loads without a name, before any change; None if it needs a name.
    """

    first: str | None = None
    filled: Collection[tuple[str, str]] = ()

    def __init__(self, existing: bytes | None, repo: str) -> None:
        """Parse the card that exists in the dataset; None creates a new one.

        Raises:
            CardError: Its YAML is invalid.
        """
        from hubsync.destinations.hub.front_matter import FrontMatter

        self._repo = repo
        self._is_new = existing is None
        text = _BODY.format(name=repo.split("/")[-1], repo=repo) if existing is None else _decoded(existing)
        with _as_card_error():
            self._front = FrontMatter(text)
        self._data: dict[str, Any] = copy.deepcopy(self._front.data)
        self.default_before = self.default_config_or_none()
        self._fresh: set[tuple[str, str]] = set()  # configs with splits that had no entry before

    # What it says.

    def configs(self) -> list[dict[str, Any]]:
        """Return the items of `configs:`.

        Raises:
            CardError: They are invalid.
        """
        found = _as_list(self._data.get("configs"))
        if any(not isinstance(config, dict) or "config_name" not in config for config in found):
            raise CardError(f"{PATH}: each item of `configs:` must be a mapping with a config_name")
        return found

    def entries(self) -> list[Entry]:
        """Return the card's patterns for configs and splits, one entry each.

        Raises:
            CardError: The card's `configs:` are invalid.
        """
        with _as_card_error():
            return [
                Entry(_name(config), split, _below(config.get("data_dir"), pattern))
                for config in _as_list(self._data.get("configs"))
                for split, pattern in _patterns(config.get("data_files") or [])
            ]

    def first_patterns(self) -> list[str]:
        """Return the patterns by which `datasets` tells what the files are: those of the first config.

        It looks for them at the repo's root, even if the config's `data_dir` says that they are elsewhere.

        Raises:
            CardError: The card's `configs:` are invalid.
        """
        with _as_card_error():
            return [pattern for _, pattern in _patterns(self.configs()[0].get("data_files") or [])]

    def features(self) -> dict[str, StructOf]:
        """Return the column types that the card declares, by config. Features that hubsync does not know are left out.

        Raises:
            CardError: The card's `dataset_info:` is invalid.
        """
        found = {}
        with _as_card_error():
            for info in _as_list(self._data.get("dataset_info")):
                with suppress(ValueError):
                    found[_name(info)] = from_features(info.get("features") or [])
        return found

    def sizes(self, config: str) -> Sizes | None:
        """Return the sizes that `datasets` compares with what it loads; None if the card has none.

        Raises:
            CardError: The card's `dataset_info:` is invalid.
        """
        with _as_card_error():
            infos = _as_list(self._data.get("dataset_info"))
            info: dict[str, Any] = next((info for info in infos if _name(info) == config), {})
            rows = {str(split["name"]): split.get("num_examples") for split in info.get("splits") or ()}
            return Sizes(rows, info.get("download_size")) if rows else None

    def default_config(self) -> str | None:
        """Return the config that `load_dataset` loads if none is named; None if it needs a name.

        Raises:
            CardError: Several configs are the default, so nothing loads.
        """
        with _as_card_error():
            configs = self.configs()
            found = [_name(c) for c in configs if len(configs) == 1 or _name(c) == "default" or c.get("default")]
            if len(found) > 1:
                raise CardError(f"{PATH}: several configs are the default one: {', '.join(found)}")
            infos = [_name(info) for info in _as_list(self._data.get("dataset_info"))]
            return found[0] if found else infos[0] if len(set(infos)) == 1 and infos[0] in map(_name, configs) else None

    def lists(self, entry: Entry) -> bool:
        """Return whether the card finds everything that an entry's glob finds, in the entry's config and split."""
        return any(
            (config, split) == entry[:2] and (normalized(glob) == entry.glob or covers(glob, entry.glob))
            for config, split, glob in self.entries()
        )

    def problem_with(self, entry: Entry) -> str | None:
        """Return why rows at an entry's glob would not load as this entry, or would load elsewhere; None if they do.

        Raises:
            CardError: The card's `configs:` are invalid.
        """
        name = f"{entry.config}/{entry.split}"
        finding = [other for other in self.entries() if may_meet(other.glob, entry.glob)]
        for config, split, glob in finding:
            if (config, split) != entry[:2]:
                return f"its pattern {glob!r} of {config}/{split} meets {entry.glob!r} of {name}"
            if normalized(glob) != entry.glob and not covers(glob, entry.glob):
                return f"its pattern {glob!r} finds only some of {entry.glob!r} in {name}, which would load twice"
        if len(finding) > 1:
            return f"several of its patterns of {name} find {entry.glob!r}, whose rows would load twice"
        for item in self.configs():
            folder = None if item.get("data_files") else item.get("data_dir")
            if _name(item) != entry.config:
                if folder and may_meet(_below(folder, "**"), entry.glob):
                    return f"its config {_name(item)} takes everything in {folder!r}, where {entry.glob!r} is"
            elif found := _PARAMETERS & set(item):
                return f"its config {entry.config} sets {', '.join(sorted(found))}, which changes how files are read"
        return None

    # Changes.

    def merge(
        self,
        entries: Sequence[Entry],
        features: Mapping[str, StructOf] = MappingProxyType({}),
        added: Sequence[Added] = (),
    ) -> bytes | None:
        """Add `entries` to the card's `configs:` and `features`, by config, to its `dataset_info:`.

        Args:
            entries: What the card must find.
            features: The columns of each config.
            added: The rows of the commit, whose splits the card's sizes must still describe.

        Returns:
            The new card; None if it already contains all of them.

        Raises:
            CardError: The card's `configs:` or `dataset_info:` are invalid.
        """
        with _as_card_error():
            default = self.default_before or self.default_config()
            for entry in entries:
                self._add(entry)
            for config, columns in features.items():
                if columns.fields:
                    self._declare(config, columns)
            self._count(added)
            if self.first is not None:
                self._data["configs"] = sorted(self.configs(), key=lambda config: _name(config) != self.first)
            if default is not None and self.default_config_or_none() != default:
                self._make_default(default)
        return self.content()

    def content(self) -> bytes | None:
        """Return the card with all changes; None if nothing changed.

        Raises:
            CardError: The YAML cannot be edited in place.
        """
        with _as_card_error():
            text = self._front.with_data(self._data)
        return None if text == self._front.text and not self._is_new else text.encode("utf-8", "surrogateescape")

    def set_files(self, config: str, files: Mapping[str, Sequence[str]]) -> None:
        """Say in so many words what a config contains: the patterns of each split."""
        listed = [{"split": split, "path": _one_or_many(paths)} for split, paths in files.items()]
        configs = self.configs()
        found = next((item for item in configs if _name(item) == config), None)
        if found is None:
            configs.append({"config_name": config, "data_files": listed})
        else:
            found.pop("data_dir", None)
            found["data_files"] = listed
        self._data["configs"] = configs

    def set_info(self, config: str, info: Mapping[str, Any]) -> None:
        """Declare what `datasets` knows of a config: `features`, perhaps `splits`. Keys that are there win."""
        found = self._info(config)
        for key, value in info.items():
            found.setdefault(key, value)

    def set_sizes(self, config: str, splits: Mapping[str, tuple[int, int]] | None) -> None:
        """Replace what the card says of a config's sizes: the rows and bytes of each split, or nothing."""
        info = self._info(config)
        for key in _SIZES:
            info.pop(key, None)
        if splits is not None:
            total = sum(size for _, size in splits.values())
            listed = [{"name": s, "num_bytes": size, "num_examples": rows} for s, (rows, size) in splits.items()]
            info.update(splits=listed, download_size=total, dataset_size=total)

    def _add(self, entry: Entry) -> None:
        if self.lists(entry):
            return
        configs = self.configs()
        config = next((item for item in configs if _name(item) == entry.config), None)
        if entry[:2] not in self.filled and not any(other[:2] == entry[:2] for other in self.entries()):
            self._fresh.add(entry[:2])
        if config is None:
            configs.append({"config_name": entry.config, "data_files": [{"split": entry.split, "path": entry.glob}]})
            self._data["configs"] = configs
            return
        files: dict[str, list[str]] = {}
        for split, pattern in _patterns(config.get("data_files") or []):
            files.setdefault(split, []).append(_below(config.get("data_dir"), pattern))
        files.setdefault(entry.split, []).append(entry.glob)
        self.set_files(entry.config, files)

    def _make_default(self, name: str) -> None:
        """Keep `name` the default config. A config called "default" always is it, so it takes that over."""
        configs = self.configs()
        has_default = any(_name(config) == "default" for config in configs)
        for config in configs:
            if has_default:
                config.pop("default", None)
            elif _name(config) == name:
                config["default"] = True

    def _info(self, config: str) -> dict[str, Any]:
        """Return a config's item of `dataset_info:`, creating it if it is missing."""
        infos = _as_list(self._data.get("dataset_info"))
        found = next((info for info in infos if _name(info) == config), None)
        if found is None:
            for other in infos:
                other.setdefault("config_name", "default")  # optional only while there is one config
            found = {"config_name": config}
            infos.append(found)
            self._data["dataset_info"] = infos
        return found

    def _declare(self, config: str, columns: StructOf) -> None:
        """Add a config's column types."""
        info = self._info(config)
        try:
            known = from_features(info.get("features") or [])
            merged = merge_structs(known, columns)
        except (ValueError, Conflict):  # somebody else declared them: keep them
            return
        if merged is not known:
            info["features"] = to_features(merged)

    def _count(self, added: Sequence[Added]) -> None:
        """Let the sizes include `added`, or remove them: `datasets` loads nothing if they are wrong."""
        for config in dict.fromkeys(item.config for item in added):
            if not any(_name(info) == config for info in _as_list(self._data.get("dataset_info"))):
                continue
            info = self._info(config)
            here = [item for item in added if item.config == config]
            if not all(item.is_counted and self._counted(info, item) for item in here):
                for key in _SIZES:
                    info.pop(key, None)

    def _counted(self, info: dict[str, Any], item: Added) -> bool:
        """Add rows to a split's sizes; return whether the sizes are known."""
        is_fresh = (item.config, item.split) in self._fresh
        if "splits" not in info and "features" in info and is_fresh and self._has_only(item.config, item.split):
            info.update(splits=[], download_size=0, dataset_size=0)
        splits = info.get("splits")
        if not isinstance(splits, list) or not all(isinstance(one, dict) and "name" in one for one in splits):
            return False
        split = next((one for one in splits if one["name"] == item.split), None)
        if split is None:
            if not is_fresh:
                return False
            split = {"name": item.split, "num_bytes": 0, "num_examples": 0}
            splits.append(split)
        for holder, key, more in (
            (split, "num_bytes", item.bytes),
            (split, "num_examples", item.rows),
            (info, "download_size", item.bytes),
            (info, "dataset_size", item.bytes),
        ):
            if not isinstance(known := holder.get(key), int):
                return False
            holder[key] = known + more
        return True

    def _has_only(self, config: str, split: str) -> bool:
        """Return whether a config had no entries before this change but those of `split`, or other fresh ones."""
        return all((name, other) in self._fresh for name, other, _ in self.entries() if name == config)

    def default_config_or_none(self) -> str | None:
        """Return the default config; None if no config, or more than one, is the default."""
        try:
            return self.default_config()
        except CardError:
            return None


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


@contextmanager
def _as_card_error() -> Iterator[None]:
    try:
        yield
    except CardError:
        raise
    except Exception as error:  # the YAML can have any shape
        raise CardError(one_line(f"{PATH}: {type(error).__name__}: {error}")) from error


def _as_list(value: Any) -> list[Any]:
    """Return the items of a key that may hold one of them or a list."""
    return [value] if isinstance(value, dict) else list(value or [])


def _name(item: Any) -> str:
    return str(item.get("config_name", "default"))


def _below(folder: str | None, pattern: str) -> str:
    """Return a pattern of a config whose files are below `folder`, relative to the repo's root."""
    return pattern if not folder else f"{folder.rstrip('/')}/{pattern}".removeprefix("./")


def _one_or_many(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def _patterns(files: Any) -> list[tuple[str, str]]:
    """Return each split and pattern in a config's `data_files`."""
    found = []
    for item in files if isinstance(files, list) else [files]:
        # A bare pattern belongs to the split `train`.
        split, paths = (item.get("split", "train"), item["path"]) if isinstance(item, dict) else ("train", item)
        found += [(str(split), str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    return found


_BODY = """---
---

# {name}

This dataset grows while a job runs: hubsync uploads its rows, shard by shard.

```python
from datasets import load_dataset

dataset = load_dataset("{repo}")
```
"""
