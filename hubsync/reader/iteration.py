"""Iterate with `for` or `async for` over what a dataset on the Hub holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio

from hubsync._runtime.clock import Clock
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.destinations.resolve import online_destination, target_of
from hubsync.policies import RetryPolicy

T = TypeVar("T")


class HubIterator(Generic[T]):
    """An iterator whose items come from the Hub. It closes its connections at its end, or when it is closed."""

    _runner: _LoopRunner | None = None
    _hub: HubDataset | None = None

    def __init__(self, repo: str, revision: str, endpoint: str | None, token: str | None, clock: Clock) -> None:
        self._target = target_of(repo, endpoint, revision)
        self._secret = None if token is None else Secret(token)
        del token  # a crash report of an error raised below would show it
        self._clock = clock

    def _take(self) -> T | None:
        """Return the next item that was fetched."""
        raise NotImplementedError

    async def _fetch(self) -> bool:
        """Fetch more items; return False at the end."""
        raise NotImplementedError

    def _open_hub(self) -> HubDataset:
        if self._hub is None:
            self._hub = online_destination(self._target, self._secret, RetryPolicy())
        return self._hub

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while (item := self._take()) is None:
            if self._runner is None:
                self._runner = _LoopRunner()
            if not self._runner.run(self._fetch):
                self.close()
                raise StopIteration
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while (item := self._take()) is None:
            if not await self._fetch():
                await self.aclose()
                raise StopAsyncIteration
        return item

    def close(self) -> None:
        """Stop an iteration by `for`. Closing twice is harmless."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.run(self.aclose)
            runner.close()

    async def aclose(self) -> None:
        """Stop an iteration by `async for`. Closing twice is harmless."""
        hub, self._hub = self._hub, None
        if hub is not None:
            with anyio.CancelScope(shield=True):
                await hub.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._runner is not None:
            with suppress(Exception):  # the interpreter may be shutting down, which closes the sockets anyway
                self._runner.discard()


class _LoopRunner:
    """Runs coroutines one after another in its own event loop.

    If this thread already runs a loop, as in a notebook, it uses another thread. Nothing runs between two coroutines,
    so nothing delays the process's exit.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._outside_loops(lambda: self._runner.run(work()))

    def close(self) -> None:
        self._outside_loops(self._runner.close)
        if self._thread is not None:
            self._thread.shutdown()

    def discard(self) -> None:
        """Close the loop without running it: a garbage collection may happen in any thread, also inside a loop."""
        self._runner.get_loop().close()
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _outside_loops(self, work: Callable[[], T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return work()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "hubsync reader")
        return self._thread.submit(work).result()
