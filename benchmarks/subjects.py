"""The subjects that the benchmarks compare: hubsync, its peers, and the limits of the machine, with one interface.

A subject is a function of a job and its source. It sets up, takes the batches from the source, and returns when all of
them are committed. The peers are the real packages, used as their documentation shows. Each subject runs in its own
process: `python -m benchmarks.subjects NAME` reads a `Job` (a line of JSON) from standard input and prints a `Result`.

Not compared: trackio (0.43), whose client sends metrics to the server in a Space, where a copy of huggingface_hub's
CommitScheduler or a bucket uploads them; an embedded Hub runs no Spaces. distilabel's HuggingFaceHubCheckpointer is not
in any release (1.5.3 is the latest); the subject "upload_file" does the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from benchmarks.source import Batch, Job, Source, write_shards

Kind = Literal["ours", "per batch", "from rows", "ready files", "limit"]


class Subject(NamedTuple):
    """What a benchmark compares.

    Attributes:
        name: in the tables.
        kind: which group it is compared with.
        run: uploads all batches of a source.
    """

    name: str
    kind: Kind
    run: Callable[[Job, Source], object]


SUBJECTS: dict[str, Subject] = {}


def _subject(name: str, kind: Kind) -> Callable[[Callable[[Job, Source], object]], Callable[[Job, Source], object]]:
    def register(run: Callable[[Job, Source], object]) -> Callable[[Job, Source], object]:
        SUBJECTS[name] = Subject(name, kind, run)
        return run

    return register


# --- hubsync ----------------------------------------------------------------------------------------------------------


@_subject("hubsync", "ours")
def _hubsync(job: Job, source: Source) -> None:
    with _uploader(job) as up:
        for batch in source:
            up.put(batch)


@_subject("hubsync, queued", "ours")
def _hubsync_queued(job: Job, source: Source) -> None:
    """Don't wait for the spool. The difference to "hubsync" is what that wait costs a producer without pauses."""
    with _uploader(job) as up:
        for batch in source:
            up.put(batch, ack="queued")


def _uploader(job: Job) -> Any:
    from hubsync import CommitPolicy, Uploader

    # Without a commit quota, which would dominate the figures. Everything else is the default.
    return Uploader(job.repo, spool=f"{job.directory}/spool", commit=CommitPolicy(per_hour=1_000_000))


# --- peers that upload each batch -------------------------------------------------------------------------------------


def _lines(batch: Batch) -> str:
    """Encode a batch the way the documentation of all these peers does."""
    return "".join(json.dumps(row) + "\n" for row in batch)


@_subject("upload_file", "per batch")
def _upload_file(job: Job, source: Source) -> None:
    upload = batch_uploader(job.repo)
    for n, batch in enumerate(source):
        upload(n, batch)


def batch_uploader(repo: str) -> Callable[[int, Batch], None]:
    """Return a function (number, batch) that uploads like distilabel's HuggingFaceHubCheckpointer.

    Unlike the checkpointer, it flushes the file before the upload.
    """
    api = _api(repo)

    def upload(n: int, batch: Batch) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
            file.write(_lines(batch))
            file.flush()
            api.upload_file(path_or_fileobj=file.name, path_in_repo=_path(n), repo_id=repo, repo_type="dataset")

    return upload


@_subject("upload_file, run_as_future", "per batch")
def _upload_file_as_future(job: Job, source: Source) -> None:
    """Use `run_as_future`, as in huggingface_hub's guide "Non-blocking uploads"; one thread uploads in order."""
    api = _api(job.repo)
    futures = [
        api.upload_file(
            path_or_fileobj=_lines(batch).encode(),
            path_in_repo=_path(n),
            repo_id=job.repo,
            repo_type="dataset",
            run_as_future=True,
        )
        for n, batch in enumerate(source)
    ]
    for future in futures:
        future.result()


@_subject("HfFileSystem", "per batch")
def _hf_file_system(job: Job, source: Source) -> None:
    from huggingface_hub import HfFileSystem

    _api(job.repo)
    fs = HfFileSystem()
    for n, batch in enumerate(source):
        with fs.open(f"datasets/{job.repo}/{_path(n)}", "wb") as file:
            file.write(_lines(batch).encode())


# --- peers that collect rows and upload them together -----------------------------------------------------------------


@_subject("CommitScheduler", "from rows")
def _commit_scheduler(job: Job, source: Source) -> None:
    """Append to a file, holding the lock, as in huggingface_hub's guide "Scheduled uploads"; leaving `with` commits."""
    from huggingface_hub import CommitScheduler

    folder = Path(job.directory, "scheduled")
    file_path = folder / f"data_{uuid.uuid4()}.jsonl"
    with CommitScheduler(
        repo_id=job.repo, repo_type="dataset", folder_path=folder, path_in_repo="data", every=job.every_s / 60
    ) as scheduler:
        for batch in source:
            with scheduler.lock, file_path.open("a") as file:
                for row in batch:
                    file.write(json.dumps(row))
                    file.write("\n")


@_subject("Dataset.push_to_hub", "from rows")
def _push_to_hub(job: Job, source: Source) -> None:
    from datasets import Dataset

    _api(job.repo)
    rows: list[dict[str, Any]] = []
    for batch in source:
        rows.extend(batch)
    Dataset.from_list(rows).push_to_hub(job.repo)


@_subject("IterableDataset.push_to_hub", "from rows")
def _iterable_push_to_hub(job: Job, source: Source) -> None:
    from datasets import IterableDataset

    _api(job.repo)

    def generate() -> Any:
        for batch in source:
            yield from batch

    IterableDataset.from_generator(generate).push_to_hub(job.repo)


# --- peers that start with finished files -----------------------------------------------------------------------------


@_subject("upload_folder", "ready files")
def _upload_folder(job: Job, source: Source) -> None:
    """Upload finished files: the upper bound that users know."""
    api = _api(job.repo)
    folder = source.files()[0].parents[1]
    source.start()
    api.upload_folder(folder_path=folder, repo_id=job.repo, repo_type="dataset")


# --- limits -----------------------------------------------------------------------------------------------------------


@_subject("limit: encode", "limit")
def _encode(job: Job, source: Source) -> None:
    encoder = msgspec.json.Encoder()
    for batch in source:
        encoder.encode_lines(batch)


@_subject("limit: disk", "limit")
def _disk(job: Job, source: Source) -> None:
    encoded = list(source.encoded())
    source.start()
    write_shards(Path(job.directory), encoded)


@_subject("limit: hf_xet", "limit")
def _hf_xet(job: Job, source: Source) -> None:
    _api(job.repo)
    files = source.files()
    send = _xet(job)
    source.start()
    send(files)


@_subject("limit: sum", "limit")
def _sum(job: Job, source: Source) -> None:
    """Encode, write and upload, one after the other."""
    _api(job.repo)
    encoder = msgspec.json.Encoder()
    send = _xet(job)
    send(write_shards(Path(job.directory), [encoder.encode_lines(batch) for batch in source]))


def _xet(job: Job) -> Callable[[list[Path]], None]:
    """Return a function that uploads files with hf_xet and commits them, with no other work."""
    import hf_xet
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    headers = build_hf_headers()
    session = hf_xet.XetSession()
    url = f"{constants.ENDPOINT}/api/datasets/{job.repo}"
    http = httpx.Client(headers=headers, timeout=600)

    def send(files: list[Path]) -> None:
        with session.new_upload_commit(
            token_refresh_url=f"{url}/xet-write-token/main", token_refresh_headers=headers
        ) as commit:
            started = [commit.start_upload_file(str(file), sha256=hf_xet.COMPUTE_SHA256) for file in files]
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "ready bytes"}}]
        for file, upload in zip(files, started, strict=True):
            info = upload.result().xet_info
            value = {"path": f"data/{file.name}", "algo": "sha256", "oid": info.sha256, "size": info.file_size}
            lines.append({"key": "lfsFile", "value": value})
        body = "".join(json.dumps(line) + "\n" for line in lines)
        http.post(
            f"{url}/commit/main", content=body, headers={"content-type": "application/x-ndjson"}
        ).raise_for_status()

    return send


def _api(repo: str) -> Any:
    """Create the repo before the clock starts, as hubsync does, and return an `HfApi`."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
    return api


def _path(n: int) -> str:
    return f"data/train-{n:06d}.jsonl"


if __name__ == "__main__":
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    source = Source(job)
    SUBJECTS[sys.argv[1]].run(job, source)
    print(msgspec.json.encode(source.stop()).decode(), flush=True)
