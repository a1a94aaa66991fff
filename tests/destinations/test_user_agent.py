"""Every request names `hubsync/<version>`, in the form that huggingface_hub uses for libraries."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hubsync import Uploader, __version__
from hubsync.localhub import LocalHub
from hubsync.maintenance.verify import verify
from hubsync.reader import rows, shards

OURS = f"hubsync/{__version__}; hf_hub/{huggingface_hub.__version__}; python/"


def strangers(hub: LocalHub) -> set[tuple[str, str | None]]:
    """Return the requests that do not name hubsync, by operation."""
    return {(s.operation, s.user_agent) for s in hub.requests() if not (s.user_agent or "").startswith(OURS)}


@pytest.mark.parametrize("store", ["xet", "lfs"])
def test_every_request_of_an_uploader_and_a_reader_names_hubsync(
    hub: LocalHub, uploader: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    if store == "lfs":
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("user/rows", repo_type="dataset")
    api.upload_file(  # so that small shards are large files
        path_or_fileobj=b"*.jsonl filter=lfs diff=lfs merge=lfs -text\n", path_in_repo=".gitattributes",
        repo_id="user/rows", repo_type="dataset",
    )  # fmt: skip
    hub.clear_requests()
    with uploader() as up:
        up.put([{"id": n, "text": os.urandom(100).hex()} for n in range(10)])
        up.flush()
        up.put([{"id": 10}])
    given = {"endpoint": hub.endpoint, "token": hub.token}
    assert sum(1 for _ in rows("user/rows", **given)) == 11
    assert len(list(shards("user/rows", **given))) == 2
    assert verify("user/rows", content=True, **given).ok
    stores = {s.operation for s in hub.requests()} & {"xet-token", "xorb", "lfs-batch", "lfs-upload"}
    assert stores, {s.operation for s in hub.requests()}
    assert strangers(hub) == set()


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize("telemetry", ["on", "off"])
def test_the_environment_decides_about_telemetry_and_origin(hub: LocalHub, tmp_path: Path, telemetry: str) -> None:
    torch = tmp_path / "torch-9.9.dist-info"  # as far as anybody asks, it is installed
    torch.mkdir()
    (torch / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    code = "import hubsync\nwith hubsync.Uploader('user/rows') as up: up.put([{'id': 1}])"
    said = {"HF_HUB_DISABLE_TELEMETRY": str(int(telemetry == "off")), "HF_HUB_USER_AGENT_ORIGIN": "a-notebook"}
    environ = {**os.environ, **hub.environ(), **said, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
    (agent,) = {s.user_agent for s in hub.requests("commit")}
    assert agent is not None
    assert agent.startswith(OURS)
    assert agent.endswith("origin/a-notebook")
    assert ("torch/9.9" in agent) == (telemetry == "on")
    assert hub.requests("other") == ()  # huggingface_hub asks for a list of agents


@pytest.mark.slow("starts an interpreter")
def test_a_job_loads_no_command_line_and_no_second_http_client(hub: LocalHub) -> None:
    code = (
        "import hubsync, sys\nwith hubsync.Uploader('user/rows') as up: up.put([{'id': 1}])\n"
        "print({'click', 'rich', 'pygments', 'httpx2', 'requests', 'pyarrow'} & {*sys.modules})\nimport httpx._main"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub.environ()}, check=True, capture_output=True, text=True
    )
    assert done.stdout == "set()\n"
