"""The tables in the pages that are made, not written: `python -m benchmarks.pages` puts them there, from the code and
from what was measured (`benchmarks/results/`). A test fails where a page has drifted apart from these.
"""

from __future__ import annotations

import re
from pathlib import Path

from hubsync.crashpoints import CrashPoint

ROOT = Path(__file__).parents[1]
_RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"<!-- begin (?P<name>[^>]+?) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)
PAGES = [ROOT / "docs" / "guarantees.md", ROOT / "docs" / "performance.md"]


def crash_points() -> str:
    """The crash-point matrix."""
    lines = ["| killed when | what is so then | what the next start does |", "| --- | --- | --- |"]
    lines += [f"| {point.title} | {point.now} | {point.then} |" for point in CrashPoint]
    return "\n".join(lines)


def measured(name: str) -> str:
    """The table of a benchmark, its note, and where it was measured; without the title."""
    page = (_RESULTS / f"{name}.md").read_text()
    return page.partition("\n\n")[2].strip()


def filled(page: str) -> str:
    """A page with each of its blocks as it should be now: `crash points`, or `measured: NAME`."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        text = crash_points() if name == "crash points" else measured(name.removeprefix("measured: "))
        return f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text()))
