"""Generate the tables in the pages, from the code and from `benchmarks/results/`: `python -m benchmarks.pages`.

A test fails if a page differs from what this generates.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hubsync._runtime.failpoints import Failpoint
from hubsync.telemetry.metrics import METRICS, Metric

ROOT = Path(__file__).parents[1]
_RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"<!-- begin (?P<name>[^>]+?) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "concepts" / "guarantees.md",
    ROOT / "docs" / "concepts" / "performance.md",
    ROOT / "docs" / "reference" / "metrics.md",
]


def failpoints() -> str:
    """Return the table of failpoints."""
    lines = ["| killed when | state at that instant | what the next start does |", "| --- | --- | --- |"]
    lines += [f"| {point.title} | {point.state} | {point.recovery} |" for point in Failpoint]
    return "\n".join(lines)


# Columns of the tables in benchmarks/results/ that the pages omit.
_OMITTED = {
    "stall": {"puts", "p99.9, not preempted (ms)"},
    "cost": {"MB of a run", "commits", "requests"},
    "scale": {"rows", "commits"},
    "chaos": {"took s"},
}
_MINOR = ("limit: encode", "limit: disk", "limit: hf_xet")


def measured(name: str) -> str:
    """Return a benchmark's table, its note and where it was measured, without the title."""
    text = (_RESULTS / f"{name}.md").read_text().partition("\n\n")[2].partition("Measured on:")[0]
    table, _, note = text.partition("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    kept = [n for n, title in enumerate(rows[0]) if title not in _OMITTED.get(name, ())]
    lines = ["| " + " | ".join(row[n] for n in kept) + " |" for row in rows if row[0] not in _MINOR]
    return "\n\n".join(part for part in ("\n".join(lines), note.strip(), _where(name)) if part)


def _where(name: str) -> str:
    """Say where a benchmark was measured; the whole environment is in its JSON file."""
    machine = json.loads((_RESULTS / f"{name}.json").read_text())["machine"]
    return f"Measured on: {machine['processor']}, {machine['cores']} cores, hubsync at {machine['hubsync at']}."


def loss() -> str:
    """Return the throughput that generators keep, in percent, with a column per condition of the Hub."""
    figures = _figures("loss")
    hubs = list(dict.fromkeys(f["hub"] for f in figures))
    lines = ["| generator | uploader | " + " | ".join(hubs) + " |", "| --- | --- " + "| ---: " * len(hubs) + "|"]
    for generator, uploader in dict.fromkeys((f["generator"], f["uploader"]) for f in figures):
        kept = {f["hub"]: f for f in figures if (f["generator"], f["uploader"]) == (generator, uploader)}
        cells = [f"{kept[hub]['kept_percent']:.1f}" if hub in kept else "" for hub in hubs]
        lines.append(f"| {generator} | {uploader} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _where("loss")


def throughput() -> str:
    """Return each subject's throughput and its ratio to hubsync's, with a column per row size."""
    figures = [f for f in _figures("throughput") if f["subject"] not in _MINOR]
    sizes = list(dict.fromkeys(f["row_kB"] for f in figures))
    columns = [f"MB/s, {size:g} kB" for size in sizes] + [f"hubsync over it, {size:g} kB" for size in sizes]
    lines = ["| subject | " + " | ".join(columns) + " |", "| --- " + "| ---: " * len(columns) + "|"]
    for subject in dict.fromkeys(f["subject"] for f in figures):
        found = [next(f for f in figures if (f["subject"], f["row_kB"]) == (subject, size)) for size in sizes]
        cells = [f"{f['MB_per_s']:,.0f}" for f in found]
        cells += [f"{f['ratio']:.2f}" if f.get("ratio") else "" for f in found]
        lines.append(f"| {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n" + _where("throughput")


def figures() -> str:
    """Return the summary of the README."""
    puts = {(f["hub"], f["ack"]): f["p50"] for f in _figures("stall")}
    kept = {(f["generator"], f["uploader"], f["hub"]): f["kept_percent"] for f in _figures("loss")}
    speed = {f["subject"]: f["MB_per_s"] for f in _figures("throughput") if f["row_kB"] == 3}
    chaos = _figures("chaos")
    kills, rows, lost, twice = (sum(f[name] for f in chaos) for name in ("kills", "rows", "lost", "twice"))
    slow = kept["computing", "upload_file", "slow"]
    lines = [
        "| what | hubsync | others |",
        "| --- | --- | --- |",
        f"| rows lost / duplicated after {kills} random kills, with Hub faults | {lost} / {twice} of {rows:,} | |",
        f"| `put` of 50 rows of 3 kB, median | {puts['healthy', 'spooled']:.1f} ms; Hub down: "
        f"{puts['down', 'spooled']:.1f} ms | |",
        f"| speed that a generator keeps while a commit takes 2 s | {kept['computing', 'hubsync', 'slow']:.1f}% | "
        f"`upload_file` per batch: {slow:.1f}% |",
        f"| first `put` to last commit, rows of 3 kB | {speed['hubsync']:.0f} MB/s | CommitScheduler "
        f"{speed['CommitScheduler']:.0f}, `push_to_hub` {speed['Dataset.push_to_hub']:.0f}, finished files with "
        f"`upload_folder` {speed['upload_folder']:.0f} |",
    ]
    return "\n".join(lines)


def _figures(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_RESULTS / f"{name}.json").read_text())["figures"]
    return found


def metrics() -> str:
    """Return the table of metrics, with their names in OpenTelemetry and in Prometheus."""
    kinds = {"gauge": "gauge", "level": "up-down counter", "counter": "counter", "histogram": "histogram"}
    lines = ["| metric | in Prometheus | kind, unit | description |", "| --- | --- | --- | --- |"]
    lines += [f"| `{m.name}` | `{_prometheus(m)}` | {kinds[m.kind]}, `{m.unit}` | {m.description} |" for m in METRICS]
    return "\n".join(lines)


def _prometheus(metric: Metric) -> str:
    unit = {"s": "_seconds", "By": "_bytes"}.get(metric.unit, "")
    name = metric.name.replace(".", "_")
    return name.removesuffix(unit) + unit + ("_total" if metric.kind == "counter" else "")


_TABLES = {
    "failpoints": failpoints,
    "loss": loss,
    "throughput": throughput,
    "figures": figures,
    "metrics": metrics,
}


def filled(page: str) -> str:
    """Return the page with its blocks regenerated. A block is one of `_TABLES`, or `measured: NAME`."""

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        text = _TABLES[name]() if name in _TABLES else measured(name.removeprefix("measured: "))
        return f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->"

    return _BLOCK.sub(fill, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text()))
