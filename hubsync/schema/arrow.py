"""Column types as Arrow types, and back; and Arrow data in the types that Parquet and `datasets` know.

A table's types are taken as they are, except for what `datasets` does not have: dictionaries, views and run-end encoded
columns become their values, a map becomes a list of keys and values, a binary of fixed size becomes a binary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hubsync.schema.features import feature_name, from_metadata, has_features, to_metadata
from hubsync.schema.types import (
    DTYPES,
    EXACT_FLOAT,
    JSON,
    ColumnType,
    Foreign,
    ListOf,
    StructOf,
    dtype_to_type,
)

_METADATA = b"huggingface"  # the key under which `datasets` stores features in a schema
_FLOAT64 = Foreign({"dtype": "float64"}, [])
_UNIT = re.compile(r"(timestamp|duration|time32|time64)\[(s|ms|us|ns)(?:, *tz=(.+))?\]")
_UNIT_NS = {"D": 86_400 * 10**9, "s": 10**9, "ms": 10**6, "us": 1_000, "ns": 1}
_DAY_NS = _UNIT_NS["D"]
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # of the years 1 to 9999, since 1970
_DECIMAL = re.compile(r"decimal(128|256)\((\d+), *(-?\d+)\)")


class UnsupportedType(ValueError):
    """An Arrow type that no dataset has, such as a union.

    Attributes:
        path: The column.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}")


# Types that pyarrow inferred from JSON.


def columns_of(schema: Any) -> StructOf:
    """Return the column types of an Arrow schema that pyarrow inferred from JSON."""
    return StructOf({field.name: _json_type(field.type) for field in schema})


def _json_type(kind: Any) -> ColumnType:
    from pyarrow import types

    if types.is_struct(kind):
        return columns_of(kind)
    if types.is_list(kind):
        return ListOf(_json_type(kind.value_type))
    if types.is_null(kind):
        return "null"
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int"
    return "float" if types.is_floating(kind) else "string"  # pyarrow guesses times, but the rows hold text


# Types of a table.


def columns_of_table(table: Any) -> StructOf:
    """Return the column types of a normalized table (see `normalized`), with the features in its metadata.

    An int64 counts as `wide` if a value is, so that the others merge with floats.
    """
    declared = _features_in(table.schema)
    fields: dict[str, ColumnType] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        known = declared.fields.get(field.name)
        fits = known is not None and has_features(known) and _same(arrow_type(known), field.type)
        fields[field.name] = known if known is not None and fits else _type_of(field.type, column)
    return StructOf(fields)


def _features_in(schema: Any) -> StructOf:
    """Return the features that `datasets` wrote into a schema's metadata; empty if it has none, or unknown ones."""
    text = (schema.metadata or {}).get(_METADATA)
    try:
        found = from_metadata(msgspec.json.decode(text)["info"]["features"]) if text else None
    except (ValueError, KeyError, TypeError):
        found = None
    return found if isinstance(found, StructOf) else StructOf({})


def _type_of(kind: Any, column: Any) -> ColumnType:
    from pyarrow import types

    if types.is_struct(kind):
        return StructOf(
            {field.name: _type_of(field.type, part) for field, part in zip(kind, column.flatten(), strict=True)}
        )
    if types.is_fixed_size_list(kind):
        return ListOf(_type_of(kind.value_type, _flat(column)), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return ListOf(_type_of(kind.value_type, _flat(column)), is_large=types.is_large_list(kind))
    if types.is_int64(kind):
        return _int_type(column)
    if str(kind).startswith("extension<arrow.json"):
        return JSON
    if types.is_float64(kind):
        return _FLOAT64  # unlike a plain float, it must not become a float32
    return dtype_to_type(_dtype(kind))


def _int_type(column: Any) -> ColumnType:
    from pyarrow import compute

    bounds = compute.min_max(column).as_py()
    least, most = bounds["min"] or 0, bounds["max"] or 0
    return "int" if least >= -EXACT_FLOAT and most <= EXACT_FLOAT else "wide"


def _flat(column: Any) -> Any:
    """Return the elements of all lists of a column."""
    import pyarrow

    if not isinstance(column, pyarrow.ChunkedArray):
        return elements(column)
    return pyarrow.chunked_array(list(map(elements, column.chunks)), type=column.type.value_type)


def elements(array: Any) -> Any:
    """Return the elements of all lists of an array. If all are null, `flatten` fails on structs with JSON."""
    return array.values[:0] if len(array) == array.null_count else array.flatten()


def _dtype(kind: Any) -> str:
    """Return the name that `datasets` has for a scalar Arrow type."""
    from pyarrow import types

    if types.is_decimal(kind):
        width = 256 if types.is_decimal256(kind) else 128
        return f"decimal{width}({kind.precision}, {kind.scale})"
    names = {
        "halffloat": "float16",
        "float": "float32",
        "double": "float64",
        "date32[day]": "date32",
        "date64[ms]": "date64",
    }
    return names.get(str(kind), str(kind))


# Arrow types of columns.


def arrow_type(kind: ColumnType, *, stored: bool = False) -> Any:
    """Return the Arrow type of a column; None for a feature of `datasets` that is not known here.

    With `stored`, the type is for a Parquet file, which holds nulls instead of structs without fields.
    """
    import pyarrow

    if isinstance(kind, StructOf):
        fields = {name: arrow_type(field, stored=stored) for name, field in kind.fields.items()}
        if stored and not fields:
            return pyarrow.null()
        return None if None in fields.values() else pyarrow.struct(list(fields.items()))
    if isinstance(kind, ListOf):
        item = arrow_type(kind.item, stored=stored)
        if item is None:
            return None
        if kind.length != -1:
            return pyarrow.list_(item, kind.length)
        return pyarrow.large_list(item) if kind.is_large else pyarrow.list_(item)
    if isinstance(kind, str):
        return pyarrow.type_for_alias(DTYPES[kind])
    name = feature_name(kind)
    return _scalar(str(kind.entry.get("dtype"))) if name is None else _storage(name, kind)


def is_json_type(kind: ColumnType) -> bool:
    """Return whether a type is made of JSON's types only."""
    if isinstance(kind, StructOf):
        return all(map(is_json_type, kind.fields.values()))
    if isinstance(kind, ListOf):
        return kind.length == -1 and not kind.is_large and is_json_type(kind.item)
    return isinstance(kind, str)


def has_own_type(kind: ColumnType) -> bool:
    """Return whether plain values must be converted to a type, because JSON does not have it."""
    if isinstance(kind, StructOf):
        return any(map(has_own_type, kind.fields.values()))
    if isinstance(kind, ListOf):
        return kind.length != -1 or kind.is_large or has_own_type(kind.item)
    return isinstance(kind, Foreign) and kind.entry not in (JSON.entry, _FLOAT64.entry) and arrow_type(kind) is not None


def _scalar(dtype: str) -> Any:
    import pyarrow

    if match := _UNIT.fullmatch(dtype):
        kind, unit, zone = match.groups()
        make = getattr(pyarrow, kind)
        return make(unit, zone) if zone else make(unit)
    if match := _DECIMAL.fullmatch(dtype):
        width, digits, scale = map(int, match.groups())
        return (pyarrow.decimal256 if width == 256 else pyarrow.decimal128)(digits, scale)
    try:
        return pyarrow.type_for_alias(dtype)
    except ValueError:
        return None


def _storage(feature: str, kind: Foreign) -> Any:
    """Return the Arrow type in which `datasets` stores a feature."""
    import pyarrow

    if feature in ("image", "audio", "video", "pdf", "nifti"):
        return pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    if feature == "class_label":
        return pyarrow.int64()
    if feature == "json":
        return pyarrow.json_()
    if feature == "translation_variable_languages":
        return pyarrow.struct([(name, pyarrow.list_(pyarrow.string())) for name in ("language", "translation")])
    options = next(iter(kind.entry["dtype"].values()))
    if feature == "translation":
        return pyarrow.struct([(language, pyarrow.string()) for language in sorted(options["languages"])])
    if re.fullmatch(r"array\d_d", feature):
        item = _scalar(options["dtype"])
        for _ in options["shape"]:
            item = pyarrow.list_(item)
        return item
    return None


def arrow_schema(columns: StructOf, *, stored: bool = False) -> Any:
    """Return the Arrow schema of columns whose types are all known.

    With `stored`, it is the schema of a Parquet file. `datasets` reads its own features from the metadata, and for all
    other columns the Arrow types.
    """
    import pyarrow

    metadata = None
    features = StructOf({name: kind for name, kind in columns.fields.items() if has_features(kind)})
    if stored and features.fields:
        metadata = {_METADATA: msgspec.json.encode({"info": {"features": to_metadata(features)}})}
    fields = [(name, arrow_type(kind, stored=stored)) for name, kind in columns.fields.items()]
    return pyarrow.schema(fields, metadata=metadata)


# Data.

Leaf = Callable[[Any, str], Any]
"""Returns the array to put in the place of one that is neither a struct nor a list, whose path it is given."""


def normalized(table: Any) -> Any:
    """Return a table in types that `datasets` has, with the same values and metadata.

    Raises:
        UnsupportedType: A column has a type that no dataset has, a time that no reader has, or another one's name.
    """
    return map_leaves(in_known_types(table), _check_time)


def in_known_types(table: Any) -> Any:
    """Return a table as `normalized` does, whatever its times."""
    return map_leaves(table, _normal)


def map_leaves(table: Any, leaf: Leaf) -> Any:
    """Return a table with `leaf` applied to its columns and, if they are nested, to what they contain.

    Raises:
        UnsupportedType: Two columns have one name.
    """
    import pyarrow

    _check_names(table.schema, "")
    columns = []
    for field, column in zip(table.schema, table.columns, strict=True):
        chunks = column.chunks or [pyarrow.nulls(0, field.type)]
        new = [_map(chunk, leaf, field.name) for chunk in chunks]
        is_same = all(one is other for one, other in zip(new, chunks, strict=True))
        columns.append(column if is_same else pyarrow.chunked_array(new))
    if not columns:
        return table
    fields = [(name, column.type) for name, column in zip(table.column_names, columns, strict=True)]
    return pyarrow.table(columns, schema=pyarrow.schema(fields, metadata=table.schema.metadata))


def _map(array: Any, leaf: Leaf, path: str) -> Any:
    import pyarrow
    from pyarrow import types

    kind = array.type
    if types.is_struct(kind) and len(kind):
        _check_names(kind, f"{path}.")
        children = array.flatten()
        new = [_map(child, leaf, f"{path}.{field.name}") for field, child in zip(kind, children, strict=True)]
        if all(one is other for one, other in zip(new, children, strict=True)):
            return array
        return pyarrow.StructArray.from_arrays(new, [field.name for field in kind], mask=array.is_null())
    if types.is_fixed_size_list(kind):
        items = _fixed_items(array)
        new_items = _map(items, leaf, f"{path}[]")
        if new_items is items:
            return array
        return pyarrow.FixedSizeListArray.from_arrays(new_items, kind.list_size, mask=array.is_null())
    if types.is_list(kind) or types.is_large_list(kind):
        items = elements(array)
        new_items = _map(items, leaf, f"{path}[]")
        return array if new_items is items else replace_items(array, new_items)
    return leaf(array, path)


def replace_items(array: Any, items: Any) -> Any:
    """Return an array of lists with other elements, as many as before."""
    from pyarrow import types

    return _list(array, items, is_large=types.is_large_list(array.type))


def _fixed_items(array: Any) -> Any:
    """Return the elements of all lists of fixed size, also those of nulls."""
    size = array.type.list_size
    return array.values.slice(array.offset * size, len(array) * size)


def _list(array: Any, items: Any, *, is_large: bool = False) -> Any:
    """Return an array of lists that are as long as those of `array`, with these elements."""
    import pyarrow
    from pyarrow import compute

    width = pyarrow.int64() if is_large else pyarrow.int32()
    lengths = compute.fill_null(compute.list_value_length(array), 0)
    offsets = pyarrow.concat_arrays([pyarrow.array([0], width), compute.cumulative_sum(lengths).cast(width)])
    maker = pyarrow.LargeListArray if is_large else pyarrow.ListArray
    return maker.from_arrays(offsets, items, mask=array.is_null())


def _check_names(fields: Any, path: str) -> None:
    names = [field.name for field in fields]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UnsupportedType(path + twice, "two columns have this name, and one of them would be lost. Rename one.")
    nul = next((name for name in names if "\0" in name), None)
    if nul is not None:
        raise UnsupportedType(path + nul, "the name contains a NUL, where readers cut it off. Rename it.")


def _normal(array: Any, path: str) -> Any:
    """Return a leaf in a type that `datasets` has."""
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind):
        return _map(array.dictionary, _normal, path).take(array.indices)  # pyarrow can't decode each type
    if types.is_run_end_encoded(kind):
        return _map(compute.run_end_decode(array), _normal, path)
    if types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        pairs = pyarrow.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
        offsets = compute.subtract(array.offsets, first)  # of a slice, they do not begin with 0
        lists = pyarrow.ListArray.from_arrays(offsets, pairs.slice(first, last - first), mask=array.is_null())
        return _map(lists, _normal, path)
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        lists = _list(array, array.flatten(), is_large=types.is_large_list_view(kind))
        return _map(lists, _normal, path)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _normal_extension(array, path)
    if types.is_union(kind) or types.is_interval(kind):
        raise UnsupportedType(path, f"`datasets` has no type for Arrow's {kind}. Cast the column before put.")
    if types.is_string_view(kind):
        return array.cast(pyarrow.string())
    if types.is_fixed_size_binary(kind) or types.is_binary_view(kind):
        return array.cast(pyarrow.binary())
    if types.is_decimal(kind) and kind.scale < 0:
        raise UnsupportedType(path, f"no file holds the type {kind}: its scale is negative. Cast the column.")
    if types.is_decimal(kind) and kind.bit_width < 128:
        return array.cast(pyarrow.decimal128(kind.precision, kind.scale))
    return array


def _check_time(array: Any, path: str) -> Any:
    """Refuse times of which readers can't make Python's."""
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if not types.is_temporal(kind) or types.is_interval(kind):
        return array
    if types.is_timestamp(kind) and kind.tz is not None:
        try:
            pyarrow.scalar(0, kind).as_py()
        except (pyarrow.ArrowException, ValueError, KeyError, OSError):
            raise UnsupportedType(path, f"readers do not know the time zone {kind.tz!r}. Cast the column.") from None
    whole = array.view(pyarrow.int32() if kind.bit_width == 32 else pyarrow.int64())
    found = compute.min_max(whole).as_py()
    least, most = _bounds(kind)
    if found["min"] is not None and not (found["min"] >= least and found["max"] <= most):
        raise UnsupportedType(path, f"it holds a {kind} that Python does not have, such as a year beyond 1 to 9999.")
    return array


def _bounds(kind: Any) -> tuple[int, int]:
    """Return the least and the greatest number of units that are a time in Python."""
    from pyarrow import types

    unit_ns = _UNIT_NS["D" if types.is_date32(kind) else getattr(kind, "unit", "ms")]
    if types.is_time(kind):
        return 0, _DAY_NS // unit_ns - 1
    if types.is_duration(kind):  # nor may it be too large for microseconds, to which a merge may convert it
        most = ((1 << 63) - 1) * 1_000 // max(1_000, unit_ns)
        return -most, most
    margin = getattr(kind, "tz", None) is not None  # local time may be another day
    return (_FIRST_DAY + margin) * _DAY_NS // unit_ns, ((_LAST_DAY + 1 - margin) * _DAY_NS - 1) // unit_ns


def _nested(array: Any, shape: Sequence[int]) -> Any:
    """Return an array of flat lists as one of nested lists of this shape."""
    import pyarrow

    items = _fixed_items(array)
    for size in reversed(shape[1:]):
        items = pyarrow.FixedSizeListArray.from_arrays(items, size)
    return pyarrow.FixedSizeListArray.from_arrays(items, shape[0], mask=array.is_null())


def _normal_extension(array: Any, path: str) -> Any:
    import pyarrow

    name = str(getattr(array.type, "extension_name", ""))
    if name == "arrow.json":
        return (
            array if array.type.storage_type == pyarrow.string() else array.storage.cast("string").cast(pyarrow.json_())
        )
    if name == "arrow.bool8":
        return array.storage.cast(pyarrow.bool_())
    if name == "arrow.uuid":
        return pyarrow.array([None if value is None else str(value) for value in array.to_pylist()], pyarrow.string())
    if name == "arrow.fixed_shape_tensor" and array.type.permutation is None:
        return _map(_nested(array.storage, array.type.shape), _normal, path)
    if name.startswith("datasets."):
        return _map(array.storage, _normal, path)
    why = f"`datasets` has no type for the extension {name or array.type}, and its storage alone is another"
    raise UnsupportedType(path, f"{why}. Convert the column before put.")


def has_null_vectors(column: Any) -> bool:
    """Return whether a column has nulls in the place of lists of fixed size."""
    from pyarrow import types

    kind = column.type
    if types.is_struct(kind):
        return any(map(has_null_vectors, column.flatten()))
    if types.is_fixed_size_list(kind):
        return column.null_count > 0 or has_null_vectors(_flat(column))
    return (types.is_list(kind) or types.is_large_list(kind)) and has_null_vectors(_flat(column))


def conformed(column: Any, kind: Any) -> Any:
    """Return a column in a wider Arrow type, as `merge` joins two: fields that it lacks are null.

    Raises:
        ArrowInvalid: A value does not fit.
    """
    import pyarrow

    if column.type == kind:
        return column
    return pyarrow.chunked_array([_conformed(chunk, kind) for chunk in column.chunks], type=kind)


def _conformed(array: Any, kind: Any) -> Any:
    import pyarrow
    from pyarrow import types

    was = array.type
    if was == kind:
        return array
    if types.is_null(was) or types.is_null(kind):  # a struct without fields becomes null
        return pyarrow.nulls(len(array), kind)
    if types.is_struct(was) and types.is_struct(kind):
        children = dict(zip((field.name for field in was), array.flatten(), strict=True))
        missing = pyarrow.nulls(len(array))
        new = [_conformed(children.get(field.name, missing), field.type) for field in kind]
        return pyarrow.StructArray.from_arrays(new, fields=list(kind), mask=array.is_null())
    if types.is_fixed_size_list(was) and types.is_fixed_size_list(kind):
        items = _conformed(_fixed_items(array), kind.value_type)
        return pyarrow.FixedSizeListArray.from_arrays(items, kind.list_size, mask=array.is_null())
    if types.is_list(kind) or types.is_large_list(kind):
        return _list(array, _conformed(elements(array), kind.value_type), is_large=types.is_large_list(kind))
    if isinstance(kind, pyarrow.JsonType):
        return json_text(array).cast(kind)
    return array.cast(kind)


def without_json(kind: Any) -> Any:
    """Return an Arrow type, or a schema, with text in the place of JSON."""
    import pyarrow
    from pyarrow import types

    if isinstance(kind, pyarrow.Schema):
        return pyarrow.schema([field.with_type(without_json(field.type)) for field in kind], metadata=kind.metadata)
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(without_json(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(without_json(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        maker = pyarrow.large_list if types.is_large_list(kind) else pyarrow.list_
        return maker(without_json(kind.value_type))
    return pyarrow.string() if isinstance(kind, pyarrow.JsonType) else kind


def json_text(column: Any) -> Any:
    """Return a column's values as JSON in strings; nulls stay nulls."""
    import pyarrow

    if isinstance(column.type, pyarrow.JsonType):
        return column.cast(pyarrow.string())
    encode = msgspec.json.encode
    values = column.to_pylist()
    return pyarrow.array([None if value is None else encode(value).decode() for value in values], pyarrow.string())


def _same(one: Any, other: Any) -> bool:
    """Return whether two Arrow types are one, whatever their lists call their elements."""
    from pyarrow import types

    if one is None:
        return False
    if types.is_struct(one) and types.is_struct(other):
        return [f.name for f in one] == [f.name for f in other] and all(
            _same(a.type, b.type) for a, b in zip(one, other, strict=True)
        )
    for is_kind in (types.is_list, types.is_large_list, types.is_fixed_size_list):
        if is_kind(one) and is_kind(other):
            sizes = [getattr(kind, "list_size", -1) for kind in (one, other)]
            return sizes[0] == sizes[1] and _same(one.value_type, other.value_type)
    return bool(one == other)
