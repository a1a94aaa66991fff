"""Directories that arguments and environment variables name, absolute from the start."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from pathlib import Path

from hubsync.errors import ConfigError


def user_home() -> Path | None:
    """Return this user's home directory: HOME or, if that is not set, what the system knows; None if it has none."""
    home = os.environ.get("HOME", "")
    if not home:
        with suppress(KeyError):
            home = pwd.getpwuid(os.getuid()).pw_dir
    return Path(home) if os.path.isabs(home) else None


def absolute(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path with `~` replaced, and absolute, so that it names the same directory after an `os.chdir`.

    Args:
        path: The path.
        what: What it is for, as the caller knows it: an argument, an environment variable.

    Raises:
        ConfigError: It is empty, or `~` names a user without a home directory, or one that does not exist.
    """
    text = os.fspath(path)
    if not text:
        raise ConfigError(f"{what} is empty, so it names no directory. Give a path, or leave it out.")
    if text[0] != "~":
        return Path(text).absolute()
    user, _, rest = text.partition("/")
    home = user_home() if user == "~" else Path(os.path.expanduser(user))
    if home is None or not home.is_absolute():
        raise ConfigError(f"{what}: {text!r} names the home directory of a user that has none. Use an absolute path.")
    return home / rest
