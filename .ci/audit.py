"""Looks up what is installed beside this interpreter in a list of known vulnerabilities: what `make audit` does.

Exit code 1 where one is found, 2 where pip or pip-audit know no such option. Where nobody can be asked, because there
is no network or no such list behind it, one line says so and the exit code is 0: that is no fault of the code.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_PATIENCE_S = 90
_PIP = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--quiet",
    "--disable-pip-version-check",
    "--timeout",
    "10",
    "--retries",
    "1",
]
_AUDIT = [
    sys.executable,
    "-m",
    "pip_audit",
    "--local",
    "--skip-editable",
    "--progress-spinner",
    "off",
    "--timeout",
    "10",
]


def main() -> int:
    try:
        if importlib.util.find_spec("pip_audit") is None:
            project = Path(__file__).parents[1] / "pyproject.toml"
            done = _run([*_PIP, "--group", f"{project}:audit"])
            if done.returncode:
                return _not_audited("pip-audit can't be installed", done)
        done = _run([*_AUDIT, "--format", "json", "--desc", "off"])
    except subprocess.TimeoutExpired:
        return _not_audited(f"no answer in {_PATIENCE_S} s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return _not_audited("the list of vulnerabilities can't be asked", done)
    return _told(packages)


def _told(packages: list[dict[str, Any]]) -> int:
    known = [package for package in packages if "vulns" in package]
    bad = [(package, found) for package in known for found in package["vulns"]]
    for package, found in bad:
        names = ", ".join([found["id"], *found.get("aliases", ())])
        fixed = ", ".join(found["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    if not known:
        return _not_audited(f"the list knows none of {len(packages)} packages")
    unknown = f"; {len(packages) - len(known)} packages are not in the list" if len(known) < len(packages) else ""
    print(f"{len(known)} packages audited, {len(bad)} known vulnerabilities{unknown}")
    return 1 if bad else 0


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)


def _not_audited(why: str, done: subprocess.CompletedProcess[str] | None = None) -> int:
    last = done.stderr.strip().splitlines()[-1:] if done else []
    print(f"not audited: {why}{f' ({last[0][:200]})' if last else ''}")
    return 2 if done and done.returncode == 2 else 0  # 2: an option that is none


if __name__ == "__main__":
    sys.exit(main())
