"""The fenced blocks of the pages, and what it takes to run each: the rules are told in CONTRIBUTING.md.

A page's blocks run in their order, each in a process of its own, in one directory, with one home and against one
embedded Hub that are the page's alone. So each can be pasted as it stands, and sees what those above it have made.
"""

from __future__ import annotations

import ast
import doctest
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hubsync.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
PATIENCE_S = 180  # for what takes seconds

_FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<ticks>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^[ ]*(?P=ticks)[ ]*$", re.M | re.S
)
_NOTES = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.S)
_NOTE = re.compile(r"<!--\s*(setup|not run|where):\s*(.*?)\s*-->", re.S)
_BARE = re.compile(r"<!--(?:(?!-->).)*-->|^ *(```+).*?^ *\1 *$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins (a line of its page, from 1), its language, its text, and what it is marked."""

    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found = []
    for fence in _FENCE.finditer(page):
        before = page[: fence.start()]
        notes = _NOTES.search(before)
        marks = dict(_NOTE.findall(textwrap.dedent(notes[0]))) if notes else {}
        text = textwrap.dedent(fence["text"])
        found.append(Block(before.count("\n") + 1, fence["language"].strip(), text, marks))
    return found


def prose(page: str) -> str:
    """A page without its blocks and comments."""
    return _BARE.sub("", page)


def problems(page: str, where: Path, environ: dict[str, str]) -> Iterator[str]:
    """Runs the blocks of a page in the directory `where`; yields what is wrong with each that fails."""
    before: Block | None = None
    all_of_them = blocks(page)
    for block, after in zip(all_of_them, [*all_of_them[1:], None], strict=False):
        above, before = before, block
        if block.language == "text" and above is not None and above.language == "python":
            continue  # what the block above printed: it is compared there
        shown = after.text if block.language == "python" and after is not None and after.language == "text" else None
        if "not run" in block.marks:
            wrong = _read(block) if len(block.marks["not run"]) > 8 else "'not run' wants a reason"
        elif block.language in _RUN:
            wrong = _RUN[block.language](block, shown, where, environ)
        elif block.language in _READ:
            wrong = _read(block)
        else:
            wrong = f"{block.language or 'no language'}: it is neither run nor checked; mark it <!-- not run: why -->"
        if wrong:
            yield f"line {block.line}: {wrong}"


# Run


def _python(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Runs a block as a script of its own, or with pytest where it defines tests. It may write to stderr only where a
    `text` block after it shows all that it prints.
    """
    code = block.marks.get("setup", "") + "\n" + block.text
    tests = re.search(r"^(async )?def test_", block.text, re.M) is not None
    file = where / f"{'test_' if tests else ''}line_{block.line}.py"
    file.write_text(code)
    runner = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(where)] if tests else []
    command = ["python", *runner, file.name]
    done = _process(command, block, where, environ, merge=shown is not None)
    if done.returncode:
        return f"exit code {done.returncode}\n{done.stdout}{done.stderr or ''}"
    if shown is not None:
        return _differs(shown, done.stdout)
    return f"it says on stderr:\n{done.stderr}" if done.stderr and not tests else None


def _console(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Runs each `$ command`, and compares what it prints with the lines below it, where there are any."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block.text, re.M)
    if not block.text.startswith("$ ") or not found:
        return "a console block is `$ command`, each with what it prints below it"
    for number, (command, output) in enumerate(found):
        setup = block.marks.get("setup", "") if not number else ""
        done = _process(["bash", "-c", f"{setup}\n{command}"], block, where, environ, merge=True)
        wrong = f"exit code {done.returncode}" if done.returncode else _differs(output, done.stdout) if output else None
        if wrong:
            return f"$ {command}\n{wrong}" + (f"\n{done.stdout}" if done.returncode else "")
    return None


def _bash(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Runs a block as one script that ends at the first failure."""
    setup = block.marks.get("setup", "")
    done = _process(["bash", "-euo", "pipefail", "-c", f"{setup}\n{block.text}"], block, where, environ, merge=True)
    return f"exit code {done.returncode}\n{done.stdout}" if done.returncode else None


def _process(
    command: list[str], block: Block, where: Path, environ: dict[str, str], *, merge: bool
) -> subprocess.CompletedProcess[str]:
    cwd = ROOT if block.marks.get("where") == "checkout" else where
    try:
        return subprocess.run(
            command, cwd=cwd, env=environ, text=True, check=False, timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout
        return subprocess.CompletedProcess(command, -1, said or "", f"no end within {PATIENCE_S} s")


def _differs(shown: str, printed: str) -> str | None:
    """None where `printed` is what is shown; `...` stands for whatever varies, also over several lines."""
    shown, printed = (
        "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n" for text in (shown, printed)
    )
    if doctest.OutputChecker().check_output(shown, printed, doctest.ELLIPSIS):
        return None
    return f"it prints\n{textwrap.indent(printed, '    ')}and the page shows\n{textwrap.indent(shown, '    ')}"


def _plain(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.strip().splitlines())


_RUN: dict[str, Callable[[Block, str | None, Path, dict[str, str]], str | None]] = {
    "python": _python,
    "console": _console,
    "bash": _bash,
}


# Read only


def _jsonl(text: str) -> None:
    for line in text.splitlines():
        json.loads(line)


_READ: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "jsonl": _jsonl,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
    "toml": tomllib.loads,
}


def _read(block: Block) -> str | None:
    """Whether it is what its language says, as far as that can be told without running it."""
    parsers = {**_READ, "python": ast.parse, "console": _commands, "bash": _syntax}
    try:
        if block.language in parsers:
            parsers[block.language](block.text)
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        return f"it is no {block.language}: {error}"
    return None


def _commands(text: str) -> None:
    """What a command that is not run names is there: files, commands of hubsync, benchmarks, targets of make."""
    for line in text.splitlines():
        if line.startswith("$ ") and not line.endswith("\\"):
            words = shlex.split(line[2:], comments=True)
            for path in re.findall(r"\b(?:tests|docs|examples|benchmarks)/[\w./-]+", line):
                _known(path, (ROOT / path).exists())
            for word, after in itertools.pairwise(word for word in words if not word.startswith("-")):
                if word == "hubsync":
                    _known(f"hubsync {after}", after in COMMANDS)
                elif word == "benchmarks":
                    home = ROOT / "benchmarks"
                    _known(f"benchmark {after}", (home / f"{after}.py").exists() or (home / after).is_dir())
                elif word == "make":
                    _known(f"make {after}", re.search(rf"^{after}:", (ROOT / "Makefile").read_text(), re.M) is not None)


def _known(name: str, is_there: bool) -> None:
    if not is_there:
        raise ValueError(f"there is no {name}")


def _syntax(text: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)


def environ_of(hub: dict[str, str], home: Path, programs: Path) -> dict[str, str]:
    """Return the environment of a page's blocks: this Hub, this home, and the programs of a `ForkServer`."""
    # `make test` runs this: a make of a page's own would say that it is within another.
    strange = ("HF_", "HUBSYNC_", "XDG_", "PYTEST_", "COV_", "MAKE", "MFLAGS")
    given = {k: v for k, v in os.environ.items() if not k.startswith(strange)}
    return {
        **given,
        **hub,
        "HOME": str(home),
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "120",
        "PYTHONUNBUFFERED": "1",
        "DATASETS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
