"""Content on disk: one file per object, named by its hash, moved into place only when complete and verified.

Three kinds: `git` (regular files, by git sha1), `lfs` (by sha256) and `xorb` (by Xet hash). An object never changes
once it stands under its name, so readers need no lock. Uploads in progress live in `incoming/` and are swept at the
next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from hubsync.localhub.storage import git

Kind = Literal["git", "lfs", "xorb"]
_READ_BYTES = 1 << 20
_STALE_S = 24 * 3600.0


class Incoming:
    """An upload on its way to disk, hashed as it comes. Use as a context manager: what is not kept is removed."""

    def __init__(self, path: Path, *, sha256: bool) -> None:
        self.path = path
        self.size = 0
        self._kept = False
        self._sha256 = hashlib.sha256() if sha256 else None
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.close()
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        if self._sha256 is not None:
            self._sha256.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.size += len(data)

    def close(self) -> None:
        self._file.close()

    def keep_at(self, target: Path) -> bool:
        """Move the complete upload to its place; False, and nothing moved, where something stands there."""
        self.close()
        if target.exists():
            return False
        try:
            self.path.replace(target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
        self._kept = True
        return True

    @property
    def sha256(self) -> str:
        assert self._sha256 is not None, "opened without sha256"
        return self._sha256.hexdigest()


class BlobStore:
    """Objects under `root`, by kind and hash."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.incoming_dir = root / "incoming"
        self.incoming_dir.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _STALE_S
        for path in self.incoming_dir.iterdir():
            # Parts of a multipart upload may outlive a restart; what nobody touched for a day is rubbish.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def path(self, kind: Kind, key: str) -> Path:
        return self._root / kind / key[:2] / key

    def has(self, kind: Kind, key: str) -> bool:
        return self.path(kind, key).exists()

    def size(self, kind: Kind, key: str) -> int:
        """Bytes of an object that exists."""
        return self.path(kind, key).stat().st_size

    def receive(self, *, sha256: bool = False) -> Incoming:
        """Open a place for an upload; `keep` makes it an object."""
        return Incoming(self.incoming_dir / secrets.token_hex(12), sha256=sha256)

    def keep(self, incoming: Incoming, kind: Kind, key: str) -> bool:
        """Move a complete upload under its name; False where the object already stands there."""
        return incoming.keep_at(self.path(kind, key))

    def put_git(self, data: bytes) -> str:
        """Store a regular file's content; returns its git blob id."""
        oid = git.object_oid("blob", data)
        if not self.has("git", oid):
            with self.receive() as incoming:
                incoming.write(data)
                self.keep(incoming, "git", oid)
        return oid

    def read(self, kind: Kind, key: str) -> bytes:
        return self.path(kind, key).read_bytes()

    def open(self, kind: Kind, key: str) -> BinaryIO:
        return self.path(kind, key).open("rb")

    def stream(self, kind: Kind, key: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes `start` to `end` (exclusive) in pieces of at most 1 MiB."""
        with self.open(kind, key) as file:
            file.seek(start)
            left = end - start
            while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
                left -= len(piece)
                yield piece
