"""Which strings `datasets` takes for JSON text, and how they are written instead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from datasets import Json
from hypothesis import given
from hypothesis import strategies as st

from hubsync.schema.json_text import any_reads_as_json, escaped, reads_as_json, unescaped

# Strings that are close to JSON, and what its parser skips.
NEARLY = st.text(st.sampled_from(' \t\n\ufeff-+.019eEtruefalsnNIity{}[]",:\\x'), max_size=8)
VALUES: st.SearchStrategy[Any] = (
    st.none() | NEARLY | st.integers(-9, 9) | st.lists(NEARLY) | st.dictionaries(NEARLY, NEARLY)
)


def as_datasets_reads_it(text: str) -> Any:
    feature = Json()
    return feature.decode_example(feature.encode_example(text))


@given(NEARLY)
def test_what_does_not_read_as_json_comes_back_as_it_is(text: str) -> None:
    if not reads_as_json(text):
        assert as_datasets_reads_it(text) == text


@given(NEARLY)
def test_an_escaped_string_comes_back_as_it_was(text: str) -> None:
    ((row),) = escaped([{"v": text}], {"v"})
    assert as_datasets_reads_it(row["v"]) == text
    assert unescaped(dict(row), {"v"}) == {"v": text}


@given(st.dictionaries(st.sampled_from("abc"), VALUES))
def test_only_strings_of_json_columns_are_escaped(row: dict[str, Any]) -> None:
    (written,) = escaped([row], {"a", "b"})
    assert unescaped(dict(written), {"a", "b"}) == row
    assert {key: value for key, value in written.items() if key == "c" or type(value) is not str} == {
        key: value for key, value in row.items() if key == "c" or type(value) is not str
    }
    json.dumps(written)


@pytest.mark.parametrize(
    "text", ["4", "-1.5e3", "true", "null", "NaN", "-Infinity", "[1]", '{"a": 1}', '"a"', " 4\n", "01"]
)
def test_json_is_told_from_text(text: str) -> None:
    assert reads_as_json(text)
    assert any_reads_as_json(["text", "", text])
    assert not any_reads_as_json(["text", "", "the 4", "[INST] hi", "2026-01-01", "Null", "tru", text + "x"])


@pytest.mark.parametrize("text", ["{0}x", "-{0}e", "1.{0}.", "1e{0}e", "[{0}", "{0}"], ids=repr)
@pytest.mark.parametrize("filling", ["1", " "], ids=["digits", "spaces"])
def test_a_long_text_takes_no_longer_than_its_length(text: str, filling: str) -> None:
    """As the digits of pi, or a number in base 10: a pattern that tries every split takes hours."""
    assert reads_as_json(text.format(filling * 1_000_000)) == reads_as_json(text.format(filling * 20))
