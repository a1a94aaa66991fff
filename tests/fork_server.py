"""Runs Python programs in forks of a process that has imported what they need: a start costs 20 ms, not a second.

`ForkServer` starts the server and writes stand-ins for `python`, `hubsync` and `hf` into a directory. With it first on
PATH, scripts start these programs as they always do:

    stand-in ── argv, environ, cwd, stdin, stdout, stderr ──> server ──> warm server ── forks ──> the program

The server imports third-party packages only. huggingface_hub, datasets and hubsync read the environment when they are
imported, so they are imported in a warm server: a fork for each environment that is asked for. The program itself is a
process of its own, with a `__main__` of its own, its own exit code and a normal end of the interpreter.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

ROOT = Path(__file__).parents[1]
# No package here may change what hubsync does merely because it is loaded, as opentelemetry or IPython would.
THIRD_PARTY = (
    "anyio._backends._asyncio", "click", "dill", "fsspec", "h11", "httpcore", "httpx", "hypothesis.extra.pytestplugin",
    "lz4.frame", "msgspec", "multiprocess", "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "pytest",
    "pytest_asyncio.plugin", "rich.console", "rich.markdown", "rich.progress", "starlette.applications", "tqdm.auto",
    "uvicorn", "xdist.plugin", "xxhash", "yaml",
)  # fmt: skip
READ_THE_ENVIRONMENT = ("huggingface_hub.hf_api", "huggingface_hub.repocard", "datasets", "hubsync")
SET_BY_THE_SHELL = {"PWD", "OLDPWD", "SHLVL", "_"}  # differ at every start, and no package reads them
PROGRAMS = {"hubsync": "hubsync.cli:main", "hf": "huggingface_hub.cli.hf:main"}
_LONGEST = 1 << 16  # bytes of a request

_STAND_IN = """\
#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = [[os.path.basename(sys.argv[0]), *sys.argv[1:]], dict(os.environ), os.getcwd()]
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
pid = int(server.recv(64))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(server.recv(64) or 1)
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class ForkServer:
    """The server, and a directory with stand-ins for the programs that it runs.

    Args:
        directory: An empty directory for the stand-ins and the socket. Its path must be short (a socket's: 108 bytes).
    """

    def __init__(self, directory: Path) -> None:
        self.programs = directory / "bin"
        self.programs.mkdir()
        address = directory / "socket"
        for name in ("python", *PROGRAMS):
            (self.programs / name).write_text(_STAND_IN.format(python=sys.executable, address=str(address)))
            (self.programs / name).chmod(0o755)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(address))
        listener.listen()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(listener.fileno())],
            pass_fds=[listener.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"}, process_group=0,
        )  # fmt: skip
        listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the warm servers and their programs as well
        self._process.wait()


def serve(listener: socket.socket) -> NoReturn:
    """Pass each request on to the warm server of its environment."""
    _load(THIRD_PARTY)
    warm: dict[str, socket.socket] = {}
    while True:
        client, _ = listener.accept()
        message, fds, _, _ = socket.recv_fds(client, _LONGEST, 3)
        if message:
            _, environ, _ = json.loads(message)
            key = json.dumps({name: value for name, value in environ.items() if name not in SET_BY_THE_SHELL})
            if key not in warm:
                warm[key], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                if os.fork() == 0:
                    for other in (listener, client, *warm.values()):
                        other.close()
                    for fd in fds:
                        os.close(fd)
                    _be(environ)
                    Warm(theirs).serve()
                theirs.close()
            socket.send_fds(warm[key], [message], [client.fileno(), *fds])
            for fd in fds:
                os.close(fd)
        client.close()


class Warm:
    """Forks a program for each request, and answers its client with the pid and then the exit code."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._clients: dict[int, socket.socket] = {}  # by the program's pid
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Return only in a fork that has run its program."""
        _load(READ_THE_ENVIRONMENT)
        gc.freeze()  # a collection in a fork would copy every page of memory
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        self._selector.register(read, selectors.EVENT_READ)
        self._selector.register(self._requests, selectors.EVENT_READ)
        while True:
            for ready, _ in self._selector.select():
                if ready.fd == read:
                    os.read(read, 4096)
                    self._reap()
                elif ready.fileobj is self._requests:
                    self._start()
                elif ready.data in self._clients:  # it was killed, and so is its program
                    os.kill(ready.data, signal.SIGKILL)
                    self._selector.unregister(ready.fileobj)

    def _start(self) -> None:
        message, fds, _, _ = socket.recv_fds(self._requests, _LONGEST, 4)
        if not message:
            os._exit(0)
        client, *standard = socket.socket(fileno=fds[0]), *fds[1:]
        argv, environ, cwd = json.loads(message)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, fd in enumerate(standard):
                os.dup2(fd, number)
                os.close(fd)
            for other in (client, self._requests, *self._clients.values()):
                other.close()
            self._selector.close()
            _be(environ)
            os.chdir(cwd)
            _run(argv)
        client.send(str(pid).encode())
        for fd in standard:
            os.close(fd)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                client = self._clients.pop(pid)
                with suppress(KeyError):
                    self._selector.unregister(client)
                with suppress(OSError):
                    client.send(str(os.waitstatus_to_exitcode(status)).encode())
                client.close()


def _load(names: tuple[str, ...]) -> None:
    for name in names:
        with suppress(ImportError):  # an extra that is not installed here
            importlib.import_module(name)


def _be(environ: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environ)


def _run(argv: list[str]) -> NoReturn:
    """Run a program as Python runs it: `python FILE`, `-m MODULE` or `-c CODE`, or one of `PROGRAMS`."""
    name, *arguments = argv
    code: object = None
    _names: dict[str, object] = {}  # the program's, which live until its end
    try:
        if name in PROGRAMS:
            module, _, function = PROGRAMS[name].partition(":")
            sys.argv = [name, *arguments]
            code = getattr(importlib.import_module(module), function)()
        elif arguments[:1] == ["-m"]:
            sys.argv, sys.path[0] = arguments[1:], os.getcwd()
            _names = runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[:1] == ["-c"]:
            sys.argv, sys.path[0] = ["-c", *arguments[2:]], os.getcwd()
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        elif arguments and Path(arguments[0]).is_file():
            sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent.resolve())
            _names = runpy.run_path(arguments[0], run_name="__main__")
        else:
            os.execv(sys.executable, [sys.executable, *arguments])
    except SystemExit as error:
        code = error.code
    except Exception:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    _end(code if isinstance(code, int) else 1 if code else 0)


def _end(code: int) -> NoReturn:
    """End as the interpreter does, but leave the modules alone: to destroy all that was imported takes 0.3 s."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
