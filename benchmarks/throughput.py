"""Measure how fast rows are uploaded, from the first `put` to the last commit, by hubsync, its peers and the limits.

On a shared machine, times of different rounds are not comparable, so each subject is compared with hubsync within one
round. The Hub runs on the same machine without a network, so the figures show work and waits, but no transfer times.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub
from benchmarks.report import LIMIT, OURS, PEER, READY, Column, Report, bars
from benchmarks.runs import Run, run_subject
from benchmarks.subjects import SUBJECTS, Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 50  # per batch
COLOURS: dict[Kind, str] = {"ours": OURS, "per batch": PEER, "from rows": PEER, "ready files": READY, "limit": LIMIT}

# Bytes per row: (megabytes per run, rounds).
_FULL = {300: (100, 3), 3_000: (200, 5), 30_000: (200, 3)}
_QUICK = {3_000: (24, 1)}
# A subject that uploads each batch would take minutes for all, and each one costs the same.
_MAX_UPLOADS = 100
# It processes each row many times in Python: 2 MB/s for small rows, whatever their number.
_SHARES = {"IterableDataset.push_to_hub": 0.1}


def run(*, quick: bool) -> Report:
    """Run all row sizes."""
    figures = [figure for size in sizes(quick=quick) for figure in _figures(size, rounds(size, quick=quick))]
    return Report(
        name="throughput",
        title=f"From the first put to the last commit: batches of {ROWS} rows, medians of the rounds",
        figures=figures,
        columns=(
            Column("row_kB", "row size (kB)", "g"),
            Column("subject", "subject"),
            Column("batches", "batches", ",d"),
            Column("MB_per_s", "MB/s (min-max)", ",.1f", ("MB_per_s_min", "MB_per_s_max")),
            Column("rows_per_s", "rows/s", ",.0f"),
            Column("ratio", "hubsync / subject (min-max)", ".2f", ("ratio_min", "ratio_max")),
        ),
        section="row_kB",
        note=(
            "Megabytes of JSON Lines. The last column is hubsync's MB/s divided by the subject's, within one round. "
            f"Subjects that upload each batch get at most {_MAX_UPLOADS} batches of the same size, IterableDataset a "
            "tenth of all."
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(6.0 + 4.0 * len(sizes(quick=quick)), 5.5),
    )


def sizes(*, quick: bool) -> tuple[int, ...]:
    """Return the row sizes in bytes."""
    return tuple(_QUICK if quick else _FULL)


@cache
def rounds(row_bytes: int, *, quick: bool) -> Sequence[dict[str, Run]]:
    """Run every subject once per round, with a new Hub each round, and reverse the order every other round.

    The runs are cached, so `cost` reports on the same ones.
    """
    megabytes, count = (_QUICK if quick else _FULL)[row_bytes]
    batches = max(1, megabytes * 1_000_000 // (ROWS * row_bytes))
    done: list[dict[str, Run]] = []
    for number in range(count):
        with BenchmarkHub() as hub:
            done.append(
                {
                    name: run_subject(hub, name, rows=ROWS, row_bytes=row_bytes, batches=_batches_for(name, batches))
                    for name in (SUBJECTS if number % 2 == 0 else reversed(SUBJECTS))
                }
            )
    return done


def _batches_for(subject: str, batches: int) -> int:
    if SUBJECTS[subject].kind == "per batch":
        return min(batches, _MAX_UPLOADS)
    return max(1, int(batches * _SHARES.get(subject, 1)))


def _figures(row_bytes: int, runs: Sequence[dict[str, Run]]) -> list[dict[str, Any]]:
    figures = []
    for name, subject in SUBJECTS.items():
        rates = [run[name].mb_per_s for run in runs]
        ratios = [run["hubsync"].mb_per_s / run[name].mb_per_s for run in runs]
        result = runs[0][name].result
        figures.append(
            {
                "row_kB": row_bytes / 1_000,
                "subject": name,
                "kind": subject.kind,
                "batches": runs[0][name].job.batches,
                "MB": result.bytes / 1e6,
                "rounds": len(runs),
                **_spread("MB_per_s", rates),
                "rows_per_s": statistics.median(run[name].result.rows / run[name].result.wall_s for run in runs),
                **(_spread("ratio", ratios) if name != "hubsync" else {}),
            }
        )
    return figures


def _spread(key: str, values: Sequence[float]) -> dict[str, float]:
    return {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}


def _draw(figure: Figure, figures: Sequence[dict[str, Any]]) -> None:
    by_size: dict[float, list[dict[str, Any]]] = {}
    for found in figures:
        by_size.setdefault(found["row_kB"], []).append(found)
    panels = figure.subplots(1, len(by_size), sharey=True, squeeze=False)[0]
    for axes, (size, found) in zip(panels, by_size.items(), strict=True):
        bars(
            axes,
            [f["subject"] for f in found],
            [f["MB_per_s"] for f in found],
            spans=[(f["MB_per_s_min"], f["MB_per_s_max"]) for f in found],
            colours=[COLOURS[f["kind"]] for f in found],
            unit="MB/s",
            log=True,
        )
        axes.set_title(f"rows of {size:g} kB", fontsize=9.5)
    for axes in panels[1:]:
        axes.tick_params(left=False)
    panels[0].set_ylim(len(SUBJECTS) - 0.5, -0.5)
