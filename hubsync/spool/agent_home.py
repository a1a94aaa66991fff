"""How the jobs of a host and its agent find each other: the directory `agent/` in the home of the default spools.

HOME/agent/lock        held by the agent, which refreshes it
/spools/           a link to each spool that is elsewhere, made by the uploader that opens it
/agent.log         what an agent that a job started writes
/start.lock        held by the job that starts one
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.file_lock import FileLock
from hubsync.errors import ConfigError, SpoolError
from hubsync.model.target import default_home

IDLE_S = 600.0  # after which an agent that a job started ends, if no job has a spool open
_START_S = 20.0  # the longest time that an agent may take to start
_POLL_S = 0.05
_STALE_LINK_S = 7 * 86_400.0  # a link to a spool that no longer exists is kept so long: its disk may come back

# Run by a process between the job and the agent, so that the agent is neither a child of the job nor in its session.
_DETACH = """
import os, sys
if os.fork() == 0:
    os.setsid()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


class AgentHome:
    """The directory in which the agent of this host and user is found."""

    def __init__(self) -> None:
        """Use the directory that the environment names now.

        Raises:
            ConfigError: it names none.
        """
        self.spools = default_home()  # the default ones
        self.directory = self.spools / "agent"
        self.lock = FileLock(self.directory / "lock")
        self._links = self.directory / "spools"
        self._log = self.directory / "agent.log"

    @property
    def start_command(self) -> str:
        """What a person runs to start the agent that serves this home."""
        home = os.environ.get("HUBSYNC_HOME")
        return f"HUBSYNC_HOME={shlex.quote(home)} hubsync agent" if home else "hubsync agent"

    def create(self) -> None:
        """Create the directory, unless it exists.

        Raises:
            SpoolError: it cannot be created, or belongs to another user.
        """
        try:
            for folder in (self.spools, self.directory, self._links):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.directory.stat().st_uid
        except OSError as error:
            raise SpoolError(f"cannot create {self.directory}: {error}. Set HUBSYNC_HOME.") from error
        if owner != os.geteuid():
            raise SpoolError(f"{self.directory} belongs to another user (uid {owner}). Set HUBSYNC_HOME.")

    def agent_pid(self) -> int | None:
        """Return the agent's process; None if no agent runs."""
        try:
            return self.lock.holder()
        except OSError:
            return None

    # Spools that are elsewhere.

    def announce(self, spool: Path) -> None:
        """Let the agent find a spool that is not in this home.

        Raises:
            SpoolError: this user cannot write to the home.
        """
        if spool.parent == self.spools:
            return
        self.create()
        link = self._link(spool)
        new = link.with_name(f".{link.name}-{os.getpid()}")
        try:
            with suppress(FileNotFoundError):
                new.unlink()
            new.symlink_to(spool)
            os.replace(new, link)
        except OSError as error:
            raise SpoolError(f"cannot announce {spool} to the agent in {self._links}: {error}.") from error

    def _link(self, spool: Path) -> Path:
        return self._links / hashlib.blake2b(os.fsencode(spool), digest_size=6).hexdigest()

    def finds(self, spool: Path) -> bool:
        """Return whether the agent finds this spool: it is in the home, or was announced."""
        return spool.parent == self.spools or self._link(spool).is_symlink()

    def announced(self) -> Iterator[Path]:
        """Yield the announced spools; forget those that have not existed for long."""
        with suppress(OSError):
            for link in sorted(self._links.iterdir()):
                with suppress(OSError):
                    if link.exists():
                        yield Path(os.readlink(link))
                    elif time.time() - link.lstat().st_mtime > _STALE_LINK_S:
                        link.unlink()

    # Starting an agent.

    def start_agent(self) -> bool:
        """Start an agent that outlives this process, unless one runs; return whether one runs now.

        Of several jobs that call this at once, one starts it. It takes as long as the agent does to start.

        Raises:
            SpoolError: it could not be started.
        """
        self.create()
        turn = FileLock(self.directory / "start.lock")
        if not turn.acquire():  # another job starts it
            return False
        try:
            if self.agent_pid() is None:
                self._start()
            return self.agent_pid() is not None
        finally:
            turn.release()

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "hubsync", "agent", "--exit-when-idle", f"{IDLE_S:g}"]
        try:
            log = os.open(self._log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            try:
                subprocess.run(
                    [sys.executable, "-ISc", _DETACH, *command[1:]], cwd=self.directory, check=True,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            finally:
                os.close(log)
        except (OSError, subprocess.SubprocessError) as error:
            raise SpoolError(f"cannot start an agent: {error}. Start it yourself: {self.start_command}") from error
        until = time.monotonic() + _START_S
        while self.agent_pid() is None and time.monotonic() < until:
            time.sleep(_POLL_S)
        if self.agent_pid() is None:
            raise SpoolError(f"the agent that was started has ended, or takes long; see {self._log}.")


def agent_of(spool: Path) -> int | None:
    """Return the agent's process if one runs and finds this spool."""
    with suppress(ConfigError):  # this user has no home
        home = AgentHome()
        return home.agent_pid() if home.finds(spool) else None
    return None
