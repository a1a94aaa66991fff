"""`hubsync hub`: the embedded Hub."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Commands


def test_a_hub_is_served_until_sigterm(run: Commands, tmp_path: Path) -> None:
    from huggingface_hub import HfApi

    args = ["hub", "serve", "--dir", tmp_path / "h", "--port", 0, "--user", "alice=hf_alice"]
    with run.start(*args) as process:
        assert process.stdout is not None
        endpoint = next(word for line in process.stdout for word in line.split() if word.startswith("http")).rstrip(",")
        assert HfApi(endpoint=endpoint, token="hf_alice").whoami()["name"] == "alice"
        process.terminate()
        assert process.wait() == 0
