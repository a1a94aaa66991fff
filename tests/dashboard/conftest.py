"""A browser, where there is one; jobs and pages in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import pytest

from tests.dashboard import browser as programs
from tests.dashboard.browser import browser, chromium
from tests.zygote import Program, Python

Job = Callable[..., AbstractContextManager[Program]]
Page = Callable[..., AbstractContextManager[str]]


# For the session it can't be: playwright keeps an event loop running in the thread, and other tests run their own.
@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium here, and .ci/chromium.py could not install it")
    with browser(path) as found:
        yield found


@pytest.fixture(scope="session")
def job(python: Python) -> Job:
    return partial(programs.job, python)


@pytest.fixture(scope="session")
def page(python: Python) -> Page:
    return partial(programs.page, python)
