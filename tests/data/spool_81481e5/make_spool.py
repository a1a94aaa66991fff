"""Make `spool.tar.gz` and `contents.txt`: a spool as commit 81481e5 of hubsync leaves it, and its dataset.

    python tests/data/spool_81481e5/make_spool.py CHECKOUT

CHECKOUT is a work tree of that commit: `git worktree add CHECKOUT 81481e5`. Its code runs, not the current one: it has
the modules `crashpoints`, `dead_letter` and `inspect`, which were renamed later. See README.md for the steps.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
REPO = "user/rows"
SQL = {
    "segments": "SELECT id, writer, config, state, mode, plan, rows, seq, path, file, error FROM segments ORDER BY id",
    "segment_offsets": "SELECT source, offset, segment FROM segment_offsets ORDER BY segment, source",
    "offsets": "SELECT source, offset FROM offsets ORDER BY source",
    "keys": "SELECT hex(digest), segment FROM keys ORDER BY segment",
    "plans": "SELECT id, parent, summary, length(notes) FROM plans",
    "writers": "SELECT name, epoch, mark FROM writers ORDER BY name",
    "series": "SELECT name, next FROM series ORDER BY name",
    "cards": "SELECT config, split, glob FROM cards ORDER BY config",
    "schemas": "SELECT config, known, published, policy FROM schemas ORDER BY config",
    "meta": "SELECT key, value FROM meta ORDER BY key",
}


def rows(*ids: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"row {n}"} for n in ids]


def uploader(spool: Path, config: str) -> Any:
    """An uploader that seals after two rows and commits at once."""
    hubsync = importlib.import_module("hubsync")
    return hubsync.Uploader(
        REPO, config=config, format="jsonl.gz" if config == "eval" else "jsonl", private=True, spool=spool,
        shard=hubsync.ShardPolicy(max_rows=2, linger_s=3600),
        commit=hubsync.CommitPolicy(per_hour=100_000),
        retry=hubsync.RetryPolicy(initial_s=0.01, max_s=0.05, request_timeout_s=600),
        schema=hubsync.SchemaPolicy(on_conflict="dead letter"),
    )  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# The first job: it ends in order.


def first_job(hub: Any, spool: Path) -> None:
    Fault, ShardsRefused = hub_module().Fault, importlib.import_module("hubsync").ShardsRefused

    def reject(number: int, **how: Any) -> None:
        fault = hub.faults.add(Fault.status(422, on="commit"))
        train.put(rows(number), **how)
        with suppress(ShardsRefused):
            train.flush()
        hub.faults.remove(fault)

    with uploader(spool, "default") as train, uploader(spool, "eval") as evals:
        train.put(rows(0, 1), key="first", offset=0, ack="committed")
        evals.put(rows(10, 11), source="eval", offset=0, ack="committed")
        train.put([], key="empty", offset=1)
        quota = json.dumps({"error": importlib.import_module("hubsync.localhub.limits").commits_spent(128, 3600)})
        hub.faults.add(Fault.status(429, on="commit", body=quota, retry_after=1, times=1))
        train.put(rows(2, 3), offset=2, ack="committed")
        train.put([{"id": 4, "text": 4}], key="conflict", ack="spooled")
        reject(5, key="rejected", offset=3)
        reject(6, key="discarded", offset=4)
        train.put(rows(7, 8), offset=5, ack="committed")
    with importlib.import_module("hubsync.dead_letter").DeadLetter(spool) as letter:
        letter.discard(letter.shards()[-1])


# The second job: it is killed.


def second_job(spool: Path) -> None:
    """Run in a process that kills itself in the middle of writing a row."""
    crashpoints = importlib.import_module("hubsync.crashpoints")
    hold_packing, die_writing = threading.Event(), threading.Event()

    def reached(point: Any) -> None:
        if point is crashpoints.CrashPoint.PARTLY_PACKED and hold_packing.is_set():
            print("packing", flush=True)
            threading.Event().wait()
        if point is crashpoints.CrashPoint.WRITTEN and die_writing.is_set():
            os.kill(os.getpid(), signal.SIGKILL)

    crashpoints.listener = reached
    with uploader(spool, "default") as train, uploader(spool, "eval") as evals:
        train.put(rows(20, 21), key="response lost", offset=6, ack="spooled")
        sys.stdin.readline()  # the commit has landed, and its response does not come
        train.put(rows(22, 23), key="staged", offset=7, ack="spooled")
        evals.put(rows(30, 31), source="eval", offset=1, ack="spooled")
        sys.stdin.readline()  # both are staged, and nothing more can be
        train.put(rows(24, 25), offset=8, ack="spooled")
        hold_packing.set()
        evals.put(rows(32, 33), source="eval", offset=2, ack="spooled")
        sys.stdin.readline()
        train.put(rows(26), key="open", offset=9, ack="spooled")
        evals.put(rows(34), source="eval", offset=3, ack="spooled")
        die_writing.set()
        train.put(rows(27), key="torn", offset=10, ack="spooled")


def run_second_job(hub: Any, spool: Path, checkout: Path) -> None:
    Fault = hub_module().Fault
    facts = importlib.import_module("hubsync.inspect").spool_facts
    hub.faults.add(Fault.hang(when="after", on="commit"))
    command = [sys.executable, __file__, str(checkout), "second", str(spool)]
    job = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert job.stdin is not None
    assert job.stdout is not None
    until(lambda: hub.faults.held == 1)
    job.stdin.write("\n")
    until(lambda: facts(spool)["shards"]["staged"] == 3)
    hub.faults.add(Fault.hang(on="preupload"))
    job.stdin.write("\n")
    assert job.stdout.readline() == "packing\n"
    until(lambda: hub.faults.held == 2)
    job.stdin.write("\n")
    assert job.wait() == -signal.SIGKILL
    with closing(sqlite3.connect(f"file:{spool}/catalogue.sqlite?mode=ro", uri=True)) as db:
        sql = "SELECT file, bytes FROM segments WHERE state = 'open' AND config = 'default'"
        ((file, counted),) = db.execute(sql)
    torn = spool / "segments" / file
    assert torn.stat().st_size > counted
    os.truncate(torn, torn.stat().st_size - 7)  # a kill may also come in the middle of a write


# What is kept of it.


def hub_module() -> Any:
    return importlib.import_module("hubsync.localhub")


def read_dataset(hub: Any) -> dict[str, bytes]:
    from huggingface_hub import HfApi, HfFileSystem

    files = HfFileSystem(endpoint=hub.endpoint, token=hub.token)
    paths = HfApi(endpoint=hub.endpoint, token=hub.token).list_repo_files(REPO, repo_type="dataset")
    return {path: files.cat_file(f"datasets/{REPO}/{path}") for path in paths if path != ".gitattributes"}


def write_archive(spool: Path, dataset: dict[str, bytes]) -> None:
    """Write the spool's files with their modes, and the dataset's; without times and names of this machine."""
    with (
        (HERE / "spool.tar.gz").open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in [spool, *sorted(spool.rglob("*"))]:
            # `reserve` only takes room; `-shm` is the index of `-wal`, which SQLite makes again.
            if path.name in ("reserve", "catalogue.sqlite-shm"):
                continue
            info = archive.gettarinfo(path, str(Path("spool", path.relative_to(spool))))
            info.uid = info.gid = info.mtime = 0
            info.uname = info.gname = ""
            if path.is_file():
                archive.addfile(info, io.BytesIO(path.read_bytes()))
            else:
                archive.addfile(info)
        for name, content in dataset.items():
            info = tarfile.TarInfo(f"dataset/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def contents() -> Iterator[str]:
    """Yield what the archive holds, for reviewers."""
    with (
        tempfile.TemporaryDirectory() as directory,
        tarfile.open(HERE / "spool.tar.gz") as archive,
        extracted(archive, directory) as spool,
        closing(sqlite3.connect(spool / "catalogue.sqlite")) as db,
    ):
        yield "Files:"
        for member in archive:
            yield f"  {member.mode:o} {member.size:7,} {member.name}"
        for pragma in ("user_version", "application_id"):
            yield f"\nPRAGMA {pragma} = {db.execute(f'PRAGMA {pragma}').fetchone()[0]}"
        for table, sql in SQL.items():
            found = db.execute(sql)
            yield f"\n{table}: {', '.join(column[0] for column in found.description)}"
            for row in found:
                yield "  " + " | ".join("" if value is None else str(value) for value in row)


@contextmanager
def extracted(archive: tarfile.TarFile, directory: str) -> Iterator[Path]:
    archive.extractall(directory, filter="data")
    yield Path(directory, "spool")


def make(checkout: Path) -> None:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="hubsync-") as directory:
        spool = Path(directory, "spool")
        with hub_module().LocalHub(Path(directory, "hub")) as hub:
            os.environ |= {**hub.environ(), "PYTHONPATH": str(checkout)}
            first_job(hub, spool)
            run_second_job(hub, spool, checkout)
            hub.faults.clear()
            write_archive(spool, read_dataset(hub))
    (HERE / "contents.txt").write_text("\n".join(contents()) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]).resolve()))
    assert Path(importlib.import_module("hubsync").__file__ or "").is_relative_to(sys.path[0])
    if sys.argv[2:3] == ["second"]:
        second_job(Path(sys.argv[3]))
    else:
        make(Path(sys.path[0]))
