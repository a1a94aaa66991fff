"""Refs, commits and trees of every repo: git's object graph, in the store's tables.

Trees are shared between commits as in git, so a commit writes only the directories it changes. All writes run inside
the caller's `Store.transaction()`, which makes check-the-parent and move-the-ref one step.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hubsync.localhub.storage import git
from hubsync.localhub.storage.git import Entry
from hubsync.localhub.storage.store import Repo, Store

_HEX = re.compile(r"[0-9a-f]{7,40}\Z")
_CACHED_TREES = 512


@dataclass(frozen=True)
class Commit:
    """One commit: `created` is Unix time in seconds, `message` what follows the title."""

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
    """What a file's git object stands for: `size` is the content's; `sha256` is set for an LFS pointer."""

    oid: str
    size: int
    sha256: str | None


class PathConflict(ValueError):
    """A commit wants a file where a folder stands, or a folder where a file stands."""


class History:
    """Reads and writes the git side of the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._trees: OrderedDict[str, dict[str, Entry]] = OrderedDict()

    # Refs

    def refs(self, repo: Repo, prefix: str) -> dict[str, str]:
        """Short name -> commit oid of the refs under `prefix` (such as `refs/heads/`)."""
        rows = self._store.rows(
            "SELECT name, oid FROM ref WHERE repo = ? AND name LIKE ? ORDER BY name", repo.id, prefix + "%"
        )
        return {name[len(prefix) :]: oid for name, oid in rows}

    def ref(self, repo: Repo, name: str) -> str | None:
        row = self._store.row("SELECT oid FROM ref WHERE repo = ? AND name = ?", repo.id, name)
        return None if row is None else str(row[0])

    def set_ref(self, repo: Repo, name: str, oid: str) -> None:
        self._store.write("INSERT OR REPLACE INTO ref VALUES (?, ?, ?)", repo.id, name, oid)

    def delete_ref(self, repo: Repo, name: str) -> bool:
        return self._store.write("DELETE FROM ref WHERE repo = ? AND name = ?", repo.id, name) > 0

    def branch(self, repo: Repo, revision: str) -> str | None:
        """The full name of the ref to commit to that `revision` names; None for a tag or a commit."""
        full = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        return full if not full.startswith("refs/tags/") and self.ref(repo, full) else None

    def resolve(self, repo: Repo, revision: str) -> str | None:
        """The commit that a branch, a tag, a full ref, a commit id or at least 7 of its digits stand for."""
        for name in (
            f"refs/heads/{revision}",
            f"refs/tags/{revision}",
            revision if revision.startswith("refs/") else None,
        ):
            if name and (oid := self.ref(repo, name)):
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
        sql = "SELECT oid, tree, parent, author, title, message, created FROM commits WHERE repo = ? AND oid = ?"
        row = self._store.row(sql, repo.id, oid)
        assert row is not None, f"commit {oid} is not in {repo.name}"
        return Commit(*row)

    def add_commit(
        self, repo: Repo, *, tree: str, parent: str | None, author: str, title: str, message: str, now: float
    ) -> Commit:
        text = f"{title}\n\n{message}" if message else title
        oid = git.commit_oid(tree, [parent] if parent else [], author, int(now), text)
        commit = Commit(oid, tree, parent, author, title, message, now)
        row = (repo.id, oid, tree, parent, author, title, message, now)
        self._store.write("INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *row)
        return commit

    def log(self, repo: Repo, oid: str | None) -> Iterator[Commit]:
        """The commit and its ancestors, newest first."""
        while oid is not None:
            commit = self.commit(repo, oid)
            yield commit
            oid = commit.parent

    def forget(self, repo: Repo, head: str) -> None:
        """The commits up to `head` are gone, but for those that some ref still leads to."""
        kept = set()
        for oid in self.refs(repo, "").values():
            for commit in self.log(repo, oid):
                if commit.oid in kept:
                    break
                kept.add(commit.oid)
        for commit in list(self.log(repo, head)):
            if commit.oid not in kept:
                self._store.write("DELETE FROM commits WHERE repo = ? AND oid = ?", repo.id, commit.oid)

    def last_touched(self, repo: Repo, oid: str, paths: Iterable[str]) -> dict[str, Commit]:
        """For each path of that commit, the newest commit at or before it that changed what stands there."""
        found: dict[str, Commit] = {}
        log = self.log(repo, oid)
        newer = next(log)
        pending = {path: self.entry(newer.tree, path) for path in paths}
        for older in log:
            if not pending:
                break
            if older.tree != newer.tree:
                for path, entry in list(pending.items()):
                    if self.entry(older.tree, path) != entry:
                        found[path] = newer
                        del pending[path]
            newer = older
        return {**found, **dict.fromkeys(pending, newer)}

    def rewrite(self, repo: Repo, keep: Callable[[str], bool]) -> None:
        """Write the whole history anew without the files whose oid `keep` refuses, and move every ref to it."""
        replaced: dict[str, str] = {}
        for name, head in self.refs(repo, "refs/").items():
            for old in reversed(list(self.log(repo, head))):
                if old.oid in replaced:
                    continue
                nodes = self.walk(old.tree, "", recursive=True)
                gone = {node.path: None for node in nodes if not node.entry.is_directory and not keep(node.entry.oid)}
                replaced[old.oid] = self.add_commit(
                    repo,
                    tree=self.write_tree(old.tree, gone) if gone else old.tree,
                    parent=replaced[old.parent] if old.parent else None,
                    author=old.author,
                    title=old.title,
                    message=old.message,
                    now=old.created,
                ).oid
            self.set_ref(repo, f"refs/{name}", replaced[head])

    # Trees

    def tree(self, oid: str) -> dict[str, Entry]:
        """A directory's entries. The dictionary is cached: never change it."""
        cached = self._trees.get(oid)
        if cached is None:
            if oid == git.EMPTY_TREE:
                return {}
            row = self._store.row("SELECT data FROM tree WHERE oid = ?", oid)
            assert row is not None, f"tree {oid} is missing"
            cached = self._trees[oid] = git.decode_tree(row[0])
            while len(self._trees) > _CACHED_TREES:
                self._trees.popitem(last=False)
        return cached

    def entry(self, root: str, path: str) -> Entry | None:
        """What stands at `path`; the empty path is the root directory itself."""
        entry = Entry(git.DIRECTORY, root)
        for segment in path.split("/") if path else []:
            if not entry.is_directory:
                return None
            below = self.tree(entry.oid).get(segment)
            if below is None:
                return None
            entry = below
        return entry

    def walk(self, tree: str, prefix: str, *, recursive: bool) -> Iterator[Node]:
        """The nodes under a directory, a folder before what is in it; `prefix` is its path with a slash, or empty."""
        for name, entry in self.tree(tree).items():
            yield Node(prefix + name, entry)
            if recursive and entry.is_directory:
                yield from self.walk(entry.oid, f"{prefix}{name}/", recursive=True)

    def write_tree(self, root: str, changes: Mapping[str, str | None]) -> str:
        """The root after `changes` (path -> new file oid, or None to remove a file or a whole folder). Empty folders
        vanish.
        """
        here: dict[str, Entry] = dict(self.tree(root))
        below: dict[str, dict[str, str | None]] = {}
        # Removals first: a commit may turn a file into a folder of the same name.
        for path, oid in sorted(changes.items(), key=lambda item: item[1] is not None):
            name, slash, rest = path.partition("/")
            if slash:
                below.setdefault(name, {})[rest] = oid
            elif oid is None:
                here.pop(name, None)
            elif name in here and here[name].is_directory:
                raise PathConflict(f"a folder stands at {path!r}")
            else:
                here[name] = Entry(git.FILE, oid)
        for name, inner in below.items():
            entry = here.get(name)
            if entry is not None and not entry.is_directory:
                if all(oid is None for oid in inner.values()):
                    continue
                raise PathConflict(f"a file stands at {name!r}")
            oid = self.write_tree(entry.oid if entry else git.EMPTY_TREE, inner)
            if oid == git.EMPTY_TREE:
                here.pop(name, None)
            else:
                here[name] = Entry(git.DIRECTORY, oid)
        data = git.encode_tree(here)
        oid = git.object_oid("tree", data)
        if here:
            self._store.write("INSERT OR IGNORE INTO tree VALUES (?, ?)", oid, data)
        return oid

    # Contents

    def add_content(self, oid: str, size: int, sha256: str | None) -> None:
        self._store.write("INSERT OR IGNORE INTO object VALUES (?, ?, ?)", oid, size, sha256)

    def content(self, oid: str) -> Content:
        return self.contents([oid])[oid]

    def contents(self, oids: Iterable[str]) -> dict[str, Content]:
        """The contents of many file oids."""
        wanted = list(dict.fromkeys(oids))
        found: dict[str, Content] = {}
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            marks = ",".join("?" * len(some))
            rows = self._store.rows(f"SELECT oid, size, sha256 FROM object WHERE oid IN ({marks})", *some)
            found.update((row[0], Content(*row)) for row in rows)
        return found
