"""Put tables of many types, load them, and compare: run by `test_ends` in both environments."""

from __future__ import annotations

import datetime as dt
import sys
import tempfile
from decimal import Decimal
from typing import Any

import datasets
import pyarrow as pa

from hubsync import RowError, Uploader

NOON = dt.datetime(2026, 1, 1, 12, 0, 0, 120_000)
COLUMNS: dict[str, Any] = {
    "i8": pa.array([1, None], pa.int8()),
    "u32": pa.array([1, None], pa.uint32()),
    "i64": pa.array([2**62, None]),
    "f16": pa.array([0.5, None], pa.float16()),
    "f32": pa.array([0.1, None], pa.float32()),
    "large": pa.array(["a", None], pa.large_string()),
    "kind": pa.array(["a", None]).dictionary_encode(),
    "at": pa.array([NOON, None], pa.timestamp("ms", "UTC")),
    "paris": pa.array([NOON, None], pa.timestamp("us", "Europe/Paris")),
    "day": pa.array([NOON.date(), None]),
    "price": pa.array([Decimal("1.25"), None], pa.decimal128(12, 2)),
    "vector": pa.array([[1, 2], None], pa.list_(pa.float32(), 2)),
    "many": pa.array([[1], None], pa.large_list(pa.int16())),
    "tags": pa.array([["a", None], None], pa.list_(pa.string())),
    "meta": pa.array([{"n": 1, "at": NOON}, None], pa.struct([("n", pa.uint8()), ("at", pa.timestamp("us"))])),
    "parts": pa.array([[{"x": 1}], None], pa.list_(pa.struct([("x", pa.int8())]))),
}  # fmt: skip
BINARY: dict[str, Any] = {
    "raw": pa.array([b"\x00\xff", None]),
    "took": pa.array([dt.timedelta(seconds=1.5), None], pa.duration("us")),
    "time": pa.array([NOON.time(), None], pa.time64("us")),
}
MEDIA = datasets.Features(
    {
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "grid": datasets.Array2D((1, 2), "float32"),
        "image": datasets.Image(decode=False),
        "audio": datasets.Audio(sampling_rate=8_000, decode=False),
    }
)


def load(repo: str) -> Any:
    return datasets.load_dataset(repo, split="train", download_mode="force_redownload")


def check(repo: str, given: Any, want: Any, **options: Any) -> None:
    with Uploader(repo, spool=tempfile.mkdtemp(), **options) as up:
        up.put(given)
    back = load(repo)
    # Version 3 has two forms of one list, which are not equal.
    assert back.features.arrow_schema.equals(want.features.arrow_schema), (back.features, want.features)
    assert back.features.get("label") == want.features.get("label")
    found, wanted = (one.with_format("arrow")[:] for one in (back, want))
    for name in want.column_names:
        assert found[name].to_pylist() == wanted[name].to_pylist(), name


def main() -> None:
    table = pa.table({**COLUMNS, **BINARY})
    plain = table.set_column(table.column_names.index("kind"), "kind", table["kind"].cast(pa.string()))
    names = list(COLUMNS)
    check("user/types-parquet", table, datasets.Dataset(plain), format="parquet")
    check("user/types-jsonl", table.select(names), datasets.Dataset(plain.select(names)), format="jsonl")
    labels = datasets.Dataset.from_dict({"label": [1, 0]}, features=datasets.Features({"label": MEDIA["label"]}))
    check("user/labels", labels, labels)
    kinds = {"n": datasets.Value("int8"), "label": MEDIA["label"], "at": datasets.Value("timestamp[ms]")}
    features = datasets.Features(kinds)
    want = datasets.Dataset.from_dict({"n": [1], "label": [1], "at": [NOON]}, features=features)
    check("user/declared", [{"n": 1, "label": "yes", "at": NOON}], want, features=features)
    check_media()
    refusal = ""
    try:
        check("user/refused", pa.table(BINARY), None)
    except RowError as error:
        refusal = str(error)
    assert "format='parquet'" in refusal


def check_media() -> None:
    """Neither environment can decode sound, and the lowest one no images."""
    media = {"image": {"bytes": b"P5 1 1 255\nx", "path": None}, "audio": {"bytes": b"y", "path": "a.wav"}}
    row = {"label": 1, "grid": [[1, 2]], **media}
    with Uploader("user/media", spool=tempfile.mkdtemp(), format="parquet", features=MEDIA) as up:
        up.put([row])
    back = load("user/media")
    assert back.features == MEDIA, back.features
    (found,) = back.with_format("arrow")[:].select(["label", "image", "audio"]).to_pylist()
    assert found == {name: row[name] for name in found}


if __name__ == "__main__":
    main()
    print("ok", datasets.__version__, pa.__version__, file=sys.stdout)
