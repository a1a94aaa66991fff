"""Fixtures of all tests: an embedded Hub of its own for each test that asks, and a home that is thrown away.

`pytest -n 3 -m "not slow"` is the quick lane, which `make check` runs; `pytest -n 3` runs everything, as `make test`.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, settings

from hubsync import CommitPolicy, RetryPolicy, ShardPolicy, Uploader
from hubsync._runtime import threads
from hubsync.cli.main import main
from hubsync.encoding.codecs import SUFFIXES, open_lines
from hubsync.localhub import LocalHub
from hubsync.uploader import engine, monitor, spool_thread
from tests.zygote import Program, Python, share_certificates

Done = subprocess.CompletedProcess[str]

# Every test makes a spool and a Hub, whose files are synced again and again: on a disk, most of a run would be that.
_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > 4 << 30:
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

# `datasets` counts what it loads with a request to a server, which takes seconds to fail where there is no network.
os.environ.update(HF_UPDATE_DOWNLOAD_COUNTS="0", HF_HUB_DISABLE_TELEMETRY="1")

share_certificates()

# No test asserts a duration, so none fails on a slow machine.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
# The same examples in each run: an unrelated change never fails on a new one. `make test-newest` looks for new ones.
settings.register_profile("hubsync", settings.get_profile("random"), derandomize=True, max_examples=75)
settings.register_profile("quick", settings.get_profile("hubsync"), max_examples=25)

# A run in the background (nohup, `&` in a script) ignores Ctrl-C, and its children would as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test waits for nothing that it does not test: no linger, no pace, short retries.
FAST: dict[str, Any] = {
    "shard": ShardPolicy(linger_s=3600),
    "commit": CommitPolicy(per_hour=100_000),
    "retry": RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.2, request_timeout_s=5),
}


_INTERVALS = (
    (engine, "_FOLLOW_S"),  # what another process committed
    (monitor, "_REFRESH_S"),  # the depth of the spool
    (spool_thread, "_FULL_S"),  # whether a full disk has space again
    (threads, "_NO_THREAD_S"),  # whether a thread can be started again
)


def rounds(few: int, many: int) -> int:
    """How often a test tries what depends on chance: `many` times with the profile `random` (`make test-newest`)."""
    return many if settings.get_current_profile_name() == "random" else few


def pytest_configure(config: pytest.Config) -> None:
    """Let the quick lane try fewer examples of each property."""
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick" if config.getoption("markexpr") == "not slow" else "hubsync")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker begin with its share of the slow tests, whole files: none is left with one at the end."""
    for item in items:
        for mark in item.iter_markers("slow"):
            if not mark.args:
                raise pytest.UsageError(f"{item.nodeid}: say why it is slow: @pytest.mark.slow(reason)")
    # xdist gives each worker a part of the list; one that has nothing left takes the end of another's part.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    quick = (item for item in items if item.get_closest_marker("slow") is None)
    slow = [item for item in items if item.get_closest_marker("slow")]
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for _, found in groupby(slow, lambda item: item.path):
        min(shares, key=len).extend(found)
    for share in shares:
        share += islice(quick, max(0, len(items) // workers - len(share)))
    items[:] = [*chain(*shares), *quick]
    gc.collect()
    gc.freeze()  # else each full collection walks what was imported


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBSYNC_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.delenv(name, raising=False)
    # What hubsync looks for now and then, it looks for ten times as often: else the tests mostly wait.
    for module, name in _INTERVALS:
        monkeypatch.setattr(module, name, 0.05)
    # Read from the environment once, at the import: of whoever runs the tests, or of the first test that needs it.
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(constants, name, False)


@pytest.fixture(scope="session")
def python() -> Iterator[Python]:
    """Starts Python programs in processes of their own, without the time that imports take."""
    with Python() as python:
        yield python


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Fail at once where this process looks up the name of another machine: no test may need one."""
    look_up = socket.getaddrinfo

    def refuse(host: Any, *args: Any, **options: Any) -> Any:
        if host not in (None, "", "localhost") and not str(host).startswith(("127.", "::1")):
            raise socket.gaierror(socket.EAI_NONAME, f"the tests have no network: {host}")
        return look_up(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        yield


@pytest.fixture(scope="session")
def python_with_datasets() -> Iterator[Python]:
    """As `python`, for programs that import datasets."""
    with Python(imports="import datasets, hubsync.pipeline") as python:
        yield python


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def uploader(hub: LocalHub, tmp_path: Path) -> Callable[..., Uploader]:
    """Makes uploaders of `user/rows` on the test's Hub and spool; a test closes them by `with`."""

    def make(repo: str = "user/rows", **changes: Any) -> Uploader:
        given = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST, **changes}
        return Uploader(repo, **given)

    return make


class Commands:
    """The command line against the test's Hub. Keywords are environment variables."""

    def __init__(self, python: Callable[[], Python], hub: LocalHub) -> None:
        self._fork, self._hub = python, hub

    def __call__(self, *args: object, stdin: str = "", **environ: str) -> Done:
        """Run `hubsync ARGS` to its end, in this process, with standard streams of its own."""
        before = [os.dup(fd) for fd in range(3)]
        handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            given, said, log = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
            given.write(stdin)
            given.seek(0)
            for name, value in {**self._hub.environ(), **environ}.items():
                patch.setenv(name, value)
            patch.setattr(constants, "HF_HUB_OFFLINE", os.environ.get("HF_HUB_OFFLINE") == "1")
            patch.setattr(root, "handlers", [])
            patch.setattr(sys, "argv", ["hubsync", *map(str, args)])
            for fd, (name, stream) in enumerate({"stdin": given, "stdout": said, "stderr": log}.items()):
                os.dup2(stream.fileno(), fd)
                patch.setattr(sys, name, stack.enter_context(open(fd, "w" if fd else "r", closefd=False)))
            code: object = 0
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for fd, earlier in enumerate(before):
                    os.dup2(earlier, fd)
                    os.close(earlier)
                signal.signal(signal.SIGTERM, handler)
            for stream in (said, log):
                stream.seek(0)
            assert isinstance(code, int)
            return Done(args, code, said.read(), log.read())

    def after(self, prelude: str, *args: object, stdin: str = "", **environ: str) -> Done:
        """Run `hubsync ARGS` to its end, in a process that has run the code of `prelude` before."""
        code = f"{prelude}\nfrom hubsync.cli import main\nmain()"
        with self.python("-c", code, *args, **environ) as program:
            said, log = program.communicate(stdin)
        return Done(program.args, program.wait(), said, log)

    def start(self, *args: object, cwd: Path | None = None, stdout: Any = subprocess.PIPE, **environ: str) -> Program:
        """Start `hubsync ARGS` in the directory `cwd`."""
        return self.python("-m", "hubsync", *args, cwd=cwd, stdout=stdout, **environ)

    def python(self, *args: object, cwd: Path | None = None, stdout: Any = subprocess.PIPE, **environ: str) -> Program:
        """Start `python ARGS`."""
        return self._fork().start(
            *args, env={**os.environ, **self._hub.environ(), **environ}, cwd=cwd,
            stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def run(request: pytest.FixtureRequest, hub: LocalHub) -> Commands:
    return Commands(lambda: request.getfixturevalue("python"), hub)


class Dataset:
    """The contents of a dataset, read by huggingface_hub."""

    def __init__(self, hub: LocalHub, repo: str = "user/rows", token: str | None = None) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        self.repo = repo
        self.api = HfApi(endpoint=hub.endpoint, token=token or hub.token)
        self._fs = HfFileSystem(endpoint=hub.endpoint, token=token or hub.token, skip_instance_cache=True)

    def paths(self, suffix: str | tuple[str, ...] = ".jsonl") -> list[str]:
        return sorted(p for p in self.api.list_repo_files(self.repo, repo_type="dataset") if p.endswith(suffix))

    def read(self, path: str) -> bytes:
        self._fs.invalidate_cache()
        data: bytes = self._fs.cat_file(f"datasets/{self.repo}/{path}")
        return data

    def rows(self, under: str = "") -> list[Any]:
        import json

        found = []
        for path in self.paths(SUFFIXES):
            if path.startswith(under):
                with open_lines(io.BytesIO(self.read(path)), path) as lines:
                    found += [json.loads(line) for line in lines]
        return found

    def ids(self) -> list[int]:
        return sorted(row["id"] for row in self.rows())

    def commits(self) -> list[str]:
        return [c.title for c in self.api.list_repo_commits(self.repo, repo_type="dataset")]


@pytest.fixture
def dataset(hub: LocalHub) -> Dataset:
    return Dataset(hub)
