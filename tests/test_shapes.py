"""What of a batch is new, told by the types of its columns alone."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from hubsync import RowError
from hubsync.encoding.rows import encode
from hubsync.schema.profiler import RowProfiler

CHAT = {"id": 1, "messages": [{"role": "user", "content": "hi"}], "usage": {"tokens": 3, "cost": 0.5}}


def is_new(profiler: RowProfiler, *rows: Any) -> bool:
    encoded = encode(list(rows), profiler)
    profiler.remember(encoded.discoveries)
    return bool(encoded.discoveries)


@pytest.mark.parametrize(
    "change",
    [
        {"id": None},
        {"id": 1.5},
        {"more": 1},
        {"messages": None},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": "hi", "name": "x"}]},
        {"messages": [{"role": "user", "content": "hi"}, None]},
        {"usage": {"tokens": 3, "cost": None}},
        {"usage": {"tokens": 3}},
        {"usage": {"tokens": {"in": 3}, "cost": 0.5}},
    ],
)
def test_a_change_of_type_at_any_depth_is_new_once(change: dict[str, Any]) -> None:
    profiler = RowProfiler()
    assert is_new(profiler, CHAT, CHAT)
    assert not is_new(profiler, CHAT)
    assert is_new(profiler, CHAT, CHAT | change)
    assert not is_new(profiler, CHAT | change, CHAT)


def test_other_values_are_nothing_new() -> None:
    profiler = RowProfiler()
    is_new(profiler, CHAT, CHAT)
    longer = {"id": 9, "messages": CHAT["messages"] * 3, "usage": {"tokens": 0, "cost": math.nan}}  # type: ignore[operator]
    assert not is_new(profiler, longer)


def test_an_empty_list_tells_nothing_and_what_fills_it_does() -> None:
    profiler = RowProfiler()
    assert is_new(profiler, {"tags": []})
    assert is_new(profiler, {"tags": ["a"]})
    assert not is_new(profiler, {"tags": []}, {"tags": ["a"]})


def test_what_is_not_learnt_stays_new() -> None:
    profiler = RowProfiler()
    assert encode([CHAT], profiler).discoveries
    assert encode([CHAT], profiler).discoveries


def test_rows_whose_types_do_not_tell_their_json_are_seen_by_it() -> None:
    @dataclass
    class Usage:
        tokens: int | None
        at: datetime

    profiler = RowProfiler()
    now = datetime.now(UTC)
    assert is_new(profiler, Usage(1, now))
    assert not is_new(profiler, {"tokens": 2, "at": "as text"})
    assert is_new(profiler, Usage(None, now))
    with pytest.raises(RowError):
        encode([{"tokens": 1, "at": {math.inf}}], profiler)


def test_keys_that_are_data_do_not_fill_the_memory() -> None:
    profiler = RowProfiler()
    for n in range(10_000):
        assert is_new(profiler, {str(n): 1})
    assert len(profiler._root.columns) <= 4_096


def test_the_row_is_named_where_one_of_many_is_bad() -> None:
    with pytest.raises(RowError, match=r"row 2.*usage\.cost"):
        encode([CHAT, CHAT, CHAT | {"usage": {"tokens": 3, "cost": -math.inf}}])
    with pytest.raises(RowError, match="row 1"):
        encode([{"a": 1}, {1: 1}])


@pytest.mark.parametrize(
    ("known", "value", "new"),
    [
        ([1, 2], [3], False),
        ([1, 2], [], False),
        ([1, 2], [2.5], True),
        ([1, 2], [1, None], True),
        ([1, 2], [True], True),
        ([1, 2], ["1"], True),
        ([1, 2], [[1]], True),
        ([1, 2], [2**53 + 1], True),
        ([1, 2], [-(2**63) - 1], True),
        ([0.5], [math.nan, 1e308], False),
        ([0.5], [1, 0.5], False),  # a column of floats it was, and is
        ([0.5], [2**53 + 1], True),
        ([0.5], [0.5, None], True),
        ([[0.5], [1.5]], [[2.5], []], False),
        ([[1], [2]], [[0.5]], True),
    ],
)
def test_lists_of_numbers_are_looked_at_as_anything_else(known: Any, value: Any, new: bool) -> None:
    profiler = RowProfiler()
    assert is_new(profiler, {"ids": known})
    assert is_new(profiler, {"ids": value}, {"ids": known}) is new
    assert not is_new(profiler, {"ids": known}, {"ids": value})


@pytest.mark.parametrize("known", [[1, 2], [0.5], [[0.5]]])
def test_an_infinity_among_numbers_that_are_known_is_refused(known: Any) -> None:
    profiler = RowProfiler()
    is_new(profiler, {"ids": known})
    with pytest.raises(RowError, match=r"ids.*inf"):
        encode([{"ids": [*known, math.inf] if not isinstance(known[0], list) else [[math.inf]]}], profiler)


def test_a_signal_that_comes_while_numbers_are_looked_at_is_not_lost() -> None:
    """msgspec hashes the type it converts to; were that Python, what a signal's handler raises there would be gone."""
    seen: list[str] = []

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_qualname)

    profiler = RowProfiler()
    rows = [{"n": 1, "ids": [1, 2], "floats": [0.5]}] * 3
    profiler.remember(profiler.profile(rows))
    sys.setprofile(trace)
    try:
        profiler.profile(rows)
    finally:
        sys.setprofile(None)
    assert "RowProfiler.profile" in seen
    assert not [name for name in seen if "hash" in name]
