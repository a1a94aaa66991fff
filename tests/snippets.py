"""Run the fenced blocks of the pages. CONTRIBUTING.md has the rules.

The blocks of a page run in order, each in a separate process, in one directory, with an empty home and an empty
embedded Hub. So each block can be pasted as it is, and finds the files and datasets that earlier blocks made.
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
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "README.md",
]
TIMEOUT_S = 180  # of a block that should take seconds

_FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?P<ticks>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^[ ]*(?P=ticks)[ ]*$", re.M | re.S
)
_NOTES = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)+\Z", re.S)
_NOTE = re.compile(r"<!--\s*(setup|not run|where):\s*(.*?)\s*-->", re.S)
_BARE = re.compile(r"<!--(?:(?!-->).)*-->|^ *(```+).*?^ *\1 *$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of the page where it begins (from 1), its language and text, and its HTML comments."""

    line: int
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = []
    for fence in _FENCE.finditer(page):
        before = page[: fence.start()]
        notes = _NOTES.search(before)
        marks = dict(_NOTE.findall(textwrap.dedent(notes[0]))) if notes else {}
        text = textwrap.dedent(fence["text"])
        found.append(Block(before.count("\n") + 1, fence["language"].strip(), text, marks))
    return found


def prose(page: str) -> str:
    """Return a page without its blocks and comments."""
    return _BARE.sub("", page)


def problems(page: str, where: Path, environ: dict[str, str]) -> Iterator[str]:
    """Run the blocks of a page in the directory `where`, and yield a message for each that fails."""
    before: Block | None = None
    all_of_them = blocks(page)
    for block, after in zip(all_of_them, [*all_of_them[1:], None], strict=False):
        above, before = before, block
        if block.language == "text" and above is not None and above.language == "python":
            continue  # the output of the block above, compared there
        shown = after.text if block.language == "python" and after is not None and after.language == "text" else None
        if "not run" in block.marks:
            wrong = _read(block) if len(block.marks["not run"]) > 8 else "'not run' needs a reason"
        elif block.language in _RUN:
            wrong = _RUN[block.language](block, shown, where, environ)
        elif block.language in _READ:
            wrong = _read(block)
        else:
            wrong = f"{block.language or 'no language'}: neither run nor checked; mark it <!-- not run: why -->"
        if wrong:
            yield f"line {block.line}: {wrong}"


# Run


def _python(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Run a block as a script, or with pytest if it defines tests.

    It may write to stderr only if the `text` block after it shows its output.
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
    return f"stderr is not empty:\n{done.stderr}" if done.stderr and not tests else None


def _console(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Run each `$ command`, and compare its output with the lines below it, if any."""
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block.text, re.M)
    if not block.text.startswith("$ ") or not found:
        return "a console block has lines of `$ command`, each followed by its output"
    for number, (command, output) in enumerate(found):
        setup = block.marks.get("setup", "") if not number else ""
        done = _process(["bash", "-c", f"{setup}\n{command}"], block, where, environ, merge=True)
        wrong = f"exit code {done.returncode}" if done.returncode else _differs(output, done.stdout) if output else None
        if wrong:
            return f"$ {command}\n{wrong}" + (f"\n{done.stdout}" if done.returncode else "")
    return None


def _bash(block: Block, shown: str | None, where: Path, environ: dict[str, str]) -> str | None:
    """Run a block as one script that ends at the first failure."""
    setup = block.marks.get("setup", "")
    done = _process(["bash", "-euo", "pipefail", "-c", f"{setup}\n{block.text}"], block, where, environ, merge=True)
    return f"exit code {done.returncode}\n{done.stdout}" if done.returncode else None


def _process(
    command: list[str], block: Block, where: Path, environ: dict[str, str], *, merge: bool
) -> subprocess.CompletedProcess[str]:
    cwd = ROOT if block.marks.get("where") == "checkout" else where
    try:
        return subprocess.run(
            command, cwd=cwd, env=environ, text=True, check=False, timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if merge else subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout
        return subprocess.CompletedProcess(command, -1, said or "", f"no end within {TIMEOUT_S} s")


def _differs(shown: str, printed: str) -> str | None:
    """Return None if `printed` matches the page, in which `...` matches any text, also over several lines."""
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
    """Return None if the block is valid in its language, as far as parsing shows."""
    parsers = {**_READ, "python": ast.parse, "console": _commands, "bash": _syntax}
    try:
        if block.language in parsers:
            parsers[block.language](block.text)
    except (ValueError, SyntaxError, yaml.YAMLError) as error:
        return f"not valid {block.language}: {error}"
    return None


def _commands(text: str) -> None:
    """Check that the files, hubsync commands, benchmarks and make targets exist that a command names."""
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


def _known(name: str, exists: bool) -> None:
    if not exists:
        raise ValueError(f"{name} does not exist")


def _syntax(text: str) -> None:
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)


def environ_of(hub: dict[str, str], home: Path, programs: Path) -> dict[str, str]:
    """Return the environment of a page's blocks: this Hub, this home, and the programs of a `ForkServer`."""
    # Under `make test`, a make in a page would print that it is a submake.
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
