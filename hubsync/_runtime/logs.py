"""Log without waiting for it.

A log record may have to wait: for a terminal that was stopped, a pipe that no one reads, a lock of a handler whose
thread waits for hubsync. So what is logged in hubsync's threads (also by the HTTP client there), and within a
transaction, is emitted by a thread that no one waits for. Everything else is logged as usual.
"""

from __future__ import annotations

import _thread
import logging
import sys
from collections.abc import Callable
from queue import SimpleQueue

import anyio

from hubsync._runtime.fork import after_fork_in_child
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync._runtime.threads import Marker, own_thread

_LOGGERS = (
    "hubsync", "asyncio", "httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy",
    "httpcore.socks",
)  # fmt: skip
_WAIT_S = 1.0  # how long `wait_for_logs` waits

transaction = Marker()
"""Marks transactions of a spool: other processes may wait for their end."""


class _Emitter:
    """Emits records in a thread of its own, which starts with the first one."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[logging.LogRecord | Callable[[], object]] = SimpleQueue()
        self._starter: dict[int, object] = {}  # whoever came first, under the key 0
        self._ident: int | None = None
        self.is_stuck = False

    def put(self, record: logging.LogRecord) -> None:
        self._waiting.put(record)
        if self._starter.setdefault(0, record) is record:
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError:  # the machine cannot start a thread now; the next record tries again
                self._starter.clear()

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        while True:
            item = self._waiting.get()
            try:
                if isinstance(item, logging.LogRecord):
                    _emit(item)
                else:
                    item()
            except Exception:  # noqa: BLE001  (of a handler; the next record may succeed)
                sys.excepthook(*sys.exc_info())
            self.is_stuck = False

    def call_when_emitted(self, callback: Callable[[], object]) -> bool:
        """Call `callback` once everything logged so far is emitted; return False if there is nothing to wait for."""
        if not self._starter or self.is_stuck or self._ident == _thread.get_ident():
            return False
        self._waiting.put(callback)
        return True


def wait_for_logs() -> None:
    """Let what hubsync logged so far appear before what the job logs next, unless that takes long."""
    emitted = OneShotEvent()
    if not own_thread.depth and _emitter.call_when_emitted(emitted.set):
        _emitter.is_stuck = not emitted.wait(_WAIT_S)


async def wait_for_logs_async() -> None:
    """Like `wait_for_logs`, without blocking the event loop."""
    emitted = anyio.Event()
    if _emitter.call_when_emitted(threadsafe_callback(emitted.set)):
        with anyio.move_on_after(_WAIT_S) as scope:
            await emitted.wait()
        _emitter.is_stuck = scope.cancelled_caught


def _handle(record: logging.LogRecord) -> None:
    if own_thread.depth or transaction.depth:
        # Filtered here, not only by the thread that emits it: what hides the secrets of a request knows them only here.
        if logging.getLogger(record.name).filter(record):
            _emitter.put(record)
    else:
        _emit(record)


def _emit(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    type(logger).handle(logger, record)


_emitter = _Emitter()
for _name in _LOGGERS:  # a handler of ours would come too late: the lock of another one may be what is held
    logging.getLogger(_name).handle = _handle  # type: ignore[method-assign]


@after_fork_in_child
def _forget_parents_records() -> None:
    global _emitter
    _emitter = _Emitter()
