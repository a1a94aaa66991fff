"""Runs benchmarks by name; each prints a table and can write its figures as JSON.

Absolute times on a shared machine are not stable: compare ratios within one run.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import click

from benchmarks import chaos, keys, pipeline, stall

_MEASURED = {"stall": stall.run, "keys": keys.run, "pipeline": pipeline.run}
_ALL = (*_MEASURED, "chaos")  # which also says whether all was well


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(_ALL))
@click.option("--quick", is_flag=True, help="Fewer rounds: to see that it works, not to quote.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write NAME.json here, and chaos.md.")
@click.option("--kills", default=100, show_default=True, help="chaos: SIGKILLs for each seed.")
@click.option("--seed", "seeds", multiple=True, type=int, default=[1], show_default=True, help="chaos: repeatable.")
@click.option(
    "--producers", default=2, show_default=True, type=click.IntRange(1), help="chaos: processes on the spool."
)
@click.option("--keep", type=click.Path(path_type=Path), help="chaos: keep the Hub, the spool and all logs here.")
def main(
    names: tuple[str, ...],
    quick: bool,
    out: Path | None,
    kills: int,
    seeds: tuple[int, ...],
    producers: int,
    keep: Path | None,
) -> None:
    """The benchmarks of hubsync, against an embedded Hub in a process of its own."""
    good = True
    for name in names or _ALL:
        if name == "chaos":
            figures, good = chaos.run(quick=quick, kills=kills, seeds=seeds, producers=producers, keep=keep)
        else:
            figures = _MEASURED[name](quick=quick)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.json").write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")
            if name == "chaos":
                (out / "chaos.md").write_text(chaos.markdown(figures))
    sys.exit(0 if good else 1)


def machine() -> dict[str, str]:
    """Where the figures were measured, and of what."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "commit": commit.stdout.strip(),
    }


main()
