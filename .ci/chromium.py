"""Install Debian's chromium for the dashboard's tests if it is missing and we are root; otherwise those tests skip."""

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
        sys.exit("chromium is missing and cannot be installed here: the dashboard's browser tests will be skipped.")
    print("installing chromium")
    for command in STEPS:
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode and command is STEPS[-1]:
            sys.exit(
                f"chromium cannot be installed: the dashboard's browser tests will be skipped.\n{done.stderr[-2000:]}"
            )


if __name__ == "__main__":
    main()
