"""The site: links to files outside docs/, and that it loads nothing from elsewhere. `make docs` builds it."""

from __future__ import annotations

import importlib.util

import pytest
import yaml

from tests.snippets import ROOT

_spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
assert _spec is not None
assert _spec.loader is not None
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("docs/index.md", "[a](quickstart.md#load-them)", "[a](quickstart.md#load-them)"),
        ("docs/index.md", "[a](../ARCHITECTURE.md)", "[a](project/ARCHITECTURE.md)"),
        ("docs/concepts/performance.md", "![a](../../benchmarks/results/loss.png)", "![a](../benchmarks/loss.png)"),
        ("docs/how-to/resume-after-a-crash.md", "[a](../../examples/README.md)", "[a](../examples/index.md)"),
        ("ARCHITECTURE.md", "[a](docs/glossary.md)", "[a](../glossary.md)"),
        ("ARCHITECTURE.md", "[`spool`](hubsync/spool)", "`spool`"),
        ("examples/README.md", "[a](plain_loop.py)", "[a](plain_loop.py)"),
        ("docs/index.md", "[a](https://example.com)", "[a](https://example.com)"),
        ("docs/index.md", "[a](../nothing.md)", "[a](../nothing.md)"),
        ("docs/index.md", "`[a](../ARCHITECTURE.md)`", "`[a](../ARCHITECTURE.md)`"),
        ("docs/index.md", "<!-- not run: why -->\n```text\n<!-- b -->\n```", "```text\n<!-- b -->\n```"),
    ],
)
def test_a_link_leads_to_where_the_site_has_the_file(page: str, written: str, shown: str) -> None:
    assert hooks.in_the_site(written, page, hooks.included()) == shown


@pytest.mark.parametrize(
    ("suffix", "text", "found"),
    [
        (".html", '<script src="https://cdn.example/a.js"></script>', ["https://cdn.example/a.js"]),
        (".html", '<link rel="stylesheet" href="//fonts.example/a.css">', ["//fonts.example/a.css"]),
        (".html", '<img srcset="a.png 1x, https://b.example/b.png 2x">', ["https://b.example/b.png"]),
        (".html", "<style>body { background: url('https://c.example/c.png') }</style>", ["https://c.example/c.png"]),
        (".css", '@import "https://d.example/d.css";', ["https://d.example/d.css"]),
        (".html", '<a href="https://example.com">a</a><link rel="canonical" href="https://example.com">', []),
        (".html", '<script src="assets/a.js"></script><img src="data:image/png;base64,AAAA">', []),
        (".css", "a { background: url(data:image/svg+xml;charset=utf-8,<svg/>) }", []),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(suffix: str, text: str, found: list[str]) -> None:
    assert hooks.external_assets(suffix, text) == found


def test_the_navigation_has_every_page() -> None:
    """mkdocs finds this as well, but not before `make docs`."""
    nav = yaml.load(
        (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\nextra_css")[0], yaml.SafeLoader
    )
    shown: set[str] = set()

    def add(entries: list[object]) -> None:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                add(value) if isinstance(value, list) else shown.add(value)

    add(nav)
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("decisions/")} - shown == set()
    assert shown - pages - set(hooks.included().values()) == set()
