"""`LocalHub`, the embedded Hub with its own thread, event loop and port, and `serve`, the same as a blocking command.

A stop and a later start keep the directory and the port. A stop in the middle of a job is therefore a real outage:
connections are refused, and later the Hub is back with all it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from hubsync.localhub.app import App
from hubsync.localhub.control import RequestLog, Served, is_loopback
from hubsync.localhub.faults import Faults
from hubsync.localhub.limits import Limits
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.store import Role

DEFAULT_USERS: Mapping[str, str] = {"user": "hf_localhub_user"}
_START_S = 10.0


class _Protocol(H11Protocol):
    """Puts the connection's transport into each request's state, so that a fault or a stop can abort it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)

    def abort(self) -> None:
        self.transport.abort()


class LocalHub:
    """A Hub on 127.0.0.1, stored in a directory. Use it as a context manager, or start and stop it.

    Args:
        directory: Where everything is stored; default: a temporary directory, removed by `close`.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        users: Names and their write tokens; the first is the default user.
        clock: Gives Unix time in seconds.
        generator: Decides whether a fault with a probability strikes; a seeded one makes this repeatable.
        **limits: Fields of `Limits`, such as `commits_per_hour=128`; the others are as on the real Hub.

    Attributes:
        faults: What goes wrong, a `Faults`.
        limits: What it allows, a `Limits` whose fields may be set at any time.

    Raises:
        ValueError: A limit is unknown or has a wrong value.
    """

    def __init__(
        self,
        directory: str | Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
        generator: random.Random | None = None,
        **limits: Any,
    ) -> None:
        self.limits = Limits()
        self.limits.update(**limits)
        self._temporary = tempfile.TemporaryDirectory(prefix="localhub-") if directory is None else None
        self.directory = Path(self._temporary.name if self._temporary is not None else directory or ".").absolute()
        self.host, self.port = host, port
        self._users = dict(users or DEFAULT_USERS)
        self.user, self.token = next(iter(self._users.items()))
        self._clock = clock
        self.faults = Faults(generator)
        self._log = RequestLog()
        self._opened: HubState | None = None
        self._runner: _Runner | None = None

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalHub({str(self.directory)!r}, {self.endpoint if self.port else 'not started'})"

    # Start and stop

    def start(self) -> LocalHub:
        """Listen, and return when the Hub answers.

        Raises:
            OSError: The port is taken.
        """
        if self._runner is not None:
            return self
        # asyncio turns Nagle's algorithm off only if the protocol is named; with it, every response takes 40 ms.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self.host, self.port))
            listener.listen(2048)
            self.port = listener.getsockname()[1]
            state = self._state
        except BaseException:
            listener.close()
            raise
        state.endpoint = self.endpoint
        self._runner = _Runner(App(state, self.faults, self._log), listener)
        self._runner.start()
        return self

    def stop(self) -> None:
        """Stop listening and drop every connection. State, directory and port are kept for the next `start`."""
        if self._runner is not None:
            self._runner.stop()
            self._runner = None
            self._state.release_loop()

    def close(self) -> None:
        """Stop, close the database, and remove a temporary directory."""
        self.stop()
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def _state(self) -> HubState:
        """The state on disk, opened at its first use."""
        if self._opened is None:
            self._opened = HubState(self.directory, self.limits, self._clock)
            for name, token in self._users.items():
                self.add_user(name, token)
        return self._opened

    # Its address and its users

    @property
    def endpoint(self) -> str:
        """The address for `HF_ENDPOINT`; the port is known after the first start."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def environ(self) -> dict[str, str]:
        """Return the environment variables that point a child process at this Hub as its default user."""
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token}

    def add_user(
        self,
        name: str,
        token: str | None = None,
        *,
        role: Role = "write",
        expires_at: float | None = None,
        fullname: str | None = None,
    ) -> str:
        """Register a user, or another token of a known user.

        Args:
            name: The user's name.
            token: The token; default: a new one.
            role: What the token allows.
            expires_at: When the token expires, in the clock's seconds; None for never.
            fullname: The user's full name; default: the name.

        Returns:
            The token.
        """
        self._state.store.add_account(name, "user", fullname or name)
        return self._state.store.add_token(token, name, role, expires_at)

    def add_org(
        self, name: str, members: Iterable[str], *, fullname: str | None = None, private_by_default: bool = False
    ) -> None:
        """Register an organization, all of whose members may write."""
        self._state.store.add_account(name, "org", fullname or name, private=private_by_default)
        for member in members:
            self._state.store.add_member(name, member)

    def revoke(self, token: str) -> bool:
        """Make a token invalid from now on; return False if it is unknown."""
        return self._state.store.revoke(token)

    # What it served

    def requests(self, operation: str | None = None) -> tuple[Served, ...]:
        """Return the requests that were served, or those of one operation, oldest first."""
        return self._log.served(operation)

    def counters(self) -> dict[str, int]:
        """Return the number of requests by operation."""
        return self._log.counters()

    def clear_requests(self) -> None:
        """Forget all requests that were served."""
        self._log.clear()

    @property
    def commits_served(self) -> int:
        """The number of commits that were answered with success."""
        return sum(item.status == 200 for item in self._log.served("commit"))


class _Runner:
    """A thread with an event loop that serves `app` on `listener`.

    It uses uvicorn's protocol without its `Server`, which starts and stops in steps of 0.1 s and does not end running
    requests.
    """

    def __init__(self, app: App, listener: socket.socket) -> None:
        self._app = app
        self._listener = listener
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="localhub", daemon=True)

    def start(self) -> None:
        self._thread.start()
        if not self._started.wait(_START_S):
            raise RuntimeError("the embedded Hub did not start")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, contextlib.suppress(asyncio.CancelledError):
            runner.run(self._serve())

    async def _serve(self) -> None:
        config = uvicorn.Config(
            self._app, http=_Protocol, ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, server_header=False, date_header=False, proxy_headers=False, timeout_keep_alive=60,
        )  # fmt: skip
        config.load()
        state = ServerState()
        server = await self._loop.create_server(
            lambda: _Protocol(config=config, server_state=state, app_state={}), sock=self._listener, backlog=2048
        )
        async with anyio.create_task_group() as tasks:
            self._app.tasks = tasks
            self._started.set()
            await self._stopping.wait()
            server.close()
            for connection in list(state.connections):
                if isinstance(connection, _Protocol):
                    connection.abort()
            running = list(state.tasks)
            for task in running:
                task.cancel()
            # A step that has begun in a worker thread must finish before the store may be closed.
            await asyncio.gather(*running, return_exceptions=True)
            tasks.cancel_scope.cancel()


def serve(
    directory: str | Path,
    host: str = "127.0.0.1",
    port: int = 0,
    users: Mapping[str, str | None] | None = None,
    orgs: Mapping[str, Iterable[str]] | None = None,
    *,
    say: Callable[[str], None] = print,
    **limits: Any,
) -> None:
    """Run a Hub in the foreground until SIGINT or SIGTERM.

    Args:
        directory: Where everything is stored.
        host: The address to listen on.
        port: The port to listen on; 0 for a free one.
        users: Names and their write tokens, None for a new one, which is printed once; default: one user.
        orgs: Organizations and their members.
        say: Gets the lines for the person who runs it.
        **limits: Fields of `Limits`.
    """
    tokens = {name: token or f"hf_{secrets.token_hex(17)}" for name, token in (users or DEFAULT_USERS).items()}
    stopped = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with LocalHub(directory, host=host, port=port, users=tokens, **limits) as hub:
            if not is_loopback(host):
                say(f"warning: {host} is not a loopback address; whoever reaches it can use this Hub")
            say(f"the embedded Hub is at {hub.endpoint}, in {hub.directory}")
            say("  ".join(f"export {name}={value}" for name, value in hub.environ().items()))
            for org, members in (orgs or {}).items():
                hub.add_org(org, members)
            for name, token in (users or {}).items():
                if token is None and name != hub.user:
                    say(f"user {name} has a new token: {tokens[name]}")
            stopped.wait()
            say("stopping; the state is kept")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
