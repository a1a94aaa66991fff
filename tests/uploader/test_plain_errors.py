"""Errors of everyday mistakes: they name what is wrong, and little else is printed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hubsync import AsyncUploader, Uploader
from hubsync.errors import ConfigError, RowError
from hubsync.localhub import LocalHub
from hubsync.pipeline import HuggingFaceHubCheckpointer, Pipeline, Step
from tests.conftest import Commands

Make = Callable[..., Uploader]


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_uploader_that_is_sent_to_another_process_says_to_open_one_there(
    uploader: Make, hub: LocalHub, copied: Callable[[Any], Any]
) -> None:
    with uploader() as up, pytest.raises(TypeError, match=r"Uploader cannot be pickled.*Open one in each process"):
        copied(up)

    async def run() -> None:
        async with AsyncUploader("user/rows", endpoint=hub.endpoint, token=hub.token) as up:
            with pytest.raises(TypeError, match="AsyncUploader cannot be pickled"):
                copied(up)

    anyio.run(run)


NO_TOKEN = """
import sys
from hubsync import Uploader
with Uploader("user/rows", endpoint=sys.argv[1], spool=sys.argv[2]):
    pass
"""


def test_a_missing_token_prints_the_line_that_matters_and_a_short_stack(
    run: Commands, hub: LocalHub, tmp_path: Path
) -> None:
    with run.python("-c", NO_TOKEN, hub.endpoint, str(tmp_path / "spool"), HF_TOKEN="") as job:
        _, log = job.communicate("")
        assert job.wait() == 1
    lines = log.strip().splitlines()
    assert lines[-1].startswith("hubsync.errors.AuthenticationError: no token to write to user/rows. Run hf auth login")
    assert len(lines) < 20, log
    assert "anyio" not in log


def test_a_lone_surrogate_in_a_checkpointers_input_names_row_field_and_reason(hub: LocalHub, tmp_path: Path) -> None:
    class Echo(Step):
        def process(self, inputs: Any) -> Any:
            yield inputs

    with Pipeline(name="surrogates") as pipeline:
        echo = Echo()
        checkpointer = HuggingFaceHubCheckpointer(
            repo_id="user/rows", endpoint=hub.endpoint, token=hub.token, spool=str(tmp_path / "spool")
        )
        echo >> checkpointer  # type: ignore[operator]  # as distilabel writes it
    with pytest.raises(RowError, match="row 1, field 'text': the text holds a lone surrogate") as raised:
        pipeline.run([{"text": "fine"}, {"text": "bad \udce9"}], use_cache=False)
    assert raised.value.__notes__ == ["In the step 'hugging_face_hub_checkpointer_0', after 0 rows."]


def test_windows_is_told_that_it_is_not_supported() -> None:
    program = "import sys; sys.modules['fcntl'] = None; import hubsync"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: hubsync needs Linux or macOS")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"config": "README.md"}, "the name of the dataset's card"),
        ({"config": "readme.MD"}, "the name of the dataset's card"),
        ({"config": "a/b"}, "cannot be a folder and a config name"),
        ({"config": ".hidden"}, "cannot be a folder and a config name"),
        ({"config": ""}, "config"),
        ({"split": "all"}, "every split in load_dataset"),
        ({"split": "a-b"}, "is not accepted by `datasets`"),
        ({"split": ""}, "is not accepted by `datasets`"),
    ],
)
def test_a_config_or_split_that_cannot_be_loaded_by_name_is_refused_at_once(names: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Uploader("user/rows", **names)  # type: ignore[arg-type]
    assert said in str(refused.value)
