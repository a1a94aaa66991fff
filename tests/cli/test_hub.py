"""`hubsync hub`: the embedded Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from tests.conftest import Commands


def test_a_hub_is_served_until_sigterm(run: Commands, tmp_path: Path) -> None:
    args = ["hub", "serve", "--dir", tmp_path / "h", "--port", 0, "--user", "alice=hf_alice"]
    with run.start(*args) as process:
        assert process.stdout is not None
        endpoint = next(word for line in process.stdout for word in line.split() if word.startswith("http")).rstrip(",")
        assert HfApi(endpoint=endpoint, token="hf_alice").whoami()["name"] == "alice"
        process.terminate()
        assert process.wait() == 0


def test_users_and_organizations_are_made_and_new_tokens_printed_once(run: Commands, tmp_path: Path) -> None:
    users = ["--user", "alice", "--user", "bob", "--user", "carol=hf_carol"]
    orgs = ["--org", "lab=alice,bob", "--org", "empty"]
    with run.start("hub", "serve", "--dir", tmp_path / "h", "--port", 0, *users, *orgs) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        said = "".join(lines) + process.stdout.read()
    tokens = re.findall(r"hf_[0-9a-f]{34}", said)
    assert (len(tokens), len(set(tokens)), "hf_carol" in said) == (2, 2, False)
    assert f"HF_TOKEN={tokens[0]}" in lines[1]
    assert lines[2] == f"user bob has a new token: {tokens[1]}\n"
    with run.start("hub", "serve", "--dir", tmp_path / "h", "--port", 0, *users, *orgs) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().split()[5].rstrip(",")
        bob, carol = (HfApi(endpoint=endpoint, token=token) for token in (tokens[1], "hf_carol"))
        assert [org["name"] for org in bob.whoami()["orgs"]] == ["lab"]
        assert bob.create_repo("lab/rows", repo_type="dataset").repo_id == "lab/rows"
        assert carol.whoami()["orgs"] == []
        process.terminate()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--user", "=hf_x"], "NAME[=TOKEN]"),
        (["--org", "lab=alice"], "Add --user alice"),
        (["--user", "lab", "--org", "lab"], "lab is already a user"),
    ],
)
def test_a_user_or_organization_that_cannot_be_is_one_message(
    run: Commands, tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = run("hub", "serve", "--dir", tmp_path / "h", "--port", 0, *arguments)
    assert (done.returncode, said in done.stderr, (tmp_path / "h").exists()) == (2, True, False)
