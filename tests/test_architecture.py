"""The package order of ARCHITECTURE.md: imports point down, nothing imports in a circle, and importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hubsync"

# Lowest first. A module imports from its own package and from those before it.
ORDER = [
    "errors",
    "_runtime",
    "policies",
    "schema",
    "model",
    "encoding",
    "telemetry",
    "destinations",
    "spool",
    "committer",
    "uploader",
    "reader",
    "maintenance",
    "agent",
    "pipeline",
    "integrations",
    "dashboard",
    "cli",
]
# Outside the order: the embedded Hub, which shares nothing with the rest, and what tests of users import.
APART = {"localhub", "testing", "__init__", "__main__"}


def name_of(file: Path) -> str:
    """Return a file's module name: `hubsync.spool.writer`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def part_of(module: str) -> str:
    """Return the package, or the single file, of `hubsync/` that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def imports(module: str) -> frozenset[str]:
    """Return the modules of hubsync that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(found & {*MODULES} - {module})


def test_every_module_belongs_to_the_order() -> None:
    assert {part_of(module) for module in MODULES} - APART == set(ORDER)


def test_the_architecture_page_shows_the_same_order() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    shown = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", page, re.MULTILINE)
    assert [part for part in shown if part not in APART] == ORDER


@pytest.mark.parametrize("part", ORDER)
def test_a_package_imports_only_from_lower_ones(part: str) -> None:
    allowed = {*ORDER[: ORDER.index(part) + 1], "__init__"}
    if part == "cli":
        allowed |= {"localhub"}  # `hubsync demo` and `hubsync hub` run it
    mine = [module for module in MODULES if part_of(module) == part]
    upward = {f"{module} -> {other}" for module in mine for other in imports(module) if part_of(other) not in allowed}
    assert upward == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(imports(module) - {"hubsync"}):  # for its version; see the test of what it loads
                visit(other, (*path, module))
            done.add(module)

    for module in MODULES:
        if part_of(module) not in ("__main__", "cli"):
            visit(module, ())


def test_the_embedded_hub_imports_nothing_else() -> None:
    found = {other for module in MODULES if part_of(module) == "localhub" for other in imports(module)}
    assert {part_of(other) for other in found} == {"localhub"}


def strings(module: str) -> list[str]:
    """Return a module's string literals, without its docstrings; the parts of an f-string joined by `{}`."""
    tree = ast.parse(MODULES[module].read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            found.append(node.value)
    return found


SQL_ON_SEGMENTS = re.compile(r"\b(FROM|INTO|UPDATE|JOIN|TABLE|ON)\s+[\"`\[]?segments\b", re.IGNORECASE)


def test_only_one_module_has_sql_on_segments() -> None:
    owners = {"hubsync.spool.segments", "hubsync.spool.database"}  # the statements; the schema
    named = [module for module, file in MODULES.items() if "segments" in file.read_text()]
    found = {module for module in named if any(map(SQL_ON_SEGMENTS.search, strings(module)))}
    assert found == owners


def test_database_only_creates_and_alters_the_table_of_segments() -> None:
    statements = [
        match.group()
        for text in strings("hubsync.spool.database")
        for match in re.finditer(r"\w+ +\w+(?= +segments\b)", text)
    ]
    assert {text.split()[-1] for text in statements} == {"TABLE", "ON"}


@pytest.mark.slow("starts an interpreter")
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
