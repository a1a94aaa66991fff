"""Judge a chaos run: compare the dataset on the Hub with the ledgers, using only huggingface_hub and datasets.

Runs as a separate command with HF_ENDPOINT and HF_TOKEN in its environment, and prints JSON. To judge a kept run again,
run `hubsync hub serve --dir DIR/hub`, then `python -m benchmarks.chaos.judge DIR`.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoCard, get_session, get_token, hf_hub_url, snapshot_download
from huggingface_hub.hf_api import RepoFile

from benchmarks.chaos.producers import REPO, Ledger, row


@dataclass
class Verdict:
    """The findings. The lists name what is wrong; they are empty if the run passed.

    Attributes:
        lost: rows that were accepted and are not on the Hub.
        twice: rows that are on the Hub more than once.
        damaged: rows that differ from what was put.
        never_put: rows on the Hub that no producer put.
        overwritten: shards that a later commit changed or deleted.
        watermarks: watermarks that do not match the files of their own commit.
        hidden: shards that the dataset card of their commit does not list; rows that `load_dataset` does not find.
        left: what is still in the spool.
        accepted: number of rows that were accepted.
        rows: number of rows on the Hub.
        shards: number of shards on the Hub.
        large: number of shards that are LFS or Xet files.
        commit_times: of hubsync's commits, in seconds since the epoch, oldest first.
    """

    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    never_put: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    watermarks: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    accepted: int = 0
    rows: int = 0
    shards: int = 0
    large: int = 0
    commit_times: list[float] = field(default_factory=list)


def judge(directory: Path) -> Verdict:
    """Download the dataset, and compare it with what the producers recorded in their ledgers."""
    run = json.loads((directory / "run.json").read_text())
    verdict = Verdict()
    shards = _download(directory, verdict)
    _compare(shards, directory, run["seed"], run["sources"], verdict)
    _History(shards, verdict).check()
    _load_dataset(shards, verdict)
    _check_spool(directory / "spool", verdict)
    return verdict


def _download(directory: Path, verdict: Verdict) -> dict[str, list[dict[str, Any]]]:
    """Return the rows at the head of the branch, by shard."""
    local = Path(
        snapshot_download(
            REPO, repo_type="dataset", local_dir=directory / "read-back", allow_patterns="*.jsonl", max_workers=4
        )
    )
    shards: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(local.glob("*/*.jsonl")):
        path = file.relative_to(local).as_posix()
        *lines, rest = file.read_bytes().split(b"\n")
        if rest:
            verdict.damaged.append(f"the end of {path}")
        shards[path] = []
        for number, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
                shards[path].append({"id": value["id"], "source": value["source"], "n": value["n"], **value})
            except (ValueError, KeyError, TypeError) as error:
                verdict.damaged.append(f"line {number} of {path} ({error!r})")
    return shards


def _compare(
    shards: dict[str, list[dict[str, Any]]], directory: Path, seed: int, sources: list[str], verdict: Verdict
) -> None:
    ledgers = {source: Ledger(directory, source).read() for source in sources}
    shards_of: dict[str, list[str]] = defaultdict(list)
    for path, rows in shards.items():
        for item in rows:
            shards_of[item["id"]].append(path)
            if item["source"] not in ledgers or item["n"] not in ledgers[item["source"]][0]:
                verdict.never_put.append(f"{item['id']} in {path}")
            elif item != row(seed, item["source"], item["n"]):
                verdict.damaged.append(f"{item['id']} in {path}")
    for source, (_, accepted) in ledgers.items():
        verdict.lost += [f"{source}-{n}" for n in sorted(accepted) if f"{source}-{n}" not in shards_of]
        verdict.accepted += len(accepted)
    verdict.twice = [f"{name} in {' and '.join(paths)}" for name, paths in shards_of.items() if len(paths) > 1]
    verdict.rows = sum(map(len, shards.values()))
    verdict.shards = len(shards)


class _History:
    """Check the commits in order: shards never change, and the watermarks and the card are right in each commit."""

    def __init__(self, shards: dict[str, list[dict[str, Any]]], verdict: Verdict) -> None:
        self._shards = shards
        self._verdict = verdict
        self._api = HfApi()
        self._tree: dict[str, str] = {}  # hashes by path
        self._rows_of: Counter[str] = Counter()  # by writer
        self._present: dict[str, set[int]] = defaultdict(set)  # row numbers by source
        self._watermarks: dict[str, dict[str, Any]] = {}  # by writer
        self._globs: list[str] = []
        self._all: dict[str, set[int]] = defaultdict(set)  # row numbers at the head, by source
        for item in (item for rows in shards.values() for item in rows):
            self._all[item["source"]].add(item["n"])

    def check(self) -> None:
        for commit in reversed(self._api.list_repo_commits(REPO, repo_type="dataset")):
            tree = dict(self._list_files(commit.commit_id))
            for path, oid in self._tree.items():
                if path.endswith(".jsonl") and tree.get(path) != oid:
                    what = "changed" if path in tree else "deleted"
                    self._verdict.overwritten.append(f"{path} {what} in {commit.commit_id}")
            new = [path for path, oid in tree.items() if self._tree.get(path) != oid]
            self._tree = tree
            if any(path.startswith(".hubsync/") for path in new):
                self._verdict.commit_times.append(commit.created_at.timestamp())
            self._read_new_files(commit.commit_id, new)
            self._check_watermarks(commit.commit_id)

    def _list_files(self, revision: str) -> Iterator[tuple[str, str]]:
        for item in self._api.list_repo_tree(REPO, recursive=True, revision=revision, repo_type="dataset"):
            if isinstance(item, RepoFile):
                yield item.path, item.lfs.sha256 if item.lfs is not None else item.blob_id

    def _read_new_files(self, revision: str, paths: list[str]) -> None:
        for path in paths:
            if path.startswith(".hubsync/"):
                watermark = json.loads(self._read(path, revision))
                before = self._watermarks.get(watermark["writer"], {"rows": 0, "offsets": {}})
                if watermark["rows"] < before["rows"] or any(
                    watermark["offsets"].get(source, -1) < offset for source, offset in before["offsets"].items()
                ):
                    self._verdict.watermarks.append(f"{path} went back in {revision}")
                self._watermarks[watermark["writer"]] = watermark
            elif path == "README.md":
                configs = RepoCard(self._read(path, revision).decode()).data.get("configs") or []
                self._globs = [files["path"] for config in configs for files in config["data_files"]]
            elif path.endswith(".jsonl"):
                self._verdict.large += len(self._tree[path]) == 64
                self._rows_of[path.split("-")[1]] += len(self._shards.get(path, ()))
                for item in self._shards.get(path, ()):
                    self._present[item["source"]].add(item["n"])
                if not any(fnmatchcase(path, glob) for glob in self._globs):
                    self._verdict.hidden.append(f"{path}: the card does not list it in {revision}")

    def _check_watermarks(self, revision: str) -> None:
        """Check that each watermark counts its writer's rows, and that no row up to its offsets is missing.

        A job may have to resume from the watermarks alone, if its spool is lost.
        """
        for writer, watermark in self._watermarks.items():
            if watermark["rows"] != self._rows_of[writer]:
                self._verdict.watermarks.append(
                    f".hubsync/{writer}.json counts {watermark['rows']} rows of {self._rows_of[writer]} in {revision}"
                )
            for source, offset in watermark["offsets"].items():
                missing = {n for n in self._all[source] - self._present[source] if n <= offset}
                if missing:
                    self._verdict.watermarks.append(
                        f".hubsync/{writer}.json says {source} {offset}, but {len(missing)} rows from {min(missing)} "
                        f"to {max(missing)} came after {revision}"
                    )

    def _read(self, path: str, revision: str) -> bytes:
        url = hf_hub_url(REPO, path, repo_type="dataset", revision=revision)
        response = get_session().get(url, headers={"authorization": f"Bearer {get_token()}"}, follow_redirects=True)
        response.raise_for_status()
        content: bytes = response.content
        return content


def _load_dataset(shards: dict[str, list[dict[str, Any]]], verdict: Verdict) -> None:
    """Call `load_dataset`, as a user would."""
    import datasets

    datasets.disable_progress_bars()
    for folder in sorted({path.split("/")[0] for path in shards}):
        config = "default" if folder == "data" else folder
        expected = [item["id"] for path, rows in shards.items() if path.startswith(f"{folder}/") for item in rows]
        try:
            loaded = datasets.load_dataset(REPO, config, split="train")
        except Exception as error:  # noqa: BLE001  (any error is a finding)
            verdict.hidden.append(f"load_dataset({REPO!r}, {config!r}): {error!r}")
        else:
            if sorted(loaded["id"]) != sorted(expected):
                verdict.hidden.append(f"load_dataset: {len(loaded)} rows of {len(expected)} in {config}")


def _check_spool(spool: Path, verdict: Verdict) -> None:
    for folder in ("segments", "dead-letter"):
        verdict.left += [str(file.relative_to(spool)) for file in sorted((spool / folder).iterdir())]
    db = sqlite3.connect(f"file:{spool / 'catalogue.sqlite'}?mode=ro", uri=True)
    verdict.left += [f"plan {number}" for (number,) in db.execute("SELECT id FROM plans")]
    pending = "SELECT id, state FROM segments WHERE state <> 'committed'"
    verdict.left += [f"segment {number} is {state}" for number, state in db.execute(pending)]
    db.close()


if __name__ == "__main__":
    print(json.dumps(asdict(judge(Path(sys.argv[1])))))
