"""The embedded Hub as an object and as a command: directories, restarts, the pytest fixture, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, constants

from hubsync.localhub import Fault, LocalHub
from hubsync.localhub.pytest_plugin import point_at
from tests.localhub.conftest import REPO, commit, file_line, ndjson
from tests.waiting import PATIENCE_S

SERVE = "import sys; from hubsync.localhub import serve; serve(sys.argv[1], port=int(sys.argv[2]))"


def test_all_state_survives_a_new_process_on_the_directory(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        token = hub.add_user("second")
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO, repo_type="dataset")
        api.upload_file(path_or_fileobj=b"x" * 99, path_in_repo="a.bin", repo_id=REPO, repo_type="dataset")
        sha = api.dataset_info(REPO).sha
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=token)
        assert api.whoami()["name"] == "second"
        assert api.dataset_info(REPO).sha == sha
        url = f"{hub.endpoint}/datasets/{REPO}/resolve/main/a.bin"
        assert httpx.get(url, follow_redirects=True).content == b"x" * 99


def test_a_temporary_hub_leaves_nothing_behind() -> None:
    with LocalHub() as hub:
        directory = hub.directory
        assert (directory / "hub.sqlite3").exists()
    assert not directory.exists()


def test_a_taken_port_is_refused_at_start(local_hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        LocalHub(tmp_path / "other", port=local_hub.port).start()


@pytest.mark.slow("starts an interpreter")
def test_the_fixture_points_the_library_and_its_children_at_the_hub(local_hub: LocalHub) -> None:
    assert os.environ["HF_ENDPOINT"] == constants.ENDPOINT == local_hub.endpoint
    assert HfApi().whoami()["name"] == "user"
    code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "user"


def test_the_fixture_restores_what_it_sets(tmp_path: Path) -> None:
    before = (constants.ENDPOINT, constants.HF_HUB_CACHE, os.environ.get("HF_TOKEN"))
    with LocalHub(tmp_path / "hub") as hub, pytest.MonkeyPatch.context() as monkeypatch:
        point_at(hub, monkeypatch, tmp_path / "home")
        assert hub.endpoint == constants.ENDPOINT
    assert (constants.ENDPOINT, constants.HF_HUB_CACHE, os.environ.get("HF_TOKEN")) == before


@pytest.mark.slow("starts an interpreter")
def test_the_plugin_imports_nothing_heavy() -> None:
    heavy = "('starlette', 'uvicorn', 'lz4', 'huggingface_hub')"
    code = (
        f"import sys, hubsync.localhub.pytest_plugin; sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.stderr.strip() == "[]"


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_runs_until_a_signal_and_keeps_its_state(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-u", "-c", SERVE, str(tmp_path / "hub"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split()[5].rstrip(",")
        assert httpx.get(f"{endpoint}/_localhub/health").status_code == 200
        process.send_signal(number)
        assert process.wait(10) == 0
        assert "the state is kept" in process.stdout.read()


@pytest.mark.slow("starts an interpreter")
def test_a_killed_hub_restarts_with_its_commits(tmp_path: Path) -> None:
    command = [sys.executable, "-u", "-c", SERVE, str(tmp_path / "hub"), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split()[5].rstrip(",")
        headers = {"Authorization": "Bearer hf_localhub_user"}
        with httpx.Client(base_url=endpoint, headers=headers, timeout=PATIENCE_S) as http:
            http.post("/api/repos/create", json={"name": "rollouts", "type": "dataset"})
            sha = commit(http, ndjson(file_line("a"))).json()["commitOid"]
        process.kill()
    with LocalHub(tmp_path / "hub") as hub:
        assert HfApi(endpoint=hub.endpoint, token=hub.token).dataset_info(REPO).sha == sha


def test_commits_from_many_threads_form_one_linear_history(local_hub: LocalHub, repo: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def send(number: int) -> int:
        headers = {"Authorization": f"Bearer {local_hub.token}"}
        with httpx.Client(base_url=local_hub.endpoint, headers=headers, timeout=PATIENCE_S) as http:
            return commit(http, ndjson(file_line(f"{number}.txt"))).status_code

    local_hub.faults.add(Fault.latency(0.001))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(24))) == [200] * 24
    api = HfApi(endpoint=local_hub.endpoint, token=local_hub.token)
    assert len(api.list_repo_commits(repo, repo_type="dataset")) == 25
    assert len(api.list_repo_files(repo, repo_type="dataset")) == 25
