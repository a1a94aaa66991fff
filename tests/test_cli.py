"""The command line, as a shell sees it: its output, its exit codes, its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import NotDrained, Uploader
from hubsync.localhub import Fault, LocalHub
from tests.conftest import Commands, Dataset
from tests.waiting import until


def jsonl(start: int, stop: int) -> str:
    return "".join(f'{{"id": {n}}}\n' for n in range(start, stop))


def test_pipe_brings_every_line(run: Commands, dataset: Dataset) -> None:
    done = run("pipe", "user/rows", stdin=jsonl(0, 2_500).rstrip())
    assert (done.returncode, done.stderr) == (0, "2,500 rows are on the Hub in user/rows.\n")
    assert dataset.ids() == list(range(2_500))


def test_more_words_are_not_a_line_a_request(run: Commands) -> None:
    assert "HTTP Request" not in run("-v", "pipe", "user/rows", stdin=jsonl(0, 1)).stderr
    done = run("-v", "verify", "user/rows")
    assert (done.returncode, "HTTP Request" in done.stderr) == (0, False)


def test_a_revision_that_is_not_there_asks_for_no_token(run: Commands) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 1))
    done = run("ls", "user/rows", "--revision", "nope")
    assert (done.returncode, "--revision names none" in done.stderr, "token" in done.stderr) == (1, True, False)


def test_pipe_names_the_bad_line_and_keeps_those_before(run: Commands, dataset: Dataset) -> None:
    done = run("pipe", "user/rows", stdin=jsonl(0, 3) + "[1]\n" + jsonl(3, 5))
    assert done.returncode == 1
    assert "line 4: not a JSON object" in done.stderr
    assert "lines before it are on the Hub in user/rows. Run again from line 4 on" in done.stderr
    assert "--bad-lines set-aside" in done.stderr
    assert "Traceback" not in done.stderr
    assert dataset.ids() == [0, 1, 2]


def test_pipe_sets_bad_lines_aside_where_told(run: Commands, dataset: Dataset, tmp_path: Path) -> None:
    aside = tmp_path / "bad.txt"
    stdin = jsonl(0, 2) + '{"id": \n\n{"a": "\\ud83d"}\n' + jsonl(2, 3)
    done = run("pipe", "user/rows", "--bad-lines", "set-aside", "--aside", aside, "--json", stdin=stdin)
    assert json.loads(done.stdout) == {"repo": "user/rows", "lines": 6, "rows": 3, "skipped": 0, "set_aside": 2}
    assert aside.read_text() == '3\t{"id": \n5\t{"a": "\\ud83d"}\n'
    assert dataset.ids() == [0, 1, 2]


def test_pipe_with_a_source_goes_on_where_it_was(run: Commands, dataset: Dataset) -> None:
    run("pipe", "user/rows", "--source", "log", stdin=jsonl(0, 1_500))
    done = run("pipe", "user/rows", "--source", "log", stdin=jsonl(0, 2_100))
    assert "600 rows are on the Hub in user/rows; 1,500 lines were uploaded before." in done.stderr
    assert dataset.ids() == list(range(2_100))


def test_one_row_is_said_as_one(run: Commands) -> None:
    assert run("pipe", "user/rows", "--source", "a", stdin=jsonl(0, 1)).stderr == "1 row is on the Hub in user/rows.\n"
    again = run("pipe", "user/rows", "--source", "a", stdin=jsonl(0, 1))
    assert again.stderr == "0 rows are on the Hub in user/rows; 1 line was uploaded before.\n"


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


def test_status_shows_a_spool_while_a_job_writes_it_and_drain_leaves_it_to_the_job(
    run: Commands, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with uploader() as up:
        up.put([{"id": 1}])
        fact = json.loads(run("status", spool, "--json").stdout)
        assert (fact["repo"], fact["rows_waiting"], fact["shards"]["open"]) == ("user/rows", 1, 1)
        assert fact["oldest_age_s"] >= 0
        plain = run("status", spool).stdout
        assert f"process {os.getpid()}" in plain
        done = run("drain", spool, prelude="from hubsync.maintenance import drain; drain._STOPPED_S = 0.5")
        assert done.returncode == 1
        assert f"process {os.getpid()} commits" in done.stderr
    assert "nothing waits" in run("status", spool).stdout


def test_drain_brings_up_what_an_offline_job_left(run: Commands, dataset: Dataset, tmp_path: Path) -> None:
    offline = run("pipe", "user/rows", stdin=jsonl(0, 5), HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert "drain" in offline.stderr
    fact = json.loads(run("status", "--json").stdout)
    assert (fact["rows_waiting"], fact["committer_pid"]) == (5, None)
    assert "hubsync drain" in run("status").stdout
    done = run("drain", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["rows_left"] == 0
    assert dataset.ids() == list(range(5))


def test_status_tells_of_an_offline_job_that_has_it_open(
    run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spool = tmp_path / "spool"
    with Uploader("user/rows", spool=spool) as up:
        up.put([{"id": 1}])
        fact = json.loads(run("status", spool, "--json").stdout)
        assert (fact["committer_pid"], fact["writer_pids"]) == (None, [os.getpid()])
        shown = run("status", spool).stdout
        assert f"nobody (open in process {os.getpid()})" in shown
        assert "hubsync drain" not in shown
    assert json.loads(run("status", spool, "--json").stdout)["writer_pids"] == []


def test_drain_makes_a_repo_as_private_as_the_job_asked_for(run: Commands, dataset: Dataset) -> None:
    run("pipe", "user/rows", "--private", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    run("pipe", "user/rows", stdin=jsonl(3, 5), HF_HUB_OFFLINE="1")
    assert run("drain").returncode == 0
    assert dataset.api.dataset_info("user/rows").private
    dataset.api.delete_repo("user/rows", repo_type="dataset")
    done = run("pipe", "user/rows", stdin=jsonl(5, 6))
    assert "user/rows was deleted and is created again. 5 rows committed earlier are not in it" in done.stderr
    assert dataset.api.dataset_info("user/rows").private


def test_one_bad_spool_keeps_no_other_from_being_shown_and_brought_up(
    run: Commands, dataset: Dataset, tmp_path: Path
) -> None:
    for repo in ("user/other", "user/rows"):
        run("pipe", repo, stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    (first, second) = sorted((tmp_path / "state").iterdir())
    (first / "catalogue.sqlite").write_bytes(b"no database" * 1000)
    shown = run("status", "--json")
    assert shown.returncode == 1
    facts = [json.loads(line) for line in shown.stdout.splitlines()]
    assert "is corrupt" in facts[0]["error"]
    assert (facts[1]["spool"], facts[1]["rows_waiting"]) == (str(second), 3)
    assert "is corrupt" in run("status").stdout
    done = run("drain")
    assert done.returncode == 1
    assert f"{first}: not uploaded: " in done.stderr
    assert f"{second}: all on the Hub." in done.stderr
    assert dataset.ids() == [0, 1, 2]


def test_a_spool_whose_hub_is_away_holds_no_other_up(
    run: Commands, hub: LocalHub, dataset: Dataset, tmp_path: Path
) -> None:
    home = {"HUBSYNC_HOME": str(tmp_path / "home")}
    run("pipe", "user/away", "--timeout", 0, stdin=jsonl(0, 1), HF_ENDPOINT="http://127.0.0.1:9", **home)
    run("pipe", "user/rows", stdin=jsonl(0, 2), HF_HUB_OFFLINE="1", **home)
    with run.start("drain", **home) as draining:
        try:
            while json.loads(run("status", "--json", **home).stdout.splitlines()[-1])["rows_waiting"]:
                assert draining.poll() is None
        finally:
            draining.send_signal(signal.SIGINT)
            _, said = draining.communicate()
    assert draining.returncode == 130
    assert "Interrupted: 1 row not on the Hub yet" in said
    assert dataset.ids() == [0, 1]


def test_who_begins_while_the_quota_is_spent_says_so(
    run: Commands, hub: LocalHub, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    up = uploader().open()
    hub.faults.add(Fault.rate_limit("commits", on="commit"))
    up.put([{"id": 1}])
    with pytest.raises(NotDrained):
        up.close(timeout=1)
    hub.faults.clear()
    assert "backing off: commit quota" in run("drain", tmp_path / "spool", "--timeout", 1).stderr
    assert json.loads(run("status", tmp_path / "spool", "--json").stdout)["state"] == "backing off"


def test_an_interrupted_drain_says_what_is_left_and_that_it_is_safe(
    run: Commands, hub: LocalHub, tmp_path: Path
) -> None:
    run("pipe", "user/rows", "--spool", tmp_path / "spool", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    hub.faults.add(Fault.outage())
    with run.start("drain", tmp_path / "spool") as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{tmp_path / 'spool'}\n"
        process.stderr.readline()  # how it stands: it has begun
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
    assert process.returncode == 130
    assert f"3 rows not on the Hub yet, and safe in {tmp_path / 'spool'}." in said


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
def test_an_ordinary_mistake_is_one_message(run: Commands, hub: LocalHub, tmp_path: Path, line: str, code: int) -> None:
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


@pytest.mark.parametrize(
    ("line", "code"), [("pipe user/rows <&-", 2), ("ls user/rows >&-", 1), ("read user/rows >&-", 1), ("status >&-", 1)]
)
def test_a_closed_standard_stream_is_one_message(run: Commands, hub: LocalHub, line: str, code: int) -> None:
    """Of a new interpreter, which begins without it."""
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m hubsync {line}"], input=jsonl(0, 1), text=True,
        env={**os.environ, **hub.environ()}, capture_output=True, check=False,
    )  # fmt: skip
    is_one_message(done.returncode, code, done.stdout, done.stderr)


def test_a_message_that_nobody_can_read_fails_no_pipe(hub: LocalHub, dataset: Dataset) -> None:
    command = f"{sys.executable} -m hubsync pipe user/rows 2>/dev/full"
    done = subprocess.run(
        ["bash", "-c", command], input=jsonl(0, 3), env={**os.environ, **hub.environ()}, text=True, check=False
    )
    assert done.returncode == 0
    assert dataset.ids() == [0, 1, 2]


def test_a_demo_without_the_embedded_hub_says_what_to_install(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('No module named uvicorn')")
    done = run("demo", PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert done.returncode == 1
    assert "pip install 'hf-hubsync[demo]'" in done.stderr


@pytest.mark.parametrize("command", ["ls", "read", "tail"])
def test_a_config_that_is_not_there_is_no_empty_one(run: Commands, command: str) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    assert run(command, "user/rows", "--config", "default").returncode == 0
    done = run(command, "user/rows", "--config", "typo")
    assert (done.returncode, done.stderr) == (1, "hubsync: user/rows has no shard in config 'typo'.\n")


def test_nothing_new_in_a_config_is_no_error(run: Commands, tmp_path: Path) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    for rows in (3, 0):
        done = run("read", "user/rows", "--config", "default", "--cursor", tmp_path / "kept")
        assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, rows, "")


def test_commands_on_no_spool_say_so(run: Commands, tmp_path: Path) -> None:
    assert "no spool" in run("status").stdout
    assert "no spool" in run("drain").stderr
    done = run("status", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "no spool exists" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_hub_serve_serves_until_it_is_told_to_stop(run: Commands, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    args = ["hub", "serve", "--dir", tmp_path / "h", "--port", 0, "--user", "alice=hf_alice"]
    with run.start(*args) as process:
        assert process.stdout is not None
        endpoint = next(word for line in process.stdout for word in line.split() if word.startswith("http")).rstrip(",")
        assert HfApi(endpoint=endpoint, token="hf_alice").whoami()["name"] == "alice"
        process.terminate()
        assert process.wait() == 0


@pytest.mark.parametrize("args", [["--help"], ["demo", "--help"], ["hub", "serve", "--help"], ["--version"]])
def test_help_is_there(run: Commands, args: list[str]) -> None:
    assert run(*args).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_pipe_brings_up_what_it_has_read_when_it_is_told_to_end(
    run: Commands, dataset: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    segments = tmp_path / "spool" / "segments"
    with run.start("pipe", "user/rows", "--spool", tmp_path / "spool") as process:
        assert process.stdin is not None
        process.stdin.write(jsonl(0, 7))
        process.stdin.flush()
        until(lambda: segments.exists() and list(segments.iterdir()))
        process.stdin.write(jsonl(7, 9))
        process.stdin.flush()
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == (143 if number is signal.SIGTERM else 130), said
    assert "Aborted" not in said
    assert set(range(7)) <= set(dataset.ids()) <= set(range(9))


def test_ctrl_c_is_exit_code_130_and_no_more_words(run: Commands) -> None:
    with run.start("status", "--watch") as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.readline()
        job.send_signal(signal.SIGINT)
        assert (job.wait(), job.stderr.read()) == (130, "")
