"""A browser, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboard.browser import browser, chromium


# For the session it can't be: playwright keeps an event loop running in the thread, and other tests run their own.
@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium here, and .ci/chromium.py could not install it")
    with browser(path) as found:
        yield found
