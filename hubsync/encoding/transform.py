"""The user's function that changes or drops rows before they are encoded.

It runs in the caller's thread, so what it masks or leaves out never reaches a disk. No message here shows a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from hubsync.errors import ConfigError, RowError, TransformError

# Returns the row to write instead of the given one, or None to leave it out.
Transform = Callable[[Any], Any]

_CONTAINERS = frozenset({dict, list, tuple})
_NOT_A_TRANSFORM = (
    "transform must be a function of one row that returns the row to write, or None to leave it out, not {}."
)


def check_transform(transform: object) -> None:
    """Check that `transform` is None or a plain function.

    Raises:
        ConfigError: It is not callable, or it is async or a generator.
    """
    if transform is None:
        return
    if not callable(transform):
        raise ConfigError(_NOT_A_TRANSFORM.format(f"a {type(transform).__name__}"))
    for function in (transform, type(transform).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(_NOT_A_TRANSFORM.format("an async one: rows are encoded in the caller's thread"))
        if inspect.isgeneratorfunction(function):
            raise ConfigError(_NOT_A_TRANSFORM.format("a generator"))


def transformed(row: Any, transform: Transform, index: int) -> Any:
    """Return what `transform` makes of a row.

    A row of plain dicts, lists and tuples is copied first, so that a function that writes into its row does not change
    the caller's.

    Args:
        row: The row.
        transform: The function.
        index: The row's index in its batch, for messages.

    Raises:
        TransformError: The function raised, or returned an awaitable.
        RowError: The row contains itself.
    """
    try:
        own = _copy(row)
    except RecursionError:
        raise RowError(index, "", "the row contains itself, or is nested too deep.") from None
    try:
        new = transform(own)
    except Exception as error:
        what = f"transform raised {type(error).__name__}: see this error's cause, which may show the row."
        raise TransformError(index, "", what) from error
    if type(new) is not dict and inspect.isawaitable(new):
        if inspect.iscoroutine(new):
            new.close()  # otherwise Python warns that it was never awaited
        raise TransformError(index, "", f"transform returned a {type(new).__name__}: it must not be async.")
    return new


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _copy(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind([_copy(item) if type(item) in _CONTAINERS else item for item in value])
    return value
