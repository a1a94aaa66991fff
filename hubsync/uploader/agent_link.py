"""An uploader's link to the agent of its host, which commits what this one spools."""

from __future__ import annotations

import logging
import os
import time

from hubsync._runtime.file_lock import HeartbeatMonitor
from hubsync._runtime.threads import run_in_thread
from hubsync.errors import ConfigError, SpoolError
from hubsync.spool.agent_home import AgentHome
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import State, Status

_log = logging.getLogger("hubsync")

_CHECK_S = 1.0  # how soon an uploader notices that the agent has started or ended
_START_AGAIN_S = 30.0  # between two attempts to start an agent


class AgentLink:
    """Watches whether an agent runs, and says so while none does; starts one if HUBSYNC_AGENT=spawn is set."""

    def __init__(self, spool: Spool, status: Status) -> None:
        """Announce the spool to the agent.

        Raises:
            ConfigError: HUBSYNC_AGENT has another value.
            SpoolError: the spool cannot be announced.
        """
        value = os.environ.get("HUBSYNC_AGENT", "")
        if value not in ("", "spawn"):
            raise ConfigError(f'HUBSYNC_AGENT must be "spawn" or not set, not {value!r}.')
        self._starts_agents = value == "spawn"
        self._spool = spool
        self._status = status
        self._home = AgentHome()
        self._heartbeats = HeartbeatMonitor(self._home.lock.path, spool.clock)
        self._started_at = float("-inf")
        self._home.announce(spool.directory)

    @property
    def pid(self) -> int | None:
        """The agent's process; None if no agent runs."""
        return self._home.agent_pid()

    async def watch(self) -> None:
        """Check until cancelled."""
        while True:
            await run_in_thread(self.check)
            await self._spool.clock.sleep(_CHECK_S)

    def check(self) -> None:
        """Report whether an agent works. It may take as long as an agent needs to start."""
        problem = self._problem()
        if problem and self._starts_agents and time.monotonic() - self._started_at >= _START_AGAIN_S:
            self._started_at = time.monotonic()
            try:
                self._home.start_agent()
            except SpoolError as error:
                _log.error("%s", error)
            problem = self._problem()
        if problem:
            self._status.report("agent", State("backing off", problem))
        elif self._status.troubled("agent"):
            self._status.report("agent", State())

    def _problem(self) -> str:
        """Return why nothing is committed, in words; empty if an agent or another process of the spool commits."""
        pid = self._home.agent_pid()
        if pid is not None and self._heartbeats.stalled():
            return f"the agent (process {pid}) shows no sign of life. End it, and run: {self._home.start_command}"
        if pid is None and not self._spool.lease.is_held_by_others:
            return f"no agent runs on this machine to upload the rows; run: {self._home.start_command}"
        return ""
