"""Check arguments and raise `ConfigError` for those that can never work."""

from __future__ import annotations

import os
import re
from types import UnionType

from hubsync.errors import ConfigError

# As the Hub requires: letters, digits, `-`, `_`, `.`; at most 96 characters in the namespace and in the name.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def check_type(kind: type | UnionType, expected: str, **values: object) -> None:
    """Raise `ConfigError` if an argument is not of type `kind`, which `expected` describes."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name} must be {expected}, not {value!r}.")


def check_seconds(**values: float | None) -> None:
    """Raise `ConfigError` if an argument is neither None nor a finite number of seconds, 0 or more."""
    for name, value in values.items():
        if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
            raise ConfigError(f"{name} must be a number of seconds, 0 or more, or None, not {value!r}.")


def check_positive(kind: type[int] | UnionType, **values: float) -> None:
    """Raise `ConfigError` if an argument is not a number of type `kind` above 0."""
    for name, value in values.items():
        if not (_is_number(value, kind) and value > 0):
            raise ConfigError(f"{name} must be {'an int' if kind is int else 'a number'} above 0, not {value!r}.")


def _is_number(value: object, kind: type[int] | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_repo_id(repo_id: str) -> str:
    """Return `repo_id`, or raise `ConfigError` if the Hub would never accept it."""
    text = repo_id if isinstance(repo_id, str) else repr(repo_id)
    if not _REPO_ID.fullmatch(text) or "--" in text or ".." in text or text.endswith((".", "-", ".git")):
        raise ConfigError(
            f"invalid repo id {text!r}: expected 'namespace/name' such as 'user/rollouts', in letters, digits, '-', "
            "'_' and '.', without '--' or '..'."
        )
    return text


def is_encodable(text: str) -> bool:
    """Return whether `text` can be encoded as UTF-8; a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_set(variable: str) -> bool:
    """Return whether an environment variable is set to a true value, by huggingface_hub's rules."""
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
