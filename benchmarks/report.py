"""The results of a benchmark: a table in the terminal, and the files NAME.json, NAME.md, NAME.png and NAME.svg.

A `Report` has figures (one flat dictionary per row), the columns of the table, and a function that draws the plot.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PACKAGES = ("huggingface_hub", "hf_xet", "datasets", "msgspec")
_WIDTH = 140  # columns, if the terminal's width is smaller or unknown

OURS, PEER, READY, LIMIT = "#d9541e", "#4878a8", "#6aa36f", "#a8a8a8"  # colours of the bars


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        key: where its values are in the figures.
        title: its heading, with the unit.
        spec: the format of a number.
        span: keys of the lowest and the highest value of all rounds, shown in parentheses.
    """

    key: str
    title: str
    spec: str = ""
    span: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """One benchmark's results.

    Attributes:
        name: of the files.
        title: of the table and the plot.
        figures: one dictionary per row.
        columns: which figures the table shows.
        draw: draws the plot.
        note: shown below the table.
        section: a key; the table has a rule where its value changes.
        size: of the plot, in inches.
        passed: False if the benchmark found something wrong.
    """

    name: str
    title: str
    figures: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    draw: Callable[[Figure], None]
    note: str = ""
    section: str | None = None
    size: tuple[float, float] = (10.0, 5.5)
    passed: bool = True


def show(report: Report) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=report.title, caption=report.note or None, caption_justify="left")
    for column in report.columns:
        table.add_column(column.title, justify="right" if _is_number(report, column) else "left")
    section: object = None
    for figure in report.figures:
        if report.section is not None and section not in (None, figure[report.section]):
            table.add_section()
        section = figure[report.section] if report.section is not None else None
        table.add_row(*_cells(report, figure))
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table)


def write(report: Report, machine: Mapping[str, str], out: Path) -> list[Path]:
    """Write the four files.

    Args:
        report: what to write.
        machine: where it was measured; see `machine`.
        out: the directory.

    Returns:
        The paths of the JSON, Markdown, PNG and SVG files.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    out.mkdir(parents=True, exist_ok=True)
    data, page, png, svg = (out / f"{report.name}{suffix}" for suffix in (".json", ".md", ".png", ".svg"))
    data.write_text(json.dumps({"machine": dict(machine), "figures": list(report.figures)}, indent=2) + "\n")
    page.write_text(markdown(report, machine))
    # The same figures give the same SVG, so a diff shows only real changes.
    with rc_context({"font.size": 9.5, "svg.hashsalt": report.name, "svg.fonttype": "none"}):
        figure = Figure(figsize=report.size, layout="constrained", facecolor="white")
        figure.suptitle(report.title)
        report.draw(figure)
        figure.savefig(png, dpi=150)
        figure.savefig(svg, metadata={"Date": None})
    return [data, page, png, svg]


def markdown(report: Report, machine: Mapping[str, str]) -> str:
    """Return the table in Markdown, with where it was measured."""
    lines = [
        f"# {report.title}",
        "",
        "| " + " | ".join(column.title for column in report.columns) + " |",
        "| " + " | ".join("---:" if _is_number(report, column) else "---" for column in report.columns) + " |",
        *("| " + " | ".join(_cells(report, figure)) + " |" for figure in report.figures),
        "",
    ]
    if report.note:
        lines += [report.note, ""]
    lines.append("Measured on: " + "; ".join(f"{name} {value}" for name, value in machine.items()) + ".")
    return "\n".join(lines) + "\n"


def _cells(report: Report, figure: Mapping[str, Any]) -> list[str]:
    return [_cell(column, figure) for column in report.columns]


def _cell(column: Column, figure: Mapping[str, Any]) -> str:
    value = figure.get(column.key)
    if value is None:
        return "-"
    text = format(value, column.spec)
    if column.span is not None:
        low, high = (format(figure[key], column.spec) for key in column.span)
        text += f" ({low}-{high})" if low != high else ""
    return text


def _is_number(report: Report, column: Column) -> bool:
    return any(isinstance(figure.get(column.key), int | float) for figure in report.figures)


# --- plots ------------------------------------------------------------------------------------------------------------


def bars(
    axes: Axes,
    labels: Sequence[str],
    values: Sequence[float],
    *,
    unit: str,
    spans: Sequence[tuple[float, float]] | None = None,
    colours: Sequence[str] | None = None,
    log: bool = False,
    spec: str | None = None,
) -> None:
    """Draw horizontal bars, the first one on top, each with its number.

    Args:
        axes: where to draw.
        labels: one per bar.
        values: one per bar.
        unit: of the values.
        spans: the lowest and the highest value of all rounds, drawn as error bars.
        colours: one per bar.
        log: use a log scale.
        spec: the format of the numbers.
    """
    places = range(len(values))
    # A log scale has no zero: such a value has a number, but no bar.
    axes.barh(places, [v if v > 0 or not log else 0 for v in values], color=colours or PEER, height=0.7)
    if spans is not None:
        errors = [
            [max(0.0, v - low) for v, (low, _) in zip(values, spans, strict=True)],
            [max(0.0, high - v) for v, (_, high) in zip(values, spans, strict=True)],
        ]
        axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
        positive = [v for v in values if v > 0] or [1.0]
        axes.set_xlim(min(positive) / 2, max(positive) * 6)
    else:
        axes.set_xlim(0, max([*values, *(high for _, high in spans or ())], default=1.0) * 1.2 or 1.0)
    left = axes.get_xlim()[0]
    for place, value in zip(places, values, strict=True):
        end = max(value, spans[place][1] if spans is not None else value, left)
        axes.annotate(
            _number(value, spec), (end, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit + (", log scale" if log else ""))
    axes.xaxis.set_major_formatter(lambda value, _: _number(value, ",.6g"))
    _style(axes, "x")


_MAX_MARKERS = 50  # a line with more points has no markers


def lines(
    axes: Axes,
    series: Mapping[str, Iterable[tuple[float, float]]],
    *,
    x: str,
    y: str,
    log: str = "",
) -> None:
    """Draw one line per series.

    Args:
        axes: where to draw.
        series: the points (x, y), by name.
        x: label of the x axis.
        y: label of the y axis.
        log: which axes are logarithmic: "x", "y" or "xy".
    """
    for name, points in series.items():
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, marker="o" if len(xs) <= _MAX_MARKERS else None, markersize=4, linewidth=1.2, label=name)
    if "x" in log:
        axes.set_xscale("symlog" if any(not p > 0 for line in axes.lines for p in line.get_xdata()) else "log")
    if "y" in log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(x + (", log scale" if "x" in log else ""))
    axes.set_ylabel(y + (", log scale" if "y" in log else ""))
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8)
    _style(axes, "both")


def _number(value: float, spec: str | None) -> str:
    """Format a number; by default with three digits and without an exponent."""
    if spec is None:
        spec = ",.0f" if abs(value) >= 100 else ",.3g"
    return format(value, spec)


def _style(axes: Axes, grid: str) -> None:
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


# --- the machine ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Describe the machine and the versions. Call it before the run: the load average shows what else was running."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory / 2**30:.0f} GiB",
        "load average": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in _PACKAGES},
        "hubsync at": commit.stdout.strip(),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.machine()
