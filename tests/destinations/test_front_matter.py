"""Front matter: every byte outside a change survives, and the result has exactly the intended values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hubsync.destinations.hub.front_matter import FrontMatter, FrontMatterError

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text("ab: #'\"\n-é01ey", max_size=6)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abcn1y", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
CARDS = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, min_size=1, max_size=4)


@given(CARDS, CARDS, st.booleans(), st.sampled_from([None, True, False]))
def test_any_change_is_made_and_nothing_else(old: Any, new: Any, keeps: bool, flow: bool | None) -> None:
    text = f"---\n# a comment\n{yaml.safe_dump(old, sort_keys=False, default_flow_style=flow)}# the end\n---\nText\n"
    wanted = {**old, **new} if keeps else new
    edited = FrontMatter(text).with_data(copy.deepcopy(wanted))
    assert FrontMatter(edited).data == wanted
    assert edited.endswith("---\nText\n")
    if not flow:
        assert edited.startswith("---\n# a comment\n")


PERSONS = """---
# keep me
version: 1.10  # not a number
build: 0123
answer: no
configs: # mine
- config_name: a   # first
  default: true
  data_files:
  - split: train
    path: a.jsonl # theirs
# between
tags: [x,  y]
long: |
  text

empty:
---
Words
"""


def test_a_fine_edit_touches_one_line() -> None:
    front = FrontMatter(PERSONS)
    data = copy.deepcopy(front.data)
    del data["configs"][0]["default"]
    data["configs"][0]["data_files"].append({"split": "1e3", "path": "b.jsonl"})
    expected = PERSONS.replace("  default: true\n", "").replace(
        "    path: a.jsonl # theirs\n", "    path: a.jsonl # theirs\n  - split: '1e3'\n    path: b.jsonl\n"
    )
    assert front.with_data(data) == expected
    assert front.with_data(front.data) == PERSONS
    crlf = FrontMatter(PERSONS.replace("\n", "\r\n"))
    assert crlf.with_data(data) == expected.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("text", "edited"),
    [
        ("", "---\nk: 1\n---\n"),
        ("Text\n", "---\nk: 1\n---\nText\n"),
        ("\ufeffText\r\n", "\ufeff---\r\nk: 1\r\n---\r\nText\r\n"),
        ("---\n---\nText", "---\nk: 1\n---\nText"),
        ("---\n\n---\nText", "---\nk: 1\n---\nText"),
        ("---\n# only\n---\n", "---\n# only\nk: 1\n---\n"),
        ("\ufeff---\r\na: b\r\n---", "\ufeff---\r\na: b\r\nk: 1\r\n---"),
        ("---\n? a\n: b\nc:\n- d\n---\n", "---\n? a\n: b\nc:\n- d\nk: 1\n---\n"),
        ("---\na: {b: 1}\n# end\n---\n", "---\na: {b: 1}\nk: 1\n# end\n---\n"),
    ],
)
def test_a_key_is_added_at_the_end_of_the_block(text: str, edited: str) -> None:
    front = FrontMatter(text)
    assert front.with_data({**front.data, "k": 1}) == edited


def test_anchors_are_kept_where_they_can_be_and_refused_where_not() -> None:
    front = FrontMatter("---\na: &x [1]\nb: *x\nc: 1\n---\n")
    assert front.with_data({**front.data, "c": 2}) == "---\na: &x [1]\nb: *x\nc: 2\n---\n"
    for key in ("a", "b"):
        with pytest.raises(FrontMatterError, match="anchors"):
            front.with_data({**front.data, key: [2]})


def test_the_last_of_two_equal_keys_counts() -> None:
    front = FrontMatter("---\na: 1\na: 2\n---\n")
    assert front.with_data({"a": 3}) == "---\na: 1\na: 3\n---\n"
