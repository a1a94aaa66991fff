"""The dataset card: so that `datasets.load_dataset` finds every config and split from the first commit on.

A card that a person wrote keeps every word and every key; only what is missing in its `configs:` is added. The YAML
is huggingface_hub's to read and write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from hubsync.errors import plain
from hubsync.schema import Conflict, StructOf, from_features, merge_rows, to_features

PATH = "README.md"
_MOST = 1 << 20  # bytes: YAML is read in Python, and the job's threads wait meanwhile


class Entry(NamedTuple):
    """One split of one config, and the glob that finds its shards."""

    config: str
    split: str
    glob: str


class CardError(ValueError):
    """The card that stands there can't be read, so it is left alone."""


def load() -> Any:
    """huggingface_hub's card. Imported late, since it is slow to; but not for the first time at a process' end, when
    Python no longer lets it.
    """
    from huggingface_hub import DatasetCard

    return DatasetCard


def merge(
    existing: bytes | None,
    repo: str,
    entries: Sequence[Entry],
    features: Mapping[str, StructOf] = MappingProxyType({}),
) -> bytes | None:
    """The card with `entries` in its `configs:`, and `features` (by config) in its `dataset_info:`; None where it
    already shows all of them.

    Raises:
        CardError: the card's YAML can't be read.
    """
    DatasetCard = load()
    if existing is not None and len(existing) > _MOST:
        raise CardError(f"{PATH} has {len(existing):,} bytes; one of more than {_MOST:,} is left alone.")
    if existing is None:
        text = "---\nconfigs: []\n---\n" + _BODY.format(name=repo.split("/")[-1], repo=repo)
    else:
        text = existing.decode("utf-8", "surrogateescape")
    try:
        card = DatasetCard(text, ignore_metadata_errors=False)
        configs: Any = card.data.get("configs") or []
        if isinstance(configs, dict):
            configs = [configs]
        changed = existing is None
        for entry in entries:
            changed = _add(configs, entry) or changed
        infos = _infos(card)
        told = [_tell(infos, config, kind) for config, kind in features.items() if kind.fields]
        if any(told):
            card.data["dataset_info"] = infos
        elif not changed:
            return None
        card.data["configs"] = configs
        return str(card).encode("utf-8", "surrogateescape")
    except Exception as error:
        raise CardError(plain(f"{PATH}: {type(error).__name__}: {error}")) from error


def entries(existing: bytes) -> list[Entry]:
    """The patterns that a card gives for its configs and splits, each for itself; none where it gives none.

    Raises:
        CardError: the card's YAML can't be read.
    """
    try:
        configs = load()(existing.decode("utf-8", "surrogateescape"), ignore_metadata_errors=False).data.get("configs")
        return [
            Entry(str(config.get("config_name", "default")), split, pattern)
            for config in ([configs] if isinstance(configs, dict) else configs or [])
            for split, pattern in _patterns(config.get("data_files") or [])
        ]
    except Exception as error:
        raise CardError(plain(f"{PATH}: {type(error).__name__}: {error}")) from error


def clash(existing: bytes, repo: str, ours: Sequence[Entry]) -> str | None:
    """What is wrong where the card shows files that `datasets` reads otherwise than ours: it reads one kind a repo.

    Raises:
        CardError: the card's YAML can't be read.
    """
    kinds = {_kind(entry.glob) for entry in ours}
    other = next((e.glob for e in entries(existing) if (kind := _kind(e.glob)) and kind not in kinds), None)
    if other is None or not ours:
        return None
    return (
        f"{repo} holds {other} already, and now {ours[0].glob}: load_dataset reads one kind of file a repo, so it can "
        "not read this one any more. Go on in the old format, or in another repo."
    )


def _kind(glob: str) -> str | None:
    if re.search(r"\.(jsonl|ndjson|json)(\.\w+)?$", glob):
        return "json"
    return "parquet" if glob.endswith(".parquet") else None


def features(existing: bytes | None) -> dict[str, StructOf]:
    """What a card says of the columns, by config. Features that can't be understood are left out.

    Raises:
        CardError: the card's YAML can't be read.
    """
    if existing is None:
        return {}
    if len(existing) > _MOST:
        raise CardError(f"{PATH} has {len(existing):,} bytes; one of more than {_MOST:,} is left alone.")
    found = {}
    try:
        for info in _infos(load()(existing.decode("utf-8", "surrogateescape"), ignore_metadata_errors=False)):
            with suppress(ValueError):
                found[str(info.get("config_name", "default"))] = from_features(info.get("features") or [])
    except Exception as error:
        raise CardError(plain(f"{PATH}: {type(error).__name__}: {error}")) from error
    return found


def _infos(card: Any) -> list[Any]:
    infos = card.data.get("dataset_info") or []
    return [infos] if isinstance(infos, dict) else list(infos)


def _tell(infos: list[Any], config: str, kind: StructOf) -> bool:
    """Adds what a config's columns hold; answers whether anything was to be added."""
    info = next((i for i in infos if i.get("config_name", "default") == config), None)
    if info is None:
        for other in infos:
            other.setdefault("config_name", "default")  # one alone needs no name
        infos.append({"config_name": config, "features": to_features(kind)})
        return True
    try:
        known = from_features(info.get("features") or [])
        merged = merge_rows(known, kind)
    except (ValueError, Conflict):  # a person's: it stays as it is
        return False
    if merged is known:
        return False
    info["features"] = to_features(merged)
    return True


def _patterns(files: Any) -> list[tuple[str, str]]:
    found = []
    for item in files if isinstance(files, list) else [files]:
        # A bare pattern stands for the split `train`.
        split, paths = (item.get("split", "train"), item["path"]) if isinstance(item, dict) else ("train", item)
        found += [(str(split), str(path)) for path in (paths if isinstance(paths, list) else [paths])]
    return found


def pattern(glob: str) -> re.Pattern[str]:
    """What finds the paths that `datasets` finds by a glob: `*` stays within a folder, `**` does not."""
    made = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", glob.removeprefix("./")):
        if part.startswith("["):
            inside = part[1:-1].replace("\\", r"\\")
            made += f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            made += {"**/": r"(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(made)


def _add(configs: list[Any], entry: Entry) -> bool:
    """Adds what is missing; answers whether anything was."""
    config = next((c for c in configs if c.get("config_name", "default") == entry.config), None)
    ours = {"split": entry.split, "path": entry.glob}
    if config is None:
        configs.append({"config_name": entry.config, "data_files": [ours]})
        return True
    files = config.get("data_files")
    if files is None:
        config["data_files"] = [ours]
        return True
    if isinstance(files, str) or not any(isinstance(f, dict) for f in files):
        # A bare pattern, or a list of them, stands for the split `train`.
        files = [{"split": "train", "path": files}]
    split = next((f for f in files if isinstance(f, dict) and f.get("split") == entry.split), None)
    if split is None:
        config["data_files"] = [*files, ours]
        return True
    paths = [split["path"]] if isinstance(split["path"], str) else list(split["path"])
    if any(path == entry.glob or fnmatchcase(entry.glob.replace("*", "x"), path) for path in paths):
        return False
    split["path"] = [*paths, entry.glob]
    config["data_files"] = files
    return True


_BODY = """
# {name}

This dataset grows while a job runs: its rows are brought here by hubsync, shard by shard.

```python
from datasets import load_dataset

dataset = load_dataset("{repo}")
```
"""
