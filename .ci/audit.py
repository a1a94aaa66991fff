"""Look up the pinned versions in a list of known vulnerabilities: `make audit`.

Exits with 1 if a version is known to be vulnerable and with 2 if pip-audit rejects the options. Without a network, or
with a registry that has no such list, it prints one line and exits with 0: that is not a fault of the code.
requirements/lowest.txt is left out, since its versions are old on purpose.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "requirements"
TIMEOUT_S = 90
AUDIT = [
    sys.executable,
    "-m",
    "pip_audit",
    "--no-deps",
    "--disable-pip",
    "--progress-spinner",
    "off",
    "--timeout",
    "10",
]


def main() -> int:
    packages: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted(PINS.glob("*.txt")):
        if file.stem == "lowest":
            continue
        command = [*AUDIT, "--format", "json", "--desc", "off", "--requirement", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return not_audited(f"no answer in {TIMEOUT_S} s")
        try:
            found = json.loads(done.stdout)["dependencies"]
        except (ValueError, KeyError, TypeError):
            return not_audited("the list of vulnerabilities cannot be reached", done)
        packages |= {(package["name"], package.get("version", "")): package for package in found}
    return report(list(packages.values()))


def report(packages: list[dict[str, Any]]) -> int:
    known = [package for package in packages if "vulns" in package]
    bad = [(package, found) for package in known for found in package["vulns"]]
    for package, found in bad:
        names = ", ".join([found["id"], *found.get("aliases", ())])
        fixed = ", ".join(found["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {names}; fixed in {fixed}")
    if not known:
        return not_audited(f"the list knows none of {len(packages)} packages")
    unknown = f"; {len(packages) - len(known)} packages are not in the list" if len(known) < len(packages) else ""
    print(f"{len(known)} packages audited, {len(bad)} known vulnerabilities{unknown}")
    return 1 if bad else 0


def not_audited(why: str, done: subprocess.CompletedProcess[str] | None = None) -> int:
    last = done.stderr.strip().splitlines()[-1:] if done else []
    print(f"not audited: {why}{f' ({last[0][:200]})' if last else ''}")
    return 2 if done and done.returncode == 2 else 0  # 2: pip-audit does not know an option


if __name__ == "__main__":
    sys.exit(main())
