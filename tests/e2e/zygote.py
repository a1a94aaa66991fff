"""Starts jobs by forking a process that has everything imported: a start costs 20 ms, not a second.

`Jobs` is the test's side. The other side runs as `python -m tests.e2e.zygote`: a line of JSON in starts a job, a line
out tells how one ended, or that it was stopped.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Jobs:
    """Starts jobs of `tests.e2e.jobs`; what they write to stderr is in `log`."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.zygote"],
                env={**environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self._log = log
        self._ends: dict[int, str] = {}
        self._running: set[int] = set()

    def start(self, name: str, *args: Any) -> int:
        """Starts a job and answers its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *args], default=str) + "\n")
        self._process.stdin.flush()
        pid = int(self._next("started"))
        self._running.add(pid)
        return pid

    def end(self, pid: int) -> str:
        """Waits until a job has ended, or has stopped: "exited 0", "killed 9", "stopped"."""
        while pid not in self._ends:
            self._read()
        return self._ends.pop(pid)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _next(self, kind: str) -> str:
        while True:
            found = self._read()
            if found[0] == kind:
                return found[1]

    def _read(self) -> tuple[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the zygote has died: {self.log}"
        kind, pid, how = json.loads(line)
        if kind == "ended":
            self._ends[pid] = how
            if how != "stopped":
                self._running.discard(pid)
        return kind, str(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._running:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()


def _tell(*what: object) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            _tell("ended", pid, "stopped")
        elif os.WIFSIGNALED(status):
            _tell("ended", pid, f"killed {os.WTERMSIG(status)}")
        else:
            _tell("ended", pid, f"exited {os.WEXITSTATUS(status)}")


def main() -> None:
    from tests.e2e import jobs

    jobs.load()
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    asked = b""
    while True:
        ready, _, _ = select.select([0, read], [], [])
        if read in ready:
            os.read(read, 4096)
            _reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, asked = (asked + data).split(b"\n")
            for line in lines:
                name, *args = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    null = os.open(os.devnull, os.O_RDWR)
                    os.dup2(null, 0)
                    os.dup2(null, 1)
                    jobs.run(name, *args)
                _tell("started", pid, "")


if __name__ == "__main__":
    main()
