"""Merge this spool's settled shards into few large files while the job runs: which ones now, and the commit.

    run      choose -> download -> write -> stage      in a task of its own: it holds up no shard
    commit   compare with the head -> commit           in the commit loop, when nothing urgent waits

A merge changes nothing that the spool knows, so it is not in the catalogue. Its shards are all settled, and its commit
names the parent in which they were compared, adds the merged file and deletes them. So it lands on exactly these files
or not at all, however late; and a process that takes over need not know which, because the rows are the same. A merge
that is stopped, killed or refused is dropped, and the next one is chosen from the dataset as it is then.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from msgspec import UNSET

from hubsync._runtime import signals
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.context import Context
from hubsync.committer.folder_guard import FolderGuard
from hubsync.destinations.base import FolderFull, Landed, NotSent, Rejected, Unknown
from hubsync.destinations.hub import card
from hubsync.encoding import codecs
from hubsync.encoding.codecs import DamagedShard
from hubsync.errors import (
    AmbiguousError,
    ConfigError,
    HubError,
    LeaseLost,
    RateLimitedError,
    SpoolError,
    SpoolLost,
    StaleParentError,
    TransientError,
)
from hubsync.model.commit import LastCommit, Plan
from hubsync.model.hashing import hash_file, oid_hash
from hubsync.model.merging import Merge, batches, due, groups, names_writer, problem_with, runs
from hubsync.model.series import File, Series, series_of
from hubsync.model.shard import ListedFile, RemoteFile, Shard
from hubsync.policies import MIB, CompactPolicy

_log = logging.getLogger("hubsync")

_COMMITS_BETWEEN = 9  # at least: one commit in ten is a merge
_COMMITS_IF_BUSY = 19  # while other shards wait for the same slot
_COMMIT_BYTES = 512 * MIB  # of the files that one commit merges; twice that is on the disk meanwhile
_SPARE_BYTES = 64 * MIB  # that stay free on the disk
_RETRY_S = 600.0  # after an error
_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Merged files that are staged, and what they replace: the files by path, as they were when they were read."""

    shards: Sequence[Shard]
    replaced: Mapping[str, RemoteFile]


class _NoRoom(Exception):
    """The disk or the spool's quota has no room for the files."""


class Merger:
    """Decides which settled shards to merge, prepares that, and commits it when the commit loop asks for it."""

    def __init__(
        self, context: Context, policy: CompactPolicy | None, cards: CardUpdater, folders: FolderGuard
    ) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._head = context.head
        self._retrier = context.retrier
        self._rate_limiter = context.rate_limiter
        self._clock = context.clock
        self._status = context.status
        self._wakeups = context.wakeups
        self._policy = policy
        self._cards = cards
        self._folders = folders
        self._scratch = context.spool.directory / "merging"
        self._commits = 0  # of shards, since the last merge
        self._shards = self._bytes = 0  # that were committed since this last looked
        self._rests_until = 0.0
        self._ready: _Prepared | None = None
        self._finishes = False  # it merges the rest, however little it is

    # What the commit loop says and asks.

    def committed(self, shards: Sequence[Shard]) -> None:
        """Count a commit of shards."""
        self._commits += 1
        self._shards += len(shards)
        self._bytes += sum(shard.size for shard in shards)
        self._wakeups.merge.notify()

    def may_commit(self, *, is_idle: bool) -> bool:
        """Return whether a merge is ready and its turn has come. Whether a flush waits, the caller knows.

        Args:
            is_idle: nothing else could be committed now.
        """
        wanted = _COMMITS_BETWEEN if is_idle else _COMMITS_IF_BUSY
        is_turn = self.is_finishing or self._commits >= wanted
        return self._ready is not None and is_turn and not signals.shutdown.has_begun()

    def finish(self) -> bool:
        """Merge the rest from the next wake-up on, if the policy asks for it. From any thread.

        `is_finishing` becomes false once that is done, or has failed.
        """
        self._finishes = self._policy is not None and self._policy.at_end
        return self.is_finishing

    @property
    def is_finishing(self) -> bool:
        """Whether the rest is being merged. Nothing is merged once a signal ends the job."""
        return self._finishes and not signals.shutdown.has_begun()

    # Preparing.

    async def run(self) -> None:
        """Prepare what is due, until cancelled."""
        if self._policy is None:
            return
        await self._retrier.on_disk(self._start)
        while True:
            if not self._is_due(self._policy):
                await self._wakeups.merge.wait(_POLL_S)
                continue
            self._shards = self._bytes = 0
            everything = self.is_finishing
            try:
                async with self._prepared(self._policy, everything) as ready:
                    if ready is None:
                        self._finishes = self._finishes and not everything
                        continue
                    self._ready = ready
                    self._wakeups.commit.notify()
                    while self._ready is not None:
                        await self._wakeups.merge.wait(_POLL_S)
            except (LeaseLost, SpoolLost):
                raise
            except (HubError, SpoolError, OSError, DamagedShard, ConfigError, card.CardError, _NoRoom) as error:
                self._rest(error)

    def _start(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)  # what another process left
        committed = self._spool.segments.depths().get("committed")
        self._shards = 0 if committed is None else committed.shards

    def _rest(self, error: Exception) -> None:
        """Merge nothing for a while: whatever is wrong, the shards are fine as they are."""
        level = logging.WARNING if self.is_finishing else logging.DEBUG
        _log.log(level, "The shards of %s are not merged now (%s). hubsync compact can do it at any time.",
                 self._spool.target.repo, error)  # fmt: skip
        self._finishes = False
        self._rests_until = self._clock.time() + _RETRY_S

    def _is_due(self, policy: CompactPolicy) -> bool:
        return self.is_finishing or (
            (self._shards >= policy.min_shards or self._bytes * 2 >= policy.max_file_bytes)
            and self._commits >= _COMMITS_BETWEEN
            and self._clock.time() >= self._rests_until
            and not signals.shutdown.has_begun()
        )

    @asynccontextmanager
    async def _prepared(self, policy: CompactPolicy, everything: bool) -> AsyncIterator[_Prepared | None]:
        """Yield what is merged next, staged, with its files on disk within the block; None if nothing is due."""
        at = self._head.sha or (await self._destination.head()).sha or ""
        merges = await self._choose(policy, at, everything)
        if not merges:
            yield None
            return
        failpoint(Failpoint.MERGE_CHOSEN)
        scratch = await run_in_thread(self._make_room, sum(merge.size for merge in merges))
        try:
            yield await self._prepare(merges, at, scratch)
        finally:
            self._ready = None
            shutil.rmtree(self._scratch, ignore_errors=True)

    async def _choose(self, policy: CompactPolicy, at: str, everything: bool) -> list[Merge[ListedFile]]:
        """Return what one commit should merge of the commit `at`."""
        marks = await self._retrier.on_disk(self._spool.writers.committed_watermarks)
        files: dict[str, ListedFile] = {}
        for folder in _folders(name for mark in marks.values() for name in mark.next):
            files |= {file.path: file for file in await self._destination.list_files(at, folder)}
        unsettled = await self._retrier.on_disk(self._spool.segments.unsettled_paths)
        series = series_of(marks, (file for path, file in files.items() if path not in unsettled))[0]
        found = await run_in_thread(_due, series, policy, everything)
        # What another part knows of the card may be newer than this commit; so it is only looked at.
        known = self._cards.known if found else None
        content = await self._destination.read_file(card.PATH, at) if known is UNSET else known
        if not found or content is None:
            return []
        entries = (await run_in_thread(card.Card, content, self._spool.target.repo)).entries()
        alike = [merge for merge in found if _loads_alike(merge, entries)]
        batch = next(batches(alike, _COMMIT_BYTES), [])
        if len(batch) < len(alike):
            self._shards = policy.min_shards  # look again soon
        return batch

    def _make_room(self, size: int) -> Path:
        held = self._spool.segments.held_bytes()
        if held + 2 * size > self._spool.policy.max_bytes or self._spool.disk.has_less_than(2 * size + _SPARE_BYTES):
            raise _NoRoom(f"{2 * size:,} bytes do not fit in {self._spool.directory}")
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._scratch))

    async def _prepare(self, merges: Sequence[Merge[ListedFile]], at: str, scratch: Path) -> _Prepared | None:
        remote = await self._destination.find_files([file.path for merge in merges for file in merge.files], at)
        shards: list[Shard] = []
        replaced: dict[str, RemoteFile] = {}
        for merge in merges:
            local = {
                file.path: await self._download(file, remote[file.path].oid, at, scratch / f"part-{n}")
                for n, file in enumerate(merge.files)
                if file.path in remote
            }
            if len(local) < len(merge.files):
                continue
            failpoint(Failpoint.MERGE_DOWNLOADED)
            for part in await run_in_thread(merge.parts, codecs.schema_of, local):
                shards.append(await run_in_thread(write_merged, part, local, scratch / f"merged-{len(shards)}"))
                replaced |= {file.path: remote[file.path] for file in part.files}
                failpoint(Failpoint.MERGE_WRITTEN)
            for path in local.values():
                path.unlink()
        if not shards:
            return None
        staged = await self._destination.stage(shards)
        failpoint(Failpoint.MERGE_STAGED)
        return _Prepared([replace(shard, mode=one.mode) for shard, one in zip(shards, staged, strict=True)], replaced)

    async def _download(self, file: ListedFile, oid: str, at: str, stem: Path) -> Path:
        """Download a file to a name that ends as its path does; raise `TransientError` if it is not as listed."""
        target = _new_file(stem, file.path)
        found = oid_hash(oid, file.size)
        with target.open("wb") as stream:

            def write(piece: bytes) -> None:
                found.update(piece)
                if stream.write(piece) and stream.tell() > file.size:
                    raise TransientError(f"{file.path}: the content is larger than the size that the Hub lists.")

            exists = await self._destination.download(file.path, at, write)
        if not exists or found.hexdigest() != oid:
            raise TransientError(f"{file.path}: the content does not match the oid that the Hub lists.")
        return target

    # Committing.

    async def commit(self) -> None:
        """Send the merge that is ready, once, on the head as it is known; keep it if a flush waits by then."""
        assert self._ready is not None
        is_over = True
        try:
            is_over = await self._send(self._ready)
        except HubError as error:
            self._not_done(error)
        finally:
            if is_over:
                self._ready = None  # only now: its files are removed
                self._commits = 0
                self._wakeups.merge.notify()

    async def _send(self, ready: _Prepared) -> bool:
        at = self._head.sha or ""
        if not await self._is_unchanged(ready, at):
            return True
        if await self._retrier.on_disk(self._spool.segments.has_urgent):
            return False
        failpoint(Failpoint.MERGE_CHECKED)
        summary = f"Merge {len(ready.replaced):,} shards into {len(ready.shards):,}"
        plan = Plan(0, ready.shards, (), at, summary, self._spool.lease.term or 0, list(ready.replaced))
        outcome = await self._destination.commit(plan)
        failpoint(Failpoint.MERGE_ANSWERED)
        match outcome:
            case Landed(sha):
                self._rate_limiter.spent()
                self._head.landed(sha)
                self._status.counts.commits += 1
                await self._retrier.on_disk(
                    self._spool.remember, LastCommit.of(sha, self._cards.known, self._folders.known)
                )
                _log.info("%s in %s", summary, self._spool.target.repo)
            case Unknown(error):
                if isinstance(error, AmbiguousError):
                    self._rate_limiter.spent()
                self._not_done(error)
            case NotSent(RateLimitedError(commit_quota=True) as error):
                self._rate_limiter.refused(error.retry_after_s)
                self._not_done(error)
            case NotSent(error) | FolderFull(error) | Rejected(error):
                self._not_done(error)
        return True

    def _not_done(self, error: HubError) -> None:
        """Read the head again before the next commit: what became of the merge does not matter, but the head does."""
        self._head.forget()
        if not isinstance(error, StaleParentError):
            self._rest(error)

    async def _is_unchanged(self, ready: _Prepared, at: str) -> bool:
        """Return whether the commit `at` has every file that is replaced as it was read, and none of the new ones."""
        paths = [*ready.replaced, *(shard.path for shard in ready.shards)]
        found = await self._destination.find_files(paths, at)
        oids = {path: file.oid for path, file in found.items()}
        if oids != {path: file.oid for path, file in ready.replaced.items()}:
            return False
        return await self._retrier.on_disk(self._are_settled, ready.replaced)

    def _are_settled(self, paths: Iterable[str]) -> bool:
        with self._spool.lease.transaction():
            return self._spool.segments.unsettled_paths().isdisjoint(paths)


def write_merged(merge: Merge[File], local: Mapping[str, Path], stem: Path) -> Shard:
    """Write a merged file, and return it as a shard that no segment has.

    Args:
        merge: Its files, which have the same schema.
        local: Where the files are on this machine, by path.
        stem: The new file, without its ending.

    Raises:
        OSError: The disk failed.
        DamagedShard: A file cannot be read.
    """
    target = _new_file(stem, merge.path)
    rows = codecs.merge([local[file.path] for file in merge.files], target)
    size = target.stat().st_size
    return Shard(0, "", target, merge.path, size, rows, *hash_file(target, size))


def _due(series: Sequence[Series[ListedFile]], policy: CompactPolicy, everything: bool) -> list[Merge[ListedFile]]:
    """Return what to merge now; with `everything`, all that makes fewer files."""
    found: list[Merge[ListedFile]] = []
    for one in series:
        if names_writer(one) and problem_with(one) is None:
            for run in runs(one, lambda file: True):
                most = policy.max_file_bytes
                parts = groups(run, most) if everything else due(run, policy.min_shards, most)
                found += [Merge(one, files) for files in parts]
    return found


def _folders(series: Iterable[str]) -> list[str]:
    """Return the folders in which, or below which, the files of these series are; none that is below another one."""
    found: list[str] = []
    for folder in sorted({name.partition("*")[0].rpartition("/")[0] for name in series}):
        if not any(not above or f"{folder}/".startswith(f"{above}/") for above in found):
            found.append(folder)
    return found


def _new_file(stem: Path, path: str) -> Path:
    """Create a file whose name ends as a path in the dataset does, which tells its format."""
    target = stem.with_name(stem.name + "".join(PurePosixPath(path).suffixes))
    os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    return target


def _loads_alike(merge: Merge[ListedFile], entries: Sequence[card.Entry]) -> bool:
    """Return whether the merged file belongs to the same configs and splits as each of its files, and to any."""
    patterns = [(entry.config, entry.split, card.glob_pattern(entry.glob)) for entry in entries]
    places = [
        {(config, split) for config, split, pattern in patterns if pattern.fullmatch(path)}
        for path in (merge.path, *(file.path for file in merge.files))
    ]
    return bool(places[0]) and all(place == places[0] for place in places)
