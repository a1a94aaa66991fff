"""Hooks of the documentation site, called by mkdocs while it builds.

The pages are also read in the repository, so they link to files outside `docs/` by relative paths. The site includes
the files that readers look at (the examples, the figures of the benchmarks, the changelog). A link to any other file of
the repository keeps its text and loses its target. A link to a file that does not exist fails the build.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = PurePosixPath("docs")
# Files outside `docs/` that are part of the site, and the folder of the site that they are in.
INCLUDED = {
    "ARCHITECTURE.md": "project",
    "CHANGELOG.md": "project",
    "CONTRIBUTING.md": "project",
    "SECURITY.md": "project",
    "LICENSE": "project",
    "examples/*": "examples",
    "benchmarks/results/*.png": "benchmarks",
}
_PART = re.compile(
    r"(?P<comment><!--.*?-->\n?)|(?P<code>^ *```.*?^ *``` *$|`[^`\n]+`)"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)",
    re.M | re.S,
)


def included() -> dict[str, str]:
    """Return the path in the site of each file outside `docs/` that is part of it, by its path in the repository."""
    found = {}
    for pattern, folder in INCLUDED.items():
        for file in sorted(ROOT.glob(pattern)):
            if file.is_file():
                name = "index.md" if file.name == "README.md" else file.name
                found[file.relative_to(ROOT).as_posix()] = f"{folder}/{name}"
    return found


def in_the_site(markdown: str, page: str, paths: dict[str, str]) -> str:
    """Return a page with its links to files outside `docs/` as the site needs them, and without comments.

    Args:
        markdown: The page's text.
        page: Its path in the repository.
        paths: What `included` returns.
    """
    here = paths.get(page, page.removeprefix("docs/"))

    def part(found: re.Match[str]) -> str:
        if found["comment"]:
            return ""
        target, anchor = found["target"], found["anchor"] or ""
        if found["code"] or re.match(r"[a-z]+:", target):
            return found[0]
        file = os.path.normpath(PurePosixPath(page).parent / target)
        if not (ROOT / file).exists():
            return found[0]  # mkdocs reports it
        if PurePosixPath(file).is_relative_to(DOCS):
            there = str(PurePosixPath(file).relative_to(DOCS))
        elif file in paths:
            there = paths[file]
        else:
            return found["text"]
        return f"{found['image']}[{found['text']}]({os.path.relpath(there, PurePosixPath(here).parent)}{anchor})"

    return _PART.sub(part, markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/`."""
    from mkdocs.structure.files import File

    for path, there in included().items():
        files.append(File.generated(config, there, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page."""
    paths = included()
    there = {site: path for path, site in paths.items()}
    return in_the_site(markdown, there.get(page.file.src_uri, f"docs/{page.file.src_uri}"), paths)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail the build if a page of the site loads anything from elsewhere."""
    from mkdocs.exceptions import PluginError

    found = [
        f"{file.relative_to(config.site_dir)}: {asset}"
        for file in sorted(Path(config.site_dir).rglob("*"))
        if file.suffix in (".html", ".css")
        for asset in external_assets(file.suffix, file.read_text())
    ]
    if found:
        raise PluginError("the site loads external assets:\n" + "\n".join(found))


def external_assets(suffix: str, text: str) -> list[str]:
    """Return the addresses of other servers that a browser loads on its own to show this page or stylesheet."""
    found: list[str] = re.findall(r"""(?:url\(|@import)\s*["']?([^"')\s]+)""", text)
    if suffix == ".html":
        loaded = _Loaded()
        loaded.feed(text)
        found += loaded.urls
    return [url for url in found if re.match(r"(?:[a-z]+:)?//", url)]


class _Loaded(HTMLParser):
    """Collects what the tags of a page load."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += _loads(tag, {name: value or "" for name, value in attrs})


def _loads(tag: str, attrs: dict[str, str]) -> Iterator[str]:
    if tag == "link" and not {"canonical", "next", "prev", "alternate", "edit"} & set(attrs.get("rel", "").split()):
        yield attrs.get("href", "")
    elif tag != "a":
        yield from (attrs[name] for name in ("src", "data", "poster") if name in attrs)
        yield from (part.split()[0] for part in attrs.get("srcset", "").split(",") if part.strip())
