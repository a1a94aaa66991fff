"""The README's own snippets, pasted and run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hubsync.localhub import LocalHub

README = (Path(__file__).parents[1] / "README.md").read_text()
# The fixture's is for pytest, and distilabel's has an environment of its own: tests/integrations runs it.
ELSEWHERE = ("local_hub", "distilabel")
SNIPPETS = [s for s in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if not any(e in s for e in ELSEWHERE)]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_works_when_pasted(number: int, hub: LocalHub, tmp_path: Path) -> None:
    code = SNIPPETS[number] if "hubsync.reader" not in SNIPPETS[number] else SNIPPETS[0] + SNIPPETS[number]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **hub.environ(), "DATASETS_VERBOSITY": "error"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_first_screen_brings_its_rows(hub: LocalHub, tmp_path: Path) -> None:
    code = SNIPPETS[0] + "\nimport datasets\nprint(datasets.load_dataset('user/rollouts', split='train').num_rows)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub.environ()}, capture_output=True, text=True, check=False
    )
    assert done.stdout == "100\n", done.stderr
