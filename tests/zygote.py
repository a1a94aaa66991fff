"""Start Python programs by forking a process that has imported everything: a start costs 20 ms, not half a second.

`python.start("-m", "hubsync", "status", env=...)` replaces `subprocess.Popen([sys.executable, "-m", "hubsync",
"status"], env=...)`: a process of its own, with its arguments, environment, directory and standard streams, which gets
signals and ends as the interpreter ends any program. Only the imports are done already. Tests that are about the start
or the end of the interpreter itself (which modules it imports, a closed standard stream, a signal while it is
finalizing) use `subprocess`.

The other side runs as `python -m tests.zygote`. A request is JSON with four file descriptors: the program's standard
streams, and a socket on which its pid and then its end are reported.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NoReturn, Self
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[1]


class Python:
    """Starts programs; one process that is forked, for as long as the block lasts."""

    def __init__(self, executable: str | Path = sys.executable, imports: str = "") -> None:
        """With what hubsync's commands import, and the statements in `imports`."""
        ours, theirs = socket.socketpair()
        self._socket, self._lock = ours, threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [executable, "-m", "tests.zygote", str(theirs.fileno()), imports],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, pass_fds=[theirs.fileno()],
            )  # fmt: skip

    def start(
        self,
        *args: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        new_session: bool = False,
    ) -> Program:
        """Start what `python ARGS` would: `-m MODULE …`, `-c CODE …` or `FILE …`. Streams as `subprocess` has them.

        With `new_session`, it leads a process group of its own.
        """
        streams = [_Stream(given, number) for number, given in enumerate((stdin, stdout, stderr))]
        if stderr == subprocess.STDOUT:
            streams[2] = streams[1]
        reports, theirs = socket.socketpair()
        environ = dict(os.environ if env is None else env)
        request = json.dumps([list(map(str, args)), environ, str(cwd or os.getcwd()), new_session])
        with theirs, self._lock:
            body = request.encode()
            fds = [*(stream.theirs for stream in streams), theirs.fileno()]
            socket.send_fds(self._socket, [len(body).to_bytes(4)], fds)
            self._socket.sendall(body)
        for stream in streams:
            stream.close_theirs()
        return Program(args, reports, *(stream.ours for stream in streams))

    def run(
        self,
        *args: object,
        input: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        merge: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; `merge` puts what it writes to stderr into stdout."""
        stderr = subprocess.STDOUT if merge else subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.start(*args, env=env, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr) as program:
            said, log = program.communicate(input)
        return subprocess.CompletedProcess(program.args, program.wait(), said, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()  # which ends it
        self._process.wait()


class _Stream:
    """One standard stream of a program: its end, and ours where it is a pipe."""

    def __init__(self, given: int | IO[Any] | None, number: int) -> None:
        self.ours: IO[str] | None = None
        self._closes = True
        if given == subprocess.PIPE:
            reading, writing = os.pipe()
            self.theirs = writing if number else reading
            self.ours = os.fdopen(reading, "r") if number else os.fdopen(writing, "w")
        elif given == subprocess.DEVNULL:
            self.theirs = os.open(os.devnull, os.O_RDWR)
        else:
            is_inherited = given is None or given == subprocess.STDOUT
            self._closes = False
            self.theirs = number if is_inherited else given if isinstance(given, int) else given.fileno()

    def close_theirs(self) -> None:
        if self._closes:
            self._closes = False
            os.close(self.theirs)


class Program:
    """A program that was started, as `subprocess.Popen` in text mode."""

    def __init__(
        self,
        args: tuple[object, ...],
        reports: socket.socket,
        stdin: IO[str] | None,
        stdout: IO[str] | None,
        stderr: IO[str] | None,
    ) -> None:
        self.args = list(map(str, args))
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | None = None
        self._reports = reports
        self._lines = reports.makefile("r")
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._reports], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the program's end."""
        while self.returncode is None:
            if not select.select([self._reports], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._read()
        return self.returncode

    def wait_until_it_stops(self) -> None:
        """Wait until SIGSTOP has stopped the program; fail where it ends instead."""
        assert self._read() == "stopped", f"it has ended with {self.returncode}"

    def _read(self) -> str:
        word = self._lines.readline().strip()
        assert word, "the zygote has died"
        if word != "stopped":
            self.returncode = int(word)
        return word

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: str | None = None) -> tuple[str, str]:
        """Write `input`, read the rest of both streams, and wait for the end."""
        found: dict[str, str] = {}

        def read(name: str, stream: IO[str] | None) -> None:
            found[name] = "" if stream is None else stream.read()

        def write() -> None:
            if self.stdin is not None:
                with suppress(BrokenPipeError):  # at the close as well
                    self.stdin.write(input or "")
                with suppress(BrokenPipeError):
                    self.stdin.close()

        work = [
            threading.Thread(target=write),
            threading.Thread(target=read, args=("stdout", self.stdout)),
            threading.Thread(target=read, args=("stderr", self.stderr)),
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        self.wait()
        return found["stdout"], found["stderr"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it still runs, and close its streams."""
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._lines.close()
        self._reports.close()


def share_certificates() -> None:
    """Read the machine's certificates once a process: each HTTP client reads them anew, which takes it 20 ms."""
    import httpx._transports.default as transports

    create, known = transports.create_ssl_context, {}

    def create_or_share(verify: Any = True, cert: Any = None, trust_env: bool = True) -> Any:
        if verify is not True or cert is not None or not trust_env:
            return create(verify=verify, cert=cert, trust_env=trust_env)
        places = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        if places not in known:
            known[places] = create()
        return known[places]

    create_or_share()
    transports.create_ssl_context = create_or_share


# The other side.


def _serve(control: socket.socket) -> Any:
    """Fork for each request; return it in the child. Exits when the tests' side closes the socket."""
    running: dict[int, socket.socket] = {}
    woken, waking = os.pipe()
    for fd in (woken, waking):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests; they close the socket then
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _report_ends(running)
        if control in ready:
            head, fds, _, _ = socket.recv_fds(control, 4, 4)
            if not head:
                sys.exit(0)
            body = b""
            while len(body) < int.from_bytes(head):
                body += control.recv(int.from_bytes(head) - len(body))
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                control.close()
                for other in running.values():
                    other.close()
                for number in range(3):
                    os.dup2(fds[number], number)
                for fd in (*fds, woken, waking):
                    os.close(fd)
                return json.loads(body)
            for fd in fds[:3]:
                os.close(fd)
            running[pid] = socket.socket(fileno=fds[3])
            running[pid].sendall(b"%d\n" % pid)


def _report_ends(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if not found:
            continue
        with suppress(OSError):  # no test waits for it any more
            if os.WIFSTOPPED(status):
                running[pid].sendall(b"stopped\n")
            else:
                running[pid].sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        if not os.WIFSTOPPED(status):
            running.pop(pid).close()


def _load() -> None:
    """Import what programs need that do not import datasets, which is large: a fork of a large process takes longer."""
    import click
    import hf_xet  # noqa: F401
    import huggingface_hub.hf_api  # noqa: F401
    import rich.live
    import rich.table  # noqa: F401

    import hubsync.cli.jsonl_writer
    import hubsync.cli.stdin_reader
    import hubsync.destinations.hub.dataset
    import hubsync.destinations.hub.lfs
    import hubsync.maintenance.drain
    import hubsync.maintenance.quarantine
    import hubsync.maintenance.verify  # noqa: F401
    from hubsync.cli.main import COMMANDS, cli
    from hubsync.destinations.hub import card, transport

    for name in COMMANDS:
        cli.get_command(click.Context(cli), name)
    for module in (
        "anyio._backends._asyncio",
        "httpcore",
        "opentelemetry.metrics",
        "opentelemetry.trace",
        "pyarrow.parquet",
    ):
        with suppress(ImportError):  # not every environment has all of them
            importlib.import_module(module)
    card.preload()
    share_certificates()
    transport._certificates()


def _set_environment(environ: dict[str, str]) -> None:
    """Take over a program's environment; what was imported has read its constants from another one."""
    os.environ.clear()
    os.environ.update(environ)
    for name in ("huggingface_hub.constants", "datasets.config"):
        if name in sys.modules:
            _read_again(sys.modules[name])
    if "huggingface_hub.hf_api" in sys.modules:
        _point_huggingface_hub_at_its_endpoint()
    sys.path[:0] = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path not in (*sys.path, "")]


def _read_again(constants: types.ModuleType) -> None:
    """Import a module anew, also for those of its package that have taken single constants from it."""
    before = dict(vars(constants))
    importlib.reload(constants)
    changed = {name: value for name, value in vars(constants).items() if before.get(name) is not value}
    package = constants.__name__.partition(".")[0] + "."
    for name, module in list(sys.modules.items()):
        if name.startswith(package) and module is not constants:
            for constant in changed.keys() & vars(module).keys():
                if vars(module)[constant] is before.get(constant):
                    setattr(module, constant, changed[constant])


def _point_huggingface_hub_at_its_endpoint() -> None:
    """What it has computed of its constants at its import."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    hf_api.api.endpoint = constants.ENDPOINT
    if hasattr(_http, "_HUB_ORIGINS"):
        address = urlsplit(constants.ENDPOINT)
        _http._HUB_ORIGINS = frozenset({*_http._HUB_ORIGINS, (address.scheme, address.hostname, address.port)})


def _open_streams() -> None:
    """Make the standard streams anew, as the interpreter does at its start."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for name, fd, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
        stream = open(fd, "w", errors=errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=fd == 2 or os.isatty(fd))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run(args: list[str]) -> None:
    """Run `python ARGS` in this process."""
    kind, *rest = args
    if kind == "-m":
        sys.argv = [rest[0], *rest[1:]]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.argv = args
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


def _end(run: Callable[[], None]) -> NoReturn:
    """Run a program and end it as the interpreter would, but for the modules, which take longer to tear down."""
    code = 0
    try:
        run()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ValueError:  # it was closed
            pass
        except OSError:
            code = 120
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def main() -> None:
    sys.path.remove(str(ROOT))  # of `-m`; PYTHONPATH has it too
    _load()
    exec(sys.argv[2], {})
    gc.collect()
    gc.freeze()  # a child copies no page because its objects are counted
    args, environ, directory, new_session = _serve(socket.socket(fileno=int(sys.argv[1])))
    if new_session:
        os.setsid()
    os.chdir(directory)
    _set_environment(environ)
    _open_streams()
    _end(lambda: _run(args))


if __name__ == "__main__":
    main()
