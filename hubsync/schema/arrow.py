"""Column types as Arrow types, and back."""

from __future__ import annotations

from typing import Any

from hubsync.schema.types import DTYPES, ColumnType, ListOf, StructOf


def columns_of(schema: Any) -> StructOf:
    """Return the column types of an Arrow schema that pyarrow inferred from JSON."""
    return StructOf({field.name: _column_type(field.type) for field in schema})


def _column_type(kind: Any) -> ColumnType:
    from pyarrow import types

    if types.is_struct(kind):
        return columns_of(kind)
    if types.is_list(kind):
        return ListOf(_column_type(kind.value_type))
    if types.is_null(kind):
        return "null"
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int"
    return "float" if types.is_floating(kind) else "string"  # pyarrow guesses times, but the rows hold text


def arrow_type(kind: ColumnType, *, stored: bool = False) -> Any:
    """Return the Arrow type of a column; None if a part of it is not made of JSON's types, such as a class label.

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
        return None if item is None else pyarrow.list_(item)
    return pyarrow.type_for_alias(DTYPES[kind]) if isinstance(kind, str) else None


def arrow_schema(columns: StructOf, *, stored: bool = False) -> Any:
    """Return the Arrow schema of columns that are all made of JSON's types."""
    import pyarrow

    return pyarrow.schema([(name, arrow_type(kind, stored=stored)) for name, kind in columns.fields.items()])
