"""Git's own formats: object ids, trees, LFS pointers, `.gitattributes` and `.gitignore`.

Ids are computed as git computes them, so an oid that a client derives from local bytes equals the oid in the Hub's
answers. These are pure functions over bytes and strings; `history` and `blobs` store their results.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

DIRECTORY = "40000"
FILE = "100644"
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

_LFS_EVERYWHERE = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz *.onnx *.ot
    *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm
    *.xz *.zip *.zst *tfevents*
"""
_LFS_IN_DATASETS = """
    *.lz4 *.mds *.pcm *.sam *.raw *.aac *.flac *.mp3 *.ogg *.wav *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp *.mp4
    *.webm
"""


class Entry(NamedTuple):
    """One name in a git tree: a file (`100644`) or a directory (`40000`) and the id of its object."""

    mode: str
    oid: str

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode == DIRECTORY


def default_gitattributes(repo_type: str) -> bytes:
    """Return the `.gitattributes` that the Hub puts into the first commit of a new repo."""
    patterns = (_LFS_EVERYWHERE + (_LFS_IN_DATASETS if repo_type == "dataset" else "")).split()
    return "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in patterns).encode()


def object_oid(kind: str, data: bytes) -> str:
    """Return the sha1 of a whole git object (`blob`, `tree` or `commit`), in hex."""
    digest = hashlib.sha1(f"{kind} {len(data)}\0".encode(), usedforsecurity=False)
    digest.update(data)
    return digest.hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the content of the git blob that represents an LFS object of `size` bytes."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def encode_tree(entries: Mapping[str, Entry]) -> bytes:
    """Return a tree object's bytes; git sorts a directory as if its name ended with a slash."""
    ordered = sorted(entries.items(), key=lambda item: (item[0] + "/" if item[1].is_directory else item[0]).encode())
    return b"".join(
        b"%s %s\0%s" % (entry.mode.encode(), name.encode(), bytes.fromhex(entry.oid)) for name, entry in ordered
    )


def decode_tree(data: bytes) -> dict[str, Entry]:
    """Return the entries of a tree object, in git's order."""
    entries: dict[str, Entry] = {}
    position = 0
    while position < len(data):
        space = data.index(b" ", position)
        end = data.index(b"\0", space)
        entries[data[space + 1 : end].decode()] = Entry(data[position:space].decode(), data[end + 1 : end + 21].hex())
        position = end + 21
    return entries


def commit_oid(tree: str, parents: Iterable[str], author: str, seconds: int, message: str) -> str:
    """Return the sha1 of a commit object written by `author` at `seconds` (Unix time, UTC)."""
    who = f"{author} <{author}@users.noreply.huggingface.co> {seconds} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}"]
    return object_oid("commit", "\n".join([*lines, "", message]).encode())


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    """Return a gitattributes or gitignore glob as a regular expression over a whole path."""
    anchored = "/" in pattern.rstrip("/")
    body = pattern.strip("/")
    parts = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?|\[[^\]]+\])", body)
    special = {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = "".join(
        special.get(part)
        or (part.replace("[!", "[^") if part.startswith("[") and part.endswith("]") else re.escape(part))
        for part in parts
    )
    return re.compile(("" if anchored else "(?:.*/)?") + out + r"\Z")


def lfs_tracked(gitattributes: str, path: str) -> bool:
    """Return whether `.gitattributes` puts `path` under `filter=lfs`; the last matching line decides."""
    tracked = False
    for line in gitattributes.splitlines():
        words = line.split()
        if len(words) < 2 or words[0].startswith("#"):
            continue
        filters = [word for word in words[1:] if word in ("-filter", "!filter") or word.startswith("filter=")]
        if filters and _glob(words[0]).match(path):
            tracked = filters[-1] == "filter=lfs"
    return tracked


def ignored(gitignore: str, path: str) -> bool:
    """Return whether `.gitignore` excludes `path`; the last matching line decides, and a folder covers its content."""
    verdict = False
    prefixes = [path[: match.start()] for match in re.finditer("/", path)]
    for raw in gitignore.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        pattern = line.lstrip("!")
        candidates = prefixes if pattern.endswith("/") else [*prefixes, path]
        if any(_glob(pattern).match(candidate) for candidate in candidates):
            verdict = not negated
    return verdict


def path_problem(path: object) -> str | None:
    """Return why the Hub refuses `path` as a file's place in a repo, or None if it is fine."""
    if not isinstance(path, str) or not path:
        return "path must be a non-empty string"
    if any(0xD800 <= ord(character) < 0xE000 for character in path):
        return f"path is not valid Unicode: {path!r}"
    # A backslash is a character of a name in git; at the front it would lead out of a folder on Windows.
    escapes = path.startswith(("/", "\\", ".\\", "..\\"))
    segments = path.split("/")
    reserved = any(segment in ("", ".", "..") or segment.lower() == ".git" for segment in segments)
    if escapes or reserved or re.search(r"[\x00-\x1f\x7f]", path):
        return f"invalid path: {path!r}"
    if len(path.encode()) > 4096 or any(len(segment.encode()) > 255 for segment in segments):
        return f"path too long: {path[:80]!r}"
    return None
