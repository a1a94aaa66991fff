"""Makes the pictures in docs/images: `python -m tests.dashboard.screenshots [MINUTES]`.

Real jobs, a real embedded Hub with faults, and the page in a browser; nothing in them is drawn by hand. After MINUTES
of history (12) the same jobs are shown healthy, backing off, and blocked.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from hubsync.localhub import Fault, LocalHub
from tests.dashboard.browser import browser, chromium, job, page, wait_until

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main(minutes: float) -> None:
    path = chromium()
    assert path is not None, "there is no chromium"
    IMAGES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="job-")))
        hub = stack.enter_context(LocalHub(home / "hub", users={"ada": "hf_localhub_user"}))
        spools = [home / "ada--rollouts", home / "ada--judgements"]
        hub.faults.add(Fault.status(422, on="commit", after=3, times=1, repo="ada/judgements"))
        quick: dict[str, Any] = {"linger_s": 8, "blocked_s": 120}
        stack.enter_context(job(hub, "ada/rollouts", spools[0], rows_per_s=700, per_hour=120, **quick))
        stack.enter_context(job(hub, "ada/judgements", spools[1], rows_per_s=60, per_hour=240, **quick))
        address = stack.enter_context(page(spools[0]))
        both = stack.enter_context(page(*spools))
        chrome = stack.enter_context(browser(path))
        time.sleep(minutes * 60)
        _wait_for(address, "ok")
        _picture(chrome, address, "healthy", 1280)
        _picture(chrome, both, "two", 1440)
        hub.faults.add(Fault.rate_limit("commits", on="commit"))
        _wait_for(address, "backing off")
        time.sleep(25)
        _picture(chrome, address, "backing-off", 1280)
        _picture(chrome, address, "narrow-dark", 390, dark=True)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="job-")))
        hub = stack.enter_context(LocalHub(home / "hub", users={"ada": "hf_localhub_user"}))
        spool = home / "ada--rollouts"
        stack.enter_context(job(hub, "ada/rollouts", spool, rows_per_s=700, per_hour=120, linger_s=8, blocked_s=120))
        address = stack.enter_context(page(spool))
        chrome = stack.enter_context(browser(path))
        time.sleep(minutes * 60 / 2)
        hub.faults.add(Fault.status(503, on="commit", times=2))
        time.sleep(45)
        hub.revoke(hub.token)
        _wait_for(address, "blocked")
        time.sleep(20)
        _picture(chrome, address, "blocked", 1280)


def _wait_for(address: str, kind: str) -> None:
    def is_so() -> bool:
        with urllib.request.urlopen(f"{address}/api/spools") as answer:
            spool = json.load(answer)["spools"][0]
        return bool(spool["alive"] and spool["state"]["kind"] == kind)

    wait_until(is_so, f"the state is {kind}", 180)


def _picture(chrome: Any, address: str, name: str, width: int, *, dark: bool = False) -> None:
    context = chrome.new_context(
        viewport={"width": width, "height": 800},
        color_scheme="dark" if dark else "light",
        device_scale_factor=1.5 if width < 600 else 1,
    )
    shot = context.new_page()
    shot.goto(address)
    shot.wait_for_selector(".card[data-tone] .plot svg")
    shot.wait_for_timeout(1500)
    if width < 600:  # what a telephone shows, and as much again
        shot.set_viewport_size({"width": width, "height": 1500})
        shot.wait_for_timeout(1200)
    shot.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=width >= 600)
    context.close()
    print(name, (IMAGES / f"dashboard-{name}.png").stat().st_size // 1000, "kB", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 12)
