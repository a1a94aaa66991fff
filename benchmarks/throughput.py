"""How fast rows come to the Hub: from the first put to all committed, against peers and limits, in rounds.

Times of different rounds are not comparable on a shared machine, so each other subject is compared with hubsync within
one round. The Hub is on the same machine, behind no network: what is measured is the work, and the waits between it.
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

ROWS = 50  # of a batch
COLOURS: dict[Kind, str] = {"ours": OURS, "per batch": PEER, "from rows": PEER, "ready files": READY, "limit": LIMIT}

# Bytes of a row: megabytes of a run, rounds.
_WHOLE = {300: (100, 3), 3_000: (200, 5), 30_000: (200, 3)}
_QUICK = {3_000: (24, 1)}
# A subject that sends every batch would take minutes for all of them, and each batch costs the same.
_PER_BATCH = 100
# It walks every row in Python many times over: 2 MB/s of small rows, however many there are.
_SHARES = {"IterableDataset.push_to_hub": 0.1}


def run(*, quick: bool) -> Report:
    """All sizes of rows."""
    figures = [figure for size in sizes(quick=quick) for figure in _figures(size, rounds(size, quick=quick))]
    return Report(
        name="throughput",
        title=f"From the first put to all committed: batches of {ROWS} rows, medians of the rounds",
        figures=figures,
        columns=(
            Column("row_kB", "rows of (kB)", "g"),
            Column("subject", "subject"),
            Column("batches", "batches", ",d"),
            Column("MB_per_s", "MB/s (min-max)", ",.1f", ("MB_per_s_min", "MB_per_s_max")),
            Column("rows_per_s", "rows/s", ",.0f"),
            Column("ratio", "hubsync over it (min-max)", ".2f", ("ratio_min", "ratio_max")),
        ),
        section="row_kB",
        note=(
            "Megabytes of JSON Lines. The last column is hubsync's MB/s over the subject's, within one round. Who "
            f"sends every batch gets {_PER_BATCH} batches of the same size at most, IterableDataset a tenth of all."
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(6.0 + 4.0 * len(sizes(quick=quick)), 5.5),
    )


def sizes(*, quick: bool) -> tuple[int, ...]:
    """Bytes of a row, of all the runs that are made."""
    return tuple(_QUICK if quick else _WHOLE)


@cache
def rounds(row_bytes: int, *, quick: bool) -> Sequence[dict[str, Run]]:
    """Every subject once a round, by turns from both ends, on a Hub that is new each round. `cost` reads the same."""
    megabytes, count = (_QUICK if quick else _WHOLE)[row_bytes]
    batches = max(1, megabytes * 1_000_000 // (ROWS * row_bytes))
    done: list[dict[str, Run]] = []
    for number in range(count):
        with BenchmarkHub() as hub:
            done.append(
                {
                    name: run_subject(hub, name, rows=ROWS, row_bytes=row_bytes, batches=_amount(name, batches))
                    for name in (SUBJECTS if number % 2 == 0 else reversed(SUBJECTS))
                }
            )
    return done


def _amount(subject: str, batches: int) -> int:
    if SUBJECTS[subject].kind == "per batch":
        return min(batches, _PER_BATCH)
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
