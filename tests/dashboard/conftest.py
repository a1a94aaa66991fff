"""A browser for the whole session, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboard.browser import browser, chromium


@pytest.fixture(scope="session")
def chrome() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium, and it can't be installed here (apt-get install chromium, as root)")
    with browser(path) as found:
        yield found
