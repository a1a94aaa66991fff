"""Debian's own chromium, driven by playwright, which downloads nothing; jobs and pages in processes of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubsync.localhub import LocalHub
from tests.zygote import ROOT, Program, Python

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Its path, where there is one."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def browser(path: str) -> Iterator[Any]:
    """A headless browser; root needs it without its sandbox."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"], timeout=120_000
        )
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def job(python: Python, hub: LocalHub, repo: str, spool: Path, **options: object) -> Iterator[Program]:
    """A job that runs, and is killed in the end."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    environ = {**os.environ, **hub.environ()}
    with python.start("-m", "tests.dashboard.job", repo, spool, *flags, env=environ, cwd=ROOT) as program:
        yield program


@contextlib.contextmanager
def page(python: Python, *spools: Path, port: int = 0, **environ: str) -> Iterator[str]:
    """`hubsync dashboard` in a process of its own: its address."""
    command = ["-m", "hubsync", "dashboard", f"--port={port}", *spools]
    with python.start(*command, env={**os.environ, **environ}, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), address
        yield address


def wait_until(condition: Any, what: str, seconds: float = 60) -> Any:
    """What `condition` answers, once that is true."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")
