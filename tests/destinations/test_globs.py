"""Patterns in a card: matched as fsspec matches them, and compared with each other."""

from __future__ import annotations

import re

import pytest
from fsspec.utils import glob_translate
from hypothesis import given
from hypothesis import strategies as st

from hubsync.destinations.hub.globs import covers, matches, may_meet

NAMES = st.text("abt0-.", min_size=1, max_size=4).filter(lambda name: not name.startswith("."))
PIECES = st.sampled_from(["*", "?", "[ab]", "[!a]", "[-._ 0-9]", "a", "b", "t", "0", "-", "."])
PARTS = st.one_of(st.just("**"), st.lists(PIECES, min_size=1, max_size=4).map("".join))
PATTERNS = (
    st.lists(PARTS, min_size=1, max_size=3).map("/".join).filter(lambda p: not re.search(r"\*\*.|.\*\*|/\.|^\.", p))
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@given(PATTERNS, PATHS)
def test_a_path_matches_as_it_does_in_fsspec(pattern: str, path: str) -> None:
    # fsspec lists folders only as deep as the pattern, so that what its `[!a]` says of a "/" matters only after `**`.
    is_listed = "**" in pattern or path.count("/") == pattern.count("/")
    assert matches(pattern, path) == (is_listed and re.match(glob_translate(pattern), path) is not None)


def test_a_negated_class_finds_a_folder_only_as_fsspec_does() -> None:
    assert not matches("*[!a]*", "0/0")
    assert matches("**/a[!b]c", "a/c")


@given(PATTERNS, PATTERNS, PATHS)
def test_two_patterns_that_find_one_path_meet(one: str, other: str, path: str) -> None:
    if matches(one, path) and matches(other, path):
        assert may_meet(one, other)
        assert may_meet(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data/train-*", "data/test-*.parquet"),
        ("**/train[-._ 0-9]*", "data/test-*.jsonl"),
        ("my/**", "data/train-*.jsonl"),
        ("data/*.jsonl", "configs/data/train-*.jsonl"),
        ("data/train-*.jsonl", "data/train-*.jsonl.gz"),
        ("data/train-*.jsonl", "data/part-*/train-*.jsonl"),
    ],
)
def test_patterns_that_find_no_common_path_do_not_meet(one: str, other: str) -> None:
    assert not may_meet(one, other)


@pytest.mark.parametrize(
    ("pattern", "is_covered"),
    [("data/*", True), ("**", True), ("data/train-*", True), ("data/train-0*", False), ("data/train-?.jsonl", False)],
)
def test_a_pattern_covers_a_glob_if_it_finds_all_of_it(pattern: str, is_covered: bool) -> None:
    assert covers(pattern, "data/train-*.jsonl") == is_covered


def test_hidden_names_must_be_asked_for() -> None:
    assert not matches("**", ".hubsync/a.json")
    assert not matches("**/*.jsonl", "__pycache__/a.jsonl")
    assert matches(".hubsync/*", ".hubsync/a.json")
