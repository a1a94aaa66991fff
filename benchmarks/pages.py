"""The tables in the pages that are made, not written: `python -m benchmarks.pages` puts them there, from the code and
from what was measured (`benchmarks/results/`). A test fails where a page has drifted apart from these.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import reference
from hubsync.crashpoints import CrashPoint
from hubsync.telemetry import METRICS, Metric

ROOT = Path(__file__).parents[1]
_RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"<!-- begin (?P<name>[^>]+?) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "guarantees.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "api.md",
    ROOT / "docs" / "reference" / "metrics.md",
]


def crash_points() -> str:
    """The crash-point matrix."""
    lines = ["| killed when | what is so then | what the next start does |", "| --- | --- | --- |"]
    lines += [f"| {point.title} | {point.now} | {point.then} |" for point in CrashPoint]
    return "\n".join(lines)


def measured(name: str) -> str:
    """The table of a benchmark, its note, and where it was measured; without the title."""
    page = (_RESULTS / f"{name}.md").read_text()
    return page.partition("\n\n")[2].strip()


def main_table() -> str:
    """Ours and the peers' at 3 kB a row, in a few columns: what the README shows."""
    speed = {f["subject"]: f for f in _figures("throughput") if f["row_kB"] == 3}
    lines = ["| | MB/s | hubsync is | commits a GB | requests a GB | sent a byte |", "| --- " + "| ---: " * 5 + "|"]
    for cost in _figures("cost"):
        found = speed[cost["subject"]]
        if cost["subject"].startswith("limit") and cost["subject"] != "limit: sum":
            continue
        ratio = f"{found['ratio']:.2f} times" if found.get("ratio") else ""
        lines.append(
            f"| {cost['subject']} | {found['MB_per_s']:.0f} | {ratio} | {cost['commits_per_GB']:,.0f} | "
            f"{cost['requests_per_GB']:,.0f} | {cost['sent_per_byte']:.2f} |"
        )
    return "\n".join(lines)


def pages() -> str:
    """The pages of `docs/`, each with its first sentence: what is read first comes first."""
    first = ["guide", "guarantees", "operations", "performance"]
    others = [*first, "api", "index", "quickstart", "glossary"]
    found = sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem not in others)
    paths = [*(ROOT / "docs" / f"{name}.md" for name in first), *found, ROOT / "docs" / "api.md"]
    return "\n".join(_entry(path) for path in paths)


_NOT_PROSE = re.compile(r"<!--.*?-->|^```.*?^```|^[|!].*?$", re.DOTALL | re.MULTILINE)


def _entry(path: Path) -> str:
    title, _, rest = path.read_text().removeprefix("# ").partition("\n")
    text = _NOT_PROSE.sub("", rest).strip().partition("\n\n")[0]
    sentence = re.split(r"(?<=[.:])\s", " ".join(text.split()))[0].rstrip(".:")
    return f"- [{title}](docs/{path.name}): {sentence}."


def _figures(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_RESULTS / f"{name}.json").read_text())["figures"]
    return found


def metrics() -> str:
    """Every instrument, by both of its names."""
    kinds = {"gauge": "gauge", "level": "up-down counter", "counter": "counter", "histogram": "histogram"}
    lines = ["| metric | in Prometheus | kind, unit | tells |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m.name}` | `{_prometheus(m)}` | {kinds[m.kind]}, `{m.unit}` | {m.tells} |" for m in METRICS]
    return "\n".join(lines)


def _prometheus(metric: Metric) -> str:
    unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
    name = metric.name.replace(".", "_")
    return name.removesuffix(unit) + unit + ("_total" if metric.kind == "counter" else "")


_MADE = {
    "crash points": crash_points,
    "main table": main_table,
    "pages": pages,
    "api": reference.python,
    "command line": reference.command_line,
    "metrics": metrics,
}


def filled(page: str) -> str:
    """A page with each of its blocks as it should be now: one of `_MADE`, or `measured: NAME`."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        text = _MADE[name]() if name in _MADE else measured(name.removeprefix("measured: "))
        return f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text()))
