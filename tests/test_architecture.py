"""The floors of ARCHITECTURE.md: a module imports only from below, and importing hubsync loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hubsync"
FLOORS = [
    ["errors", "crashpoints", "secret", "shapes", "schema"],
    ["clock", "shutdown", "policy", "plan", "target", "transform", "http", "card", "cursor", "screen"],
    ["rows", "locks", "disk", "receipt", "catalogue", "pace", "status", "blobs"],
    ["queue", "spool", "live", "progress", "formats"],
    ["plans", "writer", "hub", "telemetry", "guard", "fitting", "packer", "patience", "fates"],
    ["keeper", "hindsight", "connect", "survey"],
    ["committer"],
    ["worker", "rescue", "drain", "dead_letter", "inspect", "verify", "files"],
    ["uploader", "recognize"],
    ["async_uploader", "feed"],
    ["terminal", "pipe", "dashboard", "extension", "pipeline", "reader", "integrations"],
    ["demo", "tap", "cli_dead_letter"],
    ["cli"],
    ["__main__"],
]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}


def imports(file: Path) -> set[str]:
    """The modules of hubsync that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hubsync"):
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found & {*FLOOR, "localhub"}


def files_of(module: str) -> list[Path]:
    file = PACKAGE / f"{module}.py"
    return [file] if file.exists() else sorted((PACKAGE / module).glob("*.py"))


def test_every_module_has_its_floor() -> None:
    packages = {file.parent.name for file in PACKAGE.glob("*/__init__.py")} - {"localhub"}
    assert {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"} | packages == set(FLOOR)


def test_the_page_shows_the_same_floors() -> None:
    """ARCHITECTURE.md and its table."""
    page = (PACKAGE.parent / "ARCHITECTURE.md").read_text()
    for number, modules in enumerate(FLOORS):
        (line,) = re.findall(rf"^\| {number} \|.*", page, re.MULTILINE)
        assert {module for module in modules if f"`{module}`" not in line} == set(), number


@pytest.mark.parametrize("module", FLOOR)
def test_a_module_imports_only_from_floors_below(module: str) -> None:
    found = {other for file in files_of(module) for other in imports(file)} - {module}
    above = {other for other in found if FLOOR.get(other, -1) >= FLOOR[module]}
    assert above == set()


def test_the_embedded_hub_and_the_uploader_do_not_know_each_other() -> None:
    for file in (PACKAGE / "localhub").rglob("*.py"):
        assert not re.search(r"from hubsync(?!\.localhub)|import hubsync(?!\.localhub)", file.read_text()), file
    for file in PACKAGE.glob("*.py"):
        assert ("localhub" in imports(file)) <= (file.stem in ("cli", "demo")), file


def test_files_stay_small_enough_to_read_in_one_sitting() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 600, file


def test_importing_hubsync_loads_nothing_heavy() -> None:
    heavy = [
        "datasets",
        "pyarrow",
        "pandas",
        "numpy",
        "httpx",
        "hf_xet",
        "starlette",
        "uvicorn",
        "click",
        "rich",
        "trio",
        "opentelemetry",
    ]
    code = f"import sys, hubsync; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
