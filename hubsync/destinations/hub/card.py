"""The dataset card: so that `datasets.load_dataset` finds every config and split from the first commit on.

A card that a person wrote keeps every word and every key; only what is missing in its `configs:` is added. The YAML
is huggingface_hub's to read and write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

from hubsync.errors import one_line
from hubsync.schema.features import from_features, to_features
from hubsync.schema.types import Conflict, StructOf, merge_structs

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


class Card:
    """One dataset's card, its YAML read once: huggingface_hub does that in Python, and the job waits meanwhile."""

    def __init__(self, existing: bytes | None, repo: str) -> None:
        """`existing` is the card that stands there; None where there is none.

        Raises:
            CardError: its YAML can't be read.
        """
        if existing is not None and len(existing) > _MOST:
            raise CardError(f"{PATH} has {len(existing):,} bytes; one of more than {_MOST:,} is left alone.")
        self._repo = repo
        self._is_new = existing is None
        if existing is None:
            text = "---\nconfigs: []\n---\n" + _BODY.format(name=repo.split("/")[-1], repo=repo)
        else:
            text = existing.decode("utf-8", "surrogateescape")
        with _as_card_error():
            self._card = load()(text, ignore_metadata_errors=False)

    def entries(self) -> list[Entry]:
        """The patterns that it gives for its configs and splits, each for itself; none where it gives none.

        Raises:
            CardError: what it says there can't be understood.
        """
        with _as_card_error():
            return [
                Entry(str(config.get("config_name", "default")), split, pattern)
                for config in self._configs()
                for split, pattern in _patterns(config.get("data_files") or [])
            ]

    def features(self) -> dict[str, StructOf]:
        """What it says of the columns, by config. Features that can't be understood are left out.

        Raises:
            CardError: what it says there can't be understood.
        """
        found = {}
        with _as_card_error():
            for info in self._infos():
                with suppress(ValueError):
                    found[str(info.get("config_name", "default"))] = from_features(info.get("features") or [])
        return found

    def clash(self, ours: Sequence[Entry]) -> str | None:
        """What is wrong where it shows files that `datasets` reads otherwise than ours: it reads one kind a repo.

        Raises:
            CardError: what it says there can't be understood.
        """
        kinds = {_kind(entry.glob) for entry in ours}
        other = next((e.glob for e in self.entries() if (kind := _kind(e.glob)) and kind not in kinds), None)
        if other is None or not ours:
            return None
        return (
            f"{self._repo} holds {other} already, and now {ours[0].glob}: load_dataset reads one kind of file a repo, "
            "so it can not read this one any more. Go on in the old format, or in another repo."
        )

    def add(self, ours: Sequence[Entry], features: Mapping[str, StructOf] = MappingProxyType({})) -> bytes | None:
        """The card with `ours` in its `configs:`, and `features` (by config) in its `dataset_info:`; None where it
        already shows all of them.

        Raises:
            CardError: what it says there can't be understood.
        """
        with _as_card_error():
            configs = self._configs()
            changed = self._is_new
            for entry in ours:
                changed = _add(configs, entry) or changed
            infos = self._infos()
            told = [_tell(infos, config, kind) for config, kind in features.items() if kind.fields]
            if any(told):
                self._card.data["dataset_info"] = infos
            elif not changed:
                return None
            self._card.data["configs"] = configs
            return self._text().encode("utf-8", "surrogateescape")

    def _text(self) -> str:
        text = str(self._card)
        if "\x85" in text:  # a column's name perhaps: PyYAML takes it for the end of a line, and writes it all the same
            from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

            end = "\r\n" if "\r\n" in text else "\n"
            yaml = yaml_dump(self._card.data.to_dict(), sort_keys=False, line_break=end, allow_unicode=False).strip()
            text = f"---{end}{yaml}{end}---{end}{self._card.text}"
        return text

    def _configs(self) -> list[Any]:
        return _listed(self._card.data.get("configs"))

    def _infos(self) -> list[Any]:
        return _listed(self._card.data.get("dataset_info"))


@contextmanager
def _as_card_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever a stranger's YAML leads to
        raise CardError(one_line(f"{PATH}: {type(error).__name__}: {error}")) from error


def _listed(said: Any) -> list[Any]:
    """What may be said of one alone, or of a list of them."""
    return [said] if isinstance(said, dict) else list(said or [])


def _kind(glob: str) -> str | None:
    if re.search(r"\.(jsonl|ndjson|json)(\.\w+)?$", glob):
        return "json"
    return "parquet" if glob.endswith(".parquet") else None


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
        merged = merge_structs(known, kind)
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
