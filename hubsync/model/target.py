"""The branch that a spool belongs to, and the spool's default directory."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """The branch of a dataset that a spool belongs to."""

    endpoint: str
    repo: str
    revision: str = "main"


def default_home() -> Path:
    """Return the directory of all default spools. They are state, not a cache: they must not be cleaned up."""
    home = os.environ.get("HUBSYNC_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "hubsync")
    return Path(home)


def default_directory(target: Target) -> Path:
    """Return the default directory of the spool of `target`."""
    tag = hashlib.blake2b(f"{target.endpoint}\0{target.revision}".encode(), digest_size=4).hexdigest()
    return default_home() / f"{target.repo.replace('/', '--')}-{tag}"
