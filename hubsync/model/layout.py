"""Where an uploader's shards go in the dataset: config, split, path template, format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Self, get_args

from hubsync._runtime.validation import check_type
from hubsync.errors import ConfigError

Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
"""The file format of shards."""
FORMATS: tuple[Format, ...] = get_args(Format)
# What `datasets` accepts as a split, and config names that are safe as a folder and in a glob.
_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_CONFIG = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_MAX_SIBLINGS = 100
_SEQ = re.compile(r"\{seq(?:![rsa])?:?([^}]*)\}")  # captures the format specification

PART_FILES = 1_000
"""Shards in one folder, as far as this spool knows; later ones go to a new part. One page of the Hub's listing."""
MAX_FOLDER_FILES = 5_000
"""Shards in one folder, all writers and machines together. The Hub refuses more than 10,000 entries."""
_PART = re.compile(r"part-([0-9]{4,}|\*)")


class Part(NamedTuple):
    """A folder `part-0001`, `part-0002`, … for the shards that the layout's own folder has no room for.

    Attributes:
        number: 0 for the layout's own folder.
        is_above: it is above the layout's own folder, not in it: that folder can't take even one more folder.
    """

    number: int = 0
    is_above: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the shards of one uploader are in the dataset.

    The template's fields are `{config}`, `{split}`, `{writer}` and `{seq}` (optionally with a width, `{seq:05d}`). Its
    ending is the shards' format.
    """

    config: str = "default"
    split: str = "train"
    template: str = ""

    def __post_init__(self) -> None:
        check_type(str, "a string", config=self.config, split=self.split)
        if not _CONFIG.fullmatch(self.config):
            raise ConfigError(
                f"config {self.config!r} cannot be a folder and a config name: use letters, digits, '-', '_' and '.', "
                "starting with a letter or a digit."
            )
        if not _SPLIT.fullmatch(self.split):
            raise ConfigError(
                f"split {self.split!r} is not accepted by `datasets`: use letters, digits and '_', separated by '.'."
            )
        if not self.template:
            object.__setattr__(self, "template", _folder(self.config) + "/{split}-{writer}-{seq:05d}.jsonl")
        if (problem := _problem_with(self)) is not None:
            raise ConfigError(f"path template {self.template!r} {problem}.")

    @classmethod
    def of(cls, config: str, split: str, path: str | None, format: Format | None) -> Self:
        """Return the layout of shards in one format, with the default template if `path` is None.

        Args:
            config: The config.
            split: The split.
            path: The template.
            format: The format; None for the one that `path` ends in, else JSON Lines.

        Raises:
            ConfigError: An argument is invalid, or `path` ends in another format.
        """
        if format is not None and format not in FORMATS:
            raise ConfigError(f"format must be one of {', '.join(map(repr, FORMATS))}, or None, not {format!r}.")
        if split == "all":
            raise ConfigError('split "all" means every split in load_dataset, so it cannot be loaded by name.')
        if str(config).lower() == "readme.md":
            raise ConfigError(f"config {config!r} is the name of the dataset's card. Use another name.")
        layout = cls(config, split, path or f"{_folder(config)}/{{split}}-{{writer}}-{{seq:05d}}.{format or 'jsonl'}")
        if format is not None and layout.format != format:
            raise ConfigError(
                f"path template {path!r} ends in .{layout.format}, but the shards are {format!r}: pass "
                f"format={layout.format!r}, or let the template end in .{format}."
            )
        return layout

    @property
    def format(self) -> Format:
        """The shards' format."""
        return _format_of(self)

    def alternatives(self, format: Format) -> Iterator[Layout]:
        """Yield layouts in this format with the default template, in one folder after another."""
        layout = Layout.of(self.config, self.split, None, format)
        yield layout
        rest = layout.template.removeprefix(_folder(self.config))
        for folder in ("configs/{config}", "hubsync/{config}", "hubsync/{config}/{split}"):
            yield Layout(self.config, self.split, folder + rest)

    def siblings(self) -> Iterator[Layout]:
        """Yield the same layout in other configs: `{config}-2`, `{config}-3` and so on."""
        return (self._sibling(number) for number in range(2, _MAX_SIBLINGS + 2))

    def _sibling(self, number: int) -> Layout:
        template: str | None = self.template
        if "{config" not in self.template:
            is_custom = template != Layout.of(self.config, self.split, None, self.format).template
            template = "{config}/" + self.template if is_custom else None
        return Layout.of(f"{self.config}-{number}", self.split, template, self.format)

    def path(self, writer: str, seq: int, part: Part = Part()) -> str:  # noqa: B008  (immutable)
        """Return the path in the dataset of a writer's shard number `seq`."""
        path = self.template.format(config=self.config, split=self.split, writer=writer, seq=seq)
        return self._insert(path, f"part-{part.number:04d}", is_above=part.is_above) if part.number else path

    @property
    def folder(self) -> str:
        """The folder that all shards share; below it, paths differ by writer or number. Parts are in or above it."""
        components = self.template.split("/")[: self._depth]
        return "/".join(components).format(config=self.config, split=self.split)

    @property
    def is_flat(self) -> bool:
        """Whether the shards are right in the folder, and not in folders of their own."""
        return self._depth == self.template.count("/")

    @property
    def _depth(self) -> int:
        components = self.template.split("/")
        return next(n for n, component in enumerate(components) if "{writer" in component or "{seq" in component)

    def like(self, path: str, writer: str, seq: int) -> str:
        """Return the path of another number in the same folder as a shard's path."""
        bare = self.path(writer, seq)
        if path.count("/") == self.template.count("/"):
            return bare
        components = path.split("/")
        at = self._depth if _PART.fullmatch(components[self._depth]) else self._depth - 1
        return self._insert(bare, components[at], is_above=at < self._depth)

    def part_folder(self, path: str) -> str:
        """Return the layout's folder or its part, whichever a shard's path is in."""
        is_part = path.count("/") > self.template.count("/")
        return "/".join(path.split("/")[: self._depth + is_part])

    def _insert(self, path: str, name: str, *, is_above: bool) -> str:
        components = path.split("/")
        components.insert(max(0, self._depth - is_above), name)
        return "/".join(components)

    def series(self, writer: str) -> str:
        """Return the name of a run of sequence numbers. Two writers share it exactly if their paths could collide."""
        return re.sub(r"\{seq[^}]*\}", "*", self.template).format(config=self.config, split=self.split, writer=writer)

    @property
    def glob(self) -> str:
        """The pattern that finds the shards of this config and split, of all writers."""
        pattern = re.sub(r"\{(writer|seq)[^}]*\}", "*", self.template).format(config=self.config, split=self.split)
        return re.sub(r"\*(-\*)+", "*", pattern)

    def glob_of(self, path: str) -> str:
        """Return the pattern that finds a shard: `glob`, or if it is in a part, the one that finds all parts."""
        if path.count("/") == self.template.count("/"):
            return self.glob
        is_above = not _PART.fullmatch(path.split("/")[self._depth])
        return self._insert(self.glob, "part-*", is_above=is_above)


def _problem_with(layout: Layout) -> str | None:
    """Return why a layout's template cannot work; None if it can."""
    template = layout.template
    try:
        first, second = (layout.path("w", number) for number in (0, 1))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        fields = "{config}, {split}, {writer} and {seq} or {seq:05d}"
        return f"cannot be filled in ({error}): its fields are {fields}"
    if any(spec not in ("", "d") and not re.fullmatch(r"0\d+d", spec) for spec in _SEQ.findall(template)):
        return "must write numbers as {seq}, or {seq:05d} with a width: hubsync could not find other formats again"
    if first == second:
        return "gives every shard the same path: it needs {seq}"
    if not first.endswith(tuple(f".{one}" for one in FORMATS)):
        return f"must end in the shards' format: {', '.join(f'.{one}' for one in FORMATS)}"
    if "{split" not in template or (layout.config != "default" and "{config" not in template):
        return "would mix configs or splits in one glob: it needs {split}, and {config} unless the config is 'default'"
    is_bad_part = any(part in ("", ".", "..") or part.startswith((".", "__")) for part in first.split("/"))
    if is_bad_part or "\\" in first or any(c in first for c in "*?[]{}\n\r\0") or len(first) > 200:
        return (
            f"gives {first!r}: a path must be relative, at most 200 characters, without '..', glob characters, hidden "
            "folders or names that begin with '__' (datasets ignores both)"
        )
    return None


def without_part(path: str) -> str:
    """Return the path, or the pattern, that a shard in a part would have without it."""
    return "/".join(component for component in path.split("/") if not _PART.fullmatch(component))


def part_of(path: str) -> str:
    """Return the name of the part that a path is in; empty if it is in none."""
    return next((component for component in path.split("/") if _PART.fullmatch(component)), "")


def _folder(config: str) -> str:
    """Return the folder of a config's shards. That of "default" is `data`, so a config of that name gets another."""
    return {"default": "data", "data": "configs/{config}"}.get(config, "{config}")


@lru_cache(maxsize=64)  # each `put` asks
def _format_of(layout: Layout) -> Format:
    return format_of(layout.path("w", 0))


def format_of(path: str) -> Format:
    """Return the format that a shard's name ends in; JSON Lines for any other name."""
    return next((one for one in FORMATS if path.endswith(f".{one}")), "jsonl")
