"""Encode Arrow tables: as frames of Arrow data for Parquet shards, and as JSON Lines for all other formats.

A table brings its types. Parquet stores them. With JSON Lines the card has them, and `load_dataset` restores the values
from their text; a type that it can't restore from JSON is refused.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from hubsync._runtime import frames
from hubsync.encoding.diagnosis import advice, check_rows, named
from hubsync.encoding.encoded import Encoded
from hubsync.encoding.exact import BASE64
from hubsync.encoding.media import FEATURES, embedded, holds_media
from hubsync.encoding.typed import column_of, fitting, may_become, table_of_rows, unfitting, values_of
from hubsync.encoding.values import NS, duration_text, encoder
from hubsync.errors import RowError, one_line
from hubsync.schema.arrow import (
    UnsupportedType,
    arrow_schema,
    columns_of_table,
    in_known_types,
    is_json_type,
    map_leaves,
    normalized,
)
from hubsync.schema.features import feature_name
from hubsync.schema.json_text import any_reads_as_json, reads_as_json
from hubsync.schema.profiler import RowProfiler
from hubsync.schema.types import EMPTY, ColumnType, Conflict, ListOf, StructOf, dumps, is_json, merge_structs

_SLICE_ROWS = 1_000  # of a table, converted at a time
_REMEDY = "JSON Lines can't carry it. Use format='parquet', or convert the column to text before put."
_IS_TEXT = (
    "JSON Lines can't tell this text from a number, or another value, at a place of type JSON inside a column. Declare "
    "the whole column: features={{{!r}: 'json'}}; or use format='parquet' in a new repo."
)
_HEADER = frames.header(b"A", 0, b"")


class Types(NamedTuple):
    """What is known of a batch's columns before it is encoded.

    Attributes:
        native: Whether the rows go to a Parquet shard, as Arrow data.
        declared: Types that every value must fit.
        known: Types of the config that JSON does not have; a column gets its own if all its values fit.
        widens: Whether a column of rows without a common type becomes JSON.
    """

    native: bool = False
    declared: StructOf = EMPTY
    known: StructOf = EMPTY
    widens: bool = False


PLAIN = Types()


def rows_of_tables(tables: Iterable[Any]) -> tuple[list[dict[str, Any]], StructOf]:
    """Return the rows of tables, and the types that JSON does not have."""
    rows: list[dict[str, Any]] = []
    columns = EMPTY
    for table in _checked(tables):
        try:
            normal = map_leaves(normalized(table), _check_python)
        except UnsupportedType as error:
            raise RowError(len(rows), error.path, error.why) from None
        columns = merge_structs(columns, columns_of_table(normal))
        rows += normal.to_pylist()
    return rows, StructOf({name: kind for name, kind in columns.fields.items() if not is_json_type(kind)})


def _check_python(array: Any, path: str) -> Any:
    """Refuse times of day in nanoseconds, which Python's do not have: `to_pylist` would cut them off."""
    import pyarrow

    try:
        if array.type == pyarrow.time64("ns"):
            array.cast(pyarrow.time64("us"))
    except pyarrow.ArrowInvalid:
        why = "Python's time has no nanoseconds, so transform= would lose them. Cast the column to time64('us')."
        raise UnsupportedType(path, why) from None
    return array


def encode_tables(tables: Iterable[Any], profiler: RowProfiler | None, types: Types) -> Encoded:
    """Encode the tables of one batch, a slice at a time.

    Raises:
        RowError: The shards' format can't hold a column or a value, or one does not fit its declared type.
    """
    sink = _Stream() if types.native else _Lines(types.declared)
    columns, first_row = EMPTY, 0
    for table in _checked(tables):
        if not table.num_rows:
            continue
        try:
            normal, found = _conformed(normalized(table), types, first_row)
            if not types.native:
                found = _with_literals(found, normal)
        except UnsupportedType as error:
            raise RowError(first_row, error.path, error.why) from None
        columns = merge_structs(columns, found)
        sink.add(normal, found, first_row)
        first_row += table.num_rows
    return typed(Encoded(sink.data(), first_row, columns=columns, is_typed=True), profiler)


def encode_typed_rows(rows: Sequence[Any], profiler: RowProfiler | None, types: Types) -> Encoded:
    """Encode rows as a table, because some of their types are declared or are not JSON's.

    Raises:
        RowError: The shards' format can't hold a value, or one does not fit its declared type.
    """
    sink, columns = _Stream() if types.native else _Lines(types.declared), EMPTY
    conflicts: list[Conflict] = []
    if rows:
        table, columns = table_of_rows(rows, types.declared, types.known, conflicts=conflicts if types.widens else None)
        sink.add(table, columns, 0)
    encoded = Encoded(sink.data(), len(rows), columns=columns, is_typed=True, conflicts=conflicts)
    return typed(encoded, profiler)


def _conformed(table: Any, types: Types, first_row: int) -> tuple[Any, StructOf]:
    """Return a table in its declared and known types, with the bytes of files that it names; and all its types."""
    import pyarrow

    columns = dict(zip(table.column_names, table.columns, strict=True))
    kinds = columns_of_table(table).fields
    for name, kind in types.declared.fields.items():
        column = columns.get(name)
        if column is None or kinds[name] != kind:
            values = [None] * table.num_rows if column is None else values_of(column, kinds[name])
            columns[name] = pyarrow.chunked_array([column_of(values, kind, name, first_row, rounds=True)])
            kinds[name] = kind if feature_name(kind) != BASE64 else "string"
    for name, kind in types.known.fields.items():
        if name not in columns or name in types.declared.fields or kinds[name] == kind or is_json(kind):
            continue
        values = values_of(columns[name], kinds[name]) if may_become(kinds[name], kind) else []
        if values and (fit := fitting(values, kind, name)) is not None:
            columns[name] = pyarrow.chunked_array([column_of(values, fit, name, first_row)])
            kinds[name] = fit
        else:
            kinds[name] = unfitting(kinds[name], kind)
    for name, kind in kinds.items():
        if holds_media(kind):
            columns[name] = embedded(columns[name], kind, name, first_row)
    return pyarrow.table(list(columns.values()), names=list(columns)), StructOf(kinds)


def typed(encoded: Encoded, profiler: RowProfiler | None) -> Encoded:
    """Return a typed batch with what `profiler` does not know of its types yet."""
    assert isinstance(encoded.columns, StructOf)
    if profiler is None:
        return encoded
    places = profiler.places
    encoded = encoded.with_escaped(profiler.escaped)
    assert isinstance(encoded.columns, StructOf)
    key = dumps(encoded.columns)
    discoveries = [(profiler.tables, key)] if encoded.rows > 0 and key not in profiler.tables else []
    return msgspec.structs.replace(encoded, discoveries=discoveries, profiler=profiler, places=places)


def _with_literals(columns: StructOf, table: Any) -> StructOf:
    """Return the columns with those marked that have strings which read as JSON."""
    texts = (name for name, kind in columns.fields.items() if kind == "string")
    literals: dict[str, ColumnType] = {
        name: "literal" for name in texts if any_reads_as_json(_texts_of(table.column(name)))
    }
    return StructOf({**columns.fields, **literals}) if literals else columns


def _texts_of(column: Any) -> list[str]:
    return [text for text in column.to_pylist() if text is not None]


def _checked(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield tables; an error of the library that makes them says which rows it could not read."""
    made, first_row = iter(tables), 0
    while True:
        try:
            table = next(made)
        except StopIteration:
            return
        except RowError:
            raise
        except Exception as error:
            raise RowError(first_row, "", f"the rows from here on can't be read ({one_line(str(error))}).") from error
        yield table
        first_row += table.num_rows


class _Stream:
    """Writes tables as frames of Arrow IPC streams: one, unless the types of a slice differ."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._file = io.BytesIO()
        self._writer: Any = None
        self._schema: Any = None
        self._rows = 0

    def add(self, table: Any, columns: StructOf, first_row: int) -> None:
        from pyarrow import ipc

        metadata = arrow_schema(columns, stored=True).metadata
        schema = table.schema.with_metadata(metadata)
        if self._schema is None or not self._schema.equals(schema, check_metadata=True):
            self._end()
            self._schema = schema
            self._file = io.BytesIO(_HEADER)
            self._file.seek(len(_HEADER))
            self._writer = ipc.new_stream(self._file, self._schema)
        self._writer.write_table(table.replace_schema_metadata(metadata))
        self._rows += table.num_rows

    def _end(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        with self._file.getbuffer() as whole:
            whole[: len(_HEADER)] = frames.header(b"A", self._rows, whole[len(_HEADER) :])
        self._frames.append(self._file.getvalue())
        self._writer, self._rows = None, 0

    def data(self) -> bytes:
        self._end()
        return self._frames[0] if len(self._frames) == 1 else b"".join(self._frames)


class _Lines:
    """Writes tables as JSON Lines."""

    def __init__(self, declared: StructOf) -> None:
        self._check(declared, 0)  # before a value of such a type is looked at
        self._parts: list[bytes] = []

    def _check(self, columns: StructOf, first_row: int) -> None:
        for name, kind in columns.fields.items():
            _check_carried(kind, name, first_row)

    def add(self, table: Any, columns: StructOf, first_row: int) -> None:
        self._check(columns, first_row)
        try:
            rows = _rows_of(map_leaves(table, _json_leaf), columns)
        except _Unfit:
            check_rows(table.to_pylist(), first_row)
            raise
        except UnsupportedType as error:
            raise RowError(first_row, error.path, error.why) from None
        for name, kind in columns.fields.items():
            if _holds_json(kind) and not is_json(kind):  # strings of a whole column can be told apart; see `json_text`
                for index, row in enumerate(rows):
                    _check_text(row[name], kind, first_row + index, name)
        self._parts.append(encoder.encode_lines(rows))

    def data(self) -> bytes:
        return b"".join(self._parts)


def text_lines(table: Any) -> bytes:
    """Return the rows of a table as JSON Lines, for people and programs that read rows as JSON.

    What JSON does not have is text: base64, or ISO 8601; an infinity is `"Infinity"`, and a NaN is null.
    """
    table = in_known_types(table)
    return encoder.encode_lines(_rows_of(map_leaves(table, _text_leaf), columns_of_table(table)))


# JSON.


class _Unfit(Exception):
    """A column holds a value that JSON does not have."""


def _rows_of(table: Any, columns: StructOf) -> list[dict[str, Any]]:
    """Return the rows of a table in which the JSON of `Json` columns is decoded."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for name, kind in columns.fields.items():
        if _holds_json(kind):
            for row in rows:
                row[name] = _decoded(row[name], kind)
    return rows


def _holds_json(kind: ColumnType) -> bool:
    if isinstance(kind, StructOf):
        return any(map(_holds_json, kind.fields.values()))
    return _holds_json(kind.item) if isinstance(kind, ListOf) else feature_name(kind) == "json"


def _decoded(value: Any, kind: ColumnType) -> Any:
    """Return a value in which the JSON of `Json` columns is decoded."""
    if value is None or not _holds_json(kind):
        return value
    if isinstance(kind, StructOf):
        return {name: _decoded(value[name], field) for name, field in kind.fields.items()}
    if isinstance(kind, ListOf):
        return [_decoded(item, kind.item) for item in value]
    return msgspec.json.decode(value)


def _check_text(value: Any, kind: ColumnType, row: int, path: str) -> None:
    """Refuse a string at a JSON place inside a column that `datasets` would take for JSON."""
    if value is None or not _holds_json(kind):
        return
    if isinstance(kind, StructOf):
        for name, field in kind.fields.items():
            _check_text(value[name], field, row, f"{path}.{name}")
    elif isinstance(kind, ListOf):
        for item in value:
            _check_text(item, kind.item, row, f"{path}[]")
    elif isinstance(value, str) and reads_as_json(value):
        raise RowError(row, path, _IS_TEXT.format(re.split(r"[.\[]", path)[0]))


def _check_carried(kind: ColumnType, path: str, first_row: int) -> None:
    if isinstance(kind, StructOf):
        for name, field in kind.fields.items():
            _check_carried(field, f"{path}.{name}", first_row)
    elif isinstance(kind, ListOf):
        _check_carried(kind.item, f"{path}[]", first_row)
    elif feature_name(kind) in FEATURES:
        raise RowError(first_row, path, f"the column's type is {feature_name(kind)}: {_REMEDY}")


def _json_leaf(array: Any, path: str) -> Any:
    """Return a leaf as text from which `load_dataset` restores it with the card's types."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_time(kind) or types.is_duration(kind):
        raise UnsupportedType(path, f"the column's type is {kind}: {_REMEDY}")
    if types.is_floating(kind) and compute.any(compute.is_inf(array)).as_py():
        raise _Unfit
    if types.is_uint64(kind) and (compute.max(array).as_py() or 0) >= 1 << 63:
        raise _Unfit
    return _plain_leaf(array, path)


def _text_leaf(array: Any, path: str) -> Any:
    """Return a leaf as text that people can read."""
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if types.is_binary(kind) or types.is_large_binary(kind):
        values = array.to_pylist()
        return pyarrow.array([None if v is None else base64.b64encode(v).decode() for v in values], pyarrow.string())
    if types.is_duration(kind):
        counts = array.cast(pyarrow.int64()).to_pylist()
        factor = NS[kind.unit]
        return pyarrow.array([None if n is None else duration_text(n * factor) for n in counts], pyarrow.string())
    if types.is_time(kind):
        return _without_zeros(array.cast(pyarrow.string()))
    if types.is_floating(kind) and compute.any(compute.is_inf(array)).as_py():
        names = {float("inf"): "Infinity", float("-inf"): "-Infinity"}
        values = [names.get(v) or (None if v is None or v != v else repr(v)) for v in array.to_pylist()]
        return pyarrow.array(values, pyarrow.string())
    return _plain_leaf(array, path)


def _plain_leaf(array: Any, path: str) -> Any:
    import pyarrow
    from pyarrow import compute, types

    kind = array.type
    if types.is_timestamp(kind):
        if kind.tz is not None:
            array = array.cast(pyarrow.timestamp(kind.unit, "UTC"))
        return _without_zeros(compute.replace_substring(array.cast(pyarrow.string()), " ", "T"))
    if types.is_date(kind):
        return array.cast(pyarrow.string())
    if types.is_decimal(kind):
        return pyarrow.array([None if v is None else str(v) for v in array.to_pylist()], pyarrow.string())
    if types.is_float16(kind):
        return array.cast(pyarrow.float32())
    return array.cast(pyarrow.string()) if isinstance(kind, pyarrow.JsonType) else array


def _without_zeros(texts: Any) -> Any:
    """Return times without zeros at the end of a fraction, so that one time has one text, whatever its unit."""
    from pyarrow import compute

    texts = compute.replace_substring_regex(texts, r"(\.\d*?)0+(Z?)$", r"\1\2")
    return compute.replace_substring_regex(texts, r"\.(Z?)$", r"\1")


# What is a table.


def tables_of(rows: Any) -> Iterator[Any] | None:
    """Return the Arrow tables of a batch; None if it has no Arrow form. Imports only pyarrow, and only for a table.

    Raises:
        RowError: It can't be one batch, or two of its columns have one name.
    """
    if isinstance(rows, list | tuple):
        return None
    module = type(rows).__module__.partition(".")[0]
    if module == "datasets":
        return _tables_of_dataset(rows)
    if module == "pandas" and hasattr(rows, "columns"):
        return _tables_of_frame(rows)
    is_arrow = module == "pyarrow" and hasattr(rows, "schema")
    if not (is_arrow or hasattr(rows, "__arrow_c_stream__") or hasattr(rows, "__arrow_c_array__")):
        return None
    try:
        import pyarrow
    except ImportError:
        return None
    try:
        table = rows if isinstance(rows, pyarrow.Table) else pyarrow.table(rows)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise RowError(0, "", f"{named(rows)} is no table.{advice(rows) or f' ({error})'}") from None
    for field in table.schema if module == "polars" else ():
        if pyarrow.types.is_fixed_size_binary(field.type):  # polars has no such type
            raise RowError(0, field.name, "polars passes objects on as pointers. Convert the column before put.")
    return _slices(table)


def _slices(table: Any) -> Iterator[Any]:
    check_names(table.column_names, table.num_rows)
    _check_schema(table.schema)
    return (table.slice(start, _SLICE_ROWS) for start in range(0, table.num_rows, _SLICE_ROWS))


def _check_schema(fields: Any, path: str = "") -> None:
    for field in fields:
        kind, below = field.type, f"{path}.{field.name}" if path else field.name
        while hasattr(kind, "value_type"):  # a list, or a dictionary
            kind = kind.value_type
        if hasattr(kind, "fields"):  # a struct
            check_names([child.name for child in kind.fields], 0, below)
            _check_schema(kind.fields, below)


def _tables_of_dataset(rows: Any) -> Iterator[Any] | None:
    if isinstance(rows, dict):
        name = type(rows).__name__
        raise RowError(0, "", f"this {name} holds several splits: put one of them, such as put(dataset['train']).")
    if not (hasattr(rows, "with_format") and hasattr(rows, "num_rows")):
        return None
    check_names(rows.column_names, rows.num_rows)
    tables: Iterator[Any] = rows.with_format("arrow").iter(batch_size=_SLICE_ROWS)
    return tables


def _tables_of_frame(frame: Any) -> Iterator[Any] | None:
    """Return the tables of a DataFrame of pandas; None if its values need a closer look. A named index is a column."""
    named = [name for name in frame.index.names if name is not None]
    names = [*named, *frame.columns]
    check_names(names, len(frame))
    if not all(isinstance(name, str) for name in names):
        return None
    with suppress(ImportError):
        import pyarrow

        frame = frame.reset_index() if named else frame
        with suppress(pyarrow.ArrowException, TypeError, ValueError, OverflowError):  # a `RowError` is a ValueError
            table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
            for name, dtype in frame.dtypes.items():
                if (values := _objects_of(frame[name], dtype)) is not None:
                    _check_guess(values, table.schema.field(name).type, name)
            return _slices(table)
    return None


def _objects_of(column: Any, dtype: Any) -> Sequence[Any] | None:
    """Return the Python values of a column of pandas whose type pyarrow guesses from them; None for any other."""
    categories = getattr(dtype, "categories", None)
    if categories is not None:
        return list(categories)
    return list(column) if getattr(dtype, "kind", None) == "O" and not hasattr(dtype, "na_value") else None


def _check_guess(values: Sequence[Any], kind: Any, name: str) -> None:
    """Raise a `RowError` if values change in the type that pyarrow guessed, as times of two kinds do."""
    import pyarrow

    while pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not isinstance(kind, pyarrow.BaseExtensionType):  # which is refused later
        column_of(
            values, columns_of_table(normalized(pyarrow.schema([(name, kind)]).empty_table())).fields[name], name, 0
        )


def check_names(names: Sequence[Any], rows: int, path: str = "") -> None:
    """Refuse columns of which a row, a mapping, would lose some.

    Raises:
        RowError: There are no columns, or two of them have one name.
    """
    if not names and rows and not path:
        raise RowError(0, "", f"the table has {rows:,} rows and no columns: readers would find nothing in them.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RowError(0, path, f"two columns are named {twice!r}, and a row keeps one of them. Rename the other.")
