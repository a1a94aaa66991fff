"""Whether shards fit what the dataset's card says of their columns, and what it is to say with them: for the committer.

`put` has looked already (`guard`); here is found what nobody could see there: two machines that brought different
things at the same moment, a card that a person changed, segments of an older hubsync. A shard is told by what its
segment's writer noted, and by its file only where that is at odds with the card, or nothing was noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.encoding.codecs import DamagedShard, open_lines
from hubsync.errors import ConfigError
from hubsync.model.layout import Layout
from hubsync.model.shard import Shard
from hubsync.schema.profiler import OpaqueType, RowProfiler
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, extend, infer, loads, merge_structs
from hubsync.spool.spool import Spool

_LINES = 500  # looked at in one go


class Unreadable(ValueError):
    """A file whose rows can't be told."""


class ShardSchema(NamedTuple):
    """A shard of a config that is guarded, and what its columns hold: at odds with itself, or None where nobody can
    tell.
    """

    shard: Shard
    config: str
    kind: StructOf | Conflict | None


class SchemaMismatch(NamedTuple):
    """A shard that can't stand in its config: why, and where else it could, with what its columns hold."""

    shard: Shard
    why: str
    layout: Layout | None = None
    kind: StructOf = EMPTY


class SchemaChecker:
    """The schemas of a spool's shards, against the card."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._catalogue = spool.catalogue

    def kinds(self, shards: Sequence[Shard]) -> list[ShardSchema]:
        """What the columns of `shards` hold, as far as their configs are guarded."""
        found = []
        for shard in shards:
            row = self._catalogue.row("SELECT config, schema FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            if self._policy(row["config"]) != "off":
                kind = loads(row["schema"]) if row["schema"] is not None else self._told_by_file(shard)
                found.append(ShardSchema(shard, row["config"], kind))
        return found

    def _told_by_file(self, shard: Shard) -> StructOf | Conflict | None:
        try:
            kind = scan(shard.file)
        except Conflict as conflict:
            return conflict
        except Unreadable:
            return None
        self._catalogue.run("UPDATE segments SET schema = ? WHERE id = ?", dumps(kind), shard.segment)
        return kind

    def _policy(self, config: str) -> str:
        row = self._catalogue.row("SELECT policy, known FROM schemas WHERE config = ?", config)
        if row is None or (row["policy"] is None and row["known"] is None):
            return "off"  # a spool of an older hubsync, and no uploader has come since
        return row["policy"] or "refuse"

    def _base(self, config: str) -> str | None:
        """The config whose conflicts go to others, where that is chosen and this is it, or one of the others."""
        for name in (config, config.rpartition("-")[0]):
            if name and self._policy(name) == "new config":
                return name
        return None

    def are_shown(self, kinded: Sequence[ShardSchema]) -> bool:
        """Whether the card, as it was last seen, says all of this already."""
        for item in kinded:
            if isinstance(item.kind, Conflict):
                return False
            if item.kind is not None and item.kind.fields:
                text = self._catalogue.value("SELECT published FROM schemas WHERE config = ?", item.config)
                published = EMPTY if text is None else loads(text)
                try:
                    if merge_structs(published, item.kind) is not published:
                        return False
                except Conflict:
                    return False
        return True

    def with_committed(self, shown: Mapping[str, StructOf]) -> dict[str, StructOf]:
        """What the card is to say, by config, of all that was committed: where it was deleted, or left out a while."""
        said = dict(shown)
        for row in [
            *self._catalogue.rows("SELECT config, published AS schema FROM schemas WHERE published IS NOT NULL"),
            *self._catalogue.rows(
                "SELECT DISTINCT config, schema FROM segments WHERE state = 'committed' AND schema IS NOT NULL"
            ),
        ]:
            if self._policy(row["config"]) != "off":
                with suppress(Conflict):
                    said[row["config"]] = extend(said.get(row["config"], EMPTY), loads(row["schema"]))
        return said

    def fit(
        self, kinded: Sequence[ShardSchema], shown: Mapping[str, StructOf]
    ) -> tuple[dict[str, StructOf], SchemaMismatch | None]:
        """What the card is to say, by config, where it says `shown` now; or the first shard that can't go."""
        features: dict[str, StructOf] = {}
        for item in kinded:
            known = features.get(item.config) or shown.get(item.config) or EMPTY
            if item.kind is None:
                continue
            exact: StructOf | None = None
            try:
                if isinstance(item.kind, Conflict):
                    raise item.kind
                features[item.config] = extend(known, item.kind)
            except Conflict as told:
                try:
                    exact = scan(item.shard.file)  # its writer's note may say more than it holds
                    features[item.config] = extend(known, exact)
                except (Conflict, Unreadable) as found:
                    self._learn(shown)
                    conflict = found if isinstance(found, Conflict) else told
                    return {}, self._misfit(item, exact, conflict, shown)
        return features, None

    def _misfit(
        self, item: ShardSchema, kind: StructOf | None, conflict: Conflict, shown: Mapping[str, StructOf]
    ) -> SchemaMismatch:
        why = conflict.message
        if kind is not None and (base := self._base(item.config)) is not None:
            row = self._catalogue.row("SELECT split, template FROM segments WHERE id = ?", item.shard.segment)
            assert row is not None
            for layout in Layout(base, row["split"], row["template"]).siblings():
                text = self._spool.schema(layout.config)
                try:
                    extend(shown.get(layout.config, EMPTY), kind)
                    extend(EMPTY if text is None else loads(text), kind)
                except Conflict:
                    continue
                if layout.config != item.config:
                    return SchemaMismatch(item.shard, why, layout, kind)
        return SchemaMismatch(item.shard, why)

    def move(self, shard: Shard, layout: Layout, kind: StructOf) -> None:
        """Gives a shard its place in another config; it is staged anew."""
        with self._spool.leased():
            row = self._catalogue.row("SELECT writer FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            series = layout.series(row["writer"])
            following = self._catalogue.value("SELECT next FROM series WHERE name = ?", series) or 0
            self._catalogue.run(
                "UPDATE segments SET config = ?, template = ?, schema = ? WHERE id = ?",
                layout.config, layout.template, dumps(kind), shard.segment,
            )  # fmt: skip
            self._spool.know_schema(layout.config, kind)
            self._spool.number(shard.segment, layout, row["writer"], series, following)
        failpoint(Failpoint.RENUMBERED)

    def _learn(self, shown: Mapping[str, StructOf]) -> None:
        with self._spool.leased():
            for config, kind in shown.items():
                self._spool.know_schema(config, kind, wins=True)

    def mark_shown(self, features: Mapping[str, StructOf]) -> None:
        """The card says this now."""
        if features:
            with self._spool.leased():
                for config, kind in features.items():
                    self._spool.know_schema(config, kind, wins=True)
                    self._catalogue.run("UPDATE schemas SET published = ? WHERE config = ?", dumps(kind), config)
            failpoint(Failpoint.CARD_RECORDED)


def scan(file: Path) -> StructOf:
    """What the rows of a segment's file hold, packed or not, read line by line.

    Raises:
        Conflict: it is at odds with itself, or holds more than a card can say.
        Unreadable: it holds what is no row.
    """
    try:
        return _scan(file)
    except (OpaqueType, DamagedShard, ConfigError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(file)) from error


def _scan(file: Path) -> StructOf:
    decoder, profiler, kind = msgspec.json.Decoder(), RowProfiler(), EMPTY
    with open_lines(file.open("rb"), file.name) as stream:
        while lines := list(islice(stream, _LINES)):
            rows = decoder.decode_lines(b"".join(lines))
            if discoveries := profiler.profile(rows):
                kind = extend(kind, infer(rows))
                profiler.remember(discoveries)
    return kind
