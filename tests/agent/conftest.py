"""An agent in a thread of the test, which looks often and lets go soon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from hubsync import RetryPolicy
from hubsync._runtime.notifiers import threadsafe_callback
from hubsync.agent import agent as module
from hubsync.agent.agent import Agent
from hubsync.localhub import LocalHub
from hubsync.uploader import agent_link
from tests.waiting import until

StartAgent = Callable[..., Agent]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> None:
    for name, seconds in {"_LOOK_S": 0.02, "_IDLE_S": 0.1, "_AGAIN_S": 0.1, "_SHORT_TURN_S": 0.1}.items():
        monkeypatch.setattr(module, name, seconds)
    monkeypatch.setattr(agent_link, "_CHECK_S", 0.05)
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)


@contextmanager
def _running(*directories: Path) -> Iterator[Agent]:
    retry = RetryPolicy(initial_s=0.01, max_s=0.05, blocked_s=0.2, request_timeout_s=5)
    found, stops = list[Agent](), list[Callable[[], None]]()
    failed = list[BaseException]()

    async def main() -> None:
        agent = Agent(directories, retry=retry)
        stops.append(threadsafe_callback(agent.stop))
        found.append(agent)
        await agent.run()

    def run() -> None:
        try:
            anyio.run(main)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: failed or (found and found[0].home.lock.held))
        if failed:
            raise failed[0]
        yield found[0]
    finally:
        for stop in stops:
            stop()
        thread.join()
    if failed:
        raise failed[0]


@pytest.fixture
def start_agent() -> Iterator[StartAgent]:
    """Start an agent, which ends with the test."""
    with ExitStack() as stack:
        yield lambda *directories: stack.enter_context(_running(*directories))
