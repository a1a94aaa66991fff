"""Whether every row is there once: producers that are killed again and again, a Hub with faults, an independent judge.

`producers` are the jobs, `schedule` draws kills and weather from a seed, `storm` is one run, `judge` reads the dataset
back by huggingface_hub. Here are the command and its table.

*recovery* is the time from the SIGKILL of the process that committed to the next commit that stands on the Hub,
whoever sent it. The Hub's weather is in it: during an outage nobody can recover.
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

_SHOWN = 10  # findings of one kind that are printed
_WIDE = 140  # characters of a line
_COLUMNS = ("lost", "twice", "damaged", "never_put", "overwritten")


def run(
    *, quick: bool, kills: int = 100, seeds: Sequence[int] = (1,), producers: int = 2, keep: Path | None = None
) -> Report:
    """All seeds, one after the other. Prints what is wrong, and then the report is not `passed`."""
    from benchmarks.chaos.runner import ChaosRun

    root = Path(tempfile.mkdtemp(prefix="hubsync-chaos-")) if keep is None else keep.absolute()
    # What the fork server passes on to every producer: from its first start, so it can't be the run's own.
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
            for text in found[:_SHOWN]:
                print(f"  {text[:_WIDE]}", file=sys.stderr)
    if keep is None and not wrong:
        shutil.rmtree(root)
    return Report(
        name="chaos",
        title="rows accepted, and rows on the Hub, after SIGKILL, SIGSTOP and faults",
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
        unit="how many",
        log=True,
        spec=",.0f",
    )
    seeds = [f for f in figures if f["recovery max s"] is not None]
    right.set_title("recovery after the committer was killed", fontsize=9.5)
    bars(
        right,
        [f"seed {f['seed']}, {word}" for f in seeds for word in ("p50", "max")],
        [f[f"recovery {word} s"] for f in seeds for word in ("p50", "max")],
        colours=[OURS if word == "p50" else PEER for _ in seeds for word in ("p50", "max")],
        unit="seconds",
    )


def _figures(outcome: Outcome) -> dict[str, Any]:
    """One line of the table, and what stands only in the JSON."""
    verdict = outcome.verdict
    times = outcome.recovered_s
    return {
        "seed": outcome.seed,
        "kills": outcome.kills,
        "stops": outcome.stops,
        "faults": sum(outcome.struck.values()),
        "rows": verdict["accepted"],
        "commits": len(verdict["commit_times"]),
        "lost": len(verdict["lost"]),
        "twice": len(verdict["twice"]),
        "damaged": len(verdict["damaged"]) + len(verdict["never_put"]),
        "overwritten": len(verdict["overwritten"]),
        "other": sum(len(found) for kind, found in outcome.wrong.items() if kind not in _COLUMNS),
        "recovery p50 s": round(statistics.median(times), 2) if times else None,
        "recovery max s": round(max(times), 2) if times else None,
        "took s": round(outcome.storm_s),
        "more": {
            "kills of the committer": outcome.of_committer,
            "rows on the Hub": verdict["rows"], "shards": verdict["shards"], "large shards": verdict["large"],
            "closed": outcome.closed,
            "spells": outcome.spells, "struck": dict(outcome.struck), "drains": outcome.drains,
            "judged_s": round(outcome.judged_s, 1), "wrong": outcome.wrong,
        },
    }  # fmt: skip
