"""Runs benchmarks by name; each prints its table and leaves JSON, Markdown and plots.

Absolute times on a shared machine are not stable: compare ratios within one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import (
    chaos,
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

# With no name: these, within half an hour (quick: 2 minutes).
_ALL: dict[str, Callable[..., report.Report]] = {
    "stall": stall.run,
    "loss": loss.run,
    "throughput": throughput.run,
    "cost": cost.run,
    "memory": memory.run,
    "freshness": freshness.run,
    "recovery": recovery.run,
    "scale": scale.run,
}
# Only by name: a quarter of an hour each, or more.
_LONG: dict[str, Callable[..., report.Report]] = {
    "pipeline": pipeline.run,
    "keys": keys.run,
    "soak": soak.run,
    "month": month.run,
    "chaos": chaos.run,
    "damage": damage.run,
}

_RESULTS = Path(__file__).parent / "results"


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*_ALL, *_LONG]), metavar="[NAME]...")
@click.option("--quick", is_flag=True, help="Fewer rounds: to see that it works, not to quote.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write NAME.json, .md, .png and .svg here. [default: benchmarks/results; with --quick, quick/ in it]",
)
@click.option("--kills", default=100, show_default=True, help="chaos: SIGKILLs for each seed.")
@click.option("--rounds", default=100, show_default=True, help="damage: jobs for each seed.")
@click.option(
    "--seed", "seeds", multiple=True, type=int, default=[1], show_default=True, help="chaos, damage: repeatable."
)
@click.option(
    "--producers", default=2, show_default=True, type=click.IntRange(1), help="chaos: processes on the spool."
)
@click.option("--minutes", default=60.0, show_default=True, help="soak: how long.")
@click.option("--keep", type=click.Path(path_type=Path), help="chaos, damage: keep what the run leaves here.")
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
    """The benchmarks of hubsync, against an embedded Hub in a process of its own.

    NAME is stall, loss, throughput, cost, memory, freshness, recovery or scale; those are run when none is given.
    pipeline, keys, soak, chaos and damage take longer, and are run by name.
    """
    out = out or (_RESULTS / "quick" if quick else _RESULTS)
    good = True
    machine = report.machine()  # before anything is written: results that are tracked would make the commit dirty
    for name in names or _ALL:
        if name == "chaos":
            found = chaos.run(quick=quick, kills=kills, seeds=seeds, producers=producers, keep=keep)
        elif name == "damage":
            found = damage.run(quick=quick, rounds=rounds, seeds=seeds, keep=keep)
        elif name == "soak":
            found = soak.run(quick=quick, minutes=minutes)
        else:
            found = (_ALL | _LONG)[name](quick=quick)
        report.show(found)
        report.write(found, machine, out)
        good = good and found.passed
    print(f"written to {out}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
