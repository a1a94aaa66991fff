"""Both ends of the versions that hubsync supports: this environment, and one with the lowest versions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hubsync.localhub import LocalHub

pytestmark = pytest.mark.slow("runs in the environment with the lowest versions")

JOB = Path(__file__).with_name("job.py")
ROOT = Path(__file__).parents[2]
LOWEST = ROOT / ".venv-lowest"


def lowest() -> dict[str, str]:
    """The lower bound of each package in pyproject.toml, for hubsync and the extras of `.venv-lowest`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for name in ("demo", "localhub", "parquet", "zstd") for r in extras[name])]
    return dict(found.groups() for r in wanted if (found := re.match(r"([\w.-]+)>=([\w.]+)", r)))


def run(python: Path, *names: str, hub: LocalHub, xet: bool) -> dict[str, str]:
    assert python.exists(), f"{python} is missing: `make test` makes it."
    environ = {**os.environ, **hub.environ(), "HF_HUB_DISABLE_XET": "" if xet else "1"}
    done = subprocess.run(
        [python, JOB, *names], env=environ, capture_output=True, text=True, check=False, cwd=JOB.parents[2]
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_all_of_it_works_with_the_versions_of_this_environment(hub: LocalHub) -> None:
    run(Path(sys.executable), "huggingface_hub", "datasets", hub=hub, xet=True)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_all_of_it_works_with_the_lowest(hub: LocalHub, xet: bool) -> None:
    bounds = lowest()
    found = run(LOWEST / "bin" / "python", *bounds, hub=hub, xet=xet)
    assert {"huggingface_hub", "datasets", "anyio"} <= set(bounds)
    for name, version in bounds.items():
        assert found[name].split(".")[: version.count(".") + 1] == version.split("."), name


@pytest.mark.parametrize("python", [Path(sys.executable), LOWEST / "bin" / "python"], ids=["newest", "lowest"])
def test_types_survive_with_the_oldest_and_the_newest_datasets(python: Path, hub: LocalHub) -> None:
    job = JOB.with_name("types_job.py")
    environ = {**os.environ, **hub.environ()}
    done = subprocess.run([python, job], env=environ, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
