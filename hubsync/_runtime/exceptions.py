"""Work with exceptions: find the cause in a group, raise one error to many waiters."""

from __future__ import annotations

import copy
from typing import TypeVar

from hubsync.errors import HubError, HubsyncError, SpoolLost

E = TypeVar("E", bound=BaseException)


def root_cause(error: BaseException) -> BaseException:
    """What went wrong first, of several tasks that ended with it."""
    while isinstance(error, BaseExceptionGroup):
        error = (error.subgroup(SpoolLost) or error.subgroup(HubsyncError) or error).exceptions[0]
    return error


def fresh_copy(error: E) -> E:
    """A copy, for an error that is told to many: raised again and again, one and the same would hold the frames of all
    who ever caught it, and their rows.
    """
    again = copy.copy(error)
    if notes := getattr(error, "__notes__", None):
        again.__notes__ = [*notes]
    if error.__cause__ is not None:
        again.__cause__ = error.__cause__
    return again


class unwrapped_hub_errors:
    """Raises a task group's first `HubError` as itself: the committer tells errors apart by type."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        while isinstance(error, BaseExceptionGroup):
            ours, _ = error.split(HubError)
            if ours is None:
                return
            error = ours.exceptions[0]
            if isinstance(error, HubError):
                raise error
