"""What a spool belongs to, and where it lives when nobody names a place."""

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
    """Where spools live when the user names no place. They are state, not a cache: nobody may sweep them."""
    home = os.environ.get("HUBSYNC_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "hubsync")
    return Path(home)


def default_directory(target: Target) -> Path:
    """The spool of `target` there."""
    tag = hashlib.blake2b(f"{target.endpoint}\0{target.revision}".encode(), digest_size=4).hexdigest()
    return default_home() / f"{target.repo.replace('/', '--')}-{tag}"
