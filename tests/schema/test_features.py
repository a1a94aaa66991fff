"""Column types in a dataset card: equal to those of `datasets`, and kept if a person wrote them."""

from __future__ import annotations

import json
from typing import Any

import datasets
import pytest
import yaml
from hypothesis import given

from hubsync.destinations.hub.card import Card, Entry
from hubsync.schema.features import from_features, to_features
from hubsync.schema.types import Conflict, Foreign, StructOf, infer, merge_structs
from tests.schema.test_types import ROWS


@given(ROWS)
def test_features_equal_those_of_datasets(kind: StructOf) -> None:
    ours = yaml.safe_load(yaml.safe_dump(to_features(kind), sort_keys=False))
    theirs = datasets.Features._from_yaml_list(ours)
    assert theirs._to_yaml_list() == ours
    assert json.dumps(to_features(from_features(ours))) == json.dumps(ours)


WRITTEN_BY_A_PERSON = """---
license: mit
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
  - name: small
    dtype: int32
  - name: at
    dtype: timestamp[ms]
  - name: picture
    dtype: image
  - name: old
    sequence: string
  splits:
  - name: train
    num_examples: 3
---
# My words
"""


def test_features_written_by_a_person_are_kept_and_extended() -> None:
    known = Card(WRITTEN_BY_A_PERSON.encode(), "u/r").features()["default"]
    assert isinstance(known.fields["label"], Foreign)
    fits = infer([{"label": "good", "at": "2026-01-01", "picture": {"bytes": None}, "old": ["x"]}])
    assert merge_structs(known, fits) is known
    entry = [Entry("default", "train", "data/train-*.jsonl")]
    assert b"image" in (Card(WRITTEN_BY_A_PERSON.encode(), "u/r").merge(entry, {"default": known}) or b"")
    new = Card(WRITTEN_BY_A_PERSON.encode(), "u/r").merge(
        entry, {"default": merge_structs(known, infer([{"more": 1.5}]))}
    )
    assert new is not None
    head = yaml.safe_load(new.decode().split("---")[1])
    was = yaml.safe_load(WRITTEN_BY_A_PERSON.split("---")[1])["dataset_info"]
    assert head["license"] == "mit"
    info = head["dataset_info"]
    assert info["splits"] == was["splits"]
    assert info["features"][:4] == was["features"][:4]
    assert info["features"][-1] == {"name": "more", "dtype": "float64"}
    assert new.decode().endswith("# My words\n")


@pytest.mark.parametrize("bad", [{"label": [1]}, {"small": "x"}, {"at": 5}, {"old": [1]}, {"label": {"a": 1}}])
def test_rows_that_do_not_fit_a_persons_features_conflict(bad: Any) -> None:
    with pytest.raises(Conflict):
        merge_structs(Card(WRITTEN_BY_A_PERSON.encode(), "u/r").features()["default"], infer([bad]))


def test_invalid_features_are_left_alone() -> None:
    card = b"---\ndataset_info:\n- config_name: default\n  features: what?\n---\n"
    assert Card(card, "u/r").features() == {}
    assert Card(card, "u/r").merge([], {"default": infer([{"a": 1}])}) is None


def test_a_second_config_gets_its_own_entry() -> None:
    card = Card(b"---\ndataset_info:\n  features:\n  - name: a\n    dtype: int64\n---\n", "u/r")
    one = card.merge([], {"b": infer([{"x": "y"}])})
    assert one is not None
    assert Card(one, "u/r").features() == {"default": StructOf({"a": "int"}), "b": StructOf({"x": "string"})}
