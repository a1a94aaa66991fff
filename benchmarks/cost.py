"""Measure what an upload costs: commits, requests, bytes sent and CPU time, in the same runs as `throughput`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.report import Column, Report, bars
from benchmarks.runs import Run
from benchmarks.subjects import SUBJECTS
from benchmarks.throughput import COLOURS, ROWS, rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW_BYTES = 3_000


def run(*, quick: bool) -> Report:
    """Report the cost of each subject for rows of 3 kB."""
    figures = _figures(rounds(_ROW_BYTES, quick=quick))
    return Report(
        name="cost",
        title=f"Cost of an upload: batches of {ROWS} rows of {_ROW_BYTES / 1_000:g} kB, medians of the rounds",
        figures=figures,
        columns=(
            Column("subject", "subject"),
            Column("MB", "MB of a run", ",.0f"),
            Column("commits", "commits", ",g"),
            Column("requests", "requests", ",g"),
            Column("commits_per_GB", "commits per GB", ",.0f"),
            Column("requests_per_GB", "requests per GB", ",.0f"),
            Column("sent_per_byte", "bytes sent per byte", ".3f"),
            Column("cpu_s_per_GB", "CPU s per GB (min-max)", ".1f", ("cpu_s_per_GB_min", "cpu_s_per_GB_max")),
        ),
        note=(
            "GB and bytes are of JSON Lines. Bytes sent are the request bodies that reached the Hub and its storage: "
            "Xet and Parquet compress them, base64 makes them larger. CPU time is that of the subject's process, "
            "without the Hub's."
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(13.0, 8.5),
    )


def _figures(runs: Sequence[dict[str, Run]]) -> list[dict[str, Any]]:
    figures = []
    for name, subject in SUBJECTS.items():
        mine = [run[name] for run in runs]
        cpu = [run.result.cpu_s / run.result.bytes * 1e9 for run in mine]
        figures.append(
            {
                "subject": name,
                "kind": subject.kind,
                "rounds": len(mine),
                "MB": statistics.median(run.result.bytes for run in mine) / 1e6,
                "commits": statistics.median(run.commits for run in mine),
                "requests": statistics.median(sum(run.requests.values()) for run in mine),
                "by_operation": mine[0].requests,
                "commits_per_GB": statistics.median(run.commits / run.result.bytes for run in mine) * 1e9,
                "requests_per_GB": statistics.median(sum(r.requests.values()) / r.result.bytes for r in mine) * 1e9,
                "sent_per_byte": statistics.median(run.sent / run.result.bytes for run in mine),
                "received_per_byte": statistics.median(run.received / run.result.bytes for run in mine),
                "cpu_s_per_GB": statistics.median(cpu),
                "cpu_s_per_GB_min": min(cpu),
                "cpu_s_per_GB_max": max(cpu),
            }
        )
    return figures


def _draw(figure: Figure, figures: Sequence[dict[str, Any]]) -> None:
    panels = figure.subplots(2, 2)
    senders = [f for f in figures if f["requests"]]
    for axes, key, unit, log in (
        (panels[0, 0], "commits_per_GB", "commits per GB", True),
        (panels[0, 1], "requests_per_GB", "requests per GB", True),
        (panels[1, 0], "sent_per_byte", "bytes sent per byte of JSON Lines", False),
        (panels[1, 1], "cpu_s_per_GB", "CPU seconds per GB", True),
    ):
        shown = figures if key == "cpu_s_per_GB" else senders
        bars(
            axes,
            [f["subject"] for f in shown],
            [f[key] for f in shown],
            spans=[(f[f"{key}_min"], f[f"{key}_max"]) for f in shown] if key == "cpu_s_per_GB" else None,
            colours=[COLOURS[f["kind"]] for f in shown],
            unit=unit,
            log=log,
        )
