"""Measure recovery after SIGKILL: how soon accepted rows are committed, and how many are lost or duplicated.

Part one fills a spool while the Hub is down, kills the job, and starts another when the Hub is up: the figures are the
seconds from its start to the first and the last commit. Part two compares hubsync with its peers. It kills a running
job three times and restarts it. The job records its progress after each batch, as users do, and resumes from there.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, batches, send_result, wait_for_start
from benchmarks.report import OURS, PEER, Column, Report, bars
from benchmarks.subjects import batch_uploader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZES_MB = (10, 100, 1_000, 5_000)
_SUBJECTS = ("hubsync", "CommitScheduler", "upload_file")
_ROWS = 20  # per batch in part two, of about 3 kB each
_PAUSE_S = 0.02  # between batches in part two
_TIMEOUT_S = 300


def run(*, quick: bool) -> Report:
    """Run both parts."""
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        sizes = _SIZES_MB[:1] if quick else _SIZES_MB
        figures += [{"what": f"hubsync, {size:,} MB in the spool", **_recover(hub, size)} for size in sizes]
    for subject in _SUBJECTS:
        with BenchmarkHub() as hub, tempfile.TemporaryDirectory() as directory:
            figures.append({"what": subject, **_kill_and_restart(hub, subject, Path(directory), 40 if quick else 300)})
    return Report(
        name="recovery",
        title="Recovery after SIGKILL: time until all is committed, rows lost, rows duplicated",
        figures=figures,
        columns=(
            Column("what", "what"), Column("rows", "rows", ",d"), Column("first_commit_s", "first commit (s)", ".2f"),
            Column("last_commit_s", "all committed (s)", ".2f"), Column("lost", "lost", ",d"),
            Column("twice", "duplicated", ",d"),
        ),
        draw=lambda figure: _draw(figure, figures),
        note="Spools are filled while the Hub is down; times count from the start of the next process. Rows without "
        "times are jobs that are killed three times and resume from their own progress file.",
    )  # fmt: skip


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    recovered = [f for f in figures if "last_commit_s" in f]
    killed = [f for f in figures if "last_commit_s" not in f]
    first, second = figure.subplots(1, 2)
    bars(
        first, [f["what"] for f in recovered], [f["last_commit_s"] for f in recovered], colours=OURS,
        unit="seconds until all is committed", log=True,
    )  # fmt: skip
    bars(
        second,
        [f"{f['what']}, {name}" for f in killed for name in ("lost", "duplicated")],
        [f[name] for f in killed for name in ("lost", "twice")],
        colours=[OURS if f["what"] == "hubsync" else PEER for f in killed for _ in range(2)],
        unit=f"rows of {killed[0]['rows']:,}",
    )


def _recover(hub: BenchmarkHub, size_mb: int) -> dict[str, Any]:
    repo = f"user/recover-{size_mb}"
    hub.set_condition("healthy")
    producer = hub.spawn("recovery", "fill", repo, size_mb)
    producer.read_line()
    hub.set_condition("down")
    producer.go()
    rows = int(producer.read_line())
    producer.stop()
    hub.set_condition("healthy")
    before = _count_commits(hub)
    began = time.perf_counter()
    successor = hub.spawn("recovery", "fill", repo, 0)
    while successor.poll() is None and _count_commits(hub) == before:
        time.sleep(0.02)
    first_s = time.perf_counter() - began
    successor.wait()
    last_s = time.perf_counter() - began
    return {"rows": rows, "first_commit_s": first_s, "last_commit_s": last_s, **_compare(hub, repo, rows)}


def _count_commits(hub: BenchmarkHub) -> int:
    return int(hub.control("GET", "requests?operation=none")["counters"].get("commit", 0))


def _kill_and_restart(hub: BenchmarkHub, subject: str, directory: Path, count: int) -> dict[str, Any]:
    repo, progress = "user/killed", directory / "progress"
    for kill in range(4):
        job = hub.spawn("recovery", "job", repo, subject, directory, count)
        if kill < 3:
            until = time.monotonic() + _TIMEOUT_S
            while _read_progress(progress) < (kill + 1) * count // 4 and time.monotonic() < until:
                time.sleep(0.01)
            job.send_signal(signal.SIGKILL)
        job.communicate()
    return {"rows": count * _ROWS, **_compare(hub, repo, count * _ROWS)}


def _read_progress(progress: Path) -> int:
    """Return how many batches the job has finished."""
    return progress.read_bytes().count(b"\n") if progress.exists() else 0


def _compare(hub: BenchmarkHub, repo: str, rows: int) -> dict[str, Any]:
    """Count the rows that the dataset lacks, and those that it has twice."""
    from huggingface_hub import HfApi, HfFileSystem

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    fs = HfFileSystem(endpoint=hub.endpoint, token=hub.token, skip_instance_cache=True)
    found: Counter[int] = Counter()
    for path in api.list_repo_files(repo, repo_type="dataset"):
        if path.endswith(".jsonl"):
            for line in fs.cat_file(f"datasets/{repo}/{path}").splitlines():
                try:
                    found[json.loads(line)["id"]] += 1
                except ValueError:
                    found[-1] += 1  # a torn line
    found.pop(-1, None)
    return {"lost": rows - len(found), "twice": sum(n - 1 for n in found.values())}


def _fill(repo: str, size_mb: int) -> None:
    """Put that many rows; with a size of 0, only upload what is in the spool."""
    from hubsync import CommitPolicy, Uploader

    stock = batches(50, 3_000)
    with Uploader(repo, commit=CommitPolicy(per_hour=100_000)) as up:
        if size_mb:
            wait_for_start()
        done = n = 0
        while done < size_mb * 1_000_000:
            rows = [{**row, "id": n * 50 + k} for k, row in enumerate(stock[n % len(stock)])]
            done += up.put(rows).bytes
            n += 1
        if size_mb:
            send_result(n * 50)  # the parent kills this process here


def _job(repo: str, subject: str, directory: Path, count: int) -> None:
    """Resume after the last recorded batch; the batch that a kill interrupted is put again."""
    stock = batches(_ROWS, 3_000)
    progress = directory / "progress"
    done = _read_progress(progress)
    put, end = {"hubsync": _hubsync, "CommitScheduler": _scheduler, "upload_file": _upload_file}[subject](
        repo, directory
    )
    with progress.open("ab", buffering=0) as log:
        for n in range(done, count):
            time.sleep(_PAUSE_S)
            put(n, [{**row, "id": n * _ROWS + k} for k, row in enumerate(stock[n % len(stock)])])
            log.write(b"%d\n" % n)
    end()


def _hubsync(repo: str, directory: Path) -> Any:
    from hubsync import CommitPolicy, ShardPolicy, Uploader

    shard, commit = ShardPolicy(linger_s=1), CommitPolicy(per_hour=100_000)
    up = Uploader(repo, spool=directory / "spool", shard=shard, commit=commit).open()
    return (lambda n, rows: up.put(rows, offset=n)), up.close


def _scheduler(repo: str, directory: Path) -> Any:
    """Use CommitScheduler as its documentation does: each process appends to its own file, holding the lock."""
    import uuid

    from huggingface_hub import CommitScheduler

    folder = directory / "folder"
    folder.mkdir(exist_ok=True)
    scheduler = CommitScheduler(
        repo_id=repo, repo_type="dataset", folder_path=folder, path_in_repo="data", every=1 / 60
    )
    file = folder / f"train-{uuid.uuid4()}.jsonl"

    def put(n: int, rows: Any) -> None:
        with scheduler.lock, file.open("a") as stream:
            for row in rows:
                stream.write(json.dumps(row) + "\n")

    def end() -> None:
        scheduler.trigger().result()
        scheduler.stop()

    return put, end


def _upload_file(repo: str, directory: Path) -> Any:
    upload = batch_uploader(repo)
    return upload, lambda: None


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        _fill(sys.argv[2], int(sys.argv[3]))
    else:
        _job(sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
