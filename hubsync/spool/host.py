"""Which machine uses a spool. SQLite's log and file locks only work between the processes of one.

The file `host` in the spool names the machine, by the id of its kernel's boot: containers of one machine share it. On a
local disk another id is a reboot, or a disk that was moved. On a network file system the other machine may live: then
the times of its lock files, which a writer refreshes twice a second, change while we look.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from hubsync._runtime.files import write_atomically
from hubsync._runtime.filesystem import network_file_system
from hubsync.errors import SpoolBusy, SpoolLost

_log = logging.getLogger("hubsync")

_WATCH_S = 10.0  # how long another machine's locks are watched: twenty heartbeats
_RECENT_S = 120.0  # by the file server's clock; older ones are not worth watching
_STEP_S = 0.5


class _Host(msgspec.Struct):
    boot: str
    name: str


def this_host() -> _Host:
    """Return this machine: its boot, and its name for people."""
    name = platform.node() or "?"
    with suppress(OSError):
        return _Host(Path("/proc/sys/kernel/random/boot_id").read_text().strip(), name)
    return _Host(name, name)  # no Linux


class HostMark:
    """The mark of the machine that uses a spool."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "host"
        self._is_shared = False

    def claim(self) -> None:
        """Mark the spool as this machine's. Call it before the catalogue is opened.

        Raises:
            SpoolBusy: another machine has it open.
            OSError: a network file system refuses.
        """
        self._is_shared = network_file_system(self._directory) is not None
        ours, found = this_host(), self._read()
        if found is not None and found.boot == ours.boot:
            return
        if found is not None and self._is_shared:
            if self._shows_life():
                raise SpoolBusy(
                    f"{found.name} has the spool {self._directory} open, and machines cannot share one. Nothing was "
                    "changed. Use a spool for each machine (spool=… on its local disk), or end the job there first."
                )
            _log.warning("%s used the spool %s and shows no sign of life: %s continues it.",
                         found.name, self._directory, ours.name)  # fmt: skip
        try:
            write_atomically(self._file, msgspec.json.encode(ours))
        except OSError:  # a full disk
            if self._is_shared:
                raise

    def check(self) -> None:
        """Raise if another machine has taken over.

        Raises:
            SpoolLost: another machine uses the spool now.
        """
        if self._is_shared and (found := self._read()) is not None and found.boot != this_host().boot:
            raise SpoolLost(
                f"{found.name} took over the spool {self._directory}, because this machine showed no sign of life for "
                f"{_WATCH_S:.0f} s. Its rows are safe there. Start this job again with a spool of its own."
            )

    def _read(self) -> _Host | None:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode(self._file.read_bytes(), type=_Host)
        return None

    def _shows_life(self) -> bool:
        """Return whether any lock of the spool is refreshed. Without one that is recent, at once."""
        first = self._beats()
        probe = self._directory / f"host{os.getpid()}"
        try:
            probe.write_bytes(b"")
            now = probe.stat().st_mtime  # by the clock of the file server, as the others
        finally:
            probe.unlink(missing_ok=True)
        if all(now - beat / 1e9 > _RECENT_S for beat in first.values()):
            return False
        until = time.monotonic() + _WATCH_S
        while time.monotonic() < until:
            time.sleep(_STEP_S)
            if any(first.get(path) != beat for path, beat in self._beats().items()):
                return True
        return False

    def _beats(self) -> dict[Path, int]:
        beats = {}
        for path in [self._directory / "committer.lock", *(self._directory / "writers").glob("*.lock")]:
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY)  # NFS asks the server again only when a file is opened
                try:
                    beats[path] = os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
        return beats
