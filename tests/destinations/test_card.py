"""The dataset card: created if the dataset has none, else merged without losing a word of it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hubsync.destinations.hub.card import Card, CardError, Entry
from hubsync.schema.types import infer

TRAIN = Entry("default", "train", "data/train-*.jsonl")
PERSONS = """---
license: mit
tags:
- a
configs:
- config_name: default
  data_files:
  - split: test
    path: test.jsonl
pretty_name: Mine
---
# My words

stay --- as they are.
"""


def configs(card: bytes | None) -> Any:
    assert card is not None
    return yaml.safe_load(card.decode().split("---")[1])["configs"]


def test_a_new_card_lists_every_config_and_split() -> None:
    new = Card(None, "user/rows").merge([TRAIN, Entry("other", "test", "other/test-*.jsonl")])
    assert configs(new) == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.jsonl"}]},
        {"config_name": "other", "data_files": [{"split": "test", "path": "other/test-*.jsonl"}]},
    ]
    assert b'load_dataset("user/rows")' in (new or b"")
    assert Card(new, "user/rows").merge([TRAIN]) is None


def test_an_existing_card_keeps_every_word() -> None:
    new = Card(PERSONS.encode(), "user/rows").merge([TRAIN])
    assert new is not None
    assert new.decode().endswith("# My words\n\nstay --- as they are.\n")
    head = yaml.safe_load(new.decode().split("---")[1])
    assert (head["license"], head["tags"], head["pretty_name"]) == ("mit", ["a"], "Mine")
    assert head["configs"][0]["data_files"] == [
        {"split": "test", "path": "test.jsonl"},
        {"split": "train", "path": "data/train-*.jsonl"},
    ]


@pytest.mark.parametrize("text", ["# Only words\n", "", "no yaml --- here"])
def test_a_card_without_yaml_gets_a_header_and_keeps_its_text(text: str) -> None:
    new = Card(text.encode(), "user/rows").merge([TRAIN])
    assert configs(new)[0]["config_name"] == "default"
    assert (new or b"").decode().rstrip().endswith(text.strip())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("old.jsonl", [{"split": "train", "path": ["old.jsonl", "data/train-*.jsonl"]}]),
        (["a.jsonl"], [{"split": "train", "path": ["a.jsonl", "data/train-*.jsonl"]}]),
        ([{"split": "train", "path": ["a.jsonl"]}], [{"split": "train", "path": ["a.jsonl", "data/train-*.jsonl"]}]),
    ],
)
def test_short_forms_of_data_files_are_understood(files: Any, expected: Any) -> None:
    card = "---\n" + yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}) + "---\n"
    assert configs(Card(card.encode(), "user/rows").merge([TRAIN]))[0]["data_files"] == expected


def test_a_pattern_that_already_matches_the_shards_is_kept() -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.jsonl\n---\n"
    assert Card(card.encode(), "user/rows").merge([TRAIN]) is None


def test_a_card_with_invalid_yaml_is_not_changed() -> None:
    with pytest.raises(CardError):
        Card(b"---\na: [unclosed\n---\n", "user/rows").merge([TRAIN])


def test_a_column_name_with_a_line_break_character_is_escaped() -> None:
    existing = "---\npretty_name: Größe\n---\n# a \x85 in the text\n".encode()
    made = Card(existing, "u/r").merge([], {"default": infer([{"a\x85b": 1, "\x85": {"\x85": "x"}}])})
    assert made is not None
    assert Card(made, "u/r").features() == {"default": infer([{"a\x85b": 1, "\x85": {"\x85": "x"}}])}
    assert made.endswith("---\n# a \x85 in the text\n".encode())
