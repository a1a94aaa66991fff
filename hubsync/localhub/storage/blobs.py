"""Content on disk: one file per object, named by its hash, moved into place only when complete and verified.

There are three kinds: `git` (regular files, by git sha1), `lfs` (by sha256) and `xorb` (by Xet hash). An object never
changes once it has its name, so readers need no lock. Uploads in progress are in `incoming/`, which is swept when the
store is opened.
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


class Upload:
    """A file in `incoming/`. Its context manager removes it unless it was moved."""

    def __init__(self, path: Path, *, sha256: bool) -> None:
        self.path = path
        self.size = 0
        self._moved = False
        self._sha256 = hashlib.sha256() if sha256 else None
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._moved:
            self.close()
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._sha256 is not None:
            self._sha256.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.size += len(data)

    def close(self) -> None:
        """Close the file; it can be read at `path`."""
        self._file.close()

    def move_to(self, target: Path) -> bool:
        """Move the complete upload to its place; return False, and move nothing, if the place is taken."""
        self.close()
        if target.exists():
            return False
        try:
            self.path.replace(target)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.replace(target)
        self._moved = True
        return True

    @property
    def sha256(self) -> str:
        """The sha256 of what was written so far, in hex."""
        assert self._sha256 is not None, "opened without sha256"
        return self._sha256.hexdigest()


class BlobStore:
    """Objects under `root`, by kind and hash."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        oldest = time.time() - _STALE_S
        for path in self._incoming.iterdir():
            # Parts of a multipart upload may outlive a restart; a file that is a day old is abandoned.
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def path(self, kind: Kind, key: str) -> Path:
        """Return where an object is, or would be."""
        return self._root / kind / key[:2] / key

    def size(self, kind: Kind, key: str) -> int:
        """Return the bytes of an object that exists."""
        return self.path(kind, key).stat().st_size

    def upload(self, *, sha256: bool = False) -> Upload:
        """Open an upload, hashed while it is written if `sha256`; `add` makes it an object."""
        return Upload(self._incoming / secrets.token_hex(12), sha256=sha256)

    def add(self, upload: Upload, kind: Kind, key: str) -> bool:
        """Make a complete upload an object; return False if the object exists."""
        return upload.move_to(self.path(kind, key))

    def add_git(self, data: bytes) -> str:
        """Store a regular file's content; return its git blob id."""
        oid = git.object_oid("blob", data)
        if not self.path("git", oid).exists():
            with self.upload() as upload:
                upload.write(data)
                self.add(upload, "git", oid)
        return oid

    def parts(self, name: str) -> Path:
        """Return the folder for the parts of one multipart upload."""
        return self._incoming / f"parts-{name}"

    def read(self, kind: Kind, key: str) -> bytes:
        """Return the whole content of an object."""
        return self.path(kind, key).read_bytes()

    def open(self, kind: Kind, key: str) -> BinaryIO:
        """Open an object for reading."""
        return self.path(kind, key).open("rb")

    def stream(self, kind: Kind, key: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `start` to `end` (exclusive) in pieces of at most 1 MiB."""
        with self.open(kind, key) as file:
            file.seek(start)
            left = end - start
            while left > 0 and (piece := file.read(min(_READ_BYTES, left))):
                left -= len(piece)
                yield piece
