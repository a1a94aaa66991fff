"""The schema guard: check a batch's columns before it is accepted, so that the dataset keeps loading.

The profiler finds new columns and types, and only those are checked. A conflict makes a column JSON by default.
What two processes accept at the same moment is checked by the committer (`schema_check`).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hubsync.encoding.encoded import decode_rows
from hubsync.encoding.rows import Encoded, profile
from hubsync.errors import SchemaConflict
from hubsync.model.layout import Layout
from hubsync.policies import SchemaPolicy
from hubsync.schema import types
from hubsync.schema.arrow import has_own_type
from hubsync.schema.profiler import RowProfiler
from hubsync.schema.time_text import places_of_times
from hubsync.schema.types import EMPTY, JSON, Conflict, OutOfBounds, StructOf, describe
from hubsync.schema.widening import JSON_NEEDS, Fixed, Widened, Widening, as_json, is_declared, is_within
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")


class Admission(NamedTuple):
    """Where a batch goes.

    Attributes:
        types: what the columns hold with it; None if the config is not checked.
        layout: the config it goes to; None for the uploader's own.
        set_aside: why it is quarantined; None if it is not.
        lines: what to write, if not what was encoded: a column has become JSON.
    """

    types: StructOf | None = None
    layout: Layout | None = None
    set_aside: str | None = None
    lines: bytes | None = None


class SchemaGuard:
    """The schema guard of one uploader. Safe for several threads.

    Attributes:
        profiler: knows what was accepted.
        widened: how many columns became JSON here.
    """

    def __init__(self, spool: Spool, layout: Layout, policy: SchemaPolicy) -> None:
        self._spool = spool
        self._policy = policy
        self._declared = StructOf(dict.fromkeys(policy.json_columns, JSON))
        self._lock = threading.Lock()
        self._kinds: dict[str, StructOf] = {}  # what was accepted here, by config
        self._stored: dict[str, tuple[str, StructOf]] = {}  # what the catalogue says, as text and decoded
        self._same = Admission(EMPTY)
        self._reported: set[str] = set()  # configs and places that the log has named
        self._has_told_of_json = False
        self.widened = 0
        self._last = EMPTY, EMPTY  # types of the config, and those of them that JSON does not have
        self.relocate(layout)

    def relocate(self, layout: Layout) -> None:
        """Check rows for this layout from now on. Nothing may have been put yet."""
        self._layout, self._is_parquet = layout, layout.format == "parquet"
        self.profiler = RowProfiler(self._declared, escapes=not self._is_parquet)
        if (stored := self._read(layout.config)) is not None:
            self._kinds[layout.config] = stored

    @property
    def typed_columns(self) -> StructOf:
        """The columns of the uploader's config whose types JSON does not have: rows are converted to them.

        If there are any, those of type JSON are among them.
        """
        known = self._kinds.get(self._layout.config, EMPTY)
        if known is not self._last[0]:
            fields = known.fields.items()
            typed = {name: kind for name, kind in fields if has_own_type(kind)}
            as_json = {name: kind for name, kind in fields if types.is_json(kind)}
            self._last = known, StructOf({**typed, **as_json} if typed else {})
        return self._last[1]

    def admit_familiar(self, encoded: Encoded) -> Admission | None:
        """Return where a batch goes if it contains nothing new; else None."""
        same = self._same
        return same if self._is_current(encoded) and not encoded.discoveries else None

    def _is_current(self, encoded: Encoded) -> bool:
        """Return whether the profiler looked at a batch, and knows no more JSON columns since then."""
        return encoded.profiler is self.profiler and encoded.places is self.profiler.places

    def admit(self, encoded: Encoded) -> Admission:
        """Return where a batch goes. It may wait for the catalogue, so call it in a thread of hubsync's.

        Raises:
            SchemaConflict: it conflicts with its columns, and the policy is to refuse it.
        """
        given = encoded
        while not encoded.discoveries:
            if not self._is_current(encoded):
                encoded = profile(encoded, self.profiler)
            elif (same := self.admit_familiar(encoded)) is not None:
                return same if encoded is given else same._replace(lines=encoded.lines)
        with self._lock:
            if not self._is_current(encoded):
                encoded = profile(encoded, self.profiler)
            try:
                columns = _columns_of(encoded)
                self._check_json(encoded, columns)
                known = self._with(self._layout.config, columns)
            except Conflict as conflict:
                return self._conflict(encoded, conflict)
            return self._accept(encoded, known)

    def _check_json(self, encoded: Encoded, columns: StructOf) -> None:
        """Raise a `Conflict` if a column that is known would become JSON, or a typed batch conflicts with itself."""
        known = self._known(self._layout.config)
        for name in types.json_columns(columns) - self._declared.fields.keys() - types.json_columns(known):
            if known.fields.get(name, "null") != "null" or encoded.conflicts:
                raise Conflict(name, known.fields.get(name, "null"), columns.fields[name])

    def _accept(self, encoded: Encoded, known: StructOf) -> Admission:
        """Remember a batch, and what is JSON with it."""
        places = StructOf({**self._declared.fields, **types.json_places(known).fields})
        if not self._is_parquet:
            self._report_readers(encoded, known, places)
        if places != self.profiler.places:
            self.profiler.places = places
        encoded = encoded.with_escaped(self.profiler.escaped)
        self._same = Admission(known)
        self.profiler.remember(encoded.discoveries)  # only now: from here on, other threads rely on `_same`
        return self._same._replace(lines=encoded.lines)

    def _report_readers(self, encoded: Encoded, known: StructOf, places: StructOf) -> None:
        """Log once what readers of JSON Lines would change."""
        if places.fields and not self._has_told_of_json and types.holds_floats(known):
            self._has_told_of_json = True
            _log.warning("%s: JSON in these columns. %s", ", ".join(places.fields), JSON_NEEDS)
        times = places_of_times(decode_rows(encoded.lines, most=_LOOKED_AT_ROWS), known)
        for path in sorted(times - self._reported):
            self._reported.add(path)
            _log.warning(_READ_AS_TIMES, path, re.split(r"[.\[]", path)[0])

    def forget(self) -> None:
        """Check everything again from now on: the dataset holds something that was not known here."""
        with self._lock:
            self._forget()
            self._kinds, self._same = {}, Admission(EMPTY)

    def _forget(self) -> None:
        self.profiler = RowProfiler(self.profiler.places, escapes=not self._is_parquet)

    def _with(self, config: str, kind: StructOf) -> StructOf:
        """Merge types into a config's columns, and return them."""
        known = self._known(config)
        known = self._kinds[config] = types.extend(known, as_json(kind, known))
        return known

    def _known(self, config: str) -> StructOf:
        """Return what the columns of a config hold, by all that this spool knows."""
        known = self._kinds.get(config, EMPTY)
        if (stored := self._read(config)) is not None:
            try:
                known = types.merge_structs(known, stored)
            except Conflict:  # another process was faster: its types are the dataset's; ours are checked at the commit
                known = stored
                self._forget()  # rows that fitted before may not fit now
        self._kinds[config] = known
        return known

    def _read(self, config: str) -> StructOf | None:
        """Return what all processes of the spool accepted, and what the card shows."""
        text = self._spool.schemas.known_text(config)
        if text is None:
            return None
        was = self._stored.get(config)
        if was is None or was[0] != text:
            was = self._stored[config] = (text, types.loads(text))
        return was[1]

    # Conflicts.

    def _conflict(self, encoded: Encoded, conflict: Conflict) -> Admission:
        policy: str = self._policy.on_conflict
        if policy == "json":
            try:
                return self._widen(encoded)
            except Conflict as found:
                conflict = found
        error = self._error(encoded, conflict)
        if policy == "json" and is_declared(conflict):
            policy = self._policy.on_declared
        if policy == "dead letter":
            return Admission(set_aside=f"{conflict.message} (line {error.row + 1})")
        for layout in self._layout.siblings() if policy in ("json", "new config") else ():
            try:
                admission = self._admit_to(layout, encoded, widens=policy == "json")
            except Conflict:
                continue
            if policy == "json":
                self._report_sibling(layout.config, conflict)
            return admission
        raise error from None

    def _admit_to(self, layout: Layout, encoded: Encoded, *, widens: bool) -> Admission:
        """Return the admission of a batch to another config.

        Raises:
            Conflict: It does not fit that config, either.
        """
        if not widens:
            return Admission(self._with(layout.config, _columns_of(encoded)), layout)
        columns, _ = self._widened(layout.config, encoded)
        names = frozenset[str]() if self._is_parquet else types.json_columns(columns)
        return Admission(columns, layout, lines=encoded.with_escaped(names).lines)

    def _widen(self, encoded: Encoded) -> Admission:
        known = self._known(self._layout.config)
        widened, changes = self._widened(self._layout.config, encoded)
        before = types.json_columns(known) | {change.path for change in changes}
        for conflict in encoded.conflicts:
            name = next((name for name in types.json_columns(widened) if is_within(conflict.path, name)), None)
            if name is not None and name not in before:
                changes.append(Widened(name, conflict))
        for change in changes:
            row = self._row(encoded, known, change.conflict)
            _log.warning("%s (row %d of a batch). %s", change, row, JSON_NEEDS)
        self.widened += len(changes)
        self._has_told_of_json |= bool(changes)
        return self._accept(encoded, widened)

    def _widened(self, config: str, encoded: Encoded) -> tuple[StructOf, list[Widened]]:
        """Merge a batch into a config's columns, of which some become JSON; return them, and what became JSON.

        Raises:
            Conflict: One must not become JSON.
        """
        known = self._known(config)
        widening = Widening(parquet=self._is_parquet, declared=self._spool.schemas.declared(config))
        columns = encoded.columns
        if not isinstance(columns, StructOf):
            shapeless = StructOf({**known.fields, **dict.fromkeys(encoded.escaped, JSON)})
            columns = widening.infer(decode_rows(encoded.lines), shapeless)
        merged = self._kinds[config] = widening.merge(known, as_json(columns, known))
        return merged, widening.outermost

    def _report_sibling(self, config: str, conflict: Conflict) -> None:
        if config not in self._reported:
            self._reported.add(config)
            why = f", and it can't become JSON. {conflict.why}" if isinstance(conflict, Fixed) else ""
            _log.warning("%s%s. Batches like this go to the config %s.", conflict.message, why, config)

    def _row(self, encoded: Encoded, known: StructOf, conflict: Conflict) -> int:
        """Return the row that conflicts; it is searched for only now."""
        if conflict.row is not None:
            return conflict.row
        return 0 if encoded.is_typed else first_that_conflicts(known, encoded.lines) or 0

    def _error(self, encoded: Encoded, conflict: Conflict) -> SchemaConflict:
        """Return an error that names the row."""
        known = self._kinds.get(self._layout.config, EMPTY)
        row = self._row(encoded, known, conflict)
        known_as, given, why = describe(conflict.known), describe(conflict.given), None
        if isinstance(conflict, OutOfBounds):
            why = _TOO_MANY.format(conflict.reason)
        elif isinstance(conflict, Fixed):
            why = f"{conflict.reason}. {conflict.why}."
        elif isinstance(encoded.columns, Conflict):
            why = _WITHIN.format(given, known_as, _SEPARATE if self._policy.on_conflict == "new config" else _ONE_TYPE)
        return SchemaConflict(row, conflict.path, known_as, given, why)


_BLOCK = 64  # rows between two looks at the size of all columns, each of which takes milliseconds
_LOOKED_AT_ROWS = 100  # of a batch with something new
_READ_AS_TIMES = (
    "field %r holds text that looks like times. Where all text of a file does, load_dataset returns each as "
    "'2026-01-01 00:00:00', whatever its form; the files hold what you put. To get it back as it was, use "
    "format='parquet' or json_columns=[%r], or declare times, such as features={'at': 'timestamp[s]'}."
)
_TOO_MANY = (
    "{}, which a card cannot describe. Store keys that are data as a list of key and value, or set "
    'schema=SchemaPolicy(on_conflict="json").'
)
_WITHIN = "it is {}, and others in the batch are {}: a file with both can't be loaded. {}"
_SEPARATE = "Put them in separate batches, and each goes to a config that can hold it."
_ONE_TYPE = 'Make them one type, or set schema=SchemaPolicy(on_conflict="json").'


def _columns_of(encoded: Encoded) -> StructOf:
    if isinstance(encoded.columns, Conflict):
        raise encoded.columns
    return encoded.columns or EMPTY


def first_that_conflicts(known: StructOf, lines: bytes) -> int | None:
    """Return the index of the first line that conflicts with `known` and the lines before it."""
    rows = decode_rows(lines)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        merged = _merged(known, block)
        if merged is None:
            return start + next(n for n in range(len(block)) if _merged(known, block[: n + 1]) is None)
        known = merged
    return None


def _merged(known: StructOf, rows: Sequence[Mapping[str, Any]]) -> StructOf | None:
    """Return the columns of a config with these rows, too; None if they conflict."""
    try:
        merged = known
        for row in rows:
            merged = types.merge_structs(merged, as_json(types.row_type(row, merged), merged))
    except Conflict:
        return None
    return merged if merged is known or types.is_within_bounds(merged) else None
