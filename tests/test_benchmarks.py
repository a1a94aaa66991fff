"""The benchmark harness: subjects upload all their rows, the Hub counts correctly, a report writes all its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import msgspec
import pytest
from huggingface_hub import HfFileSystem

from benchmarks.hub import BenchmarkHub
from benchmarks.report import Column, Report, bars, lines, machine, show, write
from benchmarks.runs import Run, run_subject
from benchmarks.source import Job, Source
from benchmarks.subjects import SUBJECTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, in the quick lane too

_ROWS, _BATCHES = 20, 6


@pytest.fixture(scope="module")
def bench_hub() -> Iterator[BenchmarkHub]:
    with BenchmarkHub() as hub:
        yield hub


def _ids(bench_hub: BenchmarkHub, run: Run) -> list[int]:
    fs = HfFileSystem(endpoint=bench_hub.endpoint, token=bench_hub.token, skip_instance_cache=True)
    paths = fs.glob(f"datasets/{run.job.repo}/data/*.jsonl")
    return sorted(json.loads(line)["id"] for path in paths for line in fs.cat_file(path).splitlines())


@pytest.mark.slow("runs each subject in its own process")
@pytest.mark.parametrize("name", ["hubsync", "upload_file", "upload_folder", "CommitScheduler", "limit: sum"])
def test_every_row_of_a_subject_is_in_its_dataset(bench_hub: BenchmarkHub, name: str) -> None:
    run = run_subject(bench_hub, name, rows=_ROWS, row_bytes=500, batches=_BATCHES)
    assert _ids(bench_hub, run) == list(range(_ROWS * _BATCHES))
    assert run.result.rows == _ROWS * _BATCHES
    assert 400 < run.result.bytes / run.result.rows < 600
    assert 0 <= run.result.step_p50_s <= run.result.step_p99_s <= run.result.step_max_s
    assert run.result.steps_s <= run.result.wall_s
    assert run.result.cpu_s > 0
    assert run.result.rss_peak >= run.result.rss_start > 0
    if SUBJECTS[name].kind == "per batch":
        assert run.commits == _BATCHES
    else:
        assert 1 <= run.commits <= 2  # CommitScheduler also uploads existing files when it starts
    assert run.sent > run.result.bytes / 2


def test_rows_that_are_made_on_demand_are_the_same(tmp_path: Path) -> None:
    job = Job(repo="user/rows", rows=3, row_bytes=300, batches=4, directory=str(tmp_path))
    ready, lazy = Source(job), Source(msgspec.structs.replace(job, lazy=True))
    assert list(ready) == list(lazy) == list(lazy)  # a subject may begin again
    assert ready.bytes == lazy.bytes == sum(len(lines) for lines in ready.encoded())


@pytest.mark.slow("runs a subject in its own process")
def test_a_subject_that_fails_says_why(bench_hub: BenchmarkHub) -> None:
    with pytest.raises(RuntimeError, match=r"unknown ended with 1:[\s\S]*KeyError"):
        run_subject(bench_hub, "unknown", rows=1, row_bytes=100, batches=1)


@pytest.mark.slow("draws with matplotlib")
def test_a_report_is_a_table_and_four_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures: list[dict[str, Any]] = [
        {"who": "hubsync", "s": 1.5, "low": 1.0, "high": 2.0},
        {"who": "none", "s": None, "low": None, "high": None},
    ]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        bars(left, ["a", "b"], [0.0, 10.0], spans=[(0.0, 0.0), (9.0, 12.0)], unit="s", log=True)
        lines(right, {"a": [(0, 1.0), (10, 2.0)]}, x="rows", y="s", log="xy")

    columns = (Column("who", "subject"), Column("s", "seconds (min-max)", ".1f", ("low", "high")))
    report = Report(name="sample", title="A sample", figures=figures, columns=columns, draw=draw, note="Of two.")
    show(report)
    assert "1.5 (1.0-2.0)" in capsys.readouterr().out
    paths = write(report, machine(), tmp_path / "made")
    assert [path.name for path in paths] == ["sample.json", "sample.md", "sample.png", "sample.svg"]
    data = json.loads(paths[0].read_text())
    assert data["figures"] == figures
    assert {"processor", "cores", "memory", "huggingface_hub", "hf_xet", "datasets", "hubsync at"} <= set(
        data["machine"]
    )
    page = paths[1].read_text()
    assert "| subject | seconds (min-max) |\n| --- | ---: |\n| hubsync | 1.5 (1.0-2.0) |\n| none | - |" in page
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(paths[3]).getroot().tag.endswith("svg")
    before = paths[3].read_bytes()
    assert write(report, machine(), tmp_path / "made")[3].read_bytes() == before
