"""The formats a shard may have: JSON Lines as they were written, or packed (gzip, Zstandard, Parquet), and back.

A packed shard holds the same rows in the same order. What a row was is kept: a string stays a string, also one that
looks like a date. Memory is bounded by a few chunks of lines. `docs/how-to/choose-a-format.md`
compares the formats.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_directory
from hubsync.encoding.rows import encode
from hubsync.errors import ConfigError, DefectError
from hubsync.model.layout import FORMATS, Format, format_of
from hubsync.policies import MIB

# Of `docs/how-to/choose-a-format.md`: what more effort saves is a few per cent, and costs twice the time.
_GZIP_LEVEL = 4
_ZSTD_LEVEL = 3
# Bytes of lines that are in memory at once, and become a Parquet row group: of larger ones, Xet finds more again.
_CHUNK = 32 * MIB
_PIECE = 1 << 20
_IN_MEMORY = 8 << 20
_PYARROW = 21  # the first that finds page borders by content
SUFFIXES = tuple(f".{one}" for one in FORMATS)


def check(format: Format) -> None:
    """Loads what a format needs.

    Raises:
        ConfigError: it is not installed, or too old.
    """
    if format == "parquet":
        try:
            import pyarrow.json
            import pyarrow.parquet  # noqa: F401  (here, since it takes long, and not while rows come)
        except ImportError as error:
            raise _needs("parquet", f"pyarrow>={_PYARROW}", str(error)) from None
        if int(metadata.version("pyarrow").partition(".")[0]) < _PYARROW:
            raise _needs("parquet", f"pyarrow>={_PYARROW}", f"this is {metadata.version('pyarrow')}")
    elif format == "jsonl.zst":
        _zstd()


def _needs(format: Format, package: str, why: str) -> ConfigError:
    extra = "zstd" if format == "jsonl.zst" else format
    return ConfigError(f"format={format!r} needs {package} ({why}). Install it with: pip install 'hf-hubsync[{extra}]'")


# What a config's columns hold, as `dataset_info.features` has it in a card's YAML.
Features = Sequence[Mapping[str, Any]]


def pack(source: Path, target: Path, rows: int, features: Features = ()) -> None:
    """Writes the lines of `source` into `target`, in the format that its name ends in. It is there whole, or not.

    `features` are those that Parquet has at least, so that all shards of a config are alike.

    On disk before it has its name, whatever the spool's durability: what it was made of is removed then.

    Raises:
        OSError: the disk refuses, or `source` is gone. Nothing is left of `target`.
        DefectError: the lines can't become this format.
        ConfigError: the format's package is not installed.
    """
    format = format_of(target.name)
    check(format)
    new = target.with_name(target.name + ".new")
    try:
        if format == "parquet":
            _pack_parquet(source, new, rows, features)
        else:
            (_pack_gzip if format == "jsonl.gz" else _pack_zstd)(source, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    fsync_directory(target.parent)


class Damaged(ValueError):
    """A packed shard is not what its name says, or is damaged."""


def lines_of(stream: IO[bytes], path: str, *, close: bool = True) -> IO[bytes]:
    """The lines of a shard, from its beginning, as JSON Lines; `path` tells its format. With `close`, closing what
    comes closes `stream` as well.

    Raises:
        Damaged: it is not what its name says; also as it is read.
    """
    format = format_of(path)
    if format == "jsonl":
        return stream
    check(format)
    if format == "parquet":
        try:
            return _lines_of_parquet(stream)
        except Exception as error:  # pyarrow raises builtins of many kinds
            raise Damaged(f"{type(error).__name__}: {error}") from error
        finally:
            if close:
                stream.close()
    try:
        unpacked = gzip.GzipFile(fileobj=stream, mode="rb") if format == "jsonl.gz" else _zstd_reader(stream)
    except Exception as error:
        if close:
            stream.close()
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return io.BufferedReader(_Unpacked(unpacked, stream if close else None), _PIECE)


def unpack(path: Path) -> Iterator[bytes]:
    """The lines of a shard on disk, each with its newline, in whichever format its name ends in.

    Raises:
        OSError: the disk.
        Damaged: it is not what its name says.
        ConfigError: the format's package is not installed.
    """
    with closing(lines_of(path.open("rb"), path.name)) as lines:
        yield from lines


class _Unpacked(io.RawIOBase):
    """Reads what another stream unpacks; closed, it closes the packed one too."""

    def __init__(self, unpacked: Any, packed: IO[bytes] | None) -> None:
        self._unpacked = unpacked
        self._packed = packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._unpacked.readinto(buffer))
        except Exception as error:  # each library has its own
            raise Damaged(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        super().close()
        if self._packed is not None:
            self._packed.close()


# Lines that are packed.


def _pieces(source: Path) -> Iterator[bytes]:
    with source.open("rb", buffering=0) as stream:
        while piece := stream.read(_PIECE):
            yield piece
            failpoint(Failpoint.PARTLY_COMPRESSED)


def _create(new: Path) -> IO[bytes]:
    return os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb")


def _pack_gzip(source: Path, new: Path) -> None:
    # Without a time and a name: packed again, it is the same file.
    with _create(new) as file, gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
        for piece in _pieces(source):
            packed.write(piece)


def _pack_zstd(source: Path, new: Path) -> None:
    with _create(new) as file:
        for piece in _zstd()(_pieces(source), source.stat().st_size):
            file.write(piece)


def _zstd() -> Callable[[Iterator[bytes], int], Iterator[bytes]]:
    """Python's own from 3.14 on, else the package."""
    if sys.version_info >= (3, 14):  # pragma: no cover  (whichever Python the tests run on)
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        def by_python(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
            options = {zstd.CompressionParameter.compression_level: _ZSTD_LEVEL,
                       zstd.CompressionParameter.checksum_flag: 1}  # fmt: skip
            packer = zstd.ZstdCompressor(options=options)
            packer.set_pledged_input_size(size)
            for piece in pieces:
                yield packer.compress(piece)
            yield packer.flush()

        return by_python
    try:
        import zstandard
    except ImportError as error:
        raise _needs("jsonl.zst", "zstandard", str(error)) from None

    def by_package(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
        packer = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True).compressobj(size=size)
        for piece in pieces:
            yield packer.compress(piece)
        yield packer.flush()

    return by_package


def _zstd_reader(stream: IO[bytes]) -> Any:
    if sys.version_info >= (3, 14):  # pragma: no cover
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]

        return zstd.ZstdFile(stream)
    try:
        import zstandard
    except ImportError as error:
        raise _needs("jsonl.zst", "zstandard", str(error)) from None
    start = stream.tell()
    size = zstandard.frame_content_size(stream.read(32))
    stream.seek(start)
    return _Whole(zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False), size)


class _Whole:
    """zstandard takes a file that breaks off for one that ends."""

    def __init__(self, unpacked: Any, size: int) -> None:
        """`size` is the least that there is; below 0 it is not known."""
        self._unpacked = unpacked
        self._left = size

    def readinto(self, buffer: Any) -> int:
        read = int(self._unpacked.readinto(buffer))
        self._left -= read
        if not read and self._left > 0:
            raise EOFError(f"{self._left:,} bytes are missing at the end")
        return read


# Parquet. pyarrow reads JSON without the GIL, with types that we give it; so what it would guess is only asked for
# first, and corrected: text that looks like a date stays text.


def _chunks(source: Path) -> Iterator[bytes]:
    """Whole lines, about `_CHUNK` bytes at a time."""
    with source.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk if chunk.endswith(b"\n") else chunk + stream.readline()


def _pack_parquet(source: Path, new: Path, rows: int, features: Features) -> None:
    import pyarrow

    why = ""
    # What no Arrow type holds (text here, a number there) is kept as JSON: the fields that need it, or else all.
    for choose in (_none, _mixed, _names):
        try:
            _write_parquet(source, new, rows, choose(source), features)
            return
        except (pyarrow.ArrowException, RecursionError, _Unlike) as error:
            if isinstance(error, OSError):
                raise
            why = str(error)
    raise DefectError(f"{rows:,} rows can't become Parquet: {why}")


class _Patient(io.RawIOBase):
    """Where Parquet is written to: the disk's refusal is kept, and raised by `check` and at the end.

    pyarrow ends the whole process (`Check failed`, SIGABRT) where a write fails while it looks for page borders.
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


class _Unlike(Exception):
    """Fewer rows, or other fields, than there should be."""


def _write_parquet(source: Path, new: Path, rows: int, as_json: frozenset[str], features: Features) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = _known(features, _schema(source, as_json), as_json)
    written = 0
    # What goes to disk is read in the schema of the whole shard.
    kept = pyarrow.schema([_writable(field) for field in schema])
    if not len(kept):
        raise DefectError(f"{rows:,} rows without any field can't become Parquet.")
    with (
        _create(new) as file,
        _Patient(file) as sink,
        parquet.ParquetWriter(
            sink,
            _stored(kept, as_json),
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            use_content_defined_chunking=True,
            write_page_index=True,
        ) as writer,
    ):
        for chunk in _chunks(source):
            table = _read(_with_json(chunk, as_json), schema)
            if not all(map(_is_finite, table.itercolumns())):
                raise _Unlike("a number is beyond what a float holds")
            table = _emptied(table, kept)
            written += table.num_rows
            writer.write_table(_as_stored(table, as_json), row_group_size=max(1, table.num_rows))
            sink.check()
            failpoint(Failpoint.PARTLY_COMPRESSED)
    if written != rows:
        raise _Unlike(f"{written:,} rows were read of {rows:,}")


def _read(lines: bytes, schema: Any = None) -> Any:
    import pyarrow.json

    how = pyarrow.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    types = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "error"
    )
    return pyarrow.json.read_json(io.BytesIO(lines), read_options=how, parse_options=types)


def _schema(source: Path, as_json: frozenset[str]) -> Any:
    """The Arrow schema that all rows of a file fit: ints widened, nulls and empty lists as what others hold there.

    The one place that decides on types.
    """
    import pyarrow

    schema = pyarrow.schema([])
    for chunk in _chunks(source):
        found = _read(_with_json(chunk, as_json)).schema
        found = pyarrow.schema([(field.name, _as_written(field.type)) for field in found])
        schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
        failpoint(Failpoint.PARTLY_COMPRESSED)
    return schema


def _known(features: Features, found: Any, as_json: frozenset[str]) -> Any:
    """The schema of a shard, with what is known of its config: a column that is null in all of it has its type."""
    import pyarrow

    fields = []
    for entry in features:
        kind = None if entry["name"] in as_json else _arrow(entry)
        if kind is not None:
            field = pyarrow.field(entry["name"], kind)
            here = [found.field(field.name)] if field.name in found.names else []
            try:
                fields.append(pyarrow.unify_schemas(
                    [pyarrow.schema([field]), pyarrow.schema(here)], promote_options="permissive"
                ).field(0))  # fmt: skip
            except pyarrow.ArrowException:
                continue  # the rows are as they are
    names = {field.name for field in fields}
    return pyarrow.schema([*fields, *(field for field in found if field.name not in names)])


def _arrow(entry: Mapping[str, Any]) -> Any:
    """The Arrow type of a feature; None for one that is not made of JSON's types alone, such as a class label."""
    import pyarrow

    if "struct" in entry:
        kinds = {field["name"]: _arrow(field) for field in entry["struct"]}
        return None if None in kinds.values() else pyarrow.struct(list(kinds.items()))
    if "list" in entry:
        item = entry["list"]
        of = {"dtype": item} if isinstance(item, str) else {"struct": item} if isinstance(item, list) else item
        kind = _arrow(of)
        return None if kind is None else pyarrow.list_(kind)
    make = {"null": "null", "bool": "bool_", "int64": "int64", "float64": "float64", "string": "string"}
    dtype = entry.get("dtype")
    return getattr(pyarrow, make[dtype])() if isinstance(dtype, str) and dtype in make else None


def _is_finite(column: Any) -> bool:
    """JSON has no infinity: where there is one, pyarrow has made it of a number with hundreds of digits."""
    import pyarrow
    from pyarrow import compute

    if pyarrow.types.is_floating(column.type):
        return not compute.any(compute.is_inf(column)).as_py()
    if not pyarrow.types.is_nested(column.type):
        return True
    chunks = column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]
    parts = (part for chunk in chunks for part in (chunk.flatten() if _is_struct(chunk) else [chunk.flatten()]))
    return all(map(_is_finite, parts))


def _is_struct(array: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_struct(array.type))


def _as_written(kind: Any) -> Any:
    """A type that pyarrow has guessed, without its guess that a text is a time."""
    import pyarrow

    if pyarrow.types.is_temporal(kind):
        return pyarrow.string()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(_as_written(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, _as_written(field.type)) for field in kind])
    return kind


def _writable(field: Any) -> Any:
    """Parquet has no objects without fields: where all are `{}`, they are nulls."""
    import pyarrow

    def writable(kind: Any) -> Any:
        if pyarrow.types.is_list(kind):
            return pyarrow.list_(writable(kind.value_type))
        if pyarrow.types.is_struct(kind):
            fields = [(one.name, writable(one.type)) for one in kind]
            return pyarrow.struct(fields) if fields else pyarrow.null()
        return kind

    return pyarrow.field(field.name, writable(field.type))


def _emptied(table: Any, schema: Any) -> Any:
    """The table in `schema`, which has nulls where it has objects without fields."""
    import pyarrow

    if table.schema.equals(schema):
        return table
    columns = [
        column if column.type.equals(field.type) else pyarrow.chunked_array([_nulled(column, field.type)], field.type)
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pyarrow.table(columns, schema=schema) if columns else table


def _nulled(column: Any, kind: Any) -> Any:
    """Made of Python's values: it is rare, and pyarrow casts no struct to null."""
    import pyarrow

    def nulled(value: Any) -> Any:
        if isinstance(value, list):
            return [nulled(item) for item in value]
        if isinstance(value, dict):
            return {key: nulled(item) for key, item in value.items()} or None
        return value

    return pyarrow.array([nulled(value) for value in column.to_pylist()], type=kind)


# Fields that are kept as JSON.


def _none(source: Path) -> frozenset[str]:
    return frozenset()


def _mixed(source: Path) -> frozenset[str]:
    """The fields whose values no Arrow type holds."""
    kinds: dict[str, Any] = {}
    mixed: set[str] = set()
    for row in _rows(source):
        for name, value in row.items():
            try:
                kinds[name] = _merge(kinds.get(name), value)
            except (ValueError, RecursionError):
                mixed.add(name)
    return frozenset(mixed)


def _merge(kind: Any, value: Any) -> Any:
    """The kind of both: a dict of kinds for objects, a list of one kind for lists; None is not known yet."""
    if value is None:
        return kind
    if isinstance(value, dict):
        if not isinstance(kind, dict | None):
            raise ValueError
        kind = {} if kind is None else kind
        for name, item in value.items():
            kind[name] = _merge(kind.get(name), item)
        return kind
    if isinstance(value, list):
        if not isinstance(kind, list | None):
            raise ValueError
        inner = None if kind is None else kind[0]
        for item in value:
            inner = _merge(inner, item)
        return [inner]
    here = float if type(value) in (int, float) else type(value)
    if here is float and abs(value) > sys.float_info.max:
        raise ValueError
    if kind not in (None, here):
        raise ValueError
    return here


def _names(source: Path) -> frozenset[str]:
    return frozenset(name for row in _rows(source) for name in row)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as stream:
        for line in stream:
            yield msgspec.json.decode(line)


def _with_json(lines: bytes, as_json: frozenset[str]) -> bytes:
    """The lines, with the fields of `as_json` as JSON in a text."""
    if not as_json:
        return lines
    changed = []
    for line in lines.splitlines():
        row = msgspec.json.decode(line)
        for name in as_json & row.keys():
            if row[name] is not None:
                row[name] = msgspec.json.encode(row[name]).decode()
        changed.append(row)
    return msgspec.json.Encoder().encode_lines(changed)


def _stored(schema: Any, as_json: frozenset[str]) -> Any:
    """The schema of the file: text that is JSON says so."""
    import pyarrow

    return pyarrow.schema(
        [(f.name, pyarrow.json_() if f.name in as_json and pyarrow.types.is_string(f.type) else f.type) for f in schema]
    )


def _as_stored(table: Any, as_json: frozenset[str]) -> Any:
    return table.cast(_stored(table.schema, as_json)) if as_json else table


def _lines_of_parquet(stream: IO[bytes]) -> IO[bytes]:
    from pyarrow import parquet

    lines: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (handed on)
    file = parquet.ParquetFile(stream)
    json = [field.name for field in file.schema_arrow if str(field.type).startswith("extension<arrow.json")]
    for batch in file.iter_batches():
        if not json:
            lines.write(encode(batch).lines)
            continue
        rows = batch.to_pylist()
        for row in rows:
            for name in json:
                row[name] = None if row[name] is None else msgspec.json.decode(row[name])
        lines.write(encode(rows).lines)
    lines.seek(0)
    return lines
