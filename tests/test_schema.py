"""What columns hold: the algebra of types, and what a card says of them."""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import datasets
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hubsync import ConfigError, SchemaConflict, SchemaPolicy
from hubsync.committer.schema_check import Unreadable, scan
from hubsync.destinations.hub.card import Card, Entry
from hubsync.encoding.rows import encode
from hubsync.model.layout import Layout
from hubsync.model.target import Target
from hubsync.schema.features import from_features, to_features
from hubsync.schema.types import (
    EMPTY,
    ColumnType,
    Conflict,
    Foreign,
    ListOf,
    StructOf,
    dumps,
    infer,
    loads,
    merge,
    merge_structs,
)
from hubsync.spool.database import _MIGRATIONS, _SCHEMA
from hubsync.spool.spool import Spool
from hubsync.uploader.schema_guard import SchemaGuard

NAMES = st.sampled_from(["a", "b", "list", "dtype", "name", "struct", "1", "null", "é", "x.y"])
KINDS: st.SearchStrategy[ColumnType] = st.recursive(
    st.sampled_from(["null", "bool", "int", "wide", "float", "string"]),
    lambda below: below.map(ListOf) | st.dictionaries(NAMES, below, max_size=3).map(StructOf),
    max_leaves=6,
)
ROWS = st.dictionaries(NAMES, KINDS, max_size=4).map(StructOf)


def join(*kinds: StructOf) -> StructOf | None:
    """What holds all of them; None where nothing does."""
    whole = EMPTY
    try:
        for kind in kinds:
            whole = merge_structs(whole, kind)
    except Conflict:
        return None
    return whole


@given(ROWS, ROWS, ROWS)
def test_a_merge_does_not_depend_on_the_order_in_which_rows_came(a: StructOf, b: StructOf, c: StructOf) -> None:
    assert join(a, b) == join(b, a)
    ab, bc = join(a, b), join(b, c)
    assert (join(ab, c) if ab else None) == (join(a, bc) if bc else None)


@given(ROWS, ROWS)
def test_what_is_known_already_changes_nothing(a: StructOf, b: StructOf) -> None:
    """And is seen by identity: that is how nobody writes a card in vain."""
    assert merge_structs(a, loads(dumps(a))) is a
    whole = join(a, b)
    if whole is not None:
        assert merge_structs(whole, a) is whole
        assert merge_structs(whole, b) is whole


@given(ROWS)
def test_features_are_as_datasets_writes_and_reads_them(kind: StructOf) -> None:
    ours = yaml.safe_load(yaml.safe_dump(to_features(kind), sort_keys=False))
    theirs = datasets.Features._from_yaml_list(ours)
    assert theirs._to_yaml_list() == ours
    assert json.dumps(to_features(from_features(ours))) == json.dumps(ours)


@given(st.lists(st.dictionaries(NAMES, st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats(allow_infinity=False) | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3),
    max_leaves=5,
), max_size=3), max_size=4))  # fmt: skip
def test_what_is_learnt_as_nothing_new_never_changes_the_schema(rows: list[dict[str, Any]]) -> None:
    """The hot path looks at types by column, the schema at values: the one must never miss what the other sees."""
    from hubsync.schema.profiler import RowProfiler

    profiler, known = RowProfiler(), EMPTY
    for row in rows:
        encoded = encode([row], profiler)
        if not encoded.discoveries:
            try:
                assert merge_structs(known, infer([row])) is known
            except Conflict as conflict:  # beyond int64 the reader makes it a float: only its bounds are seen
                raise AssertionError from conflict
        elif isinstance(encoded.columns, StructOf):
            try:
                known = merge_structs(known, encoded.columns)
            except Conflict:
                continue
            profiler.remember(encoded.discoveries)


def test_values_are_told_by_what_their_json_is() -> None:
    row = {
        "int": 2**53, "wide": -(2**53) - 1, "beyond": 2**63, "nan": math.nan, "when": datetime.now(UTC), "bytes": b"x",
        "day": date.today(), "id": UUID(int=1), "exact": Decimal(1), "none": None, "yes": True, "empty": [], "no": {},
        "mixed": [1, None, 2.5], "pair": (1, 2), "deep": [[{"a": 1}], [{"b": None}, {"a": 0.5}]],
    }  # fmt: skip
    (again,) = (json.loads(line) for line in encode([row]).lines.splitlines())
    kind = infer([row])
    assert kind.fields["nan"] == "float"
    assert {**kind.fields, "nan": "null"} == infer([again]).fields
    assert kind.fields["beyond"] == "float"
    assert (kind.fields["wide"], kind.fields["pair"]) == ("wide", ListOf("int"))
    assert kind.fields["deep"] == ListOf(ListOf(StructOf({"a": "float", "b": "null"})))


PERSONS = """---
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


def test_a_persons_features_stay_and_are_only_added_to() -> None:
    known = Card(PERSONS.encode(), "u/r").features()["default"]
    assert isinstance(known.fields["label"], Foreign)
    fits = infer([{"label": "good", "small": 3, "at": "2026-01-01", "picture": {"bytes": None}, "old": ["x"]}])
    assert merge_structs(known, fits) is known
    entry = [Entry("default", "train", "data/train-*.jsonl")]
    assert b"image" in (Card(PERSONS.encode(), "u/r").merge(entry, {"default": known}) or b"")
    new = Card(PERSONS.encode(), "u/r").merge(entry, {"default": merge_structs(known, infer([{"more": 1.5}]))})
    assert new is not None
    head = yaml.safe_load(new.decode().split("---")[1])
    was = yaml.safe_load(PERSONS.split("---")[1])["dataset_info"]
    assert head["license"] == "mit"
    (info,) = head["dataset_info"]
    assert info["splits"] == was["splits"]
    assert info["features"][:4] == was["features"][:4]
    assert info["features"][-1] == {"name": "more", "dtype": "float64"}
    assert new.decode().endswith("# My words\n")


@pytest.mark.parametrize(
    "bad", [{"label": [1]}, {"small": 0.5}, {"at": 5}, {"old": [1]}, {"label": {"a": 1}}, {"small": "x"}]
)
def test_what_does_not_fit_a_persons_features_is_a_conflict(bad: Any) -> None:
    with pytest.raises(Conflict):
        merge_structs(Card(PERSONS.encode(), "u/r").features()["default"], infer([bad]))


def test_features_that_nobody_understands_are_left_alone() -> None:
    card = b"---\ndataset_info:\n- config_name: default\n  features: what?\n---\n"
    assert Card(card, "u/r").features() == {}
    assert Card(card, "u/r").merge([], {"default": infer([{"a": 1}])}) is None


def test_a_second_config_gets_its_own_place() -> None:
    card = Card(b"---\ndataset_info:\n  features:\n  - name: a\n    dtype: int64\n---\n", "u/r")
    one = card.merge([], {"b": infer([{"x": "y"}])})
    assert one is not None
    assert Card(one, "u/r").features() == {"default": StructOf({"a": "int"}), "b": StructOf({"x": "string"})}


def test_siblings_have_a_folder_of_their_own() -> None:
    assert next(Layout().siblings()) == Layout("default-2", "train", "{config}/{split}-{writer}-{seq:05d}.jsonl")
    assert next(Layout("a", "test").siblings()).path("w", 1) == "a-2/test-w-00001.jsonl"
    assert next(Layout(template="mine/{split}-{seq}.jsonl").siblings()).path("w", 1) == "default-2/mine/train-1.jsonl"
    assert next(Layout("a", template="{config}/{split}/{seq}.jsonl").siblings()).path("w", 1) == "a-2/train/1.jsonl"


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_conflict"):
        SchemaPolicy(on_conflict="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rows", [[{f"{n}": 1} for n in range(97)], [{}] * 96 + [{"deep": json.loads("[" * 51 + "]" * 51)}]]
)
def test_what_no_card_can_say_is_refused_as_a_conflict(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, Layout(), SchemaPolicy())
    for n in range(4):
        guard.admit(encode([{f"{n}-{m}": 1 for m in range(1_000)}], guard.profiler))
    with pytest.raises(
        SchemaConflict, match=r"row 96: with it the config has over 4,096 fields, or structs over 50 deep"
    ):
        guard.admit(encode(rows, guard.profiler))
    guard.admit(encode([{"0-1": 2}, {"one": 1}], guard.profiler))
    aside = SchemaGuard(spool, Layout(), SchemaPolicy(on_conflict="dead letter"))
    aside._kinds = guard._kinds
    assert str(aside.admit(encode(rows, aside.profiler)).set_aside).startswith("with it the config has over")
    spool.close()


def test_a_text_that_was_made_a_columns_name_is_cut_where_it_is_told() -> None:
    long = "x" * 3_000
    with pytest.raises(Conflict) as told:
        merge(StructOf({long: "int"}), StructOf({long: StructOf({long: "int"})}))
    assert told.value.message == f"field '{'x' * 200}…': it is a struct of {'x' * 200}…, and the column holds int64"


def test_batches_encoded_elsewhere_are_looked_at(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, Layout(), SchemaPolicy())
    guard.admit(encode([{"a": 1}]))
    with pytest.raises(SchemaConflict, match="row 1"):
        guard.admit(encode([{"a": 2}, {"a": "x"}]))
    spool.close()


def test_a_spool_of_the_first_version_opens_and_its_rows_are_told_by_their_file(
    tmp_path: Path, uploader: Any, dataset: Any
) -> None:
    directory = tmp_path / "spool"
    with uploader(spool=directory) as up:
        target = up._target
    for suffix in ("", "-wal", "-shm"):
        (directory / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
    with sqlite3.connect(directory / "catalogue.sqlite") as db:
        db.executescript(_SCHEMA)
        db.execute("PRAGMA user_version = 1")
        import msgspec

        db.execute("INSERT INTO meta VALUES ('target', ?)", (msgspec.json.encode(target).decode(),))
        db.execute("INSERT INTO meta VALUES ('seeded', '1')")
        db.execute("INSERT INTO writers VALUES ('0badcafe', 1, NULL)")
        lines = b'{"a":1}\n{"a":2.5,"b":["x"]}\n'
        (directory / "segments" / "0badcafe-00000001.jsonl").write_bytes(lines)
        db.execute(
            "INSERT INTO segments (id, writer, file, config, split, template, bytes, rows, opened_at) VALUES "
            "(1, '0badcafe', '0badcafe-00000001.jsonl', 'default', 'train', "
            "'data/{split}-{writer}-{seq:05d}.jsonl', ?, 2, 0)",
            (len(lines),),
        )
    assert len(_MIGRATIONS) > 1
    with uploader(spool=directory) as up:
        up.put([{"b": [None]}])
    assert len(dataset.rows()) == 3
    card = yaml.safe_load(dataset.read("README.md").decode().split("---")[1])
    assert card["dataset_info"][0]["features"] == [{"name": "a", "dtype": "float64"}, {"name": "b", "list": "string"}]


def test_a_file_that_holds_no_rows_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for content in (b"\x1f\x8b\x08\x00\n", b"[1]\n", b'{"a": \n', b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(Unreadable):
            scan(file)
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a":1}\n{"b":[0.5]}\n'))
    assert scan(packed) == StructOf({"a": "int", "b": ListOf("float")})
    file.write_bytes(b'{"a":1}\n{"a":"x"}\n')
    with pytest.raises(Conflict):
        scan(file)
