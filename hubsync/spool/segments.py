"""Every SQL statement on segments: queries, and the transitions between their states.

    open --seal--> sealed --stage--> staged --settle--> committed
                     |  compress        |
                     +----quarantine----+--> dead --resubmit--> sealed
                                             dead --discard--> dead, without rows
    committed --expire--> no longer in the catalogue

A segment's bytes become its shard's bytes. `seal` fixes its path; `compress` replaces its file by one in the shard's
format; `plan` and `unplan` tie it to a commit on its way. Transitions run inside the caller's transaction, so that a
file operation and its record succeed or fail together. A transition from a state that this does not show is a bug
of the caller: it fails an assertion or, if an outdated decision may legitimately come too late, changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.errors import LeaseLost
from hubsync.model.layout import Layout
from hubsync.model.shard import Mode, QuarantinedShard
from hubsync.model.stats import SpoolDepth
from hubsync.spool.database import Catalogue
from hubsync.spool.folders import Folders

SegmentState = Literal["open", "sealed", "staged", "committed", "dead"]

_PAGE = 500  # segments read at a time
_COUNTS_LOSSES = 4  # the first version of a catalogue that does

# Combine these with any narrower condition on the state: SQLite then uses the indexes that have them, and does not read
# every segment of a long backlog.
_PENDING = "state IN ('open', 'sealed', 'staged', 'dead')"
_WAITING = "state IN ('open', 'sealed', 'staged')"
# Sealed as JSON Lines or frames, while the shard has another format.
_UNCOMPRESSED = "((substr(file, -6) = '.jsonl' AND substr(path, -6) != '.jsonl') OR substr(file, -7) = '.frames')"
# A discarded shard keeps its number, keys and offsets.
_DISCARDED = "(state = 'dead' AND rows = 0 AND file = '')"
_QUARANTINED = f"{_PENDING} AND state = 'dead' AND NOT {_DISCARDED}"


class Segment(NamedTuple):
    """One segment, as the catalogue knows it. Times are in seconds since the epoch.

    Attributes:
        file: the name of its file; empty once it was discarded.
        template: the path template of its layout.
        bytes, rows, batches: what was accepted into it.
        sealed_at: when it was sealed or, if it is dead, quarantined.
        series, seq: the run of sequence numbers it belongs to, and its number; fixed when it is sealed.
        mode: how the Hub keeps its file; known once it is staged.
        urgent: a flush waits for it.
        plan: the commit on its way that contains it.
        sha: the commit that contains it.
        error: why it is dead, or which of its rows were lost.
        lost: accepted rows that its file no longer holds.
        schema: the types of its columns, as JSON; None if nobody inspected them.
    """

    id: int
    writer: str
    file: str
    config: str
    split: str
    template: str
    state: SegmentState
    bytes: int
    rows: int
    batches: int
    opened_at: float
    sealed_at: float | None
    committed_at: float | None
    series: str | None
    seq: int | None
    path: str | None
    sha256: str | None
    git_oid: str | None
    mode: Mode | None
    urgent: int
    plan: int | None
    sha: str | None
    error: str | None
    lost: int
    schema: str | None

    @property
    def layout(self) -> Layout:
        """Where its rows belong in the dataset."""
        return Layout(self.config, self.split, self.template)


class SegmentSummary(NamedTuple):
    """What a page about a spool shows of a segment. Catalogues of all versions have these columns."""

    id: int
    writer: str
    state: SegmentState
    rows: int
    bytes: int
    opened_at: float
    sealed_at: float | None
    committed_at: float | None
    path: str | None
    sha: str | None
    plan: int | None


class RejectionReason(NamedTuple):
    """The shards that were rejected, or lost rows, for one reason.

    Attributes:
        why: the reason.
        shards: how many.
        rows: their rows that are kept in the dead letter.
        lost: their rows that are lost.
        path: the newest one's path.
        at: when the newest one was sealed or rejected, in seconds since the epoch.
    """

    why: str
    shards: int
    rows: int
    lost: int
    path: str | None
    at: float | None


class Outcome(NamedTuple):
    """What became of a segment: its state, the commit that contains it, why it is dead."""

    state: SegmentState
    sha: str | None
    error: str | None


class StateDepth(NamedTuple):
    """The uncommitted segments of one state. `oldest_at` is when the oldest of their rows came."""

    shards: int = 0
    rows: int = 0
    bytes: int = 0
    oldest_at: float | None = None
    first_id: int | None = None


class RowSource(Protocol):
    """A connection to the catalogue, for reading."""

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """Return all rows of a query."""

    def row(self, sql: str, *values: Any) -> Any:
        """Return the first row of a query, or None."""

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first value of the first row of a query, or None."""


_SCHEMA = "coalesce(schema, (SELECT text FROM schema_texts WHERE id = schema_id))"  # version 2 wrote `schema`
_COLUMNS = ", ".join(_SCHEMA if name == "schema" else name for name in Segment._fields)
_SUMMARY = ", ".join(SegmentSummary._fields)


class SegmentQueries:
    """Read-only queries on the segments of one catalogue."""

    def __init__(self, db: RowSource) -> None:
        self._db = db

    # One segment.

    def get(self, segment: int) -> Segment:
        """Return a segment that exists.

        Raises:
            LeaseLost: it has expired, so this process had stalled for long.
        """
        row = self._db.row(f"SELECT {_COLUMNS} FROM segments WHERE id = ?", segment)
        if row is None:
            assert self._is_expired(segment), segment
            raise LeaseLost(f"segment {segment} was committed by another process, while this one made no progress.")
        return Segment(*row)

    def find(self, segment: int) -> Segment | None:
        """Return a segment; None if the catalogue has no such segment."""
        row = self._db.row(f"SELECT {_COLUMNS} FROM segments WHERE id = ?", segment)
        return None if row is None else Segment(*row)

    def state(self, segment: int) -> SegmentState | None:
        """Return a segment's state; None if the catalogue has no such segment."""
        state: SegmentState | None = self._db.value("SELECT state FROM segments WHERE id = ?", segment)
        return state

    def state_of_file(self, segment: int, file: str) -> SegmentState | None:
        """Return the state of the segment with this id and file; None if there is no such segment.

        The id of a transaction that was rolled back is given to another segment.
        """
        sql = "SELECT state FROM segments WHERE id = ? AND file = ?"
        state: SegmentState | None = self._db.value(sql, segment, file)
        return state

    def outcome(self, segment: int) -> Outcome | None:
        """Return what became of a segment; None if it never existed. Of one that has expired, the commit is unknown."""
        row = self._db.row("SELECT state, sha, error FROM segments WHERE id = ?", segment)
        if row is not None:
            return Outcome(*row)
        return Outcome("committed", None, None) if self._is_expired(segment) else None

    def refused(self, segment: int) -> QuarantinedShard | None:
        """Return a segment that ended without all of its rows in the dataset; None for any other one."""
        found = self._quarantined("id = ? AND (state = 'dead' OR (state = 'committed' AND lost > 0))", segment)
        return found[0] if found else None

    def _is_expired(self, segment: int) -> bool:
        """Return whether a segment that the catalogue does not contain was committed long ago."""
        return 0 < segment <= self.newest()

    def pending_file(self, segment: int) -> str | None:
        """Return the file of a segment that is not committed yet; None if it is, or was discarded."""
        file: str | None = self._db.value(f"SELECT file FROM segments WHERE {_PENDING} AND id = ?", segment)
        return file or None

    def unsettled_paths(self) -> set[str]:
        """Return the paths of all segments that are not committed, the dead ones included."""
        return {row[0] for row in self._db.rows(f"SELECT path FROM segments WHERE {_PENDING} AND path IS NOT NULL")}

    def is_path_taken(self, path: str) -> bool:
        """Return whether a segment has this path in the dataset."""
        return self._db.row("SELECT 1 FROM segments WHERE path = ?", path) is not None

    def _is_of_other_series(self, path: str, series: str) -> bool:
        """Return whether a segment of another series had this path. It may have expired."""
        others = self._db.rows(
            "SELECT name, next FROM series WHERE name != ? AND instr(?, substr(name, 1, instr(name, '*') - 1)) = 1",
            series, path,
        )  # fmt: skip
        return any(number < following for name, following in others for number in _numbers(name, path))

    def expired_numbers(self) -> dict[str, int]:
        """Return the series of segments that may have expired, each with the number after the highest one it gave."""
        if self._db.row("SELECT 1 FROM committed_layouts LIMIT 1") is None:
            return {}
        return {row[0]: row[1] for row in self._db.rows("SELECT name, next FROM series")}

    # Many segments.

    def newest(self) -> int:
        """Return the id of the newest segment there ever was; 0 if there was no segment."""
        return int(self._db.value("SELECT seq FROM sqlite_sequence WHERE name = 'segments'") or 0)

    def open_of(self, writer: str) -> list[int]:
        """Return a writer's open segments."""
        sql = f"SELECT id FROM segments WHERE {_PENDING} AND state = 'open' AND writer = ?"
        return [row[0] for row in self._db.rows(sql, writer)]

    def to_stage(self, limit: int) -> list[Segment]:
        """Return the oldest sealed segments that need no compression."""
        return self._where(f"state = 'sealed' AND NOT {_UNCOMPRESSED} ORDER BY id LIMIT ?", limit)

    def to_compress(self, limit: int = 1) -> list[Segment]:
        """Return the oldest sealed segments that must be compressed."""
        return self._where(f"state = 'sealed' AND {_UNCOMPRESSED} ORDER BY id LIMIT ?", limit)

    def staged_inline(self) -> list[Segment]:
        """Return the staged segments whose bytes travel inside the commit."""
        return self._where(f"{_PENDING} AND state = 'staged' AND mode = 'regular'")

    def uploadable(self) -> list[Segment]:
        """Return all sealed and staged segments that need no compression."""
        return self._where(f"{_PENDING} AND state IN ('sealed', 'staged') AND NOT {_UNCOMPRESSED}")

    def waiting(self) -> list[Segment]:
        """Return the segments that are not on the Hub yet, without the dead ones, oldest first."""
        return self._where(f"{_PENDING} AND {_WAITING} ORDER BY id")

    def ready(self) -> Iterator[Segment]:
        """Yield the staged segments that no plan contains, oldest first."""
        after, mine = 0, f"{_PENDING} AND state = 'staged' AND plan IS NULL"
        while page := self._where(f"{mine} AND id > ? ORDER BY id LIMIT {_PAGE}", after):
            yield from page
            after = page[-1].id

    def first_unready_offset(self, source: str) -> int | None:
        """Return the lowest offset of a source in a segment that waits and can't be committed now; None without one."""
        return self._first_offset(source, "AND NOT (s.state = 'staged' AND s.plan IS NULL)")

    def first_offset_besides(self, source: str, segments: Collection[int]) -> int | None:
        """Return the lowest offset of a source whose segment waits and is not one of `segments`."""
        return self._first_offset(source, f"AND s.id NOT IN ({', '.join(map(str, segments))})")

    def _first_offset(self, source: str, condition: str) -> int | None:
        # A cross join keeps this order of the tables: along the offsets, up to the first that qualifies.
        offset: int | None = self._db.value(
            "SELECT o.offset FROM segment_offsets o CROSS JOIN segments s ON s.id = o.segment "
            f"WHERE o.source = ? AND s.{_WAITING} {condition} ORDER BY o.offset LIMIT 1",
            source,
        )
        return offset

    def planned(self, plan: int) -> list[int]:
        """Return the segments of a plan."""
        return [row[0] for row in self._db.rows("SELECT id FROM segments WHERE plan = ? ORDER BY id", plan)]

    def with_path(self) -> Iterator[Segment]:
        """Yield every segment that was sealed and has not expired, oldest first."""
        after = 0
        while page := self._where(f"path IS NOT NULL AND id > ? ORDER BY id LIMIT {_PAGE}", after):
            yield from page
            after = page[-1].id

    def next_up(self, limit: int) -> list[SegmentSummary]:
        """Return the first segments of those that are not on the Hub yet, without the dead ones, oldest first."""
        first = [
            segment
            for state in ("open", "sealed", "staged")
            for segment in self._summaries(f"{_PENDING} AND state = ? ORDER BY id LIMIT ?", state, limit)
        ]
        return sorted(first)[:limit]

    def latest(self, limit: int, *, before: int | None = None) -> list[SegmentSummary]:
        """Return the newest segments, newest first; with `before`, of those older than that segment."""
        if before is None:
            return self._summaries("1 ORDER BY id DESC LIMIT ?", limit)
        return self._summaries("id < ? ORDER BY id DESC LIMIT ?", before, limit)

    def newest_committed_paths(self) -> list[tuple[Layout, str]]:
        """Return the path of the newest committed shard of each layout; of shards in parts, separately."""
        rows = self._db.rows(
            "SELECT config, split, template, path, 0 FROM committed_layouts UNION ALL "
            "SELECT config, split, template, path, max(id) FROM segments WHERE state = 'committed' "
            "GROUP BY config, split, template, length(replace(path, '/', '')) - length(path), path GLOB 'part-*'"
        )
        found = {}
        for config, split, template, path, _ in rows:
            layout = Layout(config, split, template)
            found[layout, layout.glob_of(path)] = path  # of an expired one only if there is no newer one
        return [(layout, path) for (layout, _), path in found.items()]

    def committed_schemas(self) -> list[tuple[str, str]]:
        """Return the distinct pairs of config and schema of the committed segments that have not expired."""
        sql = f"SELECT DISTINCT config, {_SCHEMA} AS text FROM segments WHERE state = 'committed' AND text IS NOT NULL"
        return [(config, schema) for config, schema in self._db.rows(sql)]

    def configs(self) -> list[str]:
        """Return the configs of all segments."""
        return [row[0] for row in self._db.rows("SELECT DISTINCT config FROM segments")]

    def dead(self) -> list[Segment]:
        """Return the dead segments, without the discarded ones."""
        return self._where(_QUARANTINED)

    def quarantined(self, limit: int = -1, *, newest_first: bool = False) -> list[QuarantinedShard]:
        """Return the dead shards and those that lost rows, without the discarded ones."""
        order = "DESC" if newest_first else "ASC"
        return self._quarantined(f"({_QUARANTINED}) OR lost > 0 ORDER BY id {order} LIMIT ?", limit)

    def _quarantined(self, condition: str, *values: Any) -> list[QuarantinedShard]:
        kept = "iif(state = 'dead', rows, 0), iif(state = 'dead', bytes, 0)"
        sql = f"SELECT id, path, {kept}, sealed_at, coalesce(error, ''), lost FROM segments WHERE {condition}"
        return [QuarantinedShard(*row) for row in self._db.rows(sql, *values)]

    def lost_rows(self) -> int:
        """Return how many accepted rows are lost, without those that were discarded."""
        if not self._counts_losses:
            return 0
        return int(self._db.value("SELECT coalesce(sum(lost), 0) FROM segments WHERE lost > 0"))

    @property
    def _counts_losses(self) -> bool:
        return int(self._db.value("PRAGMA user_version")) >= _COUNTS_LOSSES

    def rejection_reasons(self, limit: int) -> list[RejectionReason]:
        """Return why shards are dead or lost rows, the reason with the most shards first, without the discarded ones.

        Two errors of the Hub that differ only in the request's id are the same reason.
        """
        # SQLite takes the other columns from the row that has the maximum: the newest shard's.
        lost, or_lost = ("lost", "OR lost > 0") if self._counts_losses else ("0", "")
        figures = f"count(*) AS shards, sum(iif(state = 'dead', rows, 0)), sum({lost})"
        sql = (
            f"SELECT coalesce(error, ''), {figures}, path, sealed_at, max(id) FROM segments "
            f"WHERE ({_QUARANTINED}) {or_lost} GROUP BY substr(error, 1, instr(error || ' (request ', ' (request ')) "
            "ORDER BY shards DESC LIMIT ?"
        )
        return [RejectionReason(*row[:6]) for row in self._db.rows(sql, limit)]

    def to_expire(self, *, keep: int, before: float, limit: int) -> list[Segment]:
        """Return the segments that were committed first.

        Args:
            keep: how many of the newest to leave out.
            before: leave out what was committed since then, in seconds since the epoch.
            limit: the most to return.
        """
        spare = int(self._db.value("SELECT shards FROM totals WHERE state = 'committed'")) - keep
        if spare <= 0:
            return []
        first = "state = 'committed' AND lost = 0 AND committed_at < ? ORDER BY committed_at LIMIT ?"
        return self._where(first, before, min(spare, limit))

    # Whether someone waits, and how much.

    def has_urgent(self) -> bool:
        """Return whether a flush waits for any segment."""
        return self._db.row(f"SELECT 1 FROM segments WHERE urgent AND {_WAITING} LIMIT 1") is not None

    def has_urgent_staged(self) -> bool:
        """Return whether a flush waits for a staged segment."""
        sql = f"SELECT 1 FROM segments WHERE urgent AND {_WAITING} AND state = 'staged' LIMIT 1"
        return self._db.row(sql) is not None

    def depths(self) -> dict[str, StateDepth]:
        """Return how much each state holds, for those that hold anything. Committed and discarded ones do not count."""
        if self._db.value("SELECT 1 FROM sqlite_master WHERE name = 'totals'") is None:
            return self._counted_depths()
        oldest = f"{_WAITING} AND state = ? AND rows > 0 ORDER BY opened_at LIMIT 1"
        found = {}
        for state, shards, rows, size in self._db.rows("SELECT state, shards, rows, bytes FROM totals WHERE shards"):
            if state != "committed":
                oldest_at = self._db.value(f"SELECT opened_at FROM segments WHERE {oldest}", state)
                first_id = self._db.value(f"SELECT min(id) FROM segments WHERE {_PENDING} AND state = ?", state)
                found[state] = StateDepth(shards, rows, size, oldest_at, first_id)
        return found

    def _counted_depths(self) -> dict[str, StateDepth]:
        """Return the same for a catalogue of an older version."""
        rows = self._db.rows(
            "SELECT state, count(*), sum(rows), sum(bytes), min(CASE WHEN rows > 0 THEN opened_at END), min(id) "
            f"FROM segments WHERE {_PENDING} AND NOT {_DISCARDED} GROUP BY state"
        )
        return {state: StateDepth(*values) for state, *values in rows}

    def held_bytes(self) -> int:
        """Return the bytes of all segments that are not committed, with the dead letter."""
        return int(self._db.value("SELECT sum(bytes) FROM totals WHERE state != 'committed'"))

    def _where(self, condition: str, *values: Any) -> list[Segment]:
        return [Segment(*row) for row in self._db.rows(f"SELECT {_COLUMNS} FROM segments WHERE {condition}", *values)]

    def _summaries(self, condition: str, *values: Any) -> list[SegmentSummary]:
        rows = self._db.rows(f"SELECT {_SUMMARY} FROM segments WHERE {condition}", *values)
        return [SegmentSummary(*row) for row in rows]


class Segments(SegmentQueries):
    """The segments of one spool. Transitions must run inside a transaction of the catalogue.

    Attributes:
        on_refused: called, once a transition is committed here, with a segment that ended without all of its rows in
            the dataset: someone may wait for it. From any thread.
    """

    def __init__(self, catalogue: Catalogue, clock: Clock) -> None:
        self.on_refused: Callable[[QuarantinedShard], object] = lambda shard: None
        super().__init__(catalogue)
        self._catalogue = catalogue
        self._clock = clock
        self.folders = Folders(catalogue)

    # A writer's transitions.

    def open(self, writer: str, layout: Layout, opened_at: float, suffix: str = ".jsonl") -> tuple[int, str]:
        """Open a segment; return its id and the name of its file."""
        segment = self._run(
            "INSERT INTO segments (writer, file, config, split, template, opened_at) VALUES (?, '', ?, ?, ?, ?)",
            writer, layout.config, layout.split, layout.template, opened_at,
        )  # fmt: skip
        file = f"{writer}-{segment:08d}{suffix}"
        self._run("UPDATE segments SET file = ? WHERE id = ?", file, segment)
        return segment, file

    def append(self, segment: int, *, size: int, rows: int, batches: int) -> None:
        """Record what an open segment's file holds now."""
        sql = "UPDATE segments SET bytes = ?, rows = ?, batches = ? WHERE id = ? AND state = 'open'"
        self._change(sql, size, rows, batches, segment)

    def set_schema(self, segment: int, schema: str) -> None:
        """Record the types of an uncommitted segment's columns, as JSON."""
        before = self._db.value("SELECT schema_id FROM segments WHERE id = ?", segment)
        sql = f"UPDATE segments SET schema = NULL, schema_id = ? WHERE id = ? AND {_WAITING}"
        self._run(sql, self._schema_id(schema), segment)
        self._forget_schemas([before])

    def _schema_id(self, schema: str) -> int:
        digest = hashlib.blake2b(schema.encode(), digest_size=16).digest()
        known: int | None = self._db.value("SELECT id FROM schema_texts WHERE digest = ?", digest)
        if known is not None:
            return known
        return self._run("INSERT INTO schema_texts (digest, text) VALUES (?, ?)", digest, schema)

    def _forget_schemas(self, ids: Iterable[int | None]) -> None:
        """Delete those of these schemas that no segment has any more."""
        for schema in {schema for schema in ids if schema is not None}:
            self._run(
                "DELETE FROM schema_texts WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM segments WHERE schema_id = ?1)",
                schema,
            )

    def truncate(self, segment: int, *, size: int, rows: int, why: str) -> None:
        """Record that a sealed segment's file holds only these of its rows. Without rows, it is dead."""
        self._change(
            "UPDATE segments SET bytes = ?1, rows = ?2, lost = lost + rows - ?2, error = ?3, sha256 = NULL, "
            "git_oid = NULL WHERE id = ?4 AND state = 'sealed'",
            size, rows, why, segment,
        )  # fmt: skip
        if not rows:
            self._bury(segment, why)

    def seal(self, segment: int, sha256: str | None = None) -> None:
        """Fix a segment's number and path. Without rows it becomes dead: a power cut took them all.

        Args:
            segment: an open segment, or a dead one without a number.
            sha256: of its content, if its writer knows it.
        """
        row = self.get(segment)
        assert row.state == "open" or (row.state == "dead" and row.seq is None), row
        series = row.layout.series(row.writer)
        self._assign_path(segment, row.layout, row.writer, series, self._next(series))
        self._run("UPDATE segments SET sha256 = ? WHERE id = ?", sha256, segment)
        if not row.rows:
            self._bury(segment, row.error or "it holds no rows")
        failpoint(Failpoint.SEAL_BEGUN)

    def mark_urgent(self, writer: str | None) -> list[int]:
        """Mark the sealed and staged segments of one writer, or of all, as urgent; return them."""
        whose, who = ("", ()) if writer is None else ("AND writer = ?", (writer,))
        condition = f"{_PENDING} AND state IN ('sealed', 'staged') {whose}"
        self._run(f"UPDATE segments SET urgent = 1 WHERE {condition} AND NOT urgent", *who)
        return [row[0] for row in self._db.rows(f"SELECT id FROM segments WHERE {condition}", *who)]

    # The committer's transitions.

    def set_hashes(self, segment: int, sha256: str, git_oid: str) -> None:
        """Record the hashes of a sealed or staged segment's file, unless those of another file are recorded.

        Files are hashed outside transactions, and a committer that stalled meanwhile may have lost its lease.
        """
        self._catalogue.run(
            "UPDATE segments SET sha256 = ?1, git_oid = ?2 WHERE id = ?3 AND state IN ('sealed', 'staged') "
            "AND coalesce(sha256, ?1) = ?1",
            sha256, git_oid, segment,
        )  # fmt: skip

    def forget_hashes(self, segment: int) -> None:
        """Forget the hashes of a segment that was quarantined because its file changed."""
        self._change("UPDATE segments SET sha256 = NULL, git_oid = NULL WHERE id = ? AND state = 'dead'", segment)

    def compress(self, segment: int, *, file: str, size: int, sha256: str, git_oid: str | None) -> None:
        """Replace a sealed segment's file by a compressed one."""
        self._change(
            "UPDATE segments SET file = ?, bytes = ?, sha256 = ?, git_oid = ? WHERE id = ? AND state = 'sealed'",
            file, size, sha256, git_oid, segment,
        )  # fmt: skip

    def stage(self, modes: Mapping[int, Mode]) -> None:
        """Record that the shards' bytes are on the Hub, and how it keeps them."""
        for segment, mode in modes.items():
            sql = "UPDATE segments SET state = 'staged', mode = ? WHERE id = ? AND state = 'sealed'"
            self._run(sql, mode, segment)

    def unstage(self, segments: Iterable[int]) -> None:
        """Return staged segments to sealed: the Hub lost their blobs, or a disk their bytes."""
        for segment in segments:
            sql = "UPDATE segments SET state = 'sealed', mode = NULL WHERE id = ? AND state = 'staged'"
            self._run(sql, segment)

    def renumber(self, segment: int, at_least: int) -> None:
        """Give a sealed or staged segment the next free number, at least `at_least`; it is staged again."""
        row = self.get(segment)
        assert row.state in ("sealed", "staged"), row
        assert row.series is not None
        self._assign_path(segment, row.layout, row.writer, row.series, max(at_least, self._next(row.series)))

    def move(self, segment: int, layout: Layout, schema: str | None) -> None:
        """Move a sealed or staged segment to another config, under a new number; it is staged again."""
        row = self.get(segment)
        assert row.state in ("sealed", "staged"), row
        series = layout.series(row.writer)
        self._run("UPDATE segments SET config = ?, template = ? WHERE id = ?", layout.config, layout.template, segment)
        if schema is not None:
            self.set_schema(segment, schema)
        self._assign_path(segment, layout, row.writer, series, self._next(series))

    def relocate(self, segment: int) -> None:
        """Move a sealed or staged segment to the folder's newest part, under its number; it is staged again."""
        row = self.get(segment)
        assert row.state in ("sealed", "staged"), row
        assert row.series is not None
        assert row.seq is not None
        self._assign_path(segment, row.layout, row.writer, row.series, row.seq)

    def plan(self, plan: int, segments: Iterable[int]) -> None:
        """Tie segments to a commit on its way."""
        for segment in segments:
            sql = "UPDATE segments SET plan = ? WHERE id = ? AND state IN ('sealed', 'staged')"
            self._run(sql, plan, segment)

    def unplan(self, plan: int) -> None:
        """Release the segments of a commit that did not land."""
        self._run("UPDATE segments SET plan = NULL WHERE plan = ?", plan)

    def settle(self, landed: Mapping[int, str]) -> None:
        """Record which commit contains each segment, staged or, if it was found in the dataset, sealed."""
        now = self._clock.time()
        for segment, sha in landed.items():
            self._change(
                "UPDATE segments SET state = 'committed', sha = ?, committed_at = ?, plan = NULL "
                "WHERE id = ? AND state IN ('sealed', 'staged')",
                sha, now, segment,
            )  # fmt: skip
            if (shard := self.refused(segment)) is not None:
                self._catalogue.after_commit(partial(self.on_refused, shard))

    # Quarantine.

    def quarantine(self, segment: int, why: str) -> None:
        """Record that a sealed or staged segment is dead, and why. Its file must be in the quarantine by now."""
        self._bury(segment, why)

    def _bury(self, segment: int, why: str) -> None:
        """Make a segment dead, and notify its waiters once that is committed. Nothing else makes a segment dead."""
        self._change(
            "UPDATE segments SET state = 'dead', error = ?, plan = NULL, sealed_at = ? "
            "WHERE id = ? AND state IN ('sealed', 'staged')",
            why, self._clock.time(), segment,
        )  # fmt: skip
        shard = self.refused(segment)
        assert shard is not None
        self._catalogue.after_commit(partial(self.on_refused, shard))

    def resubmit(
        self, segment: Segment, *, file: str, size: int, rows: int, sha256: str, is_edited: bool, writer: str
    ) -> None:
        """Make a dead segment sealed again, with these rows, under its own number.

        Args:
            segment: a dead segment.
            file: the name of the file that holds its rows now.
            size: bytes of that file.
            rows: rows in that file.
            sha256: the hash of that file.
            is_edited: an operator changed the rows, so their schema and age are new.
            writer: whose watermark counts the rows, if a rebuild did not find the segment's own.
        """
        now = self._clock.time()
        self._change(
            "UPDATE segments SET file = ?, rows = ?, bytes = ?, sha256 = ?, git_oid = NULL, mode = NULL, "
            "error = NULL, opened_at = ? WHERE id = ? AND state = 'dead'",
            file, rows, size, sha256, now if is_edited else segment.opened_at, segment.id,
        )  # fmt: skip
        if is_edited:  # what the operator gives replaces what was lost, too
            self._run("UPDATE segments SET lost = 0 WHERE id = ?", segment.id)
            schema = self._db.value("SELECT schema_id FROM segments WHERE id = ?", segment.id)
            self._run("UPDATE segments SET schema = NULL, schema_id = NULL WHERE id = ?", segment.id)
            self._forget_schemas([schema])
        if segment.seq is not None:
            self._run("UPDATE segments SET state = 'sealed', sealed_at = ? WHERE id = ?", now, segment.id)
        else:
            self._run("UPDATE segments SET writer = ? WHERE id = ?", writer, segment.id)
            self.seal(segment.id, sha256)

    def discard(self, segment: int, why: str) -> None:
        """Record that a dead segment's rows were thrown away. Its number, keys and offsets stay known."""
        sql = "UPDATE segments SET rows = 0, bytes = 0, lost = 0, file = '', error = ? WHERE id = ? AND state = 'dead'"
        self._change(sql, why, segment)

    def forget_loss(self, segment: int) -> None:
        """Record that an operator knows which rows of a segment are lost."""
        self._change("UPDATE segments SET lost = 0 WHERE id = ? AND lost > 0", segment)

    # Segments that were committed long ago.

    def expire(self, segments: Iterable[Segment]) -> None:
        """Delete the records of committed segments. What a card needs of them is kept, by layout."""
        schemas = set()
        for segment in segments:
            assert segment.state == "committed", segment
            assert segment.path is not None
            self._run(
                "INSERT OR REPLACE INTO committed_layouts VALUES (?, ?, ?, ?, ?)",
                segment.config, segment.split, segment.template, segment.layout.glob_of(segment.path), segment.path,
            )  # fmt: skip
            schemas.add(self._db.value("SELECT schema_id FROM segments WHERE id = ?", segment.id))
            self._run("DELETE FROM segments WHERE id = ?", segment.id)
        self._forget_schemas(schemas)

    def recount(self) -> None:
        """Count again how much each state holds, in case a damaged catalogue says something else."""
        self._run(
            "UPDATE totals SET (shards, rows, bytes) = "
            "(SELECT count(*), coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM segments "
            f"WHERE {_PENDING} AND state = totals.state AND NOT {_DISCARDED}) WHERE state != 'committed'"
        )

    # Rebuilding a catalogue.

    def insert(self, **columns: object) -> None:
        """Enter a segment that a rebuild found, by its columns."""
        assert columns.keys() <= set(Segment._fields)
        if (schema := columns.pop("schema", None)) is not None:
            columns["schema_id"] = self._schema_id(str(schema))
        names = ", ".join(columns)
        self._run(f"INSERT INTO segments ({names}) VALUES ({', '.join('?' * len(columns))})", *columns.values())

    # Sequence numbers.

    def raise_next(self, series: str, following: int) -> None:
        """Make the next number of a series at least `following`."""
        self._run(
            "INSERT INTO series VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET next = max(next, excluded.next)",
            series, following,
        )  # fmt: skip

    def _next(self, series: str) -> int:
        return int(self._db.value("SELECT next FROM series WHERE name = ?", series) or 0)

    def _assign_path(self, segment: int, layout: Layout, writer: str, series: str, seq: int) -> None:
        """Give a segment the first free number from `seq`, and seal it under that path."""
        part = self.folders.take(layout)
        # Two templates may meet in one path: "...1{seq}" and "...{seq}".
        # They may have expired, and then the name of their series tells, which is without the part.
        while self.is_path_taken(path := layout.path(writer, seq, part)) or self._is_of_other_series(
            layout.path(writer, seq), series
        ):
            seq += 1
        self.raise_next(series, seq + 1)
        self._run(
            "UPDATE segments SET state = 'sealed', sealed_at = ?, series = ?, seq = ?, path = ?, plan = NULL "
            "WHERE id = ?",
            self._clock.time(), series, seq, path, segment,
        )  # fmt: skip

    def _run(self, sql: str, *values: Any) -> int:
        assert self._catalogue.in_transaction
        return self._catalogue.run(sql, *values)

    def _change(self, sql: str, *values: Any) -> None:
        """Update one segment; that it is in none of the states that `sql` names is a bug of the caller."""
        assert self._catalogue.in_transaction
        changed = self._catalogue.update(sql, *values)
        assert changed == 1, values


def _numbers(series: str, path: str) -> list[int]:
    """Return the number that a path has in a series, if it is one of its paths."""
    before, _, after = series.partition("*")
    number = path[len(before) : len(path) - len(after)]
    return [int(number)] if path.startswith(before) and path.endswith(after) and number.isdecimal() else []


def depth_of(depths: Mapping[str, StateDepth], committed: Mapping[str, int], lost_rows: int) -> SpoolDepth:
    """Return the depth of a spool from its segments and what it ever committed."""
    waiting = [depths[state] for state in ("open", "sealed", "staged") if state in depths]
    counts: dict[str, int] = {state: depth.shards for state, depth in depths.items()}
    return SpoolDepth(
        rows=sum(depth.rows for depth in waiting),
        bytes=sum(depth.bytes for depth in waiting),
        open=counts.get("open", 0),
        sealed=counts.get("sealed", 0),
        staged=counts.get("staged", 0),
        dead=counts.get("dead", 0),
        oldest_at=min((depth.oldest_at for depth in waiting if depth.oldest_at is not None), default=None),
        committed_rows=committed["rows"],
        committed_bytes=committed["bytes"],
        committed_shards=committed["shards"],
        dead_rows=depths["dead"].rows if "dead" in depths else 0,
        lost_rows=lost_rows,
    )
