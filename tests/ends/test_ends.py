"""Both ends of the versions that hubsync supports: the newest are in this environment, the lowest in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubsync.localhub import LocalHub

JOB = Path(__file__).with_name("job.py")
LOWEST = Path(f"{sys.prefix}-lowest")
_PINS = (LOWEST / "constraints.txt").read_text().splitlines() if LOWEST.exists() else []
PINNED = dict(line.split("==") for line in _PINS)


def run(python: Path, *names: str, hub: LocalHub, xet: bool) -> dict[str, str]:
    assert python.exists(), f"{python} is missing: `make test` makes it."
    environ = {**os.environ, **hub.environ(), "HF_HUB_DISABLE_XET": "" if xet else "1"}
    done = subprocess.run(
        [python, JOB, *names], env=environ, capture_output=True, text=True, check=False, cwd=JOB.parents[2]
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_all_of_it_works_with_the_newest(hub: LocalHub) -> None:
    run(Path(sys.executable), "huggingface_hub", "datasets", hub=hub, xet=True)


@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_all_of_it_works_with_the_lowest(hub: LocalHub, xet: bool) -> None:
    found = run(LOWEST / "bin" / "python", *PINNED, hub=hub, xet=xet)
    assert {"huggingface_hub", "datasets", "anyio"} <= set(PINNED)
    for name, version in PINNED.items():
        assert found[name].split(".")[: version.count(".") + 1] == version.split("."), name
