"""Renew the pinned versions in requirements/: `make pins`.

pyproject.toml says what each environment needs. This script lets uv resolve that for every supported Python version and
platform at once, without installing anything, and writes the result. It records versions only: no registry address, no
local path, no hashes. It runs in the tools environment, which has uv.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"  # the lowest supported version


@dataclass(frozen=True)
class Environment:
    """One file of pins: what it is for, and the part of pyproject.toml that it resolves."""

    name: str
    purpose: str
    extras: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    project: bool = True  # whether hubsync itself is installed there
    resolution: str = "highest"


def environments() -> list[Environment]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [
        Environment(
            "build",
            "pip itself and the build backend; every environment",
            given=("pip", "editables", *project["build-system"]["requires"]),
        ),
        Environment(
            "dev", "lint, types, tests, benchmarks and the demo; .venv", extras=("demo",), groups=("lint", "test")
        ),
        Environment("distilabel", "the distilabel tests; .venv-distilabel", extras=("distilabel",)),
        Environment(
            "lowest",
            "the lowest versions that pyproject.toml allows (their own dependencies: the newest); .venv-lowest",
            extras=("demo", "parquet", "zstd"),
            resolution="lowest-direct",
        ),
        Environment("docs", "the documentation site; .venv-docs", groups=("docs",)),
        Environment(
            "tools",
            "package build, audit, git hooks and `make pins` itself; .venv-tools",
            groups=("tools",),
            project=False,
        ),
    ]


def resolve(environment: Environment) -> str:
    """Return the pins of an environment, one `name==version ; marker` a line.

    Raises:
        SystemExit: uv found no solution or could not reach the index.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", PYTHON]
    command += ["--no-header", "--resolution", environment.resolution]
    if environment.given:
        command += ["--no-annotate", "-"]
    else:
        command += [option for extra in environment.extras for option in ("--extra", extra)]
        command += [option for group in environment.groups for option in ("--group", group)]
        command += ["pyproject.toml"] if environment.project else []
    given = "\n".join(environment.given)
    done = subprocess.run(command, cwd=ROOT, input=given, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"cannot resolve requirements/{environment.name}.txt")
    return done.stdout


def main() -> None:
    for environment in environments():
        path = ROOT / "requirements" / f"{environment.name}.txt"
        path.write_text(
            f"# Pins for {environment.purpose}.\n"
            f"# Made by `make pins` from pyproject.toml for Python {PYTHON} and newer, all platforms. Do not edit.\n"
            "# A constraints file: `pip install --constraint`. Versions only: no registry address, no local path.\n"
            f"{resolve(environment)}"
        )
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
