"""Where an uploader's shards go in the dataset: config, split, path template, format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self, get_args

from hubsync._runtime.validation import check_type
from hubsync.errors import ConfigError

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
"""What the shards are."""
FORMATS: tuple[Format, ...] = get_args(Format)
# What `datasets` takes for a split (datasets.splits), and a config name that is safe as a folder and in a glob.
_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_CONFIG = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_MOST_SIBLINGS = 100
_SEQ = re.compile(r"\{seq(?:![rsa])?:?([^}]*)\}")  # what stands behind the colon


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the shards of one uploader stand in the dataset.

    The template's fields are `{config}`, `{split}`, `{writer}` and `{seq}` (with an optional width, `{seq:05d}`). What
    it ends in is the shards' format.
    """

    config: str = "default"
    split: str = "train"
    template: str = ""

    def __post_init__(self) -> None:
        check_type(str, "a string", config=self.config, split=self.split)
        if not _CONFIG.fullmatch(self.config):
            raise ConfigError(
                f"config {self.config!r} can't be a folder and a config name: use letters, digits, '-', '_', '.', "
                "beginning with a letter or a digit."
            )
        if not _SPLIT.fullmatch(self.split):
            raise ConfigError(
                f"split {self.split!r} is none that `datasets` takes: use letters, digits and '_', parted by '.'."
            )
        if not self.template:
            object.__setattr__(self, "template", _folder(self.config) + "/{split}-{writer}-{seq:05d}.jsonl")
        self._check()

    def _check(self) -> None:
        template = self.template
        try:
            first, second = (self.path("w", n) for n in (0, 1))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"path template {template!r} can't be filled in ({error}): its fields are {{config}}, {{split}}, "
                "{writer} and {seq} or {seq:05d}."
            ) from None
        if any(kind not in ("", "d") and not re.fullmatch(r"0\d+d", kind) for kind in _SEQ.findall(template)):
            raise ConfigError(
                f"path template {template!r}: numbers are written {{seq}}, or {{seq:05d}} with a width; else they "
                "could not be found again."
            )
        if first == second:
            raise ConfigError(f"path template {template!r} gives every shard the same path: it needs {{seq}}.")
        if not first.endswith(tuple(f".{one}" for one in FORMATS)):
            endings = ", ".join(f".{one}" for one in FORMATS)
            raise ConfigError(f"path template {template!r} must end in what the shards are: {endings}.")
        if "{split" not in template or (self.config != "default" and "{config" not in template):
            raise ConfigError(
                f"path template {template!r} would mix configs or splits in one glob: it needs {{split}}, and "
                "{config} where the config is not 'default'."
            )
        parts = first.split("/")
        bad = any(p in ("", ".", "..") or p.startswith((".", "__")) for p in parts)
        if bad or "\\" in first or any(c in first for c in "*?[]{}\n\r\0") or len(first) > 200:
            raise ConfigError(
                f"path template {template!r} gives {first!r}: a path must be relative, without '..', hidden folders, "
                "names that begin with '__' (datasets ignores both), or glob characters."
            )

    @classmethod
    def of(cls, config: str, split: str, path: str | None, format: Format) -> Self:
        """The layout of shards in one format; with no `path` the usual one, which ends in it.

        Raises:
            ConfigError: also where `path` ends in another format.
        """
        if format not in FORMATS:
            raise ConfigError(f"format is one of {', '.join(map(repr, FORMATS))}, not {format!r}.")
        layout = cls(config, split, path or f"{_folder(config)}/{{split}}-{{writer}}-{{seq:05d}}.{format}")
        if layout.format != format:
            raise ConfigError(
                f"path template {path!r} ends in .{layout.format}, and the shards are {format!r}: give "
                f"format={layout.format!r}, or let the template end in .{format}."
            )
        return layout

    @property
    def format(self) -> Format:
        """What the shards are."""
        return format_of(self.path("w", 0))

    def siblings(self) -> Iterator[Layout]:
        """The same in other configs: `{config}-2`, `-3`, …"""
        return (self._sibling(number) for number in range(2, _MOST_SIBLINGS + 2))

    def _sibling(self, number: int) -> Layout:
        template: str | None = self.template
        if "{config" not in self.template:
            given = template != Layout.of(self.config, self.split, None, self.format).template
            template = "{config}/" + self.template if given else None
        return Layout.of(f"{self.config}-{number}", self.split, template, self.format)

    def path(self, writer: str, seq: int) -> str:
        """The path in the dataset of one writer's shard number `seq`."""
        return self.template.format(config=self.config, split=self.split, writer=writer, seq=seq)

    def series(self, writer: str) -> str:
        """What names one run of sequence numbers: two writers share it exactly where their paths could collide."""
        return re.sub(r"\{seq[^}]*\}", "*", self.template).format(config=self.config, split=self.split, writer=writer)

    @property
    def glob(self) -> str:
        """The pattern that finds this config's and split's shards, of all writers."""
        pattern = re.sub(r"\{(writer|seq)[^}]*\}", "*", self.template).format(config=self.config, split=self.split)
        return re.sub(r"\*(-\*)+", "*", pattern)


def _folder(config: str) -> str:
    return "data" if config == "default" else "{config}"


def format_of(path: str) -> Format:
    """The format that a shard's name ends in; JSON Lines for any other name."""
    return next((one for one in FORMATS if path.endswith(f".{one}")), "jsonl")
