"""The package's metadata, and the pinned versions in requirements/ that `make` installs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINS = sorted((ROOT / "requirements").glob("*.txt"))
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def pins(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]


def group(name: str) -> list[Requirement]:
    found = []
    for entry in PYPROJECT["dependency-groups"][name]:
        found += [Requirement(entry)] if isinstance(entry, str) else group(entry["include-group"])
    return found


def extra(name: str) -> list[Requirement]:
    found = []
    for requirement in map(Requirement, EXTRAS[name]):
        if requirement.name == PYPROJECT["project"]["name"]:
            found += [r for other in requirement.extras for r in extra(other)]
        else:
            found.append(requirement)
    return found


CORE = [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
WANTED = {
    "build": [Requirement(text) for text in (*PYPROJECT["build-system"]["requires"], "pip")],
    "dev": [*CORE, *extra("demo"), *group("lint"), *group("test")],
    "distilabel": [*CORE, *extra("distilabel")],
    "docs": [*CORE, *group("docs")],
    "lowest": [*CORE, *extra("demo"), *extra("parquet"), *extra("zstd")],
    "tools": group("tools"),
}


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_pins_are_exact_versions_without_addresses_or_paths(path: Path) -> None:
    for line in path.read_text().splitlines():
        if not line.lstrip().startswith("#"):
            assert re.fullmatch(r"[a-z0-9-]+==[\w.!+]+( ; .+)?", line), line
            assert not re.search(r"://|\bfile:|\s@\s", line), line


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_pins_satisfy_pyproject(name: str, python: str) -> None:
    """After a change of a requirement in pyproject.toml, run `make pins`."""
    system = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}

    def applies(marker: Marker | None) -> bool:
        return marker is None or marker.evaluate(system)

    pinned = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins(name) if applies(pin.marker)
    }
    for wanted in WANTED[name]:
        if applies(wanted.marker):
            version = pinned.get(canonicalize_name(wanted.name))
            assert version is not None, wanted
            assert wanted.specifier.contains(version, prereleases=True), (wanted, version)


def test_every_file_of_pins_is_checked() -> None:
    assert {path.stem for path in PINS} == set(WANTED)


def test_no_environment_has_torch() -> None:
    """It would take gigabytes; hubsync and everything it is tested with do without."""
    for path in PINS:
        assert not re.search(r"^(torch|nvidia-|triton)", path.read_text(), re.MULTILINE), path


def test_the_distribution_has_a_license_and_types() -> None:
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / "hubsync" / "py.typed").exists()
    assert "Typing :: Typed" in PYPROJECT["project"]["classifiers"]
