"""Check the columns of each batch at `put`, and decide where it may go.

It costs nothing while rows look like those before: the profiler finds what is new, and only that is checked. What two
processes accept at the same moment is checked by the committer (`schema_check`).
"""

from __future__ import annotations

import json
import logging
import threading
from typing import NamedTuple

from hubsync.encoding.rows import Encoded, profile
from hubsync.errors import SchemaConflict
from hubsync.model.layout import Layout
from hubsync.policies import SchemaPolicy
from hubsync.schema import types
from hubsync.schema.arrow import has_own_type
from hubsync.schema.profiler import RowProfiler
from hubsync.schema.types import EMPTY, Conflict, OutOfBounds, StructOf, describe
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")


class Admission(NamedTuple):
    """Where a batch goes.

    Attributes:
        types: what the columns hold with it; None if the config is not checked.
        layout: the config it goes to; None for the uploader's own.
        set_aside: why it is quarantined; None if it is not.
    """

    types: StructOf | None = None
    layout: Layout | None = None
    set_aside: str | None = None


class SchemaGuard:
    """The schema guard of one uploader. Safe for several threads."""

    def __init__(self, spool: Spool, layout: Layout, policy: SchemaPolicy) -> None:
        self.profiler = RowProfiler()
        self._spool = spool
        self._layout = layout
        self._policy = policy
        self._lock = threading.Lock()
        self._kinds: dict[str, StructOf] = {}  # what was accepted here, by config
        self._stored: dict[str, tuple[str, StructOf]] = {}  # what the catalogue says, as text and decoded
        self._same = Admission(EMPTY)
        self._last = EMPTY, EMPTY  # types of the config, and those of them that JSON does not have
        if (stored := self._read(layout.config)) is not None:
            self._kinds[layout.config] = stored

    @property
    def typed_columns(self) -> StructOf:
        """The columns of the uploader's config whose types JSON does not have: rows are converted to them."""
        known = self._kinds.get(self._layout.config, EMPTY)
        if known is not self._last[0]:
            typed = {name: kind for name, kind in known.fields.items() if has_own_type(kind)}
            self._last = known, StructOf(typed)
        return self._last[1]

    def admit_familiar(self, encoded: Encoded) -> Admission | None:
        """Return where a batch goes if it contains nothing new; else None."""
        same = self._same
        return same if encoded.profiler is self.profiler and not encoded.discoveries else None

    def admit(self, encoded: Encoded) -> Admission:
        """Return where a batch goes. It may wait for the catalogue, so call it in a thread of hubsync's.

        Raises:
            SchemaConflict: it conflicts with its columns, and the policy is to refuse it.
        """
        while True:
            if encoded.profiler is not self.profiler:
                encoded = profile(encoded, self.profiler)
            if encoded.discoveries:
                break
            if (same := self.admit_familiar(encoded)) is not None:
                return same  # else another thread has made the guard forget what it knew
        with self._lock:
            try:
                if isinstance(encoded.columns, Conflict):
                    raise encoded.columns
                self._same = Admission(self._with(self._layout.config, encoded.columns or EMPTY))
            except Conflict as conflict:
                return self._conflict(encoded, conflict)
            self.profiler.remember(encoded.discoveries)  # only now: from here on, other threads rely on `_same`
            return self._same

    def forget(self) -> None:
        """Check everything again from now on: the dataset holds something that was not known here."""
        with self._lock:
            self.profiler, self._kinds, self._same = RowProfiler(), {}, Admission(EMPTY)

    def _with(self, config: str, kind: StructOf) -> StructOf:
        """Merge types into a config's columns, and return them."""
        known = self._kinds.get(config, EMPTY)
        if (stored := self._read(config)) is not None:
            try:
                known = types.merge_structs(known, stored)
            except Conflict:  # another process was faster: its types are the dataset's; ours are checked at the commit
                known = stored
                self.profiler = RowProfiler()  # rows that fitted before may not fit now
        self._kinds[config] = known
        known = self._kinds[config] = types.extend(known, kind)
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

    def _conflict(self, encoded: Encoded, conflict: Conflict) -> Admission:
        error = self._error(encoded, conflict)
        if self._policy.on_conflict == "dead letter":
            return Admission(set_aside=f"{conflict.message} (line {error.row + 1})")
        if self._policy.on_conflict == "new config" and isinstance(encoded.columns, StructOf):
            for layout in self._layout.siblings():
                try:
                    return Admission(self._with(layout.config, encoded.columns), layout)
                except Conflict:
                    continue
        raise error from None

    def _error(self, encoded: Encoded, conflict: Conflict) -> SchemaConflict:
        """Return an error that names the row; it is searched for only now."""
        known = self._kinds.get(self._layout.config, EMPTY)
        if (row := conflict.row) is None:
            row = 0 if encoded.is_typed else first_that_conflicts(known, encoded.lines)
        known_as, given, why = describe(conflict.known), describe(conflict.given), None
        if isinstance(conflict, OutOfBounds):
            why = _TOO_MANY.format(conflict.reason)
        elif isinstance(encoded.columns, Conflict):
            why = _WITHIN.format(given, known_as, _SEPARATE if self._policy.on_conflict == "new config" else _ONE_TYPE)
        return SchemaConflict(row or 0, conflict.path, known_as, given, why)


_TOO_MANY = (
    "{}, which a card cannot describe. Store keys that are data as a list of key and value, or set "
    'schema=SchemaPolicy(on_conflict="dead letter") or "new config".'
)
_WITHIN = "it is {}, and others in the batch are {}: a file with both can't be loaded. {}"
_SEPARATE = "Put them in separate batches, and each goes to a config that can hold it."
_ONE_TYPE = 'Make them one type, or set schema=SchemaPolicy(on_conflict="dead letter").'


def first_that_conflicts(known: StructOf, lines: bytes) -> int | None:
    """Return the index of the first line that conflicts with `known` and the lines before it."""
    for index, line in enumerate(lines.splitlines()):
        try:
            known = types.extend(known, types.infer([json.loads(line)]))
        except Conflict:
            return index
    return None
