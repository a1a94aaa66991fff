"""Run benchmarks by name. Each prints a table and writes JSON, Markdown and plots.

Absolute times on a shared machine are not stable: compare ratios within one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import (
    chaos,
    compaction,
    cost,
    damage,
    freshness,
    keys,
    loss,
    memory,
    month,
    pipeline,
    recovery,
    report,
    scale,
    soak,
    stall,
    throughput,
)

# Without a name, these run. They take half an hour (with --quick, 2 minutes).
_DEFAULT: dict[str, Callable[..., report.Report]] = {
    "stall": stall.run,
    "loss": loss.run,
    "throughput": throughput.run,
    "cost": cost.run,
    "memory": memory.run,
    "freshness": freshness.run,
    "recovery": recovery.run,
    "scale": scale.run,
}
# These run only by name. Each takes at least a quarter of an hour.
_LONG: dict[str, Callable[..., report.Report]] = {
    "pipeline": pipeline.run,
    "keys": keys.run,
    "soak": soak.run,
    "month": month.run,
    "compaction": compaction.run,
    "chaos": chaos.run,
    "damage": damage.run,
}

_RESULTS = Path(__file__).parent / "results"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*_DEFAULT, *_LONG]), metavar="[NAME]...")
@click.option("--quick", is_flag=True, help="Fewer rounds: checks that a benchmark works; don't quote the figures.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write NAME.json, .md, .png and .svg here. [default: benchmarks/results; with --quick, its folder quick]",
)
@click.option("--kills", default=100, show_default=True, help="chaos: SIGKILLs per seed.")
@click.option("--rounds", default=100, show_default=True, help="damage: jobs per seed.")
@click.option(
    "--seed", "seeds", multiple=True, type=int, default=[1], show_default=True, help="chaos, damage: seed; repeatable."
)
@click.option(
    "--producers", default=2, show_default=True, type=click.IntRange(1), help="chaos: processes that share the spool."
)
@click.option("--minutes", default=60.0, show_default=True, help="soak: duration.")
@click.option("--keep", type=click.Path(path_type=Path), help="chaos, damage: run in this directory, and keep it.")
def main(
    names: tuple[str, ...],
    quick: bool,
    out: Path | None,
    kills: int,
    rounds: int,
    seeds: tuple[int, ...],
    producers: int,
    minutes: float,
    keep: Path | None,
) -> None:
    """Run hubsync's benchmarks against an embedded Hub in its own process.

    NAME is stall, loss, throughput, cost, memory, freshness, recovery or scale; without a NAME, all of these run.
    pipeline, keys, soak, month, compaction, chaos and damage take longer, and run only by name.
    """
    out = out or (_RESULTS / "quick" if quick else _RESULTS)
    passed = True
    machine = report.machine()  # before anything is written, since new results would mark the commit as dirty
    for name in names or _DEFAULT:
        if name == "chaos":
            result = chaos.run(quick=quick, kills=kills, seeds=seeds, producers=producers, keep=keep)
        elif name == "damage":
            result = damage.run(quick=quick, rounds=rounds, seeds=seeds, keep=keep)
        elif name == "soak":
            result = soak.run(quick=quick, minutes=minutes)
        else:
            result = (_DEFAULT | _LONG)[name](quick=quick)
        report.show(result)
        report.write(result, machine, out)
        passed = passed and result.passed
    print(f"written to {out}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
