"""Whatever is wrong around a command, it ends with one line that says what, and never with a traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubsync import Uploader
from hubsync.cli.console import print_lines, report_errors
from hubsync.localhub import LocalHub
from hubsync.reader import snapshot
from tests.cli.lines import jsonl
from tests.conftest import FAST, Commands

REMOTE = ["ls user/rows", "read user/rows", "tail user/rows", "verify user/rows", "pipe user/rows --timeout 0"]
DEAD = "http://127.0.0.1:9"
# What is wrong, and what the line must name.
ENVIRONMENTS = {
    "no token": ({"HF_TOKEN": ""}, "hf auth login"),
    "no response": ({"HF_ENDPOINT": DEAD}, f"{DEAD} is unreachable"),
    "dead proxy": (
        {"HF_ENDPOINT": "http://hub.test", "HTTP_PROXY": "http://user:pa55word@127.0.0.1:9"},
        "the proxy http://127.0.0.1:9 (HTTP_PROXY) for http://hub.test is unreachable",
    ),
    "SOCKS proxy": ({"HTTP_PROXY": "socks5://127.0.0.1:9"}, "pip install 'httpx[socks]'"),
    "bad proxy": ({"HTTPS_PROXY": "gopher://user:pa55word@proxy"}, "HTTPS_PROXY is not the URL of a proxy"),
    "bad NO_PROXY": ({"NO_PROXY": "[::bad"}, "NO_PROXY is not a list of host names"),
    "bad endpoint": ({"HF_ENDPOINT": "hub.test"}, "invalid endpoint 'hub.test'"),
    "no certificates": ({"SSL_CERT_FILE": "/nowhere.pem", "HF_ENDPOINT": "https://hub.test"}, "SSL_CERT_FILE"),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """One Hub for all: no mistake changes it."""
    directory = tmp_path_factory.mktemp("mistakes")
    with LocalHub(directory / "hub") as hub:
        options = {"endpoint": hub.endpoint, "token": hub.token, "spool": directory / "spool", **FAST}
        with Uploader("user/rows", private=True, **options) as up:
            up.put([{"id": 0}])
        yield hub


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_MAX_TRIES", 1)


@pytest.mark.parametrize("line", REMOTE)
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_that_cannot_work_is_one_line(run: Commands, name: str, line: str) -> None:
    environ, named = ENVIRONMENTS[name]
    done = run(*line.split(), stdin=jsonl(0, 1), **environ)
    is_one_line(done.returncode, done.stdout, done.stderr, named)


def is_one_line(code: int, said: str, log: str, named: str) -> None:
    assert code in (1, 2), log
    assert said == ""
    assert "Traceback" not in log
    assert "pa55word" not in log
    *before, last = [line for line in log.splitlines() if not line.startswith(" ")]  # indented: what to do
    assert last.startswith(("hubsync: ", "Error: ")), log
    assert named in last + log.rpartition(last)[2]
    assert len([line for line in before if line.startswith("WARNING")]) <= 2, log


MISTAKES = {
    "status {nowhere}": "no spool exists at",
    "status {directory}": "no spool exists at",
    "drain {directory}": "no spool exists at",
    "drain {directory} --rescue": "--rescue needs the directory of a spool",
    "drain {directory} --timeout soon": "--timeout",
    "dead-letter list {directory}": "no spool exists at",
    "dead-letter export {directory} 5": "no spool exists at",
    "dead-letter resubmit {directory} x": "give [SPOOL] and the IDs",
    "dead-letter discard": "give the IDs",
    "prune {directory} --export {nowhere}/x": "no spool exists at",
    "prune --discard": "take one SPOOL",
    "prune --older-than soon": "not an age",
    "verify {directory} user/rows": "no spool exists at",
    "verify a b c": "give [SPOOL] REPO",
    "verify rows/rows/rows": "invalid repo id",
    "ls rows/rows/rows": "invalid repo id",
    "ls user/rows --endpoint ftp://x": "invalid endpoint",
    "ls user/nothing": "user/nothing",
    "read user/rows --since soon": "not a cursor",
    "read user/rows --cursor {directory}": "--cursor",
    "read user/rows --cursor {file}": "not a cursor",
    "read user/rows --spool {nowhere}": "no spool exists at",
    "tail user/rows --poll 0": "--poll",
    "pipe user/rows --spool {file}": "SPOOL",
    "pipe user/rows --spool {file}/x": "Use another directory",
    "pipe user/rows --config a/b": "config 'a/b'",
    "pipe user/rows --path rubbish": "{seq}",
    "pipe user/rows --linger -1": "--linger",
    "demo --dir {file}": "--dir",
    "dashboard --port 99999": "--port",
    "nonsense": "No such command",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_an_argument_that_cannot_work_is_one_line(run: Commands, tmp_path: Path, line: str) -> None:
    (tmp_path / "file").write_text("junk")
    (tmp_path / "directory").mkdir()
    places = {name: tmp_path / name for name in ("file", "directory", "nowhere")}
    done = run(*(part.format(**places, seq="{seq}") for part in line.split()), stdin=jsonl(0, 1))
    named = MISTAKES[line]
    *_, last = [text for text in done.stderr.splitlines() if not text.startswith(" ")]
    is_one_line(done.returncode, done.stdout, done.stderr, named if named != "SPOOL" else last)


@pytest.mark.parametrize("line", ["status", "drain", "prune", "dead-letter list"])
def test_a_home_that_is_a_file_is_one_line(run: Commands, tmp_path: Path, line: str) -> None:
    (tmp_path / "file").touch()
    done = run(*line.split(), HUBSYNC_HOME=str(tmp_path / "file"))
    is_one_line(done.returncode, done.stdout, done.stderr, "Check HUBSYNC_HOME")


def test_a_locale_that_lacks_a_character_gets_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding="ascii"))
    with report_errors():
        print_lines([("why", "set token=…")])
        sys.stdout.flush()
    assert output.getvalue().split() == [b"why", b"set", b"token=\\u2026"]
