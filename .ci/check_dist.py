"""Check what `python -m build` left in dist/: the contents of both files, and the wheel in use.

The wheel goes into a new environment with the pinned versions of its dependencies. Exits with 1 and says why otherwise.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Nothing that was generated, is private, or belongs to one machine.
JUNK = (
    "*.pyc",
    "*__pycache__*",
    "*.venv*",
    "*.sqlite*",
    "*.log",
    "*.git/*",
    "*.DS_Store",
    "*_cache/*",
    "*.hypothesis/*",
)
SDIST = (
    "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "pyproject.toml", "requirements/dev.txt",
    "tests/conftest.py", "docs/*.md", "examples/*.py", "benchmarks/__main__.py", "hubsync/py.typed",
)  # fmt: skip


def check(name: str, found: list[str], wanted: tuple[str, ...], top: set[str]) -> None:
    missing = [pattern for pattern in wanted if not any(fnmatch(path, pattern) for path in found)]
    junk = [path for path in found if any(fnmatch(path, pattern) for pattern in JUNK)]
    strange = {path.partition("/")[0] for path in found} - top
    for label, bad in (("is missing", missing), ("is junk", junk), ("does not belong there", sorted(strange))):
        if bad:
            sys.exit(f"{name}: {label}: {', '.join(bad[:10])}")
    print(f"{name}: {len(found)} files")


def main() -> None:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    (sdist,) = (ROOT / "dist").glob("*.tar.gz")
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        package = [path for path in (ROOT / "hubsync").rglob("*") if path.is_file() and path.suffix != ".pyc"]
        wanted = (f"{info}/licenses/LICENSE", "hubsync/py.typed", *(str(path.relative_to(ROOT)) for path in package))
        check(wheel.name, archive.namelist(), wanted, {"hubsync", info})
    with tarfile.open(sdist) as archive:
        files = [member.name.partition("/")[2] for member in archive if member.isfile()]
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    top = {name.strip("/") for name in included["include"]} | {path.name for path in ROOT.glob("*.md")}
    check(sdist.name, files, SDIST, {*top, "pyproject.toml", "PKG-INFO", ".gitignore"})
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        python = f"{directory}/bin/python"
        pins = ROOT / "requirements"
        for what in (["--constraint", pins / "build.txt", "pip"], ["--constraint", pins / "dev.txt", wheel]):
            install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *what]
            subprocess.run(install, check=True)
        for command in ([python, "-c", "import hubsync"], [f"{directory}/bin/hubsync", "--version"]):
            subprocess.run(command, check=True, cwd=directory)
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "check"], check=True)


if __name__ == "__main__":
    main()
