"""Check arguments and raise `ConfigError` for those that can never work."""

from __future__ import annotations

import re
from types import UnionType

from hubsync.errors import ConfigError

# A namespace and a name as the Hub takes them: letters, digits, `-`, `_`, `.`; at most 96 characters each.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def check_type(kind: type | UnionType, what: str, **values: object) -> None:
    """Raises `ConfigError` where an argument is of another type than `kind`, which `what` says in words."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name} is {what}, not {value!r}.")


def check_seconds(**values: float | None) -> None:
    """Raises `ConfigError` where an argument is nothing that can be waited for."""
    for name, value in values.items():
        if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
            raise ConfigError(f"{name} is a number of seconds from 0, or None, not {value!r}.")


def check_positive(kind: type[int] | UnionType, **values: float) -> None:
    for name, value in values.items():
        if not (_is_number(value, kind) and value > 0):
            raise ConfigError(f"{name} must be above 0{', an int' if kind is int else ''}, not {value!r}.")


def _is_number(value: object, kind: type[int] | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def check_repo_id(repo_id: str) -> str:
    """`repo_id` as it is, or `ConfigError` where the Hub would never take it."""
    text = repo_id if isinstance(repo_id, str) else repr(repo_id)
    if not _REPO_ID.fullmatch(text) or "--" in text or ".." in text or text.endswith((".", "-", ".git")):
        raise ConfigError(
            f"repo id {text!r} is none: it is 'namespace/name' in letters, digits, '-', '_' and '.', "
            "without '--' or '..', such as 'user/rollouts'."
        )
    return text


def is_encodable(text: str) -> bool:
    """Whether it can be written down: a lone surrogate can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
