"""What a codec is, and what the codecs share."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync.errors import ConfigError
from hubsync.schema.types import StructOf

_PIECE = 1 << 20  # bytes read at a time


class DamagedShard(ValueError):
    """A shard is incomplete, damaged, or not in the format of its name."""


class Codec(ABC):
    """One format of shards. The functions of `hubsync.encoding.codecs` describe the methods."""

    def check_installed(self) -> None:  # noqa: B027  (most formats need nothing)
        """Import what the format needs, or raise a `ConfigError`."""

    @abstractmethod
    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Write the lines of `source` to `target`."""

    def merge(self, sources: Iterable[Path], target: IO[bytes]) -> None:
        """Write shards of this format to `target` as one."""
        for source in sources:
            target.writelines(read_pieces(source))

    def schema(self, source: Path) -> bytes:
        """Return what shards must have in common to be merged."""
        return b""

    @abstractmethod
    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return the lines of `stream`. Any exception means a damaged shard."""


def missing_package(extra: str, format: str, package: str, why: object) -> ConfigError:
    """Return the error for a package that a format needs."""
    return ConfigError(f"format={format!r} needs {package} ({why}). Install it with: pip install 'hf-hubsync[{extra}]'")


def read_pieces(source: Path) -> Iterator[bytes]:
    """Yield the bytes of a file in pieces of 1 MiB."""
    with open_regular(source) as stream:
        while piece := stream.read(_PIECE):
            yield piece
            failpoint(Failpoint.PARTLY_COMPRESSED)


def decompressed(decompressor: Any, stream: IO[bytes], close: bool) -> IO[bytes]:
    """Return a file that reads through `decompressor`; if `close`, closing it closes `stream`."""
    return io.BufferedReader(_Decompressed(decompressor, stream if close else None), _PIECE)


class _Decompressed(io.RawIOBase):
    def __init__(self, decompressor: Any, stream: IO[bytes] | None) -> None:
        self._decompressor = decompressor
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._decompressor.readinto(buffer))
        except Exception as error:  # each library has its own
            raise DamagedShard(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        super().close()
        if self._stream is not None:
            self._stream.close()
