"""The pages: every block runs as shown, every link has a target, and generated tables and lists match the code."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import httpx
import huggingface_hub
import pytest

import hubsync
from benchmarks.pages import PAGES as MADE
from benchmarks.pages import filled
from hubsync.localhub import LocalHub
from hubsync.telemetry.condition import KINDS
from hubsync.telemetry.status import StateKind
from tests.fork_server import ForkServer
from tests.snippets import PAGES, ROOT, blocks, environ_of, problems, prose


@dataclass
class SharedEnvironment:
    """What all pages share, so that their blocks have equal environments and one warm interpreter runs them."""

    home: Path
    programs: Path
    port: int = 0


@pytest.fixture(scope="module")
def shared() -> Iterator[SharedEnvironment]:
    with tempfile.TemporaryDirectory(prefix="hubsync-") as directory:
        home = Path(directory) / "home"
        if sys.platform != "linux":  # macOS has no such sockets, and its libraries don't like forks
            yield SharedEnvironment(home, Path(sys.executable).parent)
            return
        with ForkServer(Path(directory)) as server:
            yield SharedEnvironment(home, server.programs)


@pytest.fixture
def environ(shared: SharedEnvironment, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a page's blocks: an empty home, and an empty Hub."""
    shutil.rmtree(shared.home, ignore_errors=True)
    shared.home.mkdir()
    hub = LocalHub(tmp_path / "hub", port=shared.port)
    try:
        hub.start()
    except OSError:  # another process has taken that port
        hub = LocalHub(tmp_path / "hub").start()
    shared.port = hub.port
    with hub:
        yield environ_of(hub.environ(), shared.home, shared.programs)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("path", MADE, ids=name_of)
def test_generated_tables_are_up_to_date(path: Path) -> None:
    page = path.read_text()
    assert filled(page) == page, "run python -m benchmarks.pages"


@pytest.mark.slow("runs every block of the pages")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_block_of_a_page_runs_as_shown(path: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    where = tmp_path / "here"
    where.mkdir()
    wrong = list(problems(path.read_text(), where, environ))
    assert not wrong, "\n".join(f"{name_of(path)}, {each}" for each in wrong)


@pytest.mark.slow("runs a block of the README")
def test_the_readmes_first_block_uploads_all_its_rows(tmp_path: Path, environ: dict[str, str]) -> None:
    """As its last comment says."""
    first = next(block for block in blocks((ROOT / "README.md").read_text()) if block.language == "python")
    loaded = "import datasets\nprint(datasets.load_dataset('user/rollouts', split='train').num_rows)"
    page = f"```python\n{first.text}{loaded}\n```\n```text\n100\n```\n"
    assert list(problems(page, tmp_path, environ)) == []


@pytest.mark.slow("runs blocks of pages")
@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "it prints"),
        ("```python\n1 / 0\n```\n", "ZeroDivisionError"),
        ("```python\nimport sys; print('careful', file=sys.stderr)\n```\n", "stderr is not empty"),
        ("```python\ndef test_one(local_hub):\n    assert local_hub.commits_served == 1\n```\n", "assert 0 == 1"),
        ("```console\n$ echo one\ntwo\n```\n", "it prints"),
        ("```console\n$ echo one\none\n$ false\n```\n", "exit code 1"),
        ("```console\nhubsync status\n```\n", "a console block has"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
        ("```json\n{'a': 1}\n```\n", "not valid json"),
        ("```\nwhat is this\n```\n", "neither run nor checked"),
        ("```text\noutput of nothing\n```\n", "neither run nor checked"),
        ("<!-- not run: -->\n```python\n1\n```\n", "needs a reason"),
        ("<!-- not run: it needs a real Hub -->\n```python\nprint(\n```\n", "not valid python"),
        ("<!-- not run: it takes hours -->\n```console\n$ python -m benchmarks everything\n```\n", "does not exist"),
        ("<!-- not run: it takes hours -->\n```console\n$ make test ARGS=tests/none.py\n```\n", "none.py does not"),
        ("<!-- not run: it serves until Ctrl-C -->\n```console\n$ hubsync serve\n```\n", "serve does not"),
        ("- in a list\n\n  ```console\n  $ exit 3\n  ```\n", "exit code 3"),
    ],
)  # fmt: skip
def test_a_block_that_fails_is_reported(page: str, wrong: str, tmp_path: Path, environ: dict[str, str]) -> None:
    (found,) = problems(page, tmp_path, environ)
    assert wrong in found


@pytest.mark.slow("runs blocks of pages")
@pytest.mark.parametrize(
    "page",
    [
        "<!-- setup: n = 1 -->\n```python\nprint(n, id(n))\n```\n\n```text\n1 ...\n```\n",
        "```console\n$ echo one; \\\n  echo two\none\n...\n$ false || echo failed\nfailed\n```\n",
        "<!-- setup:\nsay() { echo well; }\n-->\n```console\n$ say\nwell\n```\n",
        "<!-- where: checkout -->\n```console\n$ ls pyproject.toml\npyproject.toml\n```\n",
        "<!-- not run: it needs a real Hub -->\n```python\nraise SystemExit(1)\n```\n",
        "```python\nopen('made', 'w').close()\n```\n\nThen:\n\n```console\n$ ls made\nmade\n```\n",
        "```python\ndef test_one(local_hub):\n    assert local_hub.commits_served == 0\n```\n",
    ],
)
def test_a_block_that_works_is_not_reported(page: str, tmp_path: Path, environ: dict[str, str]) -> None:
    assert list(problems(page, tmp_path, environ)) == []


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", re.sub(r"^ *(```+).*?^ *\1 *$", "", page, flags=re.M | re.S), re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        kept = "".join(c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
        name, number = kept.replace(" ", "-"), 0
        while (numbered := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(numbered)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', page))


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_link_of_a_page_has_a_target(path: Path) -> None:
    page = path.read_text()
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / unquote(name) if name else path
        known = target.exists() and (not anchor or anchor in anchors(target.read_text()))
        broken += [] if known else [link]
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_installs_another_projects_package(path: Path) -> None:
    """`hubsync` on PyPI is another project: pages install `hf-hubsync`, or the checkout by `pip install '.[extra]'`."""
    assert not re.search(r"pip install [^`\n]*(?<![\w-])hubsync\b", path.read_text())


def test_the_readme_names_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = (ROOT / "README.md").read_text().partition("## Install")[2].partition("\n## ")[0]
    assert {*extras} <= {*re.findall(r"`(\w+)`", install), *re.findall(r"\.\[(\w+)\]", install)}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_a_block_needs_no_more_than_the_demos_extra_and_what_its_page_installs(path: Path) -> None:
    page = path.read_text()
    code = "\n".join(block.text for block in blocks(page) if block.language == "python")
    needed = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.M)) - sys.stdlib_module_names
    installed = " ".join(re.findall(r"pip install [^`\n]*", page))
    assert {name for name in needed if name.partition("_")[0] not in installed} <= {"hubsync", "datasets"}


def test_every_environment_variable_is_in_the_table() -> None:
    """Those that hubsync reads, and those that its libraries read."""
    page = (ROOT / "docs" / "reference" / "environment.md").read_text()
    listed = {name for row in re.findall(r"^\| (`.*?) \|", page, re.M) for name in re.findall(r"`(\w+)`", row)}
    sources = sorted((ROOT / "hubsync").rglob("*.py"))
    code = "\n".join(file.read_text() for file in sources if "localhub" not in file.relative_to(ROOT).parts)
    read = set(re.findall(r"""environ(?:\.get)?[\[(]\s*"([A-Z]\w+)""", code)) | set(
        re.findall(r"constants\.(HF_\w+)", code)
    )
    assert read - listed == set(), "read by hubsync, and not in the reference"
    theirs = ""
    for library in (huggingface_hub, httpx):
        theirs += "\n".join(file.read_text() for file in sorted(Path(str(library.__file__)).parent.rglob("*.py")))
    xet = find_spec("hf_xet")  # not imported, because that starts a thread
    assert xet is not None
    theirs += "".join(file.read_bytes().decode("latin-1") for file in Path(str(xet.origin)).parent.glob("*.so"))
    theirs += "\n".join(f"{scheme}_PROXY" for scheme in ("HTTP", "HTTPS", "ALL", "NO"))  # httpx asks urllib.request
    assert {name for name in listed - read if name not in theirs} == set(), "in the reference, and not read"


def test_every_state_and_condition_has_a_line_in_operate() -> None:
    page = (ROOT / "docs" / "how-to" / "operate.md").read_text()
    states = set(re.findall(r"^\| `([a-z ]+)` \|", page.partition("## States")[2].partition("\n## ")[0], re.M))
    assert states == {*get_args(StateKind), *KINDS}


def test_every_public_error_has_a_line_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    errors = set(re.findall(r"`(\w+)`", page))
    roots = {"HubsyncError", "HubError", "BlockedError", "SpoolError", "TransientError", "SpoolBusy"}
    ours = {name for name in hubsync.__all__ if isinstance(getattr(hubsync, name), type)}
    raised = {name for name in ours if issubclass(getattr(hubsync, name), hubsync.HubsyncError)}
    assert raised - roots - errors == set()


def test_the_log_lines_in_the_reference_are_those_of_the_code() -> None:
    table = (ROOT / "docs" / "reference" / "log-messages.md").read_text()
    code = "\n".join(file.read_text() for file in sorted((ROOT / "hubsync").rglob("*.py")))
    logged = re.sub(r"%s|%g s", "…", code)
    lines = [re.sub(r"\b10 s\b|^SystemExit\b", "…", line) for line in re.findall(r"^\| `(.*?)` \|", table, re.M)]
    parts = [part.strip(" .,") for line in lines for part in line.split("…") if part.strip(" .,")]
    assert len(lines) > 3
    assert [part for part in parts if part not in logged] == []
