"""Refs, commits and trees of every repo: git's object graph, in the tables of the store.

Commits share trees, as in git, so a commit writes only the directories it changes. All writes run inside the caller's
`Store.transaction()`, which makes checking the parent and moving the ref one step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from hubsync.localhub.storage import git
from hubsync.localhub.storage.git import Entry
from hubsync.localhub.storage.store import Repo, Store

_HEX = re.compile(r"[0-9a-f]{7,40}\Z")
_CACHED_TREES = 512


@dataclass(frozen=True)
class Commit:
    """One commit: `created` is Unix time in seconds, `message` the text after the title."""

    oid: str
    tree: str
    parent: str | None
    author: str
    title: str
    message: str
    created: float


class Node(NamedTuple):
    """A path in a tree."""

    path: str
    entry: Entry


class Content(NamedTuple):
    """A file's git object and content: `size` is the content's; `sha256` is set if the object is an LFS pointer."""

    oid: str
    size: int
    sha256: str | None


class PathConflict(ValueError):
    """A commit would put a file where a folder is, or a folder where a file is."""


class FolderLimit(ValueError):
    """A commit would add an entry to folders that are full; `folders` names them, each with slashes around."""

    def __init__(self, folders: list[str]) -> None:
        super().__init__(f"too many entries in {folders}")
        self.folders = folders


class History:
    """Reads and writes the git side of the store; `clock` gives the commits' Unix time."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self.tree = lru_cache(_CACHED_TREES)(self._read_tree)

    # Refs

    def refs(self, repo: Repo, prefix: str) -> dict[str, str]:
        """Return short name -> commit oid of the refs under `prefix` (such as `refs/heads/`)."""
        sql = "SELECT name, oid FROM ref WHERE repo = ? AND name LIKE ? ORDER BY name"
        return {name[len(prefix) :]: oid for name, oid in self._store.rows(sql, repo.id, prefix + "%")}

    def ref(self, repo: Repo, name: str) -> str | None:
        """Return the commit oid of a ref by its full name, or None."""
        row = self._store.row("SELECT oid FROM ref WHERE repo = ? AND name = ?", repo.id, name)
        return None if row is None else str(row[0])

    def set_ref(self, repo: Repo, name: str, oid: str) -> None:
        """Create or move a ref."""
        self._store.write("INSERT OR REPLACE INTO ref VALUES (?, ?, ?)", repo.id, name, oid)

    def delete_ref(self, repo: Repo, name: str) -> bool:
        """Delete a ref; return False if it does not exist."""
        return self._store.write("DELETE FROM ref WHERE repo = ? AND name = ?", repo.id, name) > 0

    def branch(self, repo: Repo, revision: str) -> str | None:
        """Return the full name of the branch or pull request ref that `revision` names, or None."""
        full = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        return full if not full.startswith("refs/tags/") and self.ref(repo, full) else None

    def resolve(self, repo: Repo, revision: str) -> str | None:
        """Return the commit oid of a branch, a tag, a full ref, a commit id, or at least 7 digits of one."""
        names = [f"refs/heads/{revision}", f"refs/tags/{revision}"]
        for name in [*names, revision] if revision.startswith("refs/") else names:
            if oid := self.ref(repo, name):
                return oid
        if revision == "HEAD":
            return self.ref(repo, "refs/heads/main")
        if _HEX.match(revision):
            sql = "SELECT oid FROM commits WHERE repo = ? AND oid >= ? AND oid < ? LIMIT 2"
            rows = self._store.rows(sql, repo.id, revision, revision + "g")
            if len(rows) == 1:
                return str(rows[0][0])
        return None

    # Commits

    def commit(self, repo: Repo, oid: str) -> Commit:
        """Return a commit that exists."""
        sql = "SELECT oid, tree, parent, author, title, message, created FROM commits WHERE repo = ? AND oid = ?"
        row = self._store.row(sql, repo.id, oid)
        assert row is not None, f"commit {oid} is not in {repo.name}"
        return Commit(*row)

    def add_commit(
        self, repo: Repo, tree: str, parent: str | None, author: str, title: str, message: str = ""
    ) -> Commit:
        """Write a commit; no ref leads to it yet."""
        text = f"{title}\n\n{message}" if message else title
        created = self._clock()
        oid = git.commit_oid(tree, [parent] if parent else [], author, int(created), text)
        row = (oid, tree, parent, author, title, message, created)
        self._store.write("INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", repo.id, *row)
        return Commit(*row)

    def log(self, repo: Repo, oid: str | None) -> Iterator[Commit]:
        """Yield the commit and its ancestors, newest first."""
        while oid is not None:
            commit = self.commit(repo, oid)
            yield commit
            oid = commit.parent

    def delete_unreachable(self, repo: Repo, head: str) -> None:
        """Delete the commit `head` and its ancestors, except for those that a ref still leads to."""
        kept: set[str] = set()
        for oid in self.refs(repo, "").values():
            for commit in self.log(repo, oid):
                if commit.oid in kept:
                    break
                kept.add(commit.oid)
        for commit in list(self.log(repo, head)):
            if commit.oid not in kept:
                self._store.write("DELETE FROM commits WHERE repo = ? AND oid = ?", repo.id, commit.oid)

    def last_changes(self, repo: Repo, oid: str, paths: Iterable[str]) -> dict[str, Commit]:
        """Return, for each path of the commit `oid`, the newest commit up to `oid` that changed it."""
        found: dict[str, Commit] = {}
        log = self.log(repo, oid)
        newer = next(log)
        pending = {path: self.entry(newer.tree, path) for path in paths}
        for older in log:
            if not pending:
                break
            if older.tree != newer.tree:
                changed = [path for path, entry in pending.items() if self.entry(older.tree, path) != entry]
                for path in changed:
                    found[path] = newer
                    del pending[path]
            newer = older
        return {**found, **dict.fromkeys(pending, newer)}

    # Trees

    def _read_tree(self, oid: str) -> dict[str, Entry]:
        """Return a directory's entries. The dictionary is cached: never change it."""
        if oid == git.EMPTY_TREE:
            return {}
        return git.decode_tree(self._store.rows("SELECT data FROM tree WHERE oid = ?", oid)[0][0])

    def entry(self, root: str, path: str) -> Entry | None:
        """Return the entry at `path`, or None; the empty path is the root directory."""
        entry = Entry(git.DIRECTORY, root)
        for segment in path.split("/") if path else []:
            below = self.tree(entry.oid).get(segment) if entry.is_directory else None
            if below is None:
                return None
            entry = below
        return entry

    def file(self, root: str, path: str) -> Content | None:
        """Return the content of the file at `path`; None if it does not exist or is a folder."""
        entry = self.entry(root, path)
        return None if entry is None or entry.is_directory else self.content(entry.oid)

    def walk(self, tree: str, prefix: str = "", *, recursive: bool) -> Iterator[Node]:
        """Yield the nodes of a directory, a folder before its content; `prefix` is its path with a slash, or empty."""
        for name, entry in self.tree(tree).items():
            yield Node(prefix + name, entry)
            if recursive and entry.is_directory:
                yield from self.walk(entry.oid, f"{prefix}{name}/", recursive=True)

    def files(self, root: str) -> dict[str, Content]:
        """Return path -> content of all files of a tree."""
        nodes = [node for node in self.walk(root, recursive=True) if not node.entry.is_directory]
        contents = self.contents(node.entry.oid for node in nodes)
        return {node.path: contents[node.entry.oid] for node in nodes}

    def write_tree(self, root: str, changes: Mapping[str, str | None], *, most_entries: int | None = None) -> str:
        """Write a tree with changes to the one at `root`, and return its oid; empty folders vanish.

        `changes` maps a path to the file's new oid, or to None to remove a file or a whole folder.

        Raises:
            PathConflict: A change needs a folder where a file is, or the other way round.
            FolderLimit: Folders would grow beyond `most_entries`.
        """
        full: list[str] = []
        oid = self._write_folder(root, changes, "/", most_entries, full)
        if full:
            raise FolderLimit(full)
        return oid

    def _write_folder(
        self, root: str, changes: Mapping[str, str | None], folder: str, most: int | None, full: list[str]
    ) -> str:
        before = self.tree(root)
        here: dict[str, Entry] = dict(before)
        below: dict[str, dict[str, str | None]] = {}
        # Removals first: a commit may turn a file into a folder of the same name.
        for path, oid in sorted(changes.items(), key=lambda item: item[1] is not None):
            name, slash, rest = path.partition("/")
            if slash:
                below.setdefault(name, {})[rest] = oid
            elif oid is None:
                here.pop(name, None)
            elif name in here and here[name].is_directory:
                raise PathConflict(f"{path!r} is a folder")
            else:
                here[name] = Entry(git.FILE, oid)
        for name, inner in below.items():
            entry = here.get(name)
            if entry is not None and not entry.is_directory:
                if all(oid is None for oid in inner.values()):
                    continue
                raise PathConflict(f"{name!r} is a file")
            oid = self._write_folder(entry.oid if entry else git.EMPTY_TREE, inner, f"{folder}{name}/", most, full)
            if oid == git.EMPTY_TREE:
                here.pop(name, None)
            else:
                here[name] = Entry(git.DIRECTORY, oid)
        if most is not None and len(here) > most and len(here) > len(before):
            full.append(folder)
        data = git.encode_tree(here)
        oid = git.object_oid("tree", data)
        if here:
            self._store.write("INSERT OR IGNORE INTO tree VALUES (?, ?)", oid, data)
        return oid

    # Contents

    def add_content(self, oid: str, size: int, sha256: str | None) -> None:
        """Record the content behind a file's oid."""
        self._store.write("INSERT OR IGNORE INTO object VALUES (?, ?, ?)", oid, size, sha256)

    def content(self, oid: str) -> Content:
        """Return the content of a file's oid."""
        return self.contents([oid])[oid]

    def contents(self, oids: Iterable[str]) -> dict[str, Content]:
        """Return the contents of many file oids."""
        sql = "SELECT oid, size, sha256 FROM object WHERE oid IN (SELECT value FROM json_each(?))"
        return {row[0]: Content(*row) for row in self._store.rows(sql, json.dumps([*oids]))}
