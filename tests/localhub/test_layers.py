"""The order of the package's modules, as its docstring draws it: a module imports only from layers below its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hubsync.localhub

PACKAGE = Path(hubsync.localhub.__file__).parent
LAYERS = ["storage", "xet", "protocol", "limits", "faults", "state", "routing", "api", "control", "app", "server"]
INSIDE = {
    "storage": ["git", "blobs", "store", "history"],
    "xet": ["formats", "cas"],
    "api": ["cards", "discussions", "files", "refs", "lfs", "xet", "repos", "commits"],
}
MODULES = [
    *(f"{layer}.{name}" if layer in INSIDE else layer for layer in LAYERS for name in INSIDE.get(layer, [""])),
    "pytest_plugin",
]


def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports anywhere, also lazily or for its types."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hubsync.localhub"):
            source = (node.module or "").removeprefix("hubsync.localhub").removeprefix(".")
            named = {f"{source}.{alias.name}".strip(".") for alias in node.names}
            found |= named & {*MODULES} or {source}
    return found


def test_every_module_has_its_place() -> None:
    files = {".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in PACKAGE.rglob("*.py")}
    assert {file for file in files if not file.endswith("__init__")} == {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_below(module: str) -> None:
    assert imports(module) <= {*MODULES[: MODULES.index(module)]}
