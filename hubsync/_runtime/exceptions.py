"""Find the cause in an exception group; raise one error in several waiters."""

from __future__ import annotations

import copy
from typing import TypeVar

from hubsync.errors import HubError, HubsyncError, SpoolLost

E = TypeVar("E", bound=BaseException)


def root_cause(error: BaseException) -> BaseException:
    """Return the error in a task group's exception group that explains it best."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(SpoolLost) or error.subgroup(HubsyncError) or error).exceptions[0]
    return error


def fresh_copy(error: E) -> E:
    """Return a copy of an error that several waiters raise.

    If all raised the same object, it would keep every waiter's frames, and the rows in them, alive.
    """
    again = copy.copy(error)
    if notes := getattr(error, "__notes__", None):
        again.__notes__ = [*notes]
    if error.__cause__ is not None:
        again.__cause__ = error.__cause__
    return again


class unwrapped_hub_errors:
    """Raises the first `HubError` of a task group without its group, so that callers can catch it by type."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        while isinstance(error, BaseExceptionGroup):
            hub_errors, _ = error.split(HubError)
            if hub_errors is None:
                return
            error = hub_errors.exceptions[0]
            if isinstance(error, HubError):
                raise error
