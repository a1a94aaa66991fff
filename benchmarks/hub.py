"""The embedded Hub that a benchmark runs against, the child processes that it measures, and batches of known size."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from hubsync.localhub.storage.store import Store

HubCondition = Literal["healthy", "slow", "limited", "down"]


class ChildProcess(subprocess.Popen[str]):
    """A process that is measured. It prints a line when it is ready, waits for `go`, then prints its figures as JSON.

    The child calls `wait_for_start` and `send_result`.
    """

    def read_line(self) -> str:
        """Wait for the next line that the process prints."""
        assert self.stdout is not None
        return self.stdout.readline()

    def go(self) -> None:
        """Let the process start what is measured."""
        assert self.stdin is not None
        self.stdin.write("go\n")
        self.stdin.flush()

    def stop(self) -> None:
        """Kill the process: its drain is not measured."""
        self.kill()
        self.wait()


def wait_for_start() -> None:
    """Report that the setup is done, and wait until the parent calls `ChildProcess.go`."""
    print("ready", flush=True)
    sys.stdin.readline()


def send_result(figures: Any) -> None:
    """Print the figures as JSON, then wait until the parent kills this process or lets it go on."""
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()


class BenchmarkHub:
    """An embedded Hub in its own process, as a context manager.

    Attributes:
        directory: its data; a temporary directory unless one is given.
        endpoint: its URL.
        token: a token of the user `user`.
    """

    state = "state"  # the home of the spools, in the directory

    def __init__(self, directory: Path | None = None) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="hubsync-bench-") if directory is None else None
        self.directory = str(directory) if self._scratch is None else self._scratch.name

    def __enter__(self) -> Self:
        # The real Hub runs on another machine, so this one must not compete for the CPU with what is measured.
        self._process = subprocess.Popen(
            [
                "nice",
                "-n",
                "15",
                sys.executable,
                "-m",
                "hubsync",
                "hub",
                "serve",
                "--dir",
                f"{self.directory}/hub",
                "--port",
                "0",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = self.token = ""
        for line in self._process.stdout:
            if found := re.search(r"export HF_ENDPOINT=(\S+)\s+export HF_TOKEN=(\S+)", line):
                self.endpoint, self.token = found.groups()
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        if self._scratch is not None:
            self._scratch.cleanup()

    def environ(self) -> dict[str, str]:
        """Return the environment of a process that uses this Hub, with its own caches."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": f"{self.directory}/hf",
            "HUBSYNC_HOME": f"{self.directory}/{self.state}",
        }

    def spawn(self, module: str, *arguments: object) -> ChildProcess:
        """Start `python -m benchmarks.MODULE`, pointed at this Hub."""
        return ChildProcess(
            [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)],
            env=self.environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def agent(self) -> Iterator[None]:
        """Run an agent for this Hub's jobs within the block."""
        agent = subprocess.Popen([sys.executable, "-m", "hubsync", "agent"], env=self.environ())
        try:
            yield
        finally:
            agent.kill()
            agent.wait()

    def set_condition(self, condition: HubCondition) -> None:
        """Set how the Hub behaves from now on.

        Args:
            condition: "healthy"; "slow": every commit takes 2 s; "limited": the commit quota is used up; "down": every
                connection is dropped.
        """
        self.control("DELETE", "faults")
        if condition == "slow":
            self.control("POST", "faults", {"kind": "latency", "on": ["commit"], "seconds": 2.0})
        elif condition == "limited":
            self.control("POST", "faults", {"kind": "rate_limit", "shape": "commits", "on": ["commit"]})
        elif condition == "down":
            self.control("POST", "faults", {"kind": "outage", "on": ["*"]})

    def revoke_token(self) -> None:
        """Revoke the user's token: the Hub answers 401."""
        # There is no control endpoint for tokens. The Hub reads its database on every request.
        store = Store(Path(self.directory, "hub", "hub.sqlite3"))
        store.revoke(self.token)
        store.close()

    def renew_token(self) -> str:
        """Create another token for the user, and return it."""
        store = Store(Path(self.directory, "hub", "hub.sqlite3"))
        self.token = store.add_token(None, "user", "write", None)
        store.close()
        return self.token

    def control(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the Hub's control interface, `hubsync.localhub.control`, and return the decoded response."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.endpoint}/_localhub/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)


def batches(rows: int, row_bytes: int, kinds: int = 32, seed: int = 0) -> list[list[dict[str, Any]]]:
    """Make batches of rows whose text compresses like natural text.

    Args:
        rows: rows per batch.
        row_bytes: approximate size of a row as JSON.
        kinds: how many different batches.
        seed: draws the text.
    """
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(5_000)]

    def text(size: int) -> str:
        return " ".join(rng.choices(words, k=size // 7))

    return [
        [
            {
                "id": kind * rows + n,
                "prompt": text(row_bytes // 4),
                "completion": text(row_bytes * 3 // 4),
                "model": "a-model-of-7b",
                "score": rng.random(),
                "tags": ["synthetic", "math"],
                "usage": {"prompt_tokens": rng.randint(1, 500), "completion_tokens": rng.randint(1, 2_000)},
            }
            for n in range(rows)
        ]
        for kind in range(kinds)
    ]
