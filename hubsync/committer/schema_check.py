"""Check shards against what the dataset's card says of their columns, and decide what it says with them.

`put` has checked already; here the committer finds what nobody could see there: two machines that committed different
types at the same moment, a card that a person edited, segments of an older hubsync. A shard's types are what its writer
recorded. Its file is read only if they conflict with the card, or if nothing was recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync.encoding.codecs import DamagedShard, open_lines, typed_columns
from hubsync.errors import ConfigError
from hubsync.model.layout import Layout
from hubsync.model.shard import Shard
from hubsync.schema.profiler import OpaqueType, RowProfiler, SuspiciousValue
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, extend, infer, loads, merge_structs
from hubsync.schema.widening import JSON_NEEDS, Widening, as_json, is_declared, with_literals
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")

_LINES = 500  # inspected at once

_UNREADABLE = (
    OpaqueType, SuspiciousValue, DamagedShard, ConfigError, msgspec.DecodeError, UnicodeDecodeError, RecursionError,
)  # fmt: skip


class Unreadable(ValueError):
    """A file whose rows can't be inspected."""


class ShardSchema(NamedTuple):
    """The types of a shard's columns, if its config is checked.

    Attributes:
        schema: a `Conflict` if the shard contradicts itself, None if its rows can't be inspected.
    """

    shard: Shard
    config: str
    schema: StructOf | Conflict | None


class SchemaMismatch(NamedTuple):
    """A shard that does not fit its config.

    Attributes:
        why: which column conflicts, and how.
        layout: another config that it fits, with `schema`; None if there is no such config.
    """

    shard: Shard
    why: str
    layout: Layout | None = None
    schema: StructOf = EMPTY


class SchemaChecker:
    """Compares the schemas of a spool's shards with the card."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._segments = spool.segments
        self._schemas = spool.schemas

    def of(self, shards: Sequence[Shard]) -> list[ShardSchema]:
        """Return the schemas of `shards`, leaving out those whose config is not checked."""
        found = []
        for shard in shards:
            row = self._segments.get(shard.segment)
            if self._schemas.policy(row.config) != "off":
                schema = loads(row.schema) if row.schema is not None else self._scan(shard)
                found.append(ShardSchema(shard, row.config, schema))
        return found

    def _scan(self, shard: Shard) -> StructOf | Conflict | None:
        try:
            schema = scan(shard.file)
        except Conflict as conflict:
            return conflict
        except Unreadable:
            return None
        with self._spool.catalogue.transaction():
            self._segments.set_schema(shard.segment, dumps(schema))
        return schema

    def are_published(self, schemas: Sequence[ShardSchema]) -> bool:
        """Return whether the card, as last read, says all of this already."""
        for item in schemas:
            if isinstance(item.schema, Conflict):
                return False
            if item.schema is not None and item.schema.fields:
                published = self._schemas.published(item.config) or EMPTY
                try:
                    if merge_structs(published, item.schema) is not published:
                        return False
                except Conflict:
                    return False
        return True

    def with_committed(self, shown: Mapping[str, StructOf]) -> dict[str, StructOf]:
        """Return `shown` with everything this spool committed, by config: the card was deleted, or left out."""
        merged = dict(shown)
        texts = [*self._schemas.all_committed(), *self._segments.committed_schemas()]
        committed = [(config, loads(text)) for config, text in texts]
        for config, schema in [*self._schemas.all_published().items(), *committed]:
            if self._schemas.policy(config) != "off":
                with suppress(Conflict):
                    merged[config] = extend(merged.get(config, EMPTY), schema)
        return merged

    def merge(
        self, schemas: Sequence[ShardSchema], shown: Mapping[str, StructOf]
    ) -> tuple[dict[str, StructOf], SchemaMismatch | None]:
        """Merge the schemas of shards into what the card says.

        Args:
            schemas: of the shards of the next commit.
            shown: what the card says now, by config.

        Returns:
            What the card must say, by config; or the first shard that does not fit.
        """
        features: dict[str, StructOf] = {}
        for item in schemas:
            if item.schema is None:
                continue
            known = features.get(item.config) or self._shown(item.config, shown)
            exact: StructOf | None = None
            try:
                if isinstance(item.schema, Conflict):
                    raise item.schema
                features[item.config] = self._extend(item, known, item.schema)
            except Conflict as recorded:
                try:
                    exact = scan(item.shard.file)  # its writer may have recorded more than it holds
                    if isinstance(item.schema, StructOf):
                        exact = as_json(exact, item.schema)
                    features[item.config] = self._extend(item, known, exact)
                except (Conflict, Unreadable) as found:
                    self._learn(shown)
                    conflict = found if isinstance(found, Conflict) else recorded
                    return {}, self._mismatch(item, exact, conflict, shown)
        return features, None

    def _shown(self, config: str, shown: Mapping[str, StructOf]) -> StructOf:
        """Return what the card says of a config, and what this spool knows of its strings, which a card can't say."""
        return with_literals(shown.get(config) or EMPTY, self._schemas.known(config) or EMPTY)

    def _extend(self, item: ShardSchema, known: StructOf, given: StructOf) -> StructOf:
        """Merge the schema of a shard; with the policy "json", columns without a common type become JSON."""
        try:
            return extend(known, given)
        except Conflict:
            if self._schemas.policy(item.config) != "json":
                raise
        widening = Widening(
            parquet=item.shard.path.endswith(".parquet"),
            are_written=True,
            declared=self._schemas.declared(item.config),
        )
        merged = widening.merge(known, given)
        for change in widening.outermost:
            _log.warning("%s. %s", change, JSON_NEEDS)
        return merged

    def _mismatch(
        self, item: ShardSchema, schema: StructOf | None, conflict: Conflict, shown: Mapping[str, StructOf]
    ) -> SchemaMismatch:
        base = None if schema is None else self._base(item.config, conflict)
        if schema is not None and base is not None:
            row = self._segments.get(item.shard.segment)
            for layout in Layout(base, row.split, row.template).siblings():
                try:
                    extend(shown.get(layout.config, EMPTY), schema)
                    extend(self._schemas.known(layout.config) or EMPTY, schema)
                except Conflict:
                    continue
                if layout.config != item.config:
                    return SchemaMismatch(item.shard, conflict.message, layout, schema)
        return SchemaMismatch(item.shard, conflict.message)

    def _base(self, config: str, conflict: Conflict) -> str | None:
        """Return the config whose conflicts go to new configs: this one, or the one it is a sibling of; else None."""
        for name in (config, config.rpartition("-")[0]):
            policy = self._schemas.policy(name) if name else "off"
            if policy == "new config" or (policy == "json" and not is_declared(conflict)):
                return name
        return None

    def move(self, shard: Shard, layout: Layout, schema: StructOf) -> None:
        """Move a shard to another config; it is staged again."""
        self._spool.shards.move(shard, layout, dumps(schema), also=lambda: self._schemas.add(layout.config, schema))

    def _learn(self, shown: Mapping[str, StructOf]) -> None:
        with self._spool.lease.transaction():
            for config, schema in shown.items():
                self._schemas.add(config, schema, wins=True)

    def mark_published(self, features: Mapping[str, StructOf]) -> None:
        """Record that the card says this now, by config."""
        if features:
            with self._spool.lease.transaction():
                for config, schema in features.items():
                    self._schemas.publish(config, schema)
            failpoint(Failpoint.CARD_RECORDED)


def scan(file: Path) -> StructOf:
    """Return the types of the columns in a segment's file, compressed or not, reading it line by line.

    Raises:
        Conflict: it contradicts itself, or holds more than a card can say.
        Unreadable: it holds something that is not a row.
    """
    try:
        return _scan(file)
    except (
        OpaqueType,
        SuspiciousValue,
        DamagedShard,
        ConfigError,
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as error:
        raise Unreadable(str(file)) from error


def _scan(file: Path) -> StructOf:
    if (typed := typed_columns(file)) is not None:
        return typed
    decoder, profiler, schema = msgspec.json.Decoder(), RowProfiler(), EMPTY
    with open_lines(open_regular(file), file.name) as stream:
        while lines := list(islice(stream, _LINES)):
            rows = decoder.decode_lines(b"".join(lines))
            if discoveries := profiler.profile(rows):
                schema = extend(schema, infer(rows))
                profiler.remember(discoveries)
    return schema
