"""Select the files of a dataset that hold the wanted rows, as `datasets` would."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import HubFile
from hubsync.encoding import codecs
from hubsync.model.layout import without_part
from hubsync.schema.types import json_columns

_log = logging.getLogger("hubsync")

SUFFIXES = (*codecs.SUFFIXES, ".ndjson")  # of files that the reader can read


class Selection(NamedTuple):
    """Which rows of a dataset to read; None selects all."""

    config: str | None = None
    split: str | None = None
    paths: frozenset[str] | None = None

    def includes(self, path: str | None, config: str, split: str) -> bool:
        """Return whether the rows of a file are selected."""
        return (
            self.config in (None, config)
            and self.split in (None, split)
            and (self.paths is None or path in self.paths)
        )  # fmt: skip


class SelectedFile(NamedTuple):
    """A file with the config and split that its rows belong to."""

    file: HubFile
    config: str
    split: str


def select_files(files: Iterable[HubFile], entries: Sequence[card.Entry], selection: Selection) -> list[SelectedFile]:
    """Return the selected files that the dataset's card shows, each in the first config that shows it.

    If the card shows none (`entries` is empty), every data file that is not hidden belongs to default/train.
    """
    patterns = [(entry.config, entry.split, card.glob_pattern(entry.glob)) for entry in entries]
    found = []
    for file in files:
        if patterns:
            place = next(((config, split) for config, split, glob in patterns if glob.fullmatch(file.path)), None)
        else:
            is_hidden = any(part.startswith((".", "__")) for part in file.path.split("/"))
            place = None if is_hidden or not file.path.endswith(SUFFIXES) else ("default", "train")
        if place is not None and selection.includes(file.path, *place):
            found.append(SelectedFile(file, *place))
    return found


class CardContent(NamedTuple):
    """What a card says: its configs and splits, and the columns of each config that are JSON."""

    entries: Sequence[card.Entry] = ()
    json_columns: Mapping[str, frozenset[str]] = MappingProxyType({})


def card_content(content: bytes, repo: str) -> CardContent:
    """Return what a card says; log a warning and return nothing if its YAML cannot be read."""
    try:
        parsed = card.Card(content, repo)
        columns = {config: json_columns(features) for config, features in parsed.features().items()}
        return CardContent(parsed.entries(), columns)
    except card.CardError as error:
        _log.warning("Cannot read the card of %s (%s); continuing as if it listed no configs.", repo, error)
        return CardContent()


def path_order(path: str) -> list[tuple[int, str]]:
    """Return a sort key that puts 99999 before 100000, and a writer's shards in order whatever folder they are in."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,17})", without_part(path))]
