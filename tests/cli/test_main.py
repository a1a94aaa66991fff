"""The command line as a shell sees it: exit codes, messages, standard streams, help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hubsync.cli.main import cli
from hubsync.localhub import LocalHub
from tests.cli.lines import jsonl
from tests.conftest import Commands


def test_verbose_does_not_log_every_request(run: Commands) -> None:
    assert "HTTP Request" not in run("-v", "pipe", "user/rows", stdin=jsonl(0, 1)).stderr
    done = run("-v", "verify", "user/rows")
    assert (done.returncode, "HTTP Request" in done.stderr) == (0, False)


def test_a_missing_revision_is_not_reported_as_a_token_problem(run: Commands) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 1))
    done = run("ls", "user/rows", "--revision", "nope")
    assert (done.returncode, "--revision names none" in done.stderr, "token" in done.stderr) == (1, True, False)


@pytest.mark.parametrize(
    "command", [["pipe", "user/rows"], ["ls", "user/rows"], ["read", "user/rows"], ["verify", "user/rows"]]
)
def test_a_wrong_token_is_one_message_that_says_what_to_do(run: Commands, command: list[str]) -> None:
    done = run(*command, stdin=jsonl(0, 1), HF_TOKEN="hf_wrong")
    assert done.returncode == 1
    assert done.stderr.count("hf auth login") == 1
    assert "hubsync: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "hf_wrong" not in done.stderr


MISTAKES = [
    ("drain FILE", 2),
    ("drain --timeout nan", 2),
    ("status FILE", 2),
    ("status --watch --interval -1", 2),
    ("read user/rows --cursor missing/x", 2),
    ("pipe user/rows --bad-lines set-aside --aside missing/q", 2),
    ("hub serve --port PORT", 1),
    ("hub serve --port 0 --host nowhere.invalid", 1),
    ("hub serve --port 0 --dir FILE", 1),
]


@pytest.mark.parametrize(("line", "code"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_usage_mistake_is_one_message(run: Commands, hub: LocalHub, tmp_path: Path, line: str, code: int) -> None:
    (tmp_path / "file").touch()
    line = line.replace("FILE", str(tmp_path / "file")).replace("PORT", hub.endpoint.rpartition(":")[2])
    with run.start(*line.split(), cwd=tmp_path) as program:
        said, log = program.communicate(jsonl(0, 1))
    is_one_message(program.returncode, code, said, log)


def is_one_message(returncode: int | None, expected: int, said: str, log: str) -> None:
    assert returncode == expected, log
    assert (said, "Traceback" in log) == ("", False)
    assert log.startswith(("hubsync: ", "Error: ", "Usage: ")), log


@pytest.mark.parametrize("command", ["ls", "read"])
def test_a_full_standard_output_is_one_message(run: Commands, command: str) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    with open("/dev/full", "w") as full, run.start(command, "user/rows", stdout=full) as program:
        is_one_message(program.wait(), 1, *program.communicate())


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize(
    ("line", "code"), [("pipe user/rows <&-", 2), ("ls user/rows >&-", 1), ("read user/rows >&-", 1), ("status >&-", 1)]
)
def test_a_closed_standard_stream_is_one_message(run: Commands, hub: LocalHub, line: str, code: int) -> None:
    """In a new interpreter, which starts without the stream."""
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m hubsync {line}"], input=jsonl(0, 1), text=True,
        env={**os.environ, **hub.environ()}, capture_output=True, check=False,
    )  # fmt: skip
    is_one_message(done.returncode, code, done.stdout, done.stderr)


def test_the_demo_says_what_to_install(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('No module named uvicorn')")
    done = run.after("", "demo", PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert done.returncode == 1
    assert "pip install 'hf-hubsync[demo]'" in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["demo", "--help"], ["hub", "serve", "--help"], ["--version"]])
def test_every_command_has_help(run: Commands, args: list[str]) -> None:
    assert run(*args).returncode == 0


@pytest.mark.parametrize("group", [[], ["dead-letter"], ["hub"]], ids=" ".join)
def test_every_summary_fits_its_line(group: list[str]) -> None:
    page = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).output
    summaries = page.partition("Commands:\n")[2].splitlines()
    assert summaries
    assert [line for line in summaries if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.slow("starts an interpreter")
def test_a_command_imports_no_other_one() -> None:
    """In a new interpreter, where nothing is imported yet."""
    code = "import sys; sys.argv = ['hubsync', 'status', '--help']; from hubsync.cli import main\n"
    code += "try: main()\nfinally: print(*(name for name in sys.modules if name.startswith('hubsync.cli.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split()) == {
        f"hubsync.cli.{name}" for name in ("console", "main", "status")
    }


def test_ctrl_c_is_exit_code_130_without_a_message(run: Commands) -> None:
    with run.start("status", "--watch") as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.readline()
        job.send_signal(signal.SIGINT)
        assert (job.wait(), job.stderr.read()) == (130, "")
