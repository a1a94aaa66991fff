"""Take the screenshots in docs/images: `python -m tests.dashboard.screenshots [MINUTES]`.

Real jobs, a real embedded Hub with faults, and the page in a browser; nothing in them is drawn by hand. After MINUTES
of history (12) they are shown healthy, then what they do when the Hub refuses commits, and when the token is revoked.
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
from tests.zygote import Python

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main(minutes: float) -> None:
    path = chromium()
    assert path is not None, "there is no chromium"
    IMAGES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        homes = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="job-"))) for _ in range(2)]
        hubs = [stack.enter_context(LocalHub(home / "hub", users={"ada": "hf_localhub_user"})) for home in homes]
        spools = [homes[0] / "ada--rollouts", homes[0] / "ada--judgements", homes[1] / "ada--rollouts"]
        python = stack.enter_context(Python())
        quick: dict[str, Any] = {"linger_s": 8, "blocked_s": 120}
        stack.enter_context(job(python, hubs[0], "ada/rollouts", spools[0], rows_per_s=700, per_hour=120, **quick))
        stack.enter_context(job(python, hubs[0], "ada/judgements", spools[1], rows_per_s=60, per_hour=240, **quick))
        stack.enter_context(job(python, hubs[1], "ada/rollouts", spools[2], rows_per_s=500, per_hour=120, **quick))
        alone, both, other = (stack.enter_context(page(python, *some)) for some in (spools[:1], spools[:2], spools[2:]))
        chrome = stack.enter_context(browser(path))
        time.sleep(minutes * 60)
        _wait_for(alone, "uploading")
        _picture(chrome, alone, "healthy", 1280)
        _picture(chrome, both, "two", 1280)
        hubs[0].faults.add(Fault.rate_limit("commits", on="commit"))
        hubs[1].faults.add(Fault.status(503, on="commit", times=2))
        _wait_for(alone, "waiting")
        time.sleep(40)
        hubs[1].revoke(hubs[1].token)
        _picture(chrome, alone, "backing-off", 1280)
        _picture(chrome, alone, "narrow-dark", 390, dark=True)
        _wait_for(other, "blocked")
        time.sleep(20)
        _picture(chrome, other, "blocked", 1280)


def _wait_for(address: str, kind: str) -> None:
    def is_so() -> bool:
        with urllib.request.urlopen(f"{address}/api/spools") as answer:
            info = json.load(answer)["spools"][0]["info"]
        return bool(info["alive"] and info["condition"]["kind"] == kind)

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
