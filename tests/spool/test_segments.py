"""The transitions between the states of a segment, one by one, and the queries on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from sqlite3 import IntegrityError
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubsync.errors import LeaseLost
from hubsync.model.layout import PART_FILES, Layout
from hubsync.model.shard import QuarantinedShard
from hubsync.spool import segments as segments_module
from hubsync.spool.database import Catalogue
from hubsync.spool.offsets import Offsets
from hubsync.spool.segments import Outcome, Segment, Segments, SegmentState, depth_of
from hubsync.testing import ManualClock

LAYOUT = Layout(template="data/{split}-{writer}-{seq:05d}.jsonl.gz", config="default")
STATES: tuple[SegmentState, ...] = ("open", "sealed", "staged", "committed", "dead")
BEFORE, NOW = 1_000_000_000.0, 1_000_000_060.0  # when a test makes its segment, and when it changes it


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(BEFORE)


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    yield catalogue
    catalogue.close()


@pytest.fixture
def segments(catalogue: Catalogue, clock: ManualClock) -> Segments:
    return Segments(catalogue, clock)


@pytest.fixture
def make(catalogue: Catalogue, segments: Segments, clock: ManualClock) -> Callable[..., int]:
    """Make a segment of three rows in a state, through the transitions that lead there."""

    def make(state: SegmentState, *, writer: str = "w", layout: Layout = LAYOUT, rows: int = 3) -> int:
        with catalogue.transaction():
            segment, _ = segments.open(writer, layout, clock.time())
            segments.append(segment, size=9 * rows, rows=rows, batches=1)
            segments.set_schema(segment, '{"type":"old"}')
            if state != "open":
                segments.seal(segment, "sha256 of the lines")
                segments.set_hashes(segment, "sha256 of the lines", "oid of the lines")
            if state in ("staged", "committed"):
                segments.stage({segment: "regular"})
            if state == "committed":
                segments.settle({segment: "first commit"})
            if state == "dead":
                segments.quarantine(segment, "rejected")
        assert segments.state(segment) == state
        return segment

    return make


def changes(before: Segment, after: Segment) -> dict[str, Any]:
    return {
        name: new
        for name, old, new in zip(Segment._fields, before, after, strict=True)
        if (type(old), old) != (type(new), new)
    }


def resubmit(segments: Segments, segment: int, *, is_edited: bool = False) -> None:
    segments.resubmit(
        segments.get(segment), file="w-1-00000001.jsonl", size=18, rows=2, sha256="new sha256", is_edited=is_edited,
        writer="w",
    )  # fmt: skip


def relocate(segments: Segments, segment: int) -> None:
    segments.folders.found(LAYOUT, "data/train-w-00000.jsonl.gz", PART_FILES)
    segments.relocate(segment)


def in_each(states: tuple[SegmentState, ...], changed: dict[str, Any]) -> dict[SegmentState, dict[str, Any]]:
    return dict.fromkeys(states, changed)


# The transitions: how to make each, and what it changes in the states in which it is allowed.

SEALED_AGAIN = {"seq": 7, "path": "data/train-w-00007.jsonl.gz", "sealed_at": NOW}
MOVED: dict[str, Any] = {
    "config": "other", "template": "{config}/{split}-{seq}.jsonl", "schema": '{"type":"new"}',
    "series": "other/train-*.jsonl", "path": "other/train-0.jsonl", "sealed_at": NOW,
}  # fmt: skip
RELOCATED = {"path": "data/part-0001/train-w-00000.jsonl.gz", "sealed_at": NOW}
SETTLED = {"state": "committed", "sha": "commit", "committed_at": NOW}
QUARANTINED = {"state": "dead", "error": "a defect", "sealed_at": NOW}
RESUBMITTED = {
    "state": "sealed", "file": "w-1-00000001.jsonl", "bytes": 18, "rows": 2, "sha256": "new sha256", "git_oid": None,
    "error": None, "sealed_at": NOW,
}  # fmt: skip

TRANSITIONS: dict[str, tuple[Callable[[Segments, int], object], dict[SegmentState, dict[str, Any]]]] = {
    "append": (
        lambda segments, n: segments.append(n, size=40, rows=4, batches=2),
        {"open": {"bytes": 40, "rows": 4, "batches": 2}},
    ),
    "set_schema": (
        lambda segments, n: segments.set_schema(n, '{"type":"new"}'),
        in_each(("open", "sealed", "staged"), {"schema": '{"type":"new"}'}),
    ),
    "truncate": (
        lambda segments, n: segments.truncate(n, size=9, rows=1, why="power cut"),
        {"sealed": {"bytes": 9, "rows": 1, "lost": 2, "error": "power cut", "sha256": None, "git_oid": None}},
    ),
    "truncate, to nothing": (
        lambda segments, n: segments.truncate(n, size=0, rows=0, why="power cut"),
        {
            "sealed": {
                "bytes": 0, "rows": 0, "lost": 3, "error": "power cut", "sha256": None, "git_oid": None,
                "state": "dead", "sealed_at": NOW,
            },
        },
    ),
    "seal": (
        lambda segments, n: segments.seal(n, "sha256 at last"),
        {
            "open": {
                "state": "sealed", "series": "data/train-w-*.jsonl.gz", "seq": 0, "sha256": "sha256 at last",
                "path": "data/train-w-00000.jsonl.gz", "sealed_at": NOW,
            },
        },
    ),
    "mark_urgent": (
        lambda segments, n: segments.mark_urgent(None),
        in_each(("sealed", "staged"), {"urgent": 1}),
    ),
    "set_hashes": (
        lambda segments, n: segments.set_hashes(n, "sha256 of the lines", "new oid"),
        in_each(("sealed", "staged"), {"git_oid": "new oid"}),
    ),
    "forget_hashes": (lambda segments, n: segments.forget_hashes(n), {"dead": {"sha256": None, "git_oid": None}}),
    "compress": (
        lambda segments, n: segments.compress(n, file="w.1.jsonl.gz", size=20, sha256="new sha256", git_oid=None),
        {"sealed": {"file": "w.1.jsonl.gz", "bytes": 20, "sha256": "new sha256", "git_oid": None}},
    ),
    "stage": (
        lambda segments, n: segments.stage({n: "lfs"}),
        {"sealed": {"state": "staged", "mode": "lfs"}},
    ),
    "unstage": (
        lambda segments, n: segments.unstage([n]),
        {"staged": {"state": "sealed", "mode": None}},
    ),
    "renumber": (
        lambda segments, n: segments.renumber(n, 7),
        {"sealed": SEALED_AGAIN, "staged": {**SEALED_AGAIN, "state": "sealed"}},
    ),
    "relocate": (
        relocate,
        {"sealed": RELOCATED, "staged": {**RELOCATED, "state": "sealed"}},
    ),
    "move": (
        lambda segments, n: segments.move(n, Layout("other", "train", MOVED["template"]), MOVED["schema"]),
        {"sealed": MOVED, "staged": {**MOVED, "state": "sealed"}},
    ),
    "plan": (
        lambda segments, n: segments.plan(5, [n]),
        in_each(("sealed", "staged"), {"plan": 5}),
    ),
    "settle": (
        lambda segments, n: segments.settle({n: "commit"}),
        in_each(("sealed", "staged"), SETTLED),
    ),
    "quarantine": (
        lambda segments, n: segments.quarantine(n, "a defect"),
        in_each(("sealed", "staged"), QUARANTINED),
    ),
    "resubmit": (
        lambda segments, n: resubmit(segments, n, is_edited=False),
        {"dead": RESUBMITTED},
    ),
    "resubmit, edited": (
        lambda segments, n: resubmit(segments, n, is_edited=True),
        {"dead": {**RESUBMITTED, "schema": None, "opened_at": NOW}},
    ),
    "discard": (
        lambda segments, n: segments.discard(n, "discarded"),
        {"dead": {"rows": 0, "bytes": 0, "file": "", "error": "discarded"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", TRANSITIONS)
def test_a_transition_changes_what_it_says_and_nothing_from_other_states(
    catalogue: Catalogue,
    segments: Segments,
    clock: ManualClock,
    make: Callable[..., int],
    name: str,
    state: SegmentState,
) -> None:
    transition, allowed = TRANSITIONS[name]
    segment = make(state)
    before = segments.get(segment)
    clock.advance(NOW - BEFORE)

    try:
        with catalogue.transaction():
            transition(segments, segment)
    except AssertionError:
        assert state not in allowed

    assert changes(before, segments.get(segment)) == allowed.get(state, {})


def test_the_table_of_transitions_is_complete() -> None:
    apart = {"open", "unplan", "insert", "raise_next", "expire", "recount", "forget_loss"}  # they have tests below
    methods = {name for name in vars(Segments) if not name.startswith("_")}
    assert methods == {name.partition(",")[0] for name in TRANSITIONS} | apart


@pytest.mark.parametrize("name", [name for name in TRANSITIONS if name != "set_hashes"])
def test_a_transition_needs_a_transaction(segments: Segments, make: Callable[..., int], name: str) -> None:
    transition, allowed = TRANSITIONS[name]
    segment = make(next(iter(allowed)))
    with pytest.raises(AssertionError):
        transition(segments, segment)


def test_a_failed_transaction_leaves_the_segment_as_it_was(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    segment = make("staged")
    before = segments.get(segment)
    with pytest.raises(KeyboardInterrupt), catalogue.transaction():
        segments.settle({segment: "commit"})
        raise KeyboardInterrupt
    assert segments.get(segment) == before


# Opening and sealing.


def test_a_new_segment_is_open_and_empty(catalogue: Catalogue, segments: Segments) -> None:
    with catalogue.transaction():
        segment, file = segments.open("w", LAYOUT, BEFORE)
    found = segments.get(segment)
    assert (found.state, found.rows, found.bytes, found.path, found.opened_at) == ("open", 0, 0, None, BEFORE)
    assert (file, found.file, found.layout) == (f"w-{segment:08d}.jsonl", file, LAYOUT)


def test_a_segment_without_rows_is_dead_once_it_is_sealed(make: Callable[..., int], segments: Segments) -> None:
    with pytest.raises(AssertionError):
        make("sealed", rows=0)
    found = segments.get(segments.newest())
    assert (found.state, found.path) == ("dead", "data/train-w-00000.jsonl.gz")


def test_segments_of_one_series_are_numbered_in_order(make: Callable[..., int], segments: Segments) -> None:
    mine = [segments.get(make("sealed")) for _ in range(3)]
    other = segments.get(make("sealed", writer="x"))
    assert [segment.seq for segment in mine] == [0, 1, 2]
    assert (other.seq, other.path) == (0, "data/train-x-00000.jsonl.gz")


def test_a_number_whose_path_is_taken_is_skipped(make: Callable[..., int], segments: Segments) -> None:
    # Both templates give the path data/train-10.jsonl.
    for _ in range(2):
        make("sealed", layout=Layout(template="data/{split}-1{seq}.jsonl"))
    ids = [make("sealed", layout=Layout(template="data/{split}-{seq}.jsonl")) for _ in range(11)]
    assert [segments.get(segment).seq for segment in ids] == [*range(10), 12]


def test_the_next_number_of_a_series_is_raised_and_never_lowered(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    with catalogue.transaction():
        for following in (4, 2):
            segments.raise_next("data/train-w-*.jsonl.gz", following)
    assert segments.get(make("sealed")).seq == 4


def test_a_renumbered_segment_skips_numbers_that_were_given_since(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    first, _, _ = [make("staged") for _ in range(3)]
    with catalogue.transaction():
        segments.renumber(first, 1)
    assert segments.get(first).seq == 3
    assert segments.get(make("sealed")).seq == 4


# Plans.


def test_a_plan_that_did_not_land_releases_its_segments(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    mine, other = make("staged"), make("staged")
    with catalogue.transaction():
        segments.plan(1, [mine])
        segments.plan(2, [other])
        assert (segments.planned(1), segments.planned(2)) == ([mine], [other])
        segments.unplan(1)
    assert (segments.planned(1), segments.planned(2)) == ([], [other])
    assert segments.get(mine).state == "staged"


@pytest.mark.parametrize("name", ["settle", "quarantine", "renumber", "relocate", "move"])
def test_a_segment_that_leaves_staged_leaves_its_plan(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int], name: str
) -> None:
    segment = make("staged")
    with catalogue.transaction():
        segments.plan(1, [segment])
        TRANSITIONS[name][0](segments, segment)
    assert (segments.get(segment).plan, segments.planned(1)) == (None, [])


# Quarantine and rebuilding.


def test_a_resubmitted_segment_without_a_number_gets_the_next_one(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    """A rebuild found its file in the dead letter, and nothing else of it."""
    make("sealed")
    with catalogue.transaction():
        segments.insert(
            id=9, writer="", file="", config="default", split="train", template=LAYOUT.template, state="dead",
            rows=2, bytes=18, opened_at=BEFORE, path="000009-train-lost.jsonl",
        )  # fmt: skip
        resubmit(segments, 9)
    found = segments.get(9)
    assert (found.state, found.writer, found.seq, found.path) == ("sealed", "w", 1, "data/train-w-00001.jsonl.gz")
    assert found.sha256 == "new sha256"


def test_only_columns_of_a_segment_can_be_inserted(catalogue: Catalogue, segments: Segments) -> None:
    with pytest.raises(AssertionError), catalogue.transaction():
        segments.insert(**{"id) VALUES (1); --": 1})


def test_a_discarded_segment_is_known_and_no_longer_listed(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    first, second = make("dead"), make("dead")
    with catalogue.transaction():
        segments.discard(first, "discarded")
    assert [shard.id for shard in segments.quarantined()] == [second]
    assert segments.outcome(first) == Outcome("dead", None, "discarded")
    assert segments.is_path_taken("data/train-w-00000.jsonl.gz")
    assert segments.pending_file(first) is None


# Queries.


def test_a_segment_that_does_not_exist_is_not_found(segments: Segments) -> None:
    assert (segments.find(1), segments.state(1), segments.outcome(1), segments.pending_file(1)) == (None,) * 4
    assert (segments.newest(), segments.to_compress()) == (0, [])
    with pytest.raises(AssertionError):
        segments.get(1)


def test_an_id_that_was_given_twice_is_told_apart_by_its_file(segments: Segments, make: Callable[..., int]) -> None:
    segment = make("sealed")
    assert segments.state_of_file(segment, f"w-{segment:08d}.jsonl") == "sealed"
    assert segments.state_of_file(segment, f"x-{segment:08d}.jsonl") is None


def test_a_segment_is_staged_only_once_it_has_its_shards_format(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    lines = make("sealed", layout=Layout())
    packed = make("sealed")
    assert [row.id for row in segments.to_stage(10)] == [lines]
    assert [row.id for row in segments.uploadable()] == [lines]
    assert [row.id for row in segments.to_compress()] == [packed]

    with catalogue.transaction():
        segments.compress(packed, file="w.1.jsonl.gz", size=20, sha256="new", git_oid=None)

    assert [row.id for row in segments.to_stage(10)] == [lines, packed]
    assert [row.id for row in segments.to_stage(1)] == [lines]
    assert segments.to_compress() == []


def test_each_query_finds_the_segments_of_its_states(segments: Segments, make: Callable[..., int]) -> None:
    ids = {state: make(state, layout=Layout()) for state in STATES}
    make("open", writer="x")
    assert segments.open_of("w") == [ids["open"]]
    assert [row.id for row in segments.staged_inline()] == [ids["staged"]]
    assert [row.id for row in segments.uploadable()] == [ids["sealed"], ids["staged"]]
    assert [row.id for row in segments.next_up(3)] == [ids["open"], ids["sealed"], ids["staged"]]
    assert [row.id for row in segments.with_path()] == [ids[s] for s in ("sealed", "staged", "committed", "dead")]
    assert segments.pending_file(ids["committed"]) is None
    assert segments.pending_file(ids["dead"]) == f"w-{ids['dead']:08d}.jsonl"


def test_the_latest_segments_come_newest_first(segments: Segments, make: Callable[..., int]) -> None:
    first, second, third = [make("sealed") for _ in range(3)]
    assert [row.id for row in segments.latest(2)] == [third, second]
    assert [row.id for row in segments.latest(2, before=second)] == [first]


def test_what_was_committed_is_known_by_layout_and_config(segments: Segments, make: Callable[..., int]) -> None:
    other = Layout("other")
    for layout in (LAYOUT, LAYOUT, other):
        make("committed", layout=layout)
    make("staged", layout=LAYOUT)
    assert sorted(path for _, path in segments.newest_committed_paths()) == [
        "data/train-w-00001.jsonl.gz",
        "other/train-w-00000.jsonl",
    ]
    assert sorted(segments.committed_schemas()) == [("default", '{"type":"old"}'), ("other", '{"type":"old"}')]
    assert sorted(segments.configs()) == ["default", "other"]


def test_ready_segments_come_page_by_page(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubsync.spool.segments._PAGE", 2)
    ids = [make(state) for state in ("staged", "committed", "staged", "dead", "staged", "sealed", "staged")]
    with catalogue.transaction():
        segments.plan(1, [ids[0]])
    assert [row.id for row in segments.ready()] == [ids[2], ids[4], ids[6]]


def test_the_first_waiting_offset_of_a_source_is_found(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    ids = [make(state) for state in ("committed", "dead", "staged", "staged", "open", "sealed")]
    offsets = Offsets(catalogue)
    with catalogue.transaction():
        for offset, segment in enumerate(ids):
            offsets.assign("a", offset, segment)
        offsets.assign("b", 7, ids[0])
        segments.plan(1, [ids[3]])
    assert (segments.first_unready_offset("a"), segments.first_unready_offset("b")) == (3, None)
    assert segments.first_offset_besides("a", ids[2:4]) == 4
    assert segments.first_offset_besides("a", []) == 2


def test_urgent_segments_are_those_of_one_writer_or_of_all(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    mine, other = make("sealed"), make("staged", writer="x")
    make("open")
    assert (segments.has_urgent(), segments.has_urgent_staged()) == (False, False)
    with catalogue.transaction():
        assert segments.mark_urgent("w") == [mine]
    assert (segments.has_urgent(), segments.has_urgent_staged()) == (True, False)
    with catalogue.transaction():
        assert segments.mark_urgent(None) == [mine, other]
    assert segments.has_urgent_staged()


def test_depths_count_what_is_not_committed_and_not_discarded(
    catalogue: Catalogue, segments: Segments, clock: ManualClock, make: Callable[..., int]
) -> None:
    make("sealed")
    clock.advance(60)
    for state in STATES:
        make(state)
    discarded = make("dead")
    with catalogue.transaction():
        segments.discard(discarded, "discarded")
    depths = segments.depths()
    assert {state: (depth.shards, depth.rows, depth.bytes) for state, depth in depths.items()} == {
        "open": (1, 3, 27), "sealed": (2, 6, 54), "staged": (1, 3, 27), "dead": (1, 3, 27),
    }  # fmt: skip
    total = depth_of(depths, {"rows": 3, "bytes": 27, "shards": 1}, 4)
    assert (total.rows, total.bytes, total.oldest_at, total.dead, total.lost_rows) == (12, 108, BEFORE, 1, 4)
    assert (total.open, total.sealed, total.staged, total.committed_shards) == (1, 2, 1, 1)


def test_the_quarantine_lists_the_oldest_or_the_newest_first(segments: Segments, make: Callable[..., int]) -> None:
    first, second = make("dead"), make("dead")
    make("sealed")
    assert [(shard.id, shard.rows, shard.why) for shard in segments.quarantined()] == [
        (first, 3, "rejected"),
        (second, 3, "rejected"),
    ]
    assert [shard.id for shard in segments.quarantined(1, newest_first=True)] == [second]


# Segments that end without all of their rows in the dataset.


def test_whoever_makes_a_segment_dead_notifies_once_it_is_committed(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    heard: list[tuple[int, bool]] = []
    segments.on_refused = lambda shard: heard.append((shard.id, catalogue.in_transaction))
    ways: list[Callable[[int], object]] = [
        lambda n: segments.quarantine(n, "a defect"),
        lambda n: segments.truncate(n, size=0, rows=0, why="a power cut"),
    ]
    for way in ways:
        segment = make("sealed")
        with pytest.raises(KeyboardInterrupt), catalogue.transaction():
            way(segment)
            raise KeyboardInterrupt
        assert heard == []
        with catalogue.transaction():
            way(segment)
            assert heard == []
        assert heard == [(segment, False)]
        heard.clear()
    with pytest.raises(AssertionError):
        make("sealed", rows=0)
    assert heard == [(segments.newest(), False)]


def test_only_one_statement_makes_a_segment_dead() -> None:
    """So nothing can forget to notify the waiters."""
    assert inspect.getsource(segments_module).count("SET state = 'dead'") == 1


def test_lost_rows_are_counted_until_an_operator_discards_them(
    catalogue: Catalogue, segments: Segments, make: Callable[..., int]
) -> None:
    heard: list[QuarantinedShard] = []
    segments.on_refused = heard.append
    partly, wholly = make("sealed"), make("sealed")
    with catalogue.transaction():
        segments.truncate(partly, size=9, rows=1, why="2 of its 3 rows are lost")
        segments.truncate(wholly, size=0, rows=0, why="all its 3 rows are lost")
    assert segments.lost_rows() == 5
    assert [(shard.id, shard.rows, shard.lost) for shard in segments.quarantined()] == [(partly, 0, 2), (wholly, 0, 3)]
    assert [shard.id for shard in heard] == [wholly]
    with catalogue.transaction():
        segments.settle({partly: "commit"})
    assert [shard.id for shard in heard] == [wholly, partly]
    assert segments.to_expire(keep=0, before=NOW * 2, limit=9) == []
    with catalogue.transaction():
        segments.forget_loss(partly)
        segments.discard(wholly, "discarded")
    assert (segments.lost_rows(), segments.quarantined()) == (0, [])
    assert [row.id for row in segments.to_expire(keep=0, before=NOW * 2, limit=9)] == [partly]


# Segments that were committed long ago.


def test_the_oldest_committed_segments_expire_first(segments: Segments, clock: ManualClock, make: Any) -> None:
    first, second, third = [make("committed") for _ in range(3)]
    clock.advance(60)
    late = make("committed")
    make("staged")
    for keep, before, limit, expected in [
        (0, BEFORE + 1, 9, [first, second, third]),
        (0, BEFORE, 9, []),
        (2, BEFORE + 61, 9, [first, second]),
        (0, BEFORE + 61, 9, [first, second, third, late]),
        (0, BEFORE + 61, 1, [first]),
        (5, BEFORE + 61, 9, []),
    ]:
        assert [row.id for row in segments.to_expire(keep=keep, before=before, limit=limit)] == expected


def test_an_expired_segment_counts_as_committed(catalogue: Catalogue, segments: Segments, make: Any) -> None:
    old, kept = make("committed"), make("committed")
    with catalogue.transaction():
        segments.expire([segments.get(old)])
    assert [segments.outcome(n) for n in (old, kept, kept + 1)] == [
        Outcome("committed", None, None), Outcome("committed", "first commit", None), None,
    ]  # fmt: skip
    assert (segments.find(old), segments.newest()) == (None, kept)
    with pytest.raises(LeaseLost, match="committed by another process"):
        segments.get(old)
    assert segments.newest_committed_paths() == [(LAYOUT, "data/train-w-00001.jsonl.gz")]


def test_ids_and_numbers_continue_after_all_segments_have_expired(
    catalogue: Catalogue, segments: Segments, make: Any
) -> None:
    old = make("committed")
    with catalogue.transaction():
        segments.expire([segments.get(old)])
    assert (segments.newest(), segments.newest_committed_paths()) == (old, [(LAYOUT, "data/train-w-00000.jsonl.gz")])
    found = segments.get(make("sealed"))
    assert (found.id, found.seq) == (old + 1, 1)


def test_the_path_of_an_expired_segment_is_never_given_to_another(
    catalogue: Catalogue, segments: Segments, make: Any
) -> None:
    """It would overwrite a file of the dataset."""
    old = [make("committed", layout=Layout(template="data/{split}-{writer}-1{seq}.jsonl")) for _ in range(2)]
    with catalogue.transaction():
        segments.expire([segments.get(segment) for segment in old])
    ids = [make("sealed", layout=Layout(template="data/{split}-{writer}-{seq}.jsonl")) for _ in range(11)]
    assert [segments.get(segment).seq for segment in ids] == [*range(10), 12]


def test_a_pending_segment_never_expires(catalogue: Catalogue, segments: Segments, make: Any) -> None:
    for state in ("open", "sealed", "staged", "dead"):
        segment = segments.get(make(state))
        with pytest.raises(AssertionError), catalogue.transaction():
            segments.expire([segment])


def test_equal_schemas_are_stored_once_and_as_long_as_a_segment_has_them(
    catalogue: Catalogue, segments: Segments, make: Any
) -> None:
    def texts() -> list[str]:
        return [row[0] for row in catalogue.rows("SELECT text FROM schema_texts ORDER BY id")]

    first, second = make("committed"), make("staged")
    assert texts() == ['{"type":"old"}']
    with catalogue.transaction():
        segments.set_schema(second, '{"type":"wider"}')
        segments.set_schema(second, '{"type":"new"}')
    assert texts() == ['{"type":"old"}', '{"type":"new"}']
    assert (segments.get(first).schema, segments.get(second).schema) == ('{"type":"old"}', '{"type":"new"}')
    with catalogue.transaction():
        segments.expire([segments.get(first)])
    assert texts() == ['{"type":"new"}']
    with catalogue.transaction():
        segments.insert(
            id=9, writer="w", file="w-9.jsonl", config="default", split="train", template="", opened_at=BEFORE,
            schema='{"type":"new"}',
        )  # fmt: skip
    assert texts() == ['{"type":"new"}']
    assert segments.get(9).schema == '{"type":"new"}'


# What is counted.


@settings(max_examples=40)
@given(steps=st.lists(st.tuples(st.sampled_from([*TRANSITIONS, "expire", "make"]), st.integers(0, 7)), max_size=25))
def test_the_totals_agree_with_the_segments_after_any_transitions(steps: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as directory:
        catalogue = Catalogue(Path(directory) / "catalogue.sqlite")
        segments = Segments(catalogue, ManualClock(BEFORE))
        ids: list[int] = []
        for name, pick in [("make", 0), *steps]:
            with suppress(AssertionError, IntegrityError, LeaseLost), catalogue.transaction():
                if name == "make":
                    ids.append(segments.open("w", LAYOUT, BEFORE)[0])
                    segments.append(ids[-1], size=9 * pick, rows=pick, batches=1)
                elif name == "expire":
                    segments.expire([segments.get(ids[pick % len(ids)])])
                else:
                    TRANSITIONS[name][0](segments, ids[pick % len(ids)])
        depths = segments.depths()
        assert depths == {s: d._replace(oldest_at=depths[s].oldest_at) for s, d in segments._counted_depths().items()}
        with catalogue.transaction():
            segments.recount()
        assert segments.depths() == depths
        assert segments.held_bytes() == sum(depth.bytes for depth in depths.values())
        catalogue.close()


def test_polling_a_backlog_takes_the_same_steps_whatever_its_size(
    catalogue: Catalogue, segments: Segments, make: Any
) -> None:
    polls = {
        "to_stage": lambda: segments.to_stage(10), "to_compress": segments.to_compress,
        "ready": lambda: next(segments.ready(), None), "urgent": segments.has_urgent,
        "urgent staged": segments.has_urgent_staged, "depths": segments.depths, "held": segments.held_bytes,
        "next up": lambda: segments.next_up(5), "open": lambda: segments.open_of("w"),
        "first offset": lambda: segments.first_unready_offset("a"),
    }  # fmt: skip

    def steps_of(poll: Callable[[], object]) -> int:
        steps = []
        catalogue._db.set_progress_handler(lambda: steps.append(1), 20)  # type: ignore[arg-type]
        poll()
        catalogue._db.set_progress_handler(None, 0)
        return len(steps)

    def fill(count: int) -> dict[str, int]:
        with catalogue.transaction():
            for layout in (LAYOUT, Layout(), Layout("other")):  # compressed, and not
                for number in range(count):
                    segment, _ = segments.open("w", layout, BEFORE)
                    segments.append(segment, size=9, rows=1, batches=1)
                    segments.seal(segment, "sha256")
                    if layout.config == "other" and number < 20:  # a commit has a hundred at most
                        segments.stage({segment: "lfs"})
                        segments.plan(1, [segment])
                    Offsets(catalogue).assign("a", segment, segment)
        return {name: steps_of(poll) for name, poll in polls.items()}

    few, many = fill(20), fill(400)
    assert {name: (few[name], many[name]) for name in polls if many[name] > 2 * few[name] + 3} == {}
