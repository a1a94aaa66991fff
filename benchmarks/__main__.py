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

from benchmarks import stall

_ALL = {"stall": stall.run}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(_ALL)))
@click.option("--quick", is_flag=True, help="Fewer rounds: to see that it works, not to quote.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write NAME.json here.")
def main(names: tuple[str, ...], quick: bool, out: Path | None) -> None:
    """The benchmarks of hubsync, against an embedded Hub in a process of its own."""
    for name in names or _ALL:
        figures = _ALL[name](quick=quick)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.json").write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


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
