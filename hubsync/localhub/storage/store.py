"""The embedded Hub's database: one SQLite file (WAL) that holds everything but the contents.

Here are the schema and the rows on accounts, repos and large objects; `history` has those of git, `xet.cas` those of
Xet. All use `transaction()`, so a restart finds a commit whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

RepoType = Literal["model", "dataset", "space"]
Role = Literal["write", "read"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS setting (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS account (
    name TEXT PRIMARY KEY COLLATE NOCASE, kind TEXT NOT NULL, fullname TEXT NOT NULL, private INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS member (
    org TEXT NOT NULL COLLATE NOCASE, account TEXT NOT NULL COLLATE NOCASE, PRIMARY KEY (org, account));
CREATE TABLE IF NOT EXISTS token (token TEXT PRIMARY KEY, account TEXT NOT NULL, role TEXT NOT NULL, expires REAL);
CREATE TABLE IF NOT EXISTS repo (
    id INTEGER PRIMARY KEY, type TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, private INTEGER NOT NULL,
    created REAL NOT NULL, extra TEXT NOT NULL, UNIQUE (type, name));
CREATE TABLE IF NOT EXISTS moved (
    type TEXT NOT NULL, name TEXT NOT NULL COLLATE NOCASE, repo INTEGER NOT NULL, PRIMARY KEY (type, name));
CREATE TABLE IF NOT EXISTS ref (
    repo INTEGER NOT NULL, name TEXT NOT NULL, oid TEXT NOT NULL, PRIMARY KEY (repo, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    repo INTEGER NOT NULL, oid TEXT NOT NULL, tree TEXT NOT NULL, parent TEXT, author TEXT NOT NULL,
    title TEXT NOT NULL, message TEXT NOT NULL, created REAL NOT NULL, PRIMARY KEY (repo, oid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tree (oid TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS object (oid TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS large (
    sha256 TEXT PRIMARY KEY, size INTEGER NOT NULL, xet TEXT, plain INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS granted (
    repo INTEGER NOT NULL, sha256 TEXT NOT NULL, created REAL NOT NULL, PRIMARY KEY (repo, sha256)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS xorb (hash TEXT PRIMARY KEY, bytes INTEGER NOT NULL, chunks BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS xetfile (hash TEXT PRIMARY KEY, size INTEGER NOT NULL, terms BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quota (account TEXT NOT NULL COLLATE NOCASE, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS quota_at ON quota (account, at);
CREATE TABLE IF NOT EXISTS discussion (
    repo INTEGER NOT NULL, num INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (repo, num)) WITHOUT ROWID;
"""


class Account(NamedTuple):
    """A user or an organization; its new repos are private by default if `private` is set."""

    name: str
    fullname: str
    private: bool


@dataclass(frozen=True)
class Caller:
    """The owner of a valid token, and what the token allows."""

    name: str
    role: Role
    token: str


@dataclass(frozen=True)
class Repo:
    """A repository; `name` is `namespace/name` as its creator wrote it."""

    id: int
    type: RepoType
    name: str
    private: bool
    created: float
    extra: dict[str, Any]

    @property
    def namespace(self) -> str:
        """The user or organization that owns it."""
        return self.name.split("/", 1)[0]

    @property
    def web_path(self) -> str:
        """Its path in web addresses."""
        return self.name if self.type == "model" else f"{self.type}s/{self.name}"


class LargeObject(NamedTuple):
    """A large object: its size in bytes, its Xet hash if it was uploaded by Xet, and whether its bytes are a blob."""

    size: int
    xet_hash: str | None
    is_blob: bool


class Store:
    """The database; safe from any thread, one transaction at a time."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        # The lock serializes; SQLite's own thread check would only forbid the worker threads.
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA cache_size=-32000")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction; a nested one is part of the outermost."""
        with self._lock:
            if self._db.in_transaction:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:  # commits, or rolls back if the block raises
                yield self._db

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        return next(iter(self.rows(sql, *values)), None)

    def write(self, sql: str, *values: object) -> int:
        """Run one statement; return how many rows it changed."""
        with self._lock:
            return self._db.execute(sql, values).rowcount

    def setting(self, key: str, default: str) -> str:
        """Return a value that is written at its first use and never changes."""
        self.write("INSERT OR IGNORE INTO setting VALUES (?, ?)", key, default)
        return str(self.rows("SELECT value FROM setting WHERE key = ?", key)[0][0])

    # Accounts and tokens

    def add_account(self, name: str, kind: Literal["user", "org"], fullname: str, *, private: bool = False) -> None:
        """Register an account, unless its name is taken."""
        self.write("INSERT OR IGNORE INTO account VALUES (?, ?, ?, ?)", name, kind, fullname, private)

    def account(self, name: str) -> Account:
        """Return the account of a name in any case; an unknown name is its own account."""
        row = self.row("SELECT name, fullname, private FROM account WHERE name = ?", name)
        return Account(name, name, False) if row is None else Account(row[0], row[1], bool(row[2]))

    def add_member(self, org: str, account: str) -> None:
        """Add a user to an organization."""
        self.write("INSERT OR IGNORE INTO member VALUES (?, ?)", org, account)

    def orgs(self, account: str) -> list[str]:
        """Return the names of a user's organizations."""
        return [row[0] for row in self.rows("SELECT org FROM member WHERE account = ? ORDER BY org", account)]

    def add_token(self, token: str | None, account: str, role: Role, expires: float | None) -> str:
        """Register a token, a new one by default, until `expires` (Unix seconds); return it."""
        token = token or "hf_" + secrets.token_hex(17)
        self.write("INSERT OR REPLACE INTO token VALUES (?, ?, ?, ?)", token, account, role, expires)
        return token

    def revoke(self, token: str) -> bool:
        """Delete a token; return False if it is unknown."""
        return self.write("DELETE FROM token WHERE token = ?", token) > 0

    def caller(self, token: str, now: float) -> Caller | None:
        """Return the owner of a token; None if it is unknown, revoked or expired."""
        row = self.row("SELECT account, role, expires FROM token WHERE token = ?", token)
        if row is None or (row[2] is not None and row[2] <= now):
            return None
        return Caller(name=row[0], role=row[1], token=token)

    def owns(self, caller: Caller, namespace: str) -> bool:
        """Return whether a namespace is the caller's own or one of their organizations (whatever the token's role)."""
        return namespace.lower() in map(str.lower, [caller.name, *self.orgs(caller.name)])

    # Repos

    def repo(self, repo_type: str, name: str) -> Repo | None:
        """Return a repo by its name, in any case, or by a name it had before it was moved."""
        found = self._repos("WHERE r.type = ? AND r.name = ?", repo_type, name)
        moved = "JOIN moved m ON r.id = m.repo WHERE m.type = ? AND m.name = ?"
        return next(iter(found or self._repos(moved, repo_type, name)), None)

    def repo_by_id(self, repo_id: int) -> Repo | None:
        """Return a repo by its id, or None."""
        return next(iter(self._repos("WHERE r.id = ?", repo_id)), None)

    def repos(self, repo_type: str) -> list[Repo]:
        """Return all repos of a type, newest first."""
        return self._repos("WHERE r.type = ? ORDER BY r.id DESC", repo_type)

    def _repos(self, where: str, *values: object) -> list[Repo]:
        sql = f"SELECT r.id, r.type, r.name, r.private, r.created, r.extra FROM repo r {where}"
        return [
            Repo(number, kind, name, bool(private), created, json.loads(extra))
            for number, kind, name, private, created, extra in self.rows(sql, *values)
        ]

    def add_repo(self, repo_type: str, name: str, private: bool, now: float, extra: dict[str, Any]) -> Repo:
        """Create a repo; its name no longer leads to a repo that was moved away from it."""
        with self.transaction() as db:
            db.execute("DELETE FROM moved WHERE type = ? AND name = ?", (repo_type, name))
            sql = "INSERT INTO repo (type, name, private, created, extra) VALUES (?, ?, ?, ?, ?)"
            cursor = db.execute(sql, (repo_type, name, private, now, json.dumps(extra)))
            return self._repos("WHERE r.id = ?", cursor.lastrowid)[0]

    def delete_repo(self, repo: Repo) -> None:
        """Delete a repo with all its rows."""
        with self.transaction() as db:
            for table in ("ref", "commits", "granted", "moved", "discussion"):
                db.execute(f"DELETE FROM {table} WHERE repo = ?", (repo.id,))
            db.execute("DELETE FROM repo WHERE id = ?", (repo.id,))

    def move_repo(self, repo: Repo, name: str) -> None:
        """Rename a repo; the old name leads to it until another repo takes that name."""
        with self.transaction() as db:
            db.execute("DELETE FROM moved WHERE type = ? AND name = ?", (repo.type, name))
            db.execute("UPDATE repo SET name = ? WHERE id = ?", (name, repo.id))
            db.execute("INSERT OR REPLACE INTO moved VALUES (?, ?, ?)", (repo.type, repo.name, repo.id))

    def update_repo(self, repo: Repo, *, private: bool, **extra: Any) -> None:
        """Change a repo's visibility, and add to its `extra` fields."""
        sql = "UPDATE repo SET private = ?, extra = ? WHERE id = ?"
        self.write(sql, private, json.dumps({**repo.extra, **extra}), repo.id)

    # Large objects, by sha256, and which repo's commits may refer to which

    def grant(self, repo: int, sha256: str, now: float) -> None:
        """Let a repo's commits refer to a large object, after its content was uploaded with a token for the repo."""
        self.write("INSERT OR IGNORE INTO granted VALUES (?, ?, ?)", repo, sha256, now)

    def granted(self, repo: int, sha256: str) -> int | None:
        """Return the size in bytes of a large object that the repo's commits may refer to, or None."""
        sql = "SELECT l.size FROM granted g JOIN large l ON l.sha256 = g.sha256 WHERE g.repo = ? AND g.sha256 = ?"
        row = self.row(sql, repo, sha256)
        return None if row is None else int(row[0])

    def used_bytes(self, repo: Repo) -> int:
        """Return the bytes of all large objects that the repo's commits may refer to."""
        sql = "SELECT coalesce(sum(l.size), 0) FROM granted g JOIN large l ON l.sha256 = g.sha256 WHERE g.repo = ?"
        return int(self.rows(sql, repo.id)[0][0])

    def add_large(self, sha256: str, size: int, *, xet_hash: str | None) -> None:
        """Record a large object that is stored as a Xet file or, without a Xet hash, as a blob."""
        sql = (
            "INSERT INTO large VALUES (?, ?, ?, ?) ON CONFLICT (sha256) DO UPDATE SET "
            "xet = coalesce(excluded.xet, xet), plain = max(plain, excluded.plain)"
        )
        self.write(sql, sha256, size, xet_hash, int(xet_hash is None))

    def large(self, sha256: str) -> LargeObject | None:
        """Return a large object, or None."""
        row = self.row("SELECT size, xet, plain FROM large WHERE sha256 = ?", sha256)
        return None if row is None else LargeObject(int(row[0]), row[1], bool(row[2]))
