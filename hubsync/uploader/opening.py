"""Opening an uploader: its thread builds the engine, while the caller waits for the result or gives up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hubsync.uploader.engine import Engine


class Opening:
    """One attempt to open an uploader. The engine's thread reports to it, as to an anyio `TaskStatus`.

    Attributes:
        engine: what the thread built.
        error: why it failed.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self._wake = wake
        self._is_abandoned = False
        self._has_ended = False
        self._lock = threading.Lock()

    def built(self, engine: Engine) -> Engine:
        """The engine exists; it is about to run."""
        with self._lock:
            self.engine = engine
            if self._is_abandoned:
                engine.stop()
        return engine

    def started(self, value: object = None) -> None:
        """The engine has checked access."""
        self._wake()

    def failed(self, error: BaseException) -> None:
        """The engine could not be built, or has failed since."""
        if self.engine is not None:
            self.engine.failure = error = self.engine.failure or error
        self.error = error

    def ended(self) -> None:
        """The thread is about to end."""
        with self._lock:
            self._has_ended = True
            self._discard()
        self._wake()

    def abandon(self) -> None:
        """The caller no longer waits: what the thread opens, it closes."""
        with self._lock:
            self._is_abandoned = True
            if self.engine is not None:
                self.engine.stop()
            self._discard()

    def _discard(self) -> None:
        if self._is_abandoned and self._has_ended and self.engine is not None:
            for writer in self.engine.spool_thread.writers:  # in case the event loop never began
                writer.close()
            self.engine.spool.close()
