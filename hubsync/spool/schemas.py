"""What the columns of each config hold: as accepted, as the card shows it, and what happens on a conflict."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from hubsync.model.commit import FixedBy
from hubsync.model.watermarks import Fixed
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, extend, loads, merge_structs
from hubsync.spool.database import Catalogue


class Schemas:
    """The schemas of a spool, by config."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def known(self, config: str) -> StructOf | None:
        """Return what the columns of a config hold; None if nothing is known."""
        text = self.known_text(config)
        return None if text is None else loads(text)

    def known_text(self, config: str) -> str | None:
        """Return the same as JSON, to be compared without decoding it."""
        text: str | None = self._catalogue.value("SELECT known FROM schemas WHERE config = ?", config)
        return text

    def columns(self, config: str) -> StructOf:
        """Return the types of a config's columns, as far as they are known."""
        return self.known(config) or EMPTY

    def add(self, config: str, schema: StructOf, *, wins: bool = False) -> None:
        """Merge a schema into what is known of a config. Within a transaction.

        Args:
            config: the config.
            schema: the types of rows that were accepted.
            wins: the dataset contains such rows, so on a conflict it replaces what is known.
        """
        known = self.known(config)
        try:
            merged = schema if known is None else merge_structs(known, schema)
        except Conflict:  # another process accepted something else at the same moment: the committer finds it
            if not wins:
                return
            merged = schema
        if merged is not known:
            self._catalogue.run(
                "INSERT INTO schemas (config, known) VALUES (?, ?) "
                "ON CONFLICT (config) DO UPDATE SET known = excluded.known",
                config, dumps(merged),
            )  # fmt: skip

    def add_committed(self, config: str, schema: str) -> None:
        """Merge the schema of a committed segment, as JSON, into what is known of those. Within a transaction."""
        known = self._catalogue.value("SELECT committed FROM schemas WHERE config = ?", config)
        if schema == known:
            return
        with suppress(Conflict):  # `with_committed` would leave it out as well
            merged = dumps(extend(loads(known) if known else EMPTY, loads(schema)))
            if merged != known:
                self._catalogue.run(
                    "INSERT INTO schemas (config, committed) VALUES (?, ?) "
                    "ON CONFLICT (config) DO UPDATE SET committed = excluded.committed",
                    config, merged,
                )  # fmt: skip

    def all_committed(self) -> list[tuple[str, str]]:
        """Return the schemas that `add_committed` merged, as JSON, with their configs."""
        rows = self._catalogue.rows("SELECT config, committed FROM schemas WHERE committed IS NOT NULL")
        return [(config, text) for config, text in rows]

    # What the card shows.

    def published(self, config: str) -> StructOf | None:
        """Return what the card says of a config; None if it says nothing."""
        text = self._catalogue.value("SELECT published FROM schemas WHERE config = ?", config)
        return None if text is None else loads(text)

    def all_published(self) -> dict[str, StructOf]:
        """Return what the card says, by config."""
        rows = self._catalogue.rows("SELECT config, published FROM schemas WHERE published IS NOT NULL")
        return {config: loads(text) for config, text in rows}

    def publish(self, config: str, schema: StructOf) -> None:
        """Record what the card says of a config. Within a transaction."""
        self.add(config, schema, wins=True)
        self._catalogue.run("UPDATE schemas SET published = ? WHERE config = ?", dumps(schema), config)

    # What a person declared.

    def declare(self, config: str, columns: Iterable[str]) -> None:
        """Record columns of a config whose types a person declared, so that they stay. Within a transaction."""
        text = self._catalogue.get("declared")
        known: dict[str, list[str]] = {} if text is None else msgspec.json.decode(text)
        declared = list(dict.fromkeys((*known.get(config, ()), *columns)))
        self._catalogue.set("declared", msgspec.json.encode({**known, config: declared}).decode())

    def declared(self, config: str) -> frozenset[str]:
        """Return the columns of a config that a person declared."""
        text = self._catalogue.get("declared")
        return frozenset() if text is None else frozenset(msgspec.json.decode(text).get(config, ()))

    def fixed(self, config: str, schema: str | None) -> Fixed | None:
        """Return which columns of a segment must keep their types, for its watermark; None if it has no schema.

        Args:
            config: its config.
            schema: its types, as JSON.
        """
        if schema is None:
            return None
        is_any = '"literal"' in schema  # nearly all segments have none
        text = [name for name, kind in loads(schema).fields.items() if kind == "literal"] if is_any else ()
        found: dict[str, FixedBy] = {
            **dict.fromkeys(text, "text"),
            **dict.fromkeys(sorted(self.declared(config)), "declared"),
        }
        return {config: found} if found else {}

    # What happens on a conflict.

    def set_policy(self, config: str, policy: str) -> None:
        """Record what happens on a conflict in a config: an `OnConflict`, or "off" for no check."""
        if self._catalogue.value("SELECT policy FROM schemas WHERE config = ?", config) != policy:
            with self._catalogue.transaction():
                self._catalogue.run(
                    "INSERT INTO schemas (config, policy) VALUES (?, ?) "
                    "ON CONFLICT (config) DO UPDATE SET policy = excluded.policy",
                    config, policy,
                )  # fmt: skip

    def policy(self, config: str) -> str:
        """Return what happens on a conflict in a config."""
        row = self._catalogue.row("SELECT policy, known FROM schemas WHERE config = ?", config)
        if row is None or (row["policy"] is None and row["known"] is None):
            return "off"  # an older hubsync wrote the spool, and no uploader has opened it since
        return row["policy"] or "refuse"
