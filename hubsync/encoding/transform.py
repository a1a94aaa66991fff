"""A function over each row before it is encoded: what `transform=` is, and how it is called.

It runs at the caller, so what it masks or leaves out is never on a disk. Nothing that is said here shows a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from hubsync.errors import ConfigError, RowError, TransformError

# The row to write in a row's place, or None to leave it out.
Transform = Callable[[Any], Any]

_CONTAINERS = frozenset({dict, list, tuple})
_NO_TRANSFORM = "transform is a function of one row that returns the row to write, or None to leave it out, not {}."


def check_transform(transform: object) -> None:
    """Raises `ConfigError` for what is neither None nor a plain function of a row."""
    if transform is None:
        return
    if not callable(transform):
        raise ConfigError(_NO_TRANSFORM.format(f"a {type(transform).__name__}"))
    for function in (transform, type(transform).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigError(_NO_TRANSFORM.format("an async one: rows are encoded at the caller, where nothing waits"))
        if inspect.isgeneratorfunction(function):
            raise ConfigError(_NO_TRANSFORM.format("a generator"))


def transformed(row: Any, transform: Transform, index: int) -> Any:
    """What `transform` makes of a row, the batch's `index`th. It is given a copy where the row is made of plain dicts,
    lists and tuples: so a masker that writes into its row does not change the producer's.

    Raises:
        TransformError: it raised, or answered something to be awaited.
        RowError: the row contains itself.
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
            new.close()  # else Python warns that nobody awaited it
        raise TransformError(index, "", f"transform answered a {type(new).__name__}; it must be no async function.")
    return new


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        return {key: _copy(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind([_copy(item) if type(item) in _CONTAINERS else item for item in value])
    return value
