"""What a dataset holds before hubsync adds to it, and where new shards can go without changing how any of it loads.

`datasets` reads a repo by its card, or guesses from file names if the card lists no files. New shards would change the
guess, so it is written into the card first. All of this happens once for each new config and split: later commits find
their entry in the card.
"""

from __future__ import annotations

import codecs
import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from glob import escape
from pathlib import Path
from typing import Literal, NamedTuple

from hubsync._runtime.threads import run_in_thread
from hubsync.destinations.base import Destination
from hubsync.destinations.hub import inference
from hubsync.destinations.hub.card import PATH, Card, Entry
from hubsync.destinations.hub.globs import covers, matches
from hubsync.errors import DatasetConflict, one_line
from hubsync.model.layout import FORMATS, Format, Layout, format_of, without_part
from hubsync.model.watermarks import is_watermark

Kind = Literal["json", "parquet"]

_INFOS, _YAML = "dataset_infos.json", ".huggingface.yaml"  # both describe a dataset, like the card
_IGNORED = {PATH, _INFOS, "dataset_info.json", "config.json", "dataset_dict.json"}  # by `datasets`, in any folder
# No reason to import `datasets`.
_NO_DATA = (".py", ".md", ".ipynb", ".sh", ".yaml", ".yml", ".cfg", ".ini", "license.txt", "requirements.txt")
_KINDS: dict[str, Kind] = {"json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet"}
_SHARD = re.compile(r"-[0-9a-f]{8}-\d{5,}\.\w+(\.\w+)?")  # how the names of hubsync's own shards end
_MAX_LISTED = 1_000  # files that are listed one by one in a card
_SAMPLE_BYTES = 16 << 20  # of a JSON Lines file; `datasets` infers types from the first 10 MiB
_HEAD_BYTES = 64 << 10  # of each file that is looked at before rows are added to its config
_MAX_HEADS = 16  # such files, each of which takes requests while a job waits to start
_MAX_COUNTED_BYTES = 16 << 20  # of as many Parquet files, whose rows are counted to check the card's sizes
_MAX_SAMPLE_BYTES = 128 << 20  # of a file that must be read as a whole


class Existing(NamedTuple):
    """A dataset at one commit.

    Attributes:
        repo: Its id.
        card: Its card, in which everything is explicit that new shards would change.
        has_card: Whether the repo has a card.
        kind: What its files are; None if it holds none, or if nobody looked.
        files: The paths of its files; None if nobody looked, because the card has the entries that were asked for.
        theirs: Those of them that hubsync did not write.
        taken_in: Those of `theirs` that load in the config and split of the new shards today, and that these shards'
            glob finds as well.
        is_repaired: Whether the dataset's own card has sizes that are wrong, so that nothing loads; `card` has others.
    """

    repo: str
    card: Card
    has_card: bool
    kind: Kind | None = None
    files: Collection[str] | None = None
    theirs: Collection[str] = ()
    taken_in: Collection[str] = ()
    is_repaired: bool = False

    def problem_with(self, entry: Entry) -> str | None:
        """Return why shards at an entry's glob would not load, or change what loads; None if all is well."""
        kind = _kind_of(entry.glob)
        if self.kind is not None and kind != self.kind:
            return f"it holds {_NAMES[self.kind]}, and {_ONE_KIND}, not {entry.glob!r} as well"
        if (problem := self.card.problem_with(entry)) is not None:
            return f"its card lists files that meet ours: {problem}"
        if self.files is None or self.card.lists(entry):
            return None
        folders = entry.glob.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            if (folder := "/".join(folders[:depth])) in self.files:
                return f"{folder!r} is a file, and the shards need a folder of that name"
        listed = [other for other in self.card.entries() if other[:2] == entry[:2]]
        for path in self.theirs:
            is_loaded = path in self.taken_in or any(matches(other.glob, path) for other in listed)
            if matches(entry.glob, path) and not is_loaded:
                return f"{entry.glob!r} would find {path!r}, which is not in {entry.config}/{entry.split} today"
        return None

    def place(self, wanted: Layout, format: Format | None, *, is_custom: bool) -> Layout:
        """Return the layout for new shards: `wanted`, or the same in another format or folder.

        Args:
            wanted: The config, the split and the paths.
            format: The format that the user asked for; None to follow the dataset.
            is_custom: Whether the user chose the paths, so that only these will do.

        Raises:
            DatasetConflict: There is no place where the rows would load and nothing else would change.
        """
        choices = [wanted] if is_custom else self._choices(wanted, format)
        problems = {layout: self.problem_with(_entry_of(layout)) for layout in choices}
        listed = [layout for layout in choices if self.card.lists(_entry_of(layout))]
        for layout in [*listed, *choices]:
            if problems[layout] is None:
                return layout
        raise self.conflict(wanted, str(problems[choices[0]]))

    def replaced_default(self, config: str) -> str | None:
        """Return the config that `load_dataset` loads without a name today, if adding `config` changes that."""
        today = self.card.default_before
        return today if config == "default" and today not in (None, "default") else None

    def holds_others(self, config: str) -> bool:
        """Return whether a config has files that hubsync did not write, as far as anybody looked."""
        patterns = [entry.glob for entry in self.card.entries() if entry.config == config]
        return any(matches(pattern, path) for path in self.theirs for pattern in patterns)

    def conflict(self, layout: Layout, why: str) -> DatasetConflict:
        """Return the error for rows that cannot be added."""
        return _conflict(self.repo, layout.config, layout.split, why, _entry_of(layout))

    def _choices(self, wanted: Layout, format: Format | None) -> list[Layout]:
        same = [e for e in self.card.entries() if e.config == wanted.config]
        formats = [format_of(e.glob) for e in same if e.split == wanted.split and e.glob.endswith(_ENDINGS)]
        formats += [format_of(e.glob) for e in same if e.glob.endswith(_ENDINGS)]
        follows = next((found for found in formats if self.kind in (None, _kind_of("." + found))), None)
        chosen = format or follows or ("parquet" if self.kind == "parquet" else wanted.format)
        return list(wanted.alternatives(chosen))


_ENDINGS = tuple(f".{one}" for one in FORMATS)
_ONE_KIND = "load_dataset reads one kind of file per repo"
_MAGIC = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh", "xz": b"\xfd7zXZ", "lz4": b"\x04\x22\x4d\x18"}
_NAMES = {"json": "JSON files", "parquet": "Parquet files"}


async def examine(
    source: Destination,
    repo: str,
    at: str | None,
    content: bytes | None,
    entries: Sequence[Entry],
    *,
    known: Collection[Entry] = (),
    has_schema: bool = True,
) -> Existing:
    """Return what a dataset holds in the commit `at`, made explicit as far as `entries` would change it.

    Args:
        source: The repo.
        repo: Its id.
        at: The commit; None for an empty branch.
        content: The card in that commit; None if it has none.
        entries: The entries to add; the card may list them already.
        known: Entries that were committed before, so that nobody needs to look again while the card lists them.
        has_schema: Whether the card will declare the columns of the entries' configs, so that it must declare those of
            the rows that are there.

    Raises:
        CardError: The card cannot be read.
        DatasetConflict: `datasets` loads something that no card can say together with JSON Lines or Parquet.
    """
    card = await run_in_thread(Card, content, repo)
    is_known = all(entry in known and card.lists(entry) for entry in entries)
    if at is None or (entries and is_known):
        return Existing(repo, card, content is not None)
    return await _Examination(source, repo, at, card, content, entries, has_schema).run()


async def place(
    source: Destination,
    at: str | None,
    repo: str,
    content: bytes | None,
    wanted: Layout,
    format: Format | None,
    *,
    is_custom: bool,
    has_schema: bool,
    known: Collection[Entry] = (),
) -> tuple[Layout, Existing]:
    """Return where new shards can go, and the dataset as it is.

    Args:
        source: The repo.
        at: The commit; None for an empty branch.
        repo: The repo's id.
        content: The card in that commit; None if it has none.
        wanted: The config, the split, and the paths for a new dataset.
        format: The format that the user asked for; None to follow the dataset.
        is_custom: Whether the user chose the paths, so that only these will do.
        has_schema: See `examine`.
        known: See `examine`. The sizes that a card has are checked all the same.

    Raises:
        CardError: The card cannot be read.
        DatasetConflict: There is no such place.
    """
    card = await run_in_thread(Card, content, repo)
    formats = FORMATS if format is None else (format,)
    choices = [wanted] if is_custom else [layout for one in formats for layout in wanted.alternatives(one)]
    for layout in choices:
        if _is_clear(card, _entry_of(layout)):
            wanted = layout
            break
    known = () if card.sizes(wanted.config) is not None else known
    existing = await examine(source, repo, at, content, [_entry_of(wanted)], known=known, has_schema=has_schema)
    layout = existing.place(wanted, format, is_custom=is_custom)
    if existing.has_card:
        await run_in_thread(existing.card.merge, [_entry_of(layout)])  # raises if its YAML cannot be edited
    return layout, existing


class _Examination:
    """One look at a repo whose card lacks entries."""

    def __init__(
        self,
        source: Destination,
        repo: str,
        at: str,
        card: Card,
        content: bytes | None,
        entries: Sequence[Entry],
        has_schema: bool,
    ) -> None:
        self._source = source
        self._repo = repo
        self._at = at
        self._card = card
        self._contents = {} if content is None else {PATH: content}
        self._entries = entries
        self._has_schema = has_schema
        self._sizes: dict[str, int] = {}
        self._theirs: set[str] = set()
        self._taken_in: set[str] = set()
        self._is_repaired = False

    async def run(self) -> Existing:
        files = await self._source.list_files(self._at)
        self._sizes = {file.path: file.size for file in files}
        self._theirs = await self._find_theirs()
        await self._read_descriptions()
        self._card.default_config()  # raises if nothing loads because several configs are the default
        inferred = await self._infer_what_is_implicit()
        kind = self._kind(inferred)
        for config in dict.fromkeys(entry.config for entry in self._entries):
            of_config = self._files_of(config)
            await self._check_readable(config, of_config)
            await self._check_sizes(config, of_config)
        await self._declare_features(inferred)
        return Existing(
            self._repo, self._card, PATH in self._contents, kind, self._sizes.keys(), self._theirs, self._taken_in,
            self._is_repaired,
        )  # fmt: skip

    async def _find_theirs(self) -> set[str]:
        """Return the files that hubsync did not write, by their names and by the numbers in the watermarks."""
        found = {path for path in self._sizes if not _SHARD.search(path)}
        if not any(map(is_watermark, found)) or not any(map(_may_hold_rows, found)):
            return found
        series: dict[str, int] = {}
        for mark in (await self._source.read_watermarks(self._at)).by_writer.values():
            for name, following in mark.next.items():
                series[name] = max(following, series.get(name, 0))
        return {path for path in found if not _is_committed(path, series)}

    async def _read_descriptions(self) -> None:
        if _YAML in self._sizes:
            raise self._conflict(f"{_YAML} overrides the card. Move its content to the YAML of {PATH}")
        if (script := f"{self._repo.split('/')[-1]}.py") in self._sizes:
            raise self._conflict(f"it has a loading script, {script}, which decides what loads")
        if _INFOS in self._sizes:
            self._contents[_INFOS] = await self._source.read_file(_INFOS, self._at) or b""

    async def _infer_what_is_implicit(self) -> dict[str, inference.Inferred]:
        """Write into the card what `datasets` guesses now and our shards would change; return it by config."""
        found: dict[str, inference.Inferred] = {}
        for name in self._implicit():
            inferred = await self._infer(name)
            if inferred is None:
                continue
            found[name] = inferred
            item = next((item for item in self._card.configs() if item["config_name"] == name), {})
            is_ours = any(entry.config == name for entry in self._entries)
            if not item.get("data_files") and (is_ours or not item.get("data_dir")):
                files = {split: self._not_in_our_globs(name, split, paths) for split, paths in inferred.files.items()}
                self._card.set_files(
                    name, {split: self._patterns(split, paths) for split, paths in files.items() if paths}
                )
            if inferred.info and _INFOS in self._contents:
                self._card.set_info(name, inferred.info)
        return found

    def _not_in_our_globs(self, config: str, split: str, paths: Sequence[str]) -> list[str]:
        """Return the files that the entry for our shards of the same split will not load anyway."""
        globs = [entry.glob for entry in self._entries if (entry.config, entry.split) == (config, split)]
        found = {path for path in paths if any(matches(glob, path) for glob in globs)}
        self._taken_in |= found
        if found:
            self._card.filled = {*self._card.filled, (config, split)}
        return [path for path in paths if path not in found]

    def _implicit(self) -> list[str]:
        """Return the configs about which the card does not say enough."""
        configs, ours = self._card.configs(), {entry.config for entry in self._entries}
        if not configs:
            return ["default"] if self._data() else []
        return [
            str(item["config_name"])
            for item in configs
            if (not item.get("data_files") and (not item.get("data_dir") or item is configs[0]))
            or (item["config_name"] in ours and (not item.get("data_files") or _INFOS in self._contents))
        ]

    async def _infer(self, name: str) -> inference.Inferred | None:
        """Return what `datasets` loads of a config, apart from hubsync's shards; None if that is nothing."""
        config = name if self._card.configs() else None
        try:
            found = await run_in_thread(inference.infer_config, self._repo, [*self._sizes], self._contents, config)
        except inference.InferenceError as error:
            why = f"its card does not list its files, and datasets cannot say which it loads: {error}"
            raise self._conflict(why) from error
        listed = found.files.items() if found is not None else ()
        theirs = {s: kept for s, paths in listed if (kept := [p for p in paths if p in self._theirs])}
        if found is None or not theirs:
            return None
        if found.builder not in _NAMES:
            some = next(path for paths in theirs.values() for path in paths)
            raise self._conflict(f"it loads as {found.builder} today ({some!r}), and {_ONE_KIND}")
        return found._replace(files=theirs)

    def _data(self) -> list[str]:
        """Return the files that may hold rows and that hubsync did not write."""
        return [path for path in self._theirs if _may_hold_rows(path)]

    def _patterns(self, split: str, files: Sequence[str]) -> list[str]:
        """Return patterns that find exactly these files, in this order."""
        patterns: list[str] = []
        for folder, run in _runs(files):
            endings = {re.sub(r"^[^.]*", "", path.rsplit("/", 1)[-1]) for path in run}
            choices = [f"{folder}{split}-*", *(f"{folder}*{ending}" for ending in endings if len(endings) == 1)]
            good = (c for c in choices if [path for path in sorted(self._sizes) if matches(c, path)] == run)
            found = next(good, None) if len(run) > 1 or folder else None
            patterns += [found] if found is not None else [escape(path) for path in run]
        if len(patterns) > _MAX_LISTED:
            raise self._conflict(
                f"no pattern finds the {len(files):,} files of its split {split}. List them in its card"
            )
        return patterns

    def _kind(self, inferred: Mapping[str, inference.Inferred]) -> Kind | None:
        """Return what the repo's files are. `datasets` decides it by the first config, for all of them."""
        configs = self._card.configs()
        if not configs:
            return None
        first = str(configs[0]["config_name"])
        if first in inferred:
            return _KINDS[inferred[first].builder]
        patterns = self._card.first_patterns()
        paths = [path for path in self._sizes if any(matches(pattern, path) for pattern in patterns)]
        if not paths:  # nothing loads: it does if ours comes first
            self._card.first = self._entries[0].config
            return None
        kinds = {_kind_of(path) for path in paths}
        if len(kinds) == 1 and (kind := kinds.pop()) is not None:
            return kind
        raise self._conflict(f"its config {first} holds other files than JSON or Parquet ({paths[0]!r}, for example)")

    async def _declare_features(self, inferred: Mapping[str, inference.Inferred]) -> None:
        """Declare the columns that a config has, before the card declares those of our rows."""
        declared = self._card.features()
        for config in {entry.config for entry in self._entries} if self._has_schema else ():
            if declared.get(config) and declared[config].fields:
                continue
            found = (path for paths in self._files_of(config).values() for path in paths)
            sample = next((path for path in found if self._sizes[path] and path in self._theirs), None)
            if sample is not None:
                self._card.set_info(config, {"features": await self._features_of(sample)})

    def _files_of(self, config: str) -> dict[str, list[str]]:
        """Return the files of each split of a config, among them those that our shards' glob will find."""
        found: dict[str, list[str]] = {}
        for entry in dict.fromkeys([*self._card.entries(), *self._entries]):
            paths = [path for path in sorted(self._sizes) if matches(entry.glob, path)]
            if entry.config == config and paths:
                found[entry.split] = list(dict.fromkeys([*found.get(entry.split, ()), *paths]))
        return found

    async def _check_readable(self, config: str, files: Mapping[str, Sequence[str]]) -> None:
        """Refuse a config of which nothing loads because of a file that no reader can read, as far as heads tell."""
        theirs = [path for paths in files.values() for path in paths if path in self._theirs]
        for path in theirs[:_MAX_HEADS]:
            head = bytearray()
            await self._download(path, head.extend, _HEAD_BYTES)
            if _looks_readable(path, bytes(head), is_whole=len(head) >= self._sizes[path]):
                continue
            try:
                await self._features_of(path)
            except DatasetConflict as error:
                raise self._conflict(
                    f"{path!r} can't be read, so nothing of {config} loads. Remove or repair it"
                ) from error

    async def _check_sizes(self, config: str, files: Mapping[str, Sequence[str]]) -> None:
        """Put right what the card says of a config's sizes if it is wrong, so that nothing loads today."""
        sizes = self._card.sizes(config)
        if sizes is None:
            return
        paths = [path for listed in files.values() for path in listed]
        total = sum(self._sizes[path] for path in paths)
        is_small = len(paths) <= _MAX_HEADS and total <= _MAX_COUNTED_BYTES
        if is_small and all(_kind_of(path) == "parquet" for path in paths):
            rows = {split: sum([await self._count(path) for path in listed]) for split, listed in files.items()}
            if rows != sizes.rows:
                self._is_repaired = True
                self._card.set_sizes(config, {s: (n, sum(self._sizes[p] for p in files[s])) for s, n in rows.items()})
        elif sizes.rows.keys() != files.keys() or (sizes.bytes != total and not self._theirs.isdisjoint(paths)):
            self._card.set_sizes(config, None)
            self._is_repaired = True

    async def _count(self, path: str) -> int:
        content = bytearray()
        await self._download(path, content.extend, None)
        try:
            return await run_in_thread(_rows_of_parquet, bytes(content))
        except ValueError as error:
            raise self._conflict(f"{path!r} can't be read, so nothing loads ({error}). Remove or repair it") from error

    async def _features_of(self, path: str) -> list[dict[str, object]]:
        advice = f"Declare the columns of {path!r} as dataset_info: features: in {PATH}"
        limit = _SAMPLE_BYTES if path.endswith((".jsonl", ".ndjson")) else None
        if limit is None and self._sizes[path] > _MAX_SAMPLE_BYTES:
            raise self._conflict(f"its columns are not declared, and {path!r} is too large to look. {advice}")
        with tempfile.TemporaryDirectory(prefix="hubsync-") as scratch:
            file = Path(scratch) / path.rsplit("/", 1)[-1]
            with file.open("wb") as stream:
                await self._download(path, stream.write, limit)
            if limit is not None and file.stat().st_size < self._sizes[path]:
                await run_in_thread(_cut_last_line, file)
            builder = _kind_of(path)
            try:
                features = await run_in_thread(partial(inference.infer_features, str(builder), file))
            except inference.InferenceError as error:
                raise self._conflict(
                    f"its columns are not declared, and datasets cannot find them ({error}). {advice}"
                ) from error
        return features or []

    async def _download(self, path: str, write: Callable[[bytes], object], limit: int | None) -> None:
        received = 0

        def take(piece: bytes) -> None:
            nonlocal received
            write(piece)
            received += len(piece)
            if limit is not None and received >= limit:
                raise _Enough

        with suppress(_Enough):
            await self._source.download(path, self._at, take)

    def _conflict(self, why: str) -> DatasetConflict:
        entry = self._entries[0]
        return _conflict(self._repo, entry.config, entry.split, why, entry)


class _Enough(Exception):
    """The part of a file that is needed has arrived."""


def _rows_of_parquet(content: bytes) -> int:
    """Return how many rows a Parquet file has; a `ValueError` says that it is none."""
    import pyarrow.parquet

    return int(pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).metadata.num_rows)


def _looks_readable(path: str, head: bytes, *, is_whole: bool) -> bool:
    """Return whether a file begins as `datasets` expects; only `datasets` itself knows it of one that does not."""
    if _kind_of(path) == "parquet":
        return head.startswith(b"PAR1") and (not is_whole or head.endswith(b"PAR1"))
    if (magic := _MAGIC.get(path.rpartition(".")[2])) is not None:
        return not head or head.startswith(magic)
    lines = head.removeprefix(codecs.BOM_UTF8).split(b"\n")
    try:
        return all(isinstance(json.loads(line), dict) for line in (lines if is_whole else lines[:-1]) if line.strip())
    except ValueError:
        return False


def _cut_last_line(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: content.rfind(b"\n") + 1])


def _runs(files: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group consecutive files of one folder."""
    runs: list[tuple[str, list[str]]] = []
    for path in files:
        folder = path[: path.rfind("/") + 1]
        if not runs or runs[-1][0] != folder:
            runs.append((folder, []))
        runs[-1][1].append(path)
    return runs


def _may_hold_rows(path: str) -> bool:
    """Return whether `datasets` would load a file, as far as its name tells."""
    name = path.rsplit("/", 1)[-1]
    is_hidden = any(part.startswith((".", "__")) for part in path.split("/"))
    return not is_hidden and name not in _IGNORED and "." in name and not name.lower().endswith(_NO_DATA)


def _is_committed(path: str, series: Mapping[str, int]) -> bool:
    """Return whether a path is that of a shard whose number is below the next one of its series."""
    path = without_part(path)
    numbers = re.finditer(r"\d+", path)
    return any(int(n[0]) < series.get(f"{path[: n.start()]}*{path[n.end() :]}", 0) for n in numbers)


def _kind_of(path: str) -> Kind | None:
    """Return the kind that a file's name ends in, compressed or not."""
    found = re.search(r"\.(jsonl?|ndjson|parquet)(\.(gz|zst|bz2|xz|lz4))?$", path)
    return _KINDS[found[1]] if found else None


def _is_clear(card: Card, entry: Entry) -> bool:
    """Return whether the card lists an entry by a pattern that only finds files of its kind."""
    same = (e.glob for e in card.entries() if e[:2] == entry[:2] and _kind_of(e.glob) == _kind_of(entry.glob))
    return any(glob == entry.glob or covers(glob, entry.glob) for glob in same)


def _entry_of(layout: Layout) -> Entry:
    return Entry(layout.config, layout.split, layout.glob)


def _conflict(repo: str, config: str, split: str, why: str, entry: Entry) -> DatasetConflict:
    line = f"configs: [{{config_name: {config}, data_files: [{{split: {split}, path: {entry.glob!r}}}]}}]"
    return DatasetConflict(
        one_line(
            f"rows cannot be added to {config}/{split} of {repo} so that all of it loads: {why}. Nothing was changed. "
            f"Use another repo, config or path=…; or, if its other files hold no rows, say so in {PATH}'s YAML: {line}"
        )
    )
