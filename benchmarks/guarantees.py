"""The tables of `docs/guarantees.md` that are made, not written: `python -m benchmarks.guarantees` puts them there.

A test fails where the page and the code have drifted apart.
"""

from __future__ import annotations

import re
from pathlib import Path

from hubsync.crashpoints import CrashPoint

PAGE = Path(__file__).parents[1] / "docs" / "guarantees.md"


def crash_points() -> str:
    """The crash-point matrix."""
    lines = ["| killed when | what is so then | what the next start does |", "| --- | --- | --- |"]
    lines += [f"| {point.title} | {point.now} | {point.then} |" for point in CrashPoint]
    return "\n".join(lines)


def with_block(page: str, name: str, text: str) -> str:
    """`page` with the text between the marks of one block replaced."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in page:
        raise ValueError(f"the page has no block {name!r}")
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_block(PAGE.read_text(), "crash points", crash_points()))
