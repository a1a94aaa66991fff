"""Merge the small shards of a dataset into few large files: `hubsync compact`.

A job that runs for days leaves thousands of small shards, which are slow to list and to load. Successive shards of a
writer become one file, in a commit that adds it and deletes them, so the dataset holds each row once at every commit.
Only shards that the watermarks name are merged, never other people's files. Nothing is kept on this machine: after a
crash, a new run merges the rest.

Jobs may keep writing. A job that lost the response to a commit looks for its plan's watermark, and so does not miss the
shards that were merged; and shards younger than an hour are left alone.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import anyio

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.retry import Backoff, retry_transient
from hubsync._runtime.secret import Secret
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.merger import write_merged
from hubsync.destinations.base import FolderFull, Landed, NotSent, Rejected, Unknown
from hubsync.destinations.hub.card import Entry
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.destinations.resolve import open_hub, target_of
from hubsync.encoding import codecs
from hubsync.errors import BlockedError, ConfigError, TransientError
from hubsync.model.commit import Plan, Watermark
from hubsync.model.merging import MAX_FILE_BYTES, Merge, batches, groups, names_writer, problem_with, runs
from hubsync.model.series import series_of
from hubsync.model.shard import Shard
from hubsync.policies import MIB, RetryPolicy
from hubsync.reader.selection import Selection, select_files
from hubsync.reader.shard_listing import parse_time, read_origins
from hubsync.reader.snapshot import Snapshot, SnapshotReader, run_few_at_once

MIN_AGE_S = 3600.0
"""How long ago a shard must have been committed: a job that stalled may still have to find out that it was."""
_COMMIT_BYTES = 2048 * MIB  # of the files that one commit merges, which are on this disk meanwhile
_MAX_TRIES = 8  # of a commit


@dataclass(frozen=True, slots=True)
class Compaction:
    """What was merged, or would be.

    Attributes:
        repo: the dataset.
        revision: its branch.
        files: the number of files of rows before.
        merges: the files that were merged, or would be.
        commits: the commits that did it; empty for a dry run.
        notes: series of shards that were left alone, and why.
    """

    repo: str
    revision: str
    files: int
    merges: Sequence[Merge[HubFile]] = ()
    commits: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def merged_files(self) -> int:
        """The number of files that become fewer."""
        return sum(len(merge.files) for merge in self.merges)

    @property
    def bytes(self) -> int:
        """The size of what is merged: at most this much is downloaded, and uploaded again."""
        return sum(merge.size for merge in self.merges)


def compact(
    repo: str,
    *,
    apply: bool = False,
    min_age_s: float = MIN_AGE_S,
    max_file_bytes: int = MAX_FILE_BYTES,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    progress: Callable[[int, int], None] = lambda merged, files: None,
    clock: Clock | None = None,
) -> Compaction:
    """Merge the small shards of a dataset that hubsync wrote.

    Args:
        repo: The dataset, such as "user/rollouts".
        apply: Do it. Otherwise only find out what would be merged.
        min_age_s: Only merge shards that were committed this many seconds ago.
        max_file_bytes: The size of a merged file, at most.
        revision: The branch.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        progress: Called with the number of files that were merged, and of all.
        clock: The source of time, for tests.

    Returns:
        What was merged. All commits before an error stay; a new run continues.

    Raises:
        ConfigError: The repo id, endpoint or revision is invalid.
        DamagedShard: A shard cannot be read. It is left as it is, and so are those that come after it.
        OSError: The disk for temporary files is full: about 4 GiB at most are needed. Set TMPDIR to a larger one.
        HubError: The Hub cannot be read, or does not accept the commit.
    """
    secret = None if token is None else Secret(token)
    del token  # a crash report of an error raised below would show it
    if max_file_bytes < 1:
        raise ConfigError(f"max_file_bytes must be at least 1, not {max_file_bytes}.")
    target = target_of(repo, endpoint, revision)

    async def run() -> Compaction:
        async with open_hub(target, secret) as hub:
            compactor = _Compactor(hub, clock or SystemClock(), min_age_s, max_file_bytes)
            return await (compactor.apply(progress) if apply else compactor.look())

    return anyio.run(run)


@dataclass(slots=True)
class _Compactor:
    hub: HubDataset
    clock: Clock
    min_age_s: float
    max_file_bytes: int
    reader: SnapshotReader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = SnapshotReader(self.hub, self.clock)

    async def look(self) -> Compaction:
        """Return what would be merged at the branch's head."""
        snapshot = await self.reader.snapshot(await self.reader.head() or "")
        return await self._plan(snapshot)

    async def apply(self, progress: Callable[[int, int], None]) -> Compaction:
        """Merge, in as many commits as it takes."""
        found = await self.look()
        done: list[Merge[HubFile]] = []
        commits: list[str] = []
        progress(0, found.merged_files)
        for batch in batches(found.merges, _COMMIT_BYTES):
            with tempfile.TemporaryDirectory(prefix="hubsync-compact-") as scratch:
                merges, shards = await self._merge(batch, Path(scratch))
                if not shards:
                    continue
                commits.append(await self._commit(merges, shards))
            done += merges
            progress(sum(len(merge.files) for merge in done), found.merged_files)
        return replace(found, merges=done, commits=commits)

    # What to merge.

    async def _plan(self, snapshot: Snapshot) -> Compaction:
        marks = (await self.reader.watermarks(snapshot)).by_writer
        entries = await self.reader.entries(snapshot)
        places = _places(snapshot.files.values(), entries)
        settled = await self._settled(snapshot)
        settled = await self._without_strangers(settled, marks, snapshot.commit)

        def is_settled(file: HubFile) -> bool:
            return settled.get(file.path) == file

        merges: list[Merge[HubFile]] = []
        notes: list[str] = []
        for one in series_of(marks, snapshot.files.values())[0]:
            if (problem := problem_with(one)) is not None:
                notes.append(f"{one.name}: {problem}")
                continue
            for run in runs(one, is_settled):
                merges += [Merge(one, files) for files in groups(run, self.max_file_bytes)]
        alike = [merge for merge in merges if _loads_alike(merge, places, entries)]
        notes += [
            f"{merge.path}: the card does not show it as it shows {merge.files[0].path}"
            for merge in merges
            if merge not in alike
        ]
        return Compaction(self.reader.repo, self.hub.target.revision, len(places), alike, notes=notes)

    async def _settled(self, snapshot: Snapshot) -> Mapping[str, HubFile]:
        """Return the files that were already there, as they are, `min_age_s` ago."""
        if self.min_age_s <= 0:
            return snapshot.files
        until = self.clock.time() - self.min_age_s
        async with aclosing(self.reader.history(snapshot.commit)) as history:
            async for commit in history:
                at = parse_time(commit.date)
                if at is not None and at.timestamp() <= until:
                    old = (await self.reader.snapshot(commit.id)).files
                    return {path: file for path, file in snapshot.files.items() if old.get(path) == file}
        return {}

    async def _without_strangers(
        self, files: Mapping[str, HubFile], marks: Mapping[str, Watermark], commit: str
    ) -> Mapping[str, HubFile]:
        """Return the files without those that someone else may have put at a path that names no writer.

        A commit of hubsync describes its shards.
        """
        unsure = [file for one in series_of(marks, files.values())[0] if not names_writer(one) for file in one.files]
        origins = await read_origins(self.reader, unsure, commit) if unsure else {}
        strangers = {file.path for file in unsure if origins.get(file.path, (None,))[0] is None}
        return {path: file for path, file in files.items() if path not in strangers}

    # Merging.

    async def _merge(self, merges: Sequence[Merge[HubFile]], scratch: Path) -> tuple[list[Merge[HubFile]], list[Shard]]:
        """Download and merge files; return the merges as they were done, and the new files."""
        done: list[Merge[HubFile]] = []
        shards: list[Shard] = []
        head = await self.reader.head() or ""
        for number, merge in enumerate(merges):
            files = await self._download(merge, head, scratch)
            for part in await run_in_thread(merge.parts, codecs.schema_of, files):
                shards.append(await run_in_thread(write_merged, part, files, scratch / f"{number}-{len(shards)}"))
                done.append(part)
            for file in files.values():
                file.unlink()
        return done, shards

    async def _download(self, merge: Merge[HubFile], commit: str, scratch: Path) -> dict[str, Path]:
        """Download the files of a merge, each verified by its oid."""
        found: dict[str, Path] = {}

        async def download(file: HubFile) -> None:
            received = await self.reader.download(file, commit)
            if received is None or not received.is_as_listed:
                raise TransientError(f"{file.path}: the Hub sent something else than it lists. Nothing was changed.")
            found[file.path] = scratch / f"part-{len(found)}-{PurePosixPath(file.path).name}"
            await run_in_thread(received.save, found[file.path])

        await run_few_at_once(merge.files, download)
        return found

    # Committing.

    async def _commit(self, merges: Sequence[Merge[HubFile]], shards: Sequence[Shard]) -> str:
        """Add the merged files and delete their shards in one commit; return its sha."""
        policy = RetryPolicy()
        backoff = Backoff(policy.initial_s, policy.max_s, random.Random())
        staged = await retry_transient(lambda: self.hub.stage(shards), backoff, self.clock, max_tries=_MAX_TRIES)
        shards = [replace(shard, mode=one.mode) for shard, one in zip(shards, staged, strict=True)]
        deletions = [file.path for merge in merges for file in merge.files]
        summary = f"Merge {len(deletions):,} shards into {len(shards):,}"
        while True:
            head = await self.reader.head() or ""
            snapshot = await self.reader.snapshot(head)
            if all(_is_in(snapshot, shard) for shard in shards) and not snapshot.files.keys() & set(deletions):
                return head  # its response was lost
            self._check_unchanged(snapshot, merges)
            plan = Plan(0, shards, parent=head, summary=summary, deletions=deletions)
            match await self.hub.commit(plan):
                case Landed(sha):
                    return sha
                case Unknown(error) | NotSent(TransientError() as error):
                    wait_s = backoff.after_failure(error.retry_after_s)
                    if backoff.failures > _MAX_TRIES:
                        raise error
                    await self.clock.sleep(wait_s)
                case NotSent(BlockedError() as error) | FolderFull(error) | Rejected(error):
                    raise error

    def _check_unchanged(self, snapshot: Snapshot, merges: Sequence[Merge[HubFile]]) -> None:
        """Raise if someone has changed what is merged, or uses the path of a merged file."""
        for merge in merges:
            changed = next((file.path for file in merge.files if snapshot.files.get(file.path) != file), None)
            if changed is None and merge.path in snapshot.files:
                changed = merge.path
            if changed is not None:
                raise TransientError(
                    f"{changed} of {self.reader.repo} was changed while its rows were merged. Nothing of this merge "
                    "was committed. Run hubsync compact again."
                )


def _places(files: Iterable[HubFile], entries: Sequence[Entry]) -> dict[str, tuple[str, str]]:
    """Return the config and split of each file that the card shows, by path."""
    return {file.path: (config, split) for file, config, split in select_files(files, entries, Selection())}


def _loads_alike(merge: Merge[HubFile], places: Mapping[str, tuple[str, str]], entries: Sequence[Entry]) -> bool:
    """Return whether the merged file belongs to the same config and split as each of its files."""
    place = _places([HubFile(merge.path, 0, "", is_large=False)], entries).get(merge.path)
    return place is not None and all(places.get(file.path) == place for file in merge.files)


def _is_in(snapshot: Snapshot, shard: Shard) -> bool:
    file = snapshot.files.get(shard.path)
    return file is not None and file.oid in (shard.sha256, shard.git_oid)
