"""Codecs: the formats of a shard. A segment of JSON Lines is compressed to one of them after it is sealed.

Every format keeps the rows, their order, and every value as it was: text that looks like a date stays text. Memory is
bounded by a few chunks of lines. docs/how-to/choose-a-format.md compares the formats.

``base`` defines a codec; ``jsonl``, ``gzip``, ``zstd`` and ``parquet`` are one each. A file's name decides which one
the functions here use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

from hubsync._runtime import frames
from hubsync._runtime.files import fsync_directory
from hubsync.encoding.codecs import parquet
from hubsync.encoding.codecs.base import Codec, DamagedShard
from hubsync.encoding.codecs.gzip import GzipCodec
from hubsync.encoding.codecs.jsonl import JsonlCodec
from hubsync.encoding.codecs.parquet import FramesCodec, ParquetCodec
from hubsync.encoding.codecs.zstd import ZstdCodec
from hubsync.errors import HubsyncError
from hubsync.model.layout import FORMATS, Format, format_of
from hubsync.schema.types import EMPTY, Conflict, StructOf

__all__ = [
    "SUFFIXES",
    "DamagedShard",
    "check_installed",
    "compress",
    "count_rows",
    "merge",
    "open_lines",
    "read_lines",
    "schema_of",
    "typed_columns",
]

SUFFIXES = tuple(f".{format}" for format in FORMATS)
_CODECS: dict[Format, Codec] = {
    "jsonl": JsonlCodec(),
    "jsonl.gz": GzipCodec(),
    "jsonl.zst": ZstdCodec(),
    "parquet": ParquetCodec(),
}


_FRAMES = FramesCodec()


def _codec_of(name: str) -> Codec:
    return _FRAMES if name.endswith(frames.SUFFIX) else _CODECS[format_of(name)]


def check_installed(format: Format) -> None:
    """Import what a format needs.

    Raises:
        ConfigError: A package is missing or too old.
    """
    _CODECS[format].check_installed()


def compress(source: Path, target: Path, rows: int, columns: StructOf = EMPTY) -> None:
    """Write the rows of a raw file, lines or frames, to `target`, in the format of its name, completely or not at all.

    The file is on disk before it gets its name, whatever the spool's durability, because the lines are removed next.
    A Parquet file has at least the given columns of its config, so that all files are alike.

    Raises:
        OSError: The disk failed, or `source` does not exist. `target` is not created.
        DefectError: The format can't hold these rows.
        ConfigError: The format's package is not installed.
    """
    codec = _CODECS[format_of(target.name)]
    codec.check_installed()
    new = target.with_name(target.name + ".new")
    try:
        with os.fdopen(os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
            codec.compress(source, file, rows, columns)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    fsync_directory(target.parent)


def schema_of(source: Path) -> bytes:
    """Return what shards on disk must have in common to be merged: the schema of a Parquet file, else nothing.

    Raises:
        OSError: The disk failed.
        DamagedShard: The file is not in the format of its name.
    """
    with _damage():
        return _CODECS[format_of(source.name)].schema(source)


def merge(sources: Sequence[Path], target: Path) -> int:
    """Write shards of one format and schema to `target`, in their order; return its rows, which are theirs.

    Raises:
        OSError: The disk failed.
        DamagedShard: A source is damaged, or `target` does not hold as many rows.
        ConfigError: The format's package is not installed.
    """
    codec = _CODECS[format_of(target.name)]
    codec.check_installed()
    with _damage(), target.open("wb") as file:
        codec.merge(sources, file)
    rows, expected = count_rows(target), sum(map(count_rows, sources))
    if rows != expected:
        raise DamagedShard(f"{rows:,} rows were merged of {expected:,}")
    return rows


def count_rows(source: Path) -> int:
    """Return the number of rows of a shard on disk. Raises the same as `read_lines`."""
    return sum(1 for line in read_lines(source) if line.strip())


@contextmanager
def _damage() -> Iterator[None]:
    """Report what a library raises for a damaged file, which are builtins of many kinds."""
    try:
        yield
    except (OSError, HubsyncError):
        raise
    except Exception as error:
        raise DamagedShard(f"{type(error).__name__}: {error}") from error


def open_lines(stream: IO[bytes], path: str, *, close: bool = True) -> IO[bytes]:
    """Return a shard's rows as JSON Lines.

    Args:
        stream: The shard, from its beginning.
        path: Its path, which ends in its format.
        close: Whether closing the result closes `stream`.

    Raises:
        DamagedShard: The shard is not in this format; reading the result may raise it, too.
        ConfigError: The format's package is not installed.
    """
    codec = _codec_of(path)
    codec.check_installed()
    try:
        return codec.open_lines(stream, close)
    except Exception as error:  # pyarrow raises builtins of many kinds
        if close:
            stream.close()
        raise DamagedShard(f"{type(error).__name__}: {error}") from error


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the rows of a shard on disk as JSON, each with its newline.

    Raises:
        OSError: The disk failed.
        DamagedShard: The shard is not in the format of its name.
        ConfigError: The format's package is not installed.
    """
    with closing(open_lines(path.open("rb"), path.name)) as lines:
        yield from lines


def typed_columns(path: Path) -> StructOf | None:
    """Return the types of the columns of a file on disk; None if all are of JSON's types, which its lines tell.

    Raises:
        OSError: The disk failed.
        Conflict: The file contradicts itself.
        DamagedShard: The file is not in the format of its name.
        ConfigError: The format's package is not installed.
    """
    if not path.name.endswith((frames.SUFFIX, ".parquet")):
        return None
    _codec_of(path.name).check_installed()
    try:
        return parquet.typed_columns(path)
    except (OSError, Conflict):
        raise
    except Exception as error:  # pyarrow raises builtins of many kinds
        raise DamagedShard(f"{type(error).__name__}: {error}") from error
