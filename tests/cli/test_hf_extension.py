"""`hf hubsync …` with the real `hf`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hubsync import __version__
from hubsync.localhub import LocalHub

pytestmark = pytest.mark.slow("starts the real hf, which imports all of huggingface_hub")

pytest.importorskip("huggingface_hub.cli.extensions", reason="this huggingface_hub knows no extensions")

BIN = Path(sys.executable).parent


class Terminal:
    """Run commands as a user types them, in a new home directory."""

    def __init__(self, home: Path, **environ: str) -> None:
        self.home = home
        home.mkdir()
        self._environ = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            **environ,
        }

    def __call__(self, command: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command.split(), env=self._environ, input=given, capture_output=True, text=True, check=False
        )  # fmt: skip


@pytest.fixture
def terminal(hub: LocalHub, tmp_path: Path) -> Terminal:
    return Terminal(tmp_path / "home", **hub.environ())


def test_hf_runs_hubsync_once_it_is_registered(hub: LocalHub, terminal: Terminal) -> None:
    assert terminal("hubsync hf-extension").returncode == 0
    assert terminal("hf hubsync --version").stdout == f"hf hubsync, version {__version__}\n"
    done = terminal("hf hubsync pipe user/rows", '{"id": 1}\n{"id": 2}\n')
    assert "2 rows are on the Hub" in done.stderr
    assert terminal("hf hubsync read user/rows").stdout == '{"id":1}\n{"id":2}\n'
    assert "hubsync" in terminal("hf --help").stdout


def test_hf_passes_on_exit_code_and_usage(terminal: Terminal) -> None:
    terminal("hubsync hf-extension")
    done = terminal("hf hubsync no-such-command")
    assert done.returncode == 2
    assert "Usage: hf hubsync" in done.stderr


def test_it_can_be_registered_twice_and_removed(terminal: Terminal) -> None:
    assert [terminal("hubsync hf-extension").returncode for _ in range(2)] == [0, 0]
    assert "hubsync" in terminal("hf extensions list").stdout
    assert terminal("hf extensions remove hubsync").returncode == 0
    assert "hubsync" not in terminal("hf extensions list").stdout


def test_an_extension_from_github_is_not_replaced(terminal: Terminal) -> None:
    terminal("hubsync hf-extension")
    (manifest,) = terminal.home.rglob("manifest.json")
    theirs = json.loads(manifest.read_text()) | {"owner": "someone", "repo_id": "someone/hf-hubsync"}
    manifest.write_text(json.dumps(theirs))
    done = terminal("hubsync hf-extension")
    assert done.returncode == 1
    assert "hf already has the extension someone/hf-hubsync" in done.stderr
    assert json.loads(manifest.read_text()) == theirs


def test_hf_extensions_install_can_install_this_repository() -> None:
    """It installs a repository called `hf-<name>` from GitHub with pip, and runs the script of that name."""
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["hf-hubsync"] == scripts["hubsync"]
    assert not (Path(__file__).parents[2] / "hf-hubsync").exists(), "hf would run a file of that name instead"
