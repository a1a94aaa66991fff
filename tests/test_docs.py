"""The pages in `docs/` and what they are made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.pages import PAGES, filled


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_shows_what_the_code_is_and_what_was_measured(path: Path) -> None:
    page = path.read_text()
    assert filled(page) == page, "run python -m benchmarks.pages"
