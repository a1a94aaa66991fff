"""The crash-point matrix: a process is killed at every named instant, and the next one on the spool recovers.

After each kill the job is started again; in the end every row is in the dataset once, nothing was overwritten, and
the spool holds nothing that it should not.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd

from hubsync._runtime.failpoints import Failpoint
from hubsync.encoding.codecs import SUFFIXES, compress, read_lines
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.verify import verify
from hubsync.model.layout import Format
from tests.conftest import Dataset
from tests.e2e.conftest import Jobs

pytestmark = pytest.mark.slow("starts processes and kills them")

ROWS = 22  # of 4 a shard: five full shards, and one that the drain seals

P = Failpoint
# What the world must look like for a point to be reached.
_LFS = {P.BLOB_STAGED, P.UNSTAGED}
_LOST = {P.RESPONSE_LOST, P.RECONCILED}
_TAKEN = {P.PATH_TAKEN, P.RENUMBERED}
_REFUSED = {P.QUARANTINE_LINKED, P.QUARANTINED}
_DEAD_BEFORE = {P.NAME_TAKEN, P.TAIL_CUT, P.ADOPTED}
_MERGING = {point for point in P if point.name.startswith("MERGE_")}
_ONCE = {
    *_MERGING,
    P.REPO_CREATED,
    P.SEEDED,
    P.LOCK_TAKEN,
    P.TAKEN_OVER,
    P.DRAINED,
    P.CARD_MERGED,
    P.CARD_RECORDED,
    *_DEAD_BEFORE,
}
_BY_HAND = {
    P.EDITED_COPIED,
    P.RELINKED,
    P.RESUBMITTED,
    P.DISCARDED,
}  # no job reaches them: see tests/maintenance/test_quarantine.py
_PACKING = {P.PARTLY_COMPRESSED, P.COMPRESSED, P.COMPRESSED_COUNTED, P.COMPRESSED_RECORDED}
# Where a packed shard may fare otherwise than lines do.
_WITH_PACKED = {P.SEALED, P.BLOB_STAGED, P.LANDED, P.SETTLED, P.FILE_REMOVED, P.ADOPTED, P.TAKEN_OVER, *_LOST, *_TAKEN}
_WITH_PACKED |= {P.UNSTAGED, *_REFUSED}
CASES = [
    *((point, "jsonl") for point in P if point not in _PACKING | _BY_HAND),
    *((point, format) for format in ("jsonl.gz", "jsonl.zst", "parquet") for point in P if point in _PACKING),
    *((point, "parquet") for point in P if point in _WITH_PACKED | _MERGING),
]


def prepare(point: Failpoint, hub: LocalHub, dataset: Dataset, format: Format) -> None:
    if point in _LOST:
        hub.faults.add(Fault.reset(when="after", on="commit", times=2))
    if point in _LFS:
        commit(dataset, {".gitattributes": f"*.{format} filter=lfs diff=lfs merge=lfs -text\n".encode()})
    if point is P.UNSTAGED:
        hub.faults.add(Fault.status(400, on="commit", times=9))
    if point in _TAKEN:
        commit(dataset, {f"data/train-{n:05d}.{format}": other(n, format) for n in (0, 2)})
    if point in _REFUSED:
        # A blob goes up again a few times before it counts as refused.
        hub.faults.add(Fault.status(422, on="commit", times=20 if format == "jsonl" else 40))


def other(n: int, format: Format) -> bytes:
    """A person's file at a path that a job would take."""
    with tempfile.TemporaryDirectory() as scratch:
        lines, packed = Path(scratch, "lines.jsonl"), Path(scratch, f"other.{format}")
        lines.write_bytes(b'{"id":-%d}\n' % (n + 1))
        if format != "jsonl":
            compress(lines, packed, 1)
        return (lines if format == "jsonl" else packed).read_bytes()


def commit(dataset: Dataset, files: dict[str, bytes]) -> None:
    dataset.api.create_repo(dataset.repo, repo_type="dataset", exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    dataset.api.create_commit(dataset.repo, operations, commit_message="by a person", repo_type="dataset")


@pytest.mark.parametrize(("point", "format"), CASES, ids=lambda one: one if isinstance(one, str) else one.title)
def test_a_process_killed_at(
    point: Failpoint, format: Format, hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    # In the first, a person's files are in the way.
    path = (
        f"data/{{split}}-{{seq:05d}}.{format}" if point in _TAKEN else f"data/{{split}}-{{writer}}-{{seq:05d}}.{format}"
    )
    prepare(point, hub, dataset, format)
    if point in _DEAD_BEFORE:
        assert jobs.end(jobs.start("crashing", spool, ROWS, path, "NOTIFIED", 3, signal.SIGKILL)) == -signal.SIGKILL
    merges = point in _MERGING
    for nth in (1,) if point in _ONCE else (1, 3):
        end = jobs.end(jobs.start("crashing", spool, ROWS, path, point.name, nth, signal.SIGKILL, merges))
        if nth == 1:
            assert end == -signal.SIGKILL, jobs.log
        if point is P.QUARANTINE_LINKED:
            hub.faults.clear()  # the Hub has changed its mind: nothing may stay in the dead letter
    hub.faults.clear()
    last = jobs.end(jobs.start("crashing", spool, ROWS, path, None, 0, 0, merges))
    assert last == 0 or point in _REFUSED, jobs.log
    found = Counter(row["id"] for row in dataset.rows() if row["id"] >= 0)
    found.update(refused(spool))
    assert found == Counter(range(ROWS))
    if merges:
        assert len(dataset.paths(SUFFIXES)) == 1
    else:
        assert shards_ever_changed(dataset) == []
    assert leftovers(spool) == []
    assert verify(dataset.repo, spool=spool, endpoint=hub.endpoint, token=hub.token).differences == ()


def refused(spool: Path) -> list[int]:
    return [json.loads(line)["id"] for file in (spool / "dead-letter").iterdir() for line in read_lines(file)]


def shards_ever_changed(dataset: Dataset) -> list[str]:
    """Paths whose content is another in a later commit, or that went away."""
    commits = dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")
    changed, before = [], {}
    # A change lasts, so that a few dozen commits of a long history show it, and its end.
    for one in [*reversed(commits[:: max(1, len(commits) // 40)])]:
        tree = dataset.api.list_repo_tree(dataset.repo, recursive=True, revision=one.commit_id, repo_type="dataset")
        now = {f.path: f.blob_id for f in tree if f.path.endswith(SUFFIXES)}
        changed += [path for path, oid in before.items() if now.get(path) != oid]
        before = now
    return changed


def leftovers(spool: Path) -> list[str]:
    """What is in the spool and should not be, now that all is on the Hub."""
    with sqlite3.connect(spool / "catalogue.sqlite") as db:
        plans = [f"plan {row}" for row in db.execute("SELECT id FROM plans")]
        waiting = [
            f"segment {row}" for row in db.execute("SELECT id FROM segments WHERE state NOT IN ('committed', 'dead')")
        ]
        graves = {f"{row[0]:06d}" for row in db.execute("SELECT id FROM segments WHERE state = 'dead'")}
    buried = [p.name for p in (spool / "dead-letter").iterdir() if p.name.split("-")[0] not in graves]
    files = [p.name for p in (spool / "segments").iterdir()]
    locks = [p.name for p in spool.glob("committer.*") if p.name != "committer.lock"]
    merging = [p.name for p in spool.glob("merging")]
    return plans + waiting + buried + files + locks + merging
