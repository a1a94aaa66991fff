"""Kill producers again and again while the Hub has faults: is every accepted row in the dataset exactly once?

`producers` has the jobs, `schedule` draws kills and faults from a seed, `runner` runs one seed, and `judge` reads the
dataset back with huggingface_hub only. This module has the command and its table.

*recovery* is the time from the SIGKILL of the committing process until the next commit on the Hub, from any process.
It includes the Hub's faults: no process can recover during an outage.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import OURS, PEER, Column, Report, bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.chaos.runner import Outcome

_MAX_PRINTED = 10  # findings of one kind
_WIDTH = 140  # characters per printed line
_COLUMNS = ("lost", "twice", "damaged", "never_put", "overwritten")


def run(
    *, quick: bool, kills: int = 100, seeds: Sequence[int] = (1,), producers: int = 2, keep: Path | None = None
) -> Report:
    """Run all seeds, one after the other; print what is wrong.

    Args:
        quick: 20 kills per seed.
        kills: SIGKILLs per seed.
        seeds: draw the kills and the faults.
        producers: processes that share the spool.
        keep: directory of the runs, which is kept; by default a temporary one, kept if anything is wrong.

    Returns:
        The report; `passed` is False if anything is wrong.
    """
    from benchmarks.chaos.runner import ChaosRun

    root = Path(tempfile.mkdtemp(prefix="hubsync-chaos-")) if keep is None else keep.absolute()
    # The fork server passes its environment on to every producer. It starts once, so these can't differ between runs.
    os.environ |= {
        "HF_HOME": str(root / "hf"),
        "HUBSYNC_HOME": str(root / "state"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    os.environ.pop("HF_TOKEN", None)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.chaos.producers"])
    figures: list[dict[str, Any]] = []
    wrong = False
    for seed in seeds:
        directory = root / f"seed-{seed}"
        if directory.exists():
            shutil.rmtree(directory)
        outcome = ChaosRun(directory, seed=seed, kills=20 if quick else kills, producers=producers).run()
        figures.append(_figures(outcome))
        for kind, found in outcome.wrong.items():
            wrong = True
            print(f"seed {seed}: {kind}: {len(found)}, in {directory}", file=sys.stderr)
            for text in found[:_MAX_PRINTED]:
                print(f"  {text[:_WIDTH]}", file=sys.stderr)
    if keep is None and not wrong:
        shutil.rmtree(root)
    return Report(
        name="chaos",
        title="Rows accepted and rows on the Hub, after SIGKILL, SIGSTOP and faults",
        figures=figures,
        columns=tuple(Column(name, name, "" if name == "seed" else ",") for name in figures[0] if name != "more"),
        draw=lambda figure: _draw(figure, figures),
        size=(11.0, 4.0),
        passed=not wrong,
    )


def _draw(figure: Figure, figures: Sequence[dict[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    names = ("rows", "kills", "stops", "faults", "commits", "lost", "twice", "damaged", "overwritten", "other")
    left.set_title("all seeds together", fontsize=9.5)
    bars(
        left,
        names,
        [sum(f[name] for f in figures) for name in names],
        unit="count",
        log=True,
        spec=",.0f",
    )
    seeds = [f for f in figures if f["recovery max s"] is not None]
    right.set_title("recovery after the committer was killed", fontsize=9.5)
    bars(
        right,
        [f"seed {f['seed']}, {quantile}" for f in seeds for quantile in ("p50", "max")],
        [f[f"recovery {quantile} s"] for f in seeds for quantile in ("p50", "max")],
        colours=[OURS if quantile == "p50" else PEER for _ in seeds for quantile in ("p50", "max")],
        unit="seconds",
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    """Return one row of the table; `more` is only in the JSON."""
    verdict = outcome.verdict
    times = outcome.recovered_s
    return {
        "seed": outcome.seed,
        "kills": outcome.kills,
        "stops": outcome.stops,
        "faults": sum(outcome.faults.values()),
        "rows": verdict["accepted"],
        "commits": len(verdict["commit_times"]),
        "lost": len(verdict["lost"]),
        "twice": len(verdict["twice"]),
        "damaged": len(verdict["damaged"]) + len(verdict["never_put"]),
        "overwritten": len(verdict["overwritten"]),
        "other": sum(len(found) for kind, found in outcome.wrong.items() if kind not in _COLUMNS),
        "recovery p50 s": round(statistics.median(times), 2) if times else None,
        "recovery max s": round(max(times), 2) if times else None,
        "took s": round(outcome.run_s),
        "more": {
            "kills of the committer": outcome.committer_kills,
            "rows on the Hub": verdict["rows"], "shards": verdict["shards"], "large shards": verdict["large"],
            "closed": outcome.closed,
            "spells": outcome.fault_periods, "struck": dict(outcome.faults), "drains": outcome.drains,
            "judged_s": round(outcome.judge_s, 1), "wrong": outcome.wrong,
        },
    }  # fmt: skip
