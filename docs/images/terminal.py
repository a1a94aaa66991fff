"""Make `terminal-*.svg`: a real job in a real terminal, with an embedded Hub that behaves as the picture needs it.

Run: python docs/images/terminal.py
"""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from hubsync.localhub import Fault, LocalHub

HERE = Path(__file__).parent
COLUMNS, ROWS = 120, 8
SPOOL = Path(tempfile.gettempdir()) / "hubsync" / "rollouts"

JOB = """
import time
from hubsync import CommitPolicy, ShardPolicy, Uploader

completion = "Let me think step by step. " * 110
with Uploader("user/rollouts", spool={spool!r}, progress=True,
              shard=ShardPolicy(linger_s=1), commit=CommitPolicy(per_hour=720)) as up:
    for step in range(10_000):
        time.sleep(0.05)
        up.put([{{"step": step, "prompt": "2 + 2?", "completion": completion, "reward": 1.0}}] * 50)
"""

THEME = TerminalTheme(
    (24, 26, 31),
    (214, 218, 224),
    [(24, 26, 31), (240, 98, 98), (87, 187, 114), (229, 181, 61), (97, 160, 240), (197, 134, 220), (86, 182, 194),
     (214, 218, 224)],
    [(110, 116, 128), (240, 98, 98), (87, 187, 114), (229, 181, 61), (97, 160, 240), (197, 134, 220), (86, 182, 194),
     (255, 255, 255)],
)  # fmt: skip
COLORS = {"brown": "yellow", "brightblack": "bright_black", "brightred": "bright_red"}


def picture(name: str, title: str, change: Callable[[LocalHub], object], before: str, after: str) -> None:
    """Change the Hub once the screen shows `before`, and save the screen once it shows `after`."""
    shutil.rmtree(SPOOL, ignore_errors=True)
    with tempfile.TemporaryDirectory() as place, LocalHub(Path(place)) as hub:
        fd, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environ = {**os.environ, **hub.environ(), "TERM": "xterm-256color", "HF_HUB_DISABLE_PROGRESS_BARS": ""}
        job = subprocess.Popen(
            [sys.executable, "-c", JOB.format(spool=str(SPOOL))], stdin=slave, stdout=slave, stderr=slave, env=environ
        )
        os.close(slave)
        screen = pyte.Screen(COLUMNS, ROWS)
        stream = pyte.ByteStream(screen)
        for pattern, then in ((before, change), (after, lambda hub: None)):
            while not re.search(pattern, "\n".join(screen.display), re.DOTALL):
                stream.feed(os.read(fd, 65_536))
            then(hub)
        job.kill()
        job.wait()
        os.close(fd)
    (HERE / f"terminal-{name}.svg").write_text(drawn(screen, title))
    shutil.rmtree(SPOOL)


def drawn(screen: pyte.Screen, title: str) -> str:
    used = max(number for number, line in enumerate(screen.display) if line.strip()) + 1
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    for number in range(used):
        line = Text(no_wrap=True, overflow="crop")
        cells = [screen.buffer[number][column] for column in range(COLUMNS)]
        for style, run in itertools.groupby(cells, lambda cell: Style(color=color(cell.fg), bold=cell.bold)):
            line.append("".join(cell.data for cell in run), style)
        line.rstrip()
        console.print(line, highlight=False)
    svg = console.export_svg(title=title, theme=THEME, unique_id="hubsync")
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # load nothing from other servers


def color(name: str) -> str | None:
    if name == "default":
        return None
    return f"#{name}" if re.fullmatch("[0-9a-f]{6}", name) else COLORS.get(name, name)


def main() -> None:
    forbidden = '{"error": "Forbidden: your token can read this repo, and may not write to it."}'
    picture("healthy", "all is well", lambda hub: None, "━", r"1?\d,\d+ of 1\d,\d+ rows.*next commit \d\d:\d\d:\d\d")
    picture(
        "backing-off", "the commit quota is spent",
        lambda hub: hub.faults.add(Fault.rate_limit("commits", on="commit")),
        r"[1-9],\d+ of ", r"▲ .* of 1\d,\d+ rows.*next try",
    )  # fmt: skip
    picture(
        "blocked", "the token may no longer write",
        lambda hub: hub.faults.add(Fault.status(403, body=forbidden, on="*")),
        r"[1-9],\d+ of ", r"■ .* of 1\d,\d+ rows.*next try",
    )  # fmt: skip


if __name__ == "__main__":
    main()
