"""The branch that a spool belongs to, and the spool's default directory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from hubsync.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Target:
    """The branch of a dataset that a spool belongs to."""

    endpoint: str
    repo: str
    revision: str = "main"


def default_home() -> Path:
    """Return the directory of all default spools. They are state, not a cache: they must not be cleaned up.

    Raises:
        ConfigError: HUBSYNC_HOME is relative, or this user has no home directory.
    """
    home = os.environ.get("HUBSYNC_HOME")
    if home:
        path = expanded(home)
        if not path.is_absolute():
            raise ConfigError(
                f"HUBSYNC_HOME={home!r} is relative, so it names another directory after each os.chdir. Set it to an "
                f"absolute path, such as HUBSYNC_HOME={str(path.absolute())!r}."
            )
        return path
    state = Path(os.path.expanduser(os.environ.get("XDG_STATE_HOME") or ""))
    if not state.is_absolute():  # the XDG specification says to ignore it then
        state = Path(os.path.expanduser("~/.local/state"))
    if not state.is_absolute():
        raise ConfigError(
            f"user {os.getuid()} has no home directory for the spools. Set HUBSYNC_HOME to an absolute path on a local "
            "disk, or give the spool's directory: spool=…"
        )
    return state / "hubsync"


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced.

    Raises:
        ConfigError: `~` names a user who does not exist, or who has no home directory.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        found = Path(path)
    if found.parts and found.parts[0].startswith("~"):
        raise ConfigError(f"{str(path)!r} begins with the home directory of a user who has none. Use an absolute path.")
    return found


def default_directory(target: Target) -> Path:
    """Return the default directory of the spool of `target`."""
    tag = hashlib.blake2b(f"{target.endpoint}\0{target.revision}".encode(), digest_size=4).hexdigest()
    return default_home() / f"{target.repo.replace('/', '--')}-{tag}"
