"""The branch that a spool belongs to, and the spool's default directory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from hubsync._runtime.filesystem import is_in_memory, network_file_system
from hubsync._runtime.paths import absolute, user_home
from hubsync.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """The branch of a dataset that a spool belongs to."""

    endpoint: str
    repo: str
    revision: str = "main"


_NODE_LOCAL_VARIABLES = ("SLURM_TMPDIR", "PBS_JOBFS", "LOCAL_SCRATCH", "TMPDIR")
_NODE_LOCAL = ("/local", "/scratch", "/var/tmp", "/tmp")  # noqa: S108  (the directory in it is private)


def default_home() -> Path:
    """Return the directory of all default spools. They are state, not a cache: they must not be cleaned up.

    It is `state_home`; or, if that was not chosen by HUBSYNC_HOME and is on a network file system, a directory on this
    machine's own disk, if there is any.

    Raises:
        ConfigError: HUBSYNC_HOME is relative, or this user has no home directory.
    """
    home = state_home()
    if os.environ.get("HUBSYNC_HOME") or network_file_system(home) is None:
        return home
    return node_local_home() or home


def node_local_home() -> Path | None:
    """Return a directory for spools on this machine's own disk; None if it has no such disk that may be written."""
    named = [os.environ.get(name) for name in _NODE_LOCAL_VARIABLES]
    found = [Path(path) for path in (*named, *_NODE_LOCAL) if path and _is_local(Path(path))]
    found.sort(key=is_in_memory)  # a disk first: what is in memory is gone after a reboot
    return found[0] / f"hubsync-{os.getuid()}" if found else None


def _is_local(path: Path) -> bool:
    is_usable = path.is_absolute() and path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    return is_usable and network_file_system(path) is None


def state_home() -> Path:
    """Return the directory of all that outlives a job.

    Raises:
        ConfigError: HUBSYNC_HOME is relative, or this user has no home directory.
    """
    home = os.environ.get("HUBSYNC_HOME")
    if home:
        path = absolute(home, "HUBSYNC_HOME")
        if home[0] not in "/~":
            raise ConfigError(
                f"HUBSYNC_HOME={home!r} is relative, so it names another directory after each os.chdir. Set it to an "
                f"absolute path, such as HUBSYNC_HOME={str(path)!r}."
            )
        return path
    state = os.environ.get("XDG_STATE_HOME", "")
    if state[:1] in ("/", "~"):  # the XDG specification says to ignore another one
        return absolute(state, "XDG_STATE_HOME") / "hubsync"
    user = user_home()
    if user is None:
        raise ConfigError(
            f"user {os.getuid()} has no home directory for the spools. Set HUBSYNC_HOME to an absolute path on a local "
            "disk, or give the spool's directory: spool=…"
        )
    return user / ".local" / "state" / "hubsync"


def default_directory(target: Target, home: Path | None = None) -> Path:
    """Return the default directory of the spool of `target`, in the default home or another one."""
    tag = hashlib.blake2b(f"{target.endpoint}\0{target.revision}".encode(), digest_size=4).hexdigest()
    return (home or default_home()) / f"{target.repo.replace('/', '--')}-{tag}"
