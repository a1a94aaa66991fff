"""The schema guard at `put`: follows what the columns of each config hold, and says where a batch may go.

Costs the hot path nothing while rows are as those before: `RowProfiler` finds what is new, and only that is checked.
What two processes bring at the same moment is found out by the committer (`fitting`).
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
from hubsync.schema.profiler import RowProfiler
from hubsync.schema.types import EMPTY, Conflict, OutOfBounds, StructOf, describe
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")


class Admission(NamedTuple):
    """Where a batch goes: what the columns hold with it (None: nobody looks), its layout, or why it is set aside."""

    types: StructOf | None = None
    layout: Layout | None = None
    set_aside: str | None = None


class SchemaGuard:
    """One uploader's. Safe for several threads."""

    def __init__(self, spool: Spool, layout: Layout, policy: SchemaPolicy) -> None:
        self.profiler = RowProfiler()
        self._spool = spool
        self._layout = layout
        self._policy = policy
        self._lock = threading.Lock()
        self._kinds: dict[str, StructOf] = {}  # by config; what was accepted here
        self._stored: dict[str, tuple[str, StructOf]] = {}  # what the catalogue says, as text and read
        self._same = Admission(EMPTY)

    def is_familiar(self, encoded: Encoded) -> bool:
        """Whether `admit` finds nothing new in it, and does not ask the catalogue."""
        return encoded.profiler is self.profiler and not encoded.discoveries

    def admit(self, encoded: Encoded) -> Admission:
        """Where a batch may go.

        Raises:
            SchemaConflict: it may go nowhere, and is refused.
        """
        if encoded.profiler is not self.profiler:
            encoded = profile(encoded, self.profiler)
        if not encoded.discoveries:
            return self._same
        with self._lock:
            try:
                if isinstance(encoded.columns, Conflict):
                    raise encoded.columns
                self._same = Admission(self._with(self._layout.config, encoded.columns or EMPTY))
            except Conflict as conflict:
                return self._conflict(encoded, conflict)
            self.profiler.remember(encoded.discoveries)  # only now: who meets it as nothing new goes by `_same`
            return self._same

    def forget(self) -> None:
        """The dataset holds something else than was known here: from now on all is looked at anew."""
        with self._lock:
            self.profiler, self._kinds, self._same = RowProfiler(), {}, Admission(EMPTY)

    def _with(self, config: str, kind: StructOf) -> StructOf:
        """What the columns of a config hold with these; kept."""
        known = self._kinds.get(config, EMPTY)
        if (stored := self._read(config)) is not None:
            try:
                known = types.merge_structs(known, stored)
            except Conflict:  # another process was faster: what it brought is the dataset's, ours is judged at commit
                known = stored
        self._kinds[config] = known
        known = self._kinds[config] = types.extend(known, kind)
        return known

    def _read(self, config: str) -> StructOf | None:
        """What was accepted by all of the spool's processes, and what the card shows."""
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
        """Names the row, which is looked for only now."""
        known = self._kinds.get(self._layout.config, EMPTY)
        if (row := conflict.row) is None:
            row = first_that_conflicts(known, encoded.lines)
        known_as, given, why = describe(conflict.known), describe(conflict.given), None
        if isinstance(conflict, OutOfBounds):
            why = _TOO_MANY.format(conflict.reason)
        elif isinstance(encoded.columns, Conflict):
            why = _WITHIN.format(given, known_as, _APART if self._policy.on_conflict == "new config" else _ONE_TYPE)
        return SchemaConflict(row or 0, conflict.path, known_as, given, why)


_TOO_MANY = (
    "{}, which no card can say. Make keys that are data a list of key and value, or give the uploader "
    'schema=SchemaPolicy(on_conflict="dead letter") or "new config".'
)
_WITHIN = "it is {}, and others in the batch are {}: a file with both can't be loaded. {}"
_APART = "Put them in batches of their own, and each goes to a config that can hold it."
_ONE_TYPE = 'Make them one type, or give the uploader schema=SchemaPolicy(on_conflict="dead letter").'


def first_that_conflicts(known: StructOf, lines: bytes) -> int | None:
    """The index of the first line at odds with `known` and the lines before it."""
    for index, line in enumerate(lines.splitlines()):
        try:
            known = types.extend(known, types.infer([json.loads(line)]))
        except Conflict:
            return index
    return None
