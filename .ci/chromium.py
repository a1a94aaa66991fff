"""Installs Debian's chromium for the tests of the live page, where it is missing and root may; else they skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")
STEPS = (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"])


def main() -> None:
    if any(map(shutil.which, NAMES)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.exit("There is no chromium, and it can't be installed here: the live page is not looked at.")
    for command in STEPS:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode and command is STEPS[-1]:
            sys.exit(f"chromium can't be installed: the live page is not looked at.\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
