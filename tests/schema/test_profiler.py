"""The profiler discovers what a batch has that earlier ones had not, from the types of its columns."""

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
def test_a_new_type_at_any_depth_is_discovered_once(change: dict[str, Any]) -> None:
    profiler = RowProfiler()
    assert is_new(profiler, CHAT, CHAT)
    assert not is_new(profiler, CHAT)
    assert is_new(profiler, CHAT, CHAT | change)
    assert not is_new(profiler, CHAT | change, CHAT)


def test_other_values_of_known_types_are_no_discovery() -> None:
    profiler = RowProfiler()
    is_new(profiler, CHAT, CHAT)
    longer = {"id": 9, "messages": CHAT["messages"] * 3, "usage": {"tokens": 0, "cost": math.nan}}  # type: ignore[operator]
    assert not is_new(profiler, longer)


def test_the_first_element_of_an_empty_list_is_a_discovery() -> None:
    profiler = RowProfiler()
    assert is_new(profiler, {"tags": []})
    assert is_new(profiler, {"tags": ["a"]})
    assert not is_new(profiler, {"tags": []}, {"tags": ["a"]})


def test_a_discovery_that_is_not_remembered_is_made_again() -> None:
    profiler = RowProfiler()
    assert encode([CHAT], profiler).discoveries
    assert encode([CHAT], profiler).discoveries


def test_rows_of_opaque_types_are_profiled_by_their_json() -> None:
    @dataclass
    class Usage:
        tokens: int | None
        at: datetime

    profiler = RowProfiler()
    now = datetime.now(UTC)
    assert is_new(profiler, Usage(1, now))
    assert not is_new(profiler, {"tokens": 2, "at": now})
    assert is_new(profiler, Usage(None, now))
    with pytest.raises(RowError):
        encode([{"tokens": 1, "at": {math.inf}}], profiler)


def test_keys_that_are_data_do_not_fill_the_memory() -> None:
    profiler = RowProfiler()
    for n in range(10_000):
        assert is_new(profiler, {str(n): 1})
    assert len(profiler._root.columns) <= 4_096


def test_rows_that_each_have_other_keys_cost_no_more_than_alike_ones() -> None:
    """If each row were compared with each combination of keys, this would take minutes."""
    found = RowProfiler().profile([{"id": n, f"k{n}": 1} for n in range(20_000)])
    assert len({item for _, item in found if isinstance(item, tuple)}) == 20_000


def test_the_bad_row_among_many_is_named() -> None:
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
        ([1, 2], [-(2**63)], True),
        ([0.5], [math.nan, 1e308], False),
        ([math.nan], [0.5], True),
        (["a"], ["a", math.nan], True),
        (["a", math.nan], ["a", 0.5], True),  # a NaN among strings is null, a number is not
        ([0.5], [1, 0.5], False),  # a column of floats stays one
        ([0.5], [2**53 + 1], True),
        ([0.5], [0.5, None], True),
        ([[0.5], [1.5]], [[2.5], []], False),
        ([[1], [2]], [[0.5]], True),
    ],
)
def test_lists_of_numbers_are_profiled_like_other_values(known: Any, value: Any, new: bool) -> None:
    profiler = RowProfiler()
    assert is_new(profiler, {"ids": known})
    assert is_new(profiler, {"ids": value}, {"ids": known}) is new
    assert not is_new(profiler, {"ids": known}, {"ids": value})


@pytest.mark.parametrize("known", [[1, 2], [0.5], [[0.5]]])
def test_an_infinity_in_a_known_column_of_numbers_is_refused(known: Any) -> None:
    profiler = RowProfiler()
    is_new(profiler, {"ids": known})
    with pytest.raises(RowError, match=r"ids.*inf"):
        encode([{"ids": [*known, math.inf] if not isinstance(known[0], list) else [[math.inf]]}], profiler)


def test_profiling_numbers_calls_no_python_hash() -> None:
    """msgspec hashes the type it converts to, and swallows what a signal handler raises in a hash written in Python."""
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
