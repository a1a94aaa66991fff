"""Parquet, by pyarrow.

pyarrow reads JSON without the GIL. It is asked once for the types that it infers, and then told the types of the whole
shard: they are merged by the rules of `hubsync.schema.types`, and text that looks like a date stays text. Columns whose
values have no common type are stored as JSON.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync._runtime.formatting import count_text
from hubsync._runtime.frames import SUFFIX, read_frames
from hubsync.encoding.codecs.base import Codec, missing_package
from hubsync.encoding.codecs.zstd import LEVEL
from hubsync.encoding.tables import text_lines
from hubsync.errors import DefectError
from hubsync.policies import MIB
from hubsync.schema.arrow import (
    arrow_schema,
    arrow_type,
    columns_of,
    columns_of_table,
    conformed,
    has_null_vectors,
    is_json_type,
    json_text,
)
from hubsync.schema.types import (
    EMPTY,
    JSON,
    ColumnType,
    Conflict,
    ListOf,
    StructOf,
    json_columns,
    merge,
    merge_structs,
    type_of,
)

_CHUNK = 32 * MIB  # of lines in memory at once, and per row group; Xet deduplicates larger groups better
_IN_MEMORY = 8 * MIB  # of lines when reading; more go to a temporary file
_MIN_PYARROW = 21  # the first with content-defined chunking


class ParquetCodec(Codec):
    """Parquet with Zstandard, pages cut by content, and a page index."""

    def check_installed(self) -> None:
        """Import pyarrow now: it takes long, and must not do so while rows arrive."""
        needed = f"pyarrow>={_MIN_PYARROW}"
        try:
            import pyarrow.json
            import pyarrow.parquet
        except ImportError as error:
            raise missing_package("parquet", "parquet", needed, error) from None
        installed = pyarrow.__version__
        if int(installed.partition(".")[0]) < _MIN_PYARROW:
            raise missing_package("parquet", "parquet", needed, f"this is {installed}")

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Write typed columns if possible; otherwise some or all columns as JSON."""
        import pyarrow

        reason = ""
        for choose in (_no_columns, _mixed_columns, _all_columns):
            try:
                target.seek(0)
                target.truncate()
                _write(source, target, rows, choose(source) | json_columns(columns), columns)
                return
            except OSError as error:
                if error.errno is not None:
                    raise
                what = count_text(rows, "row")
                raise DefectError(f"{what} can't become Parquet: {error}") from error  # it lacks their type
            except (pyarrow.ArrowException, RecursionError, Conflict, _Unfit) as error:
                reason = str(error)
        raise DefectError(f"{count_text(rows, 'row')} can't become Parquet: {reason}")

    def schema(self, source: Path) -> bytes:
        """Return the file's schema, with its metadata."""
        from pyarrow import parquet

        return bytes(parquet.read_schema(source).serialize())

    def merge(self, sources: Iterable[Path], target: IO[bytes]) -> None:
        """Write files of one schema as one, in row groups of about 32 MiB."""
        from pyarrow import Table, parquet

        sources = list(sources)
        with _ErrorKeeper(target) as sink, _writer(sink, parquet.read_schema(sources[0])) as writer:
            batches = (batch for source in sources for batch in parquet.ParquetFile(source).iter_batches())
            for table in _row_groups(Table.from_batches([batch]) for batch in batches):
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                sink.check()

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Read the whole file now, into memory or a temporary file. The result can seek."""
        from pyarrow import Table, parquet

        batches = parquet.ParquetFile(stream).iter_batches()
        return _spooled((text_lines(Table.from_batches([batch])) for batch in batches), stream if close else None)


class FramesCodec(Codec):
    """The frames of a segment. A shard never has this format: `compress` of another codec reads it."""

    def check_installed(self) -> None:
        """Import pyarrow, or raise a `ConfigError`."""
        ParquetCodec().check_installed()

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Refuse: only a segment's writer writes frames."""
        raise DefectError(f"{source.name} can't become frames.")

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Read the whole file now, as `ParquetCodec` does."""
        chunks = (chunk if isinstance(chunk, bytes) else text_lines(chunk) for chunk in _frames(stream))
        return _spooled(chunks, stream if close else None)


def _spooled(pieces: Iterable[bytes], to_close: IO[bytes] | None) -> IO[bytes]:
    lines: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (returned)
    lines.writelines(pieces)
    lines.seek(0)
    if to_close is not None:
        to_close.close()
    return lines


def typed_columns(file: Path) -> StructOf | None:
    """Return the types of a file whose columns are not all of JSON's types; None for any other file.

    Raises:
        Conflict: The file contradicts itself.
    """
    import pyarrow
    from pyarrow import parquet

    if file.suffix == SUFFIX:
        return _infer(file, frozenset())
    columns = EMPTY
    for batch in parquet.ParquetFile(file).iter_batches():
        columns = merge_structs(columns, columns_of_table(pyarrow.Table.from_batches([batch])))
        if is_json_type(columns):
            return None
    return columns


class _Unfit(Exception):
    """pyarrow read fewer rows than there are, or changed a value."""


class _ErrorKeeper(io.RawIOBase):
    """A file for pyarrow to write to. It keeps the error of a failed write, and raises it in `check` and at the end.

    pyarrow aborts the process if a write raises while it cuts pages by content.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: OSError | None = None
        self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._size += size
        try:
            if self._error is None:
                self._file.write(data)
        except OSError as error:
            self._error = error
        return size

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None:
            self.check()
            self._file.flush()


def _writer(sink: _ErrorKeeper, schema: Any) -> Any:
    from pyarrow import parquet

    return parquet.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        compression_level=LEVEL,
        use_content_defined_chunking=True,
        write_page_index=True,
    )


def _write(source: Path, target: IO[bytes], rows: int, as_json: frozenset[str], known: StructOf) -> None:
    columns = _with_known(known, _infer(source, as_json), as_json, may_be_typed=source.suffix == SUFFIX)
    if not columns.fields:
        raise DefectError(f"{count_text(rows, 'row')} without any field can't become Parquet.")
    schema = arrow_schema(_readable(source, columns), stored=True)
    written = 0
    with (
        # An error's traceback keeps a generator, and its open file would hold the room of a source that is removed.
        closing(_tables(source, columns, as_json, schema)) as tables,
        _ErrorKeeper(target) as sink,
        _writer(sink, schema) as writer,
    ):
        for table in _row_groups(tables) if source.suffix == SUFFIX else tables:
            written += table.num_rows
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            sink.check()
            failpoint(Failpoint.PARTLY_COMPRESSED)
    if written != rows:
        raise _Unfit(f"{written:,} rows were read of {rows:,}")


def _readable(source: Path, columns: StructOf) -> StructOf:
    """Return the columns as the file has them: pyarrow 21 can't read lists of fixed size if one of them is null.

    The card tells their length.
    """
    vectors = {
        name for name, kind in columns.fields.items() if source.suffix == SUFFIX and _without_lengths(kind) != kind
    }
    if not vectors:
        return columns
    whole = set(vectors)
    for chunk in _chunks(source):
        found = set() if isinstance(chunk, bytes) else whole.intersection(chunk.column_names)
        whole = {name for name in found if not has_null_vectors(chunk[name])}
    loose = vectors - whole
    return StructOf({name: _without_lengths(kind) if name in loose else kind for name, kind in columns.fields.items()})


def _without_lengths(kind: ColumnType) -> ColumnType:
    if isinstance(kind, StructOf):
        return StructOf({name: _without_lengths(field) for name, field in kind.fields.items()})
    return ListOf(_without_lengths(kind.item), is_large=kind.is_large) if isinstance(kind, ListOf) else kind


def _tables(source: Path, columns: StructOf, as_json: frozenset[str], schema: Any) -> Generator[Any]:
    """Yield the rows of a segment in the schema of the file."""
    import pyarrow

    for chunk in _chunks(source):
        if isinstance(chunk, bytes):
            table = _with_json_columns(_read_lines(_encode_columns(chunk, as_json), columns), as_json)
        else:
            table = _with_json_columns(chunk, as_json, json_text)
        missing = pyarrow.chunked_array([pyarrow.nulls(table.num_rows)])
        found = dict(zip(table.column_names, table.columns, strict=True))
        yield pyarrow.table([conformed(found.get(f.name, missing), f.type) for f in schema], schema=schema)


def _read_lines(lines: bytes, columns: StructOf) -> Any:
    """Read lines as the columns of the file, as far as they are of JSON's types, and the others as pyarrow does."""
    plain = StructOf({name: kind for name, kind in columns.fields.items() if is_json_type(kind)})
    if len(plain.fields) < len(columns.fields):
        inferred = columns_of(_read_json(lines).schema)
        others = {name: kind for name, kind in inferred.fields.items() if name not in plain.fields}
        plain = StructOf({**plain.fields, **others})
    readable = _without_null_items(plain)
    assert isinstance(readable, StructOf)
    table = _read_json(lines, arrow_schema(readable))
    if not all(map(_is_finite, table.itercolumns())):
        raise _Unfit("a number is too large for a float")
    stored = arrow_schema(plain, stored=True)
    return table.from_arrays([conformed(table[field.name], field.type) for field in stored], schema=stored)


def _row_groups(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield tables of about `_CHUNK` bytes: small ones together, large ones in parts."""
    import pyarrow

    held: list[Any] = []
    size = 0
    for table in tables:
        if held and size + table.nbytes > _CHUNK:
            yield pyarrow.concat_tables(held)
            held, size = [], 0
        step = max(1, table.num_rows * _CHUNK // max(1, table.nbytes))
        if step < table.num_rows:
            yield from (table.slice(start, step) for start in range(0, table.num_rows, step))
        else:
            held.append(table)
            size += table.nbytes
    if held:
        yield pyarrow.concat_tables(held)


def _chunks(source: Path) -> Iterator[Any]:
    """Yield a segment's rows: whole lines, about `_CHUNK` bytes at a time; or a frame at a time, lines or a table."""
    with open_regular(source) as stream:
        if source.suffix == SUFFIX:
            yield from _frames(stream)
            return
        while chunk := stream.read(_CHUNK):
            yield chunk if chunk.endswith(b"\n") else chunk + stream.readline()


def _frames(stream: IO[bytes]) -> Iterator[Any]:
    from pyarrow import ipc

    for frame in read_frames(stream):
        yield frame.data if frame.kind == b"J" else ipc.open_stream(frame.data).read_all()


def _read_json(lines: bytes, schema: Any = None) -> Any:
    import pyarrow.json

    read = pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parse = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"
    )
    return pyarrow.json.read_json(io.BytesIO(lines), read_options=read, parse_options=parse)


# The types of the columns.


def _infer(source: Path, as_json: frozenset[str]) -> StructOf:
    """Return the columns of all rows of a segment. One without a common type raises, in pyarrow or in the merge."""
    columns = EMPTY
    for chunk in _chunks(source):
        if isinstance(chunk, bytes):
            found = columns_of(_read_json(_encode_columns(chunk, as_json)).schema)
        else:
            found = columns_of_table(chunk)
        found = StructOf({name: JSON if name in as_json else kind for name, kind in found.fields.items()})
        columns = merge_structs(columns, found)
        failpoint(Failpoint.PARTLY_COMPRESSED)
    return columns


def _with_known(known: StructOf, found: StructOf, as_json: frozenset[str], *, may_be_typed: bool) -> StructOf:
    """Return the columns of a shard, with what is known of its config: a column of nulls gets its known type.

    Lines are stored in JSON's types, whatever else the card says: `datasets` converts them.
    """
    fields: dict[str, ColumnType] = {}
    for name, kind in known.fields.items():
        if name not in as_json and (is_json_type(kind) or (may_be_typed and arrow_type(kind) is not None)):
            try:
                fields[name] = merge(kind, found.fields.get(name, "null"))
            except Conflict:
                continue  # the rows stay as they are
    return StructOf({**fields, **{name: kind for name, kind in found.fields.items() if name not in fields}})


def _is_finite(column: Any) -> bool:
    """Return whether there is no infinity. JSON has none: pyarrow makes it of a number with hundreds of digits."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_floating(column.type):
        return not compute.any(compute.is_inf(column)).as_py()
    if not pyarrow.types.is_nested(column.type):
        return True
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    is_struct = pyarrow.types.is_struct(column.type)
    return all(_is_finite(part) for chunk in chunks for part in (chunk.flatten() if is_struct else [chunk.flatten()]))


def _without_null_items(kind: ColumnType) -> ColumnType:
    """Return the type to read a column as: pyarrow's JSON reader miscounts the nulls in lists of nulls."""
    if isinstance(kind, StructOf):
        return StructOf({name: _without_null_items(field) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf):
        return ListOf("bool" if kind.item == "null" else _without_null_items(kind.item))
    return kind


# Columns that are stored as JSON.


def _no_columns(source: Path) -> frozenset[str]:
    return frozenset()


def _mixed_columns(source: Path) -> frozenset[str]:
    """Return the columns whose values have no common type."""
    known: dict[str, ColumnType] = {}
    mixed: set[str] = set()
    for name, kind in _types(source):
        try:
            if kind is None:
                raise Conflict(name, "null", "null")
            known[name] = merge(known.get(name, "null"), kind)
        except Conflict:
            mixed.add(name)
    return frozenset(mixed)


def _types(source: Path) -> Iterator[tuple[str, ColumnType | None]]:
    """Yield the columns of all rows with their types; None for a value that contradicts itself."""
    for chunk in _chunks(source):
        if not isinstance(chunk, bytes):
            yield from columns_of_table(chunk).fields.items()
            continue
        for line in chunk.splitlines():
            for name, value in msgspec.json.decode(line).items():
                try:
                    yield name, type_of(value)
                except (Conflict, RecursionError):
                    yield name, None


def _all_columns(source: Path) -> frozenset[str]:
    return frozenset(name for name, _ in _types(source))


def _with_json_columns(
    table: Any, as_json: frozenset[str], encode: Callable[[Any], Any] = lambda column: column
) -> Any:
    """Return a table with the columns of `as_json` as JSON; `encode` makes strings of JSON of a column."""
    import pyarrow

    for index, name in enumerate(table.column_names):
        if name in as_json:
            table = table.set_column(index, name, encode(table.column(index)).cast(pyarrow.json_()))
    return table


def _encode_columns(lines: bytes, as_json: frozenset[str]) -> bytes:
    """Return the lines with the columns of `as_json` as JSON in a string."""
    if not as_json:
        return lines
    return msgspec.json.Encoder().encode_lines(list(_encoded_columns(lines.splitlines(), as_json)))


def _encoded_columns(lines: Iterable[bytes], as_json: frozenset[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        row = msgspec.json.decode(line)
        for name in as_json & row.keys():
            if row[name] is not None:
                row[name] = msgspec.json.encode(row[name]).decode()
        yield row
