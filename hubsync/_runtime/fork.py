"""What hubsync does when the process forks, in one registry.

A forked child has only the thread that forked. It inherits locks that other threads held, open files, and state about
threads that no longer exist. Each module that owns such state registers a function that puts it in order. As with
`os.register_at_fork`, functions for before the fork run in reverse order of registration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TypeVar

Hook = TypeVar("Hook", bound=Callable[[], None])

_before: list[Callable[[], None]] = []
_in_parent: list[Callable[[], None]] = []
_in_child: list[Callable[[], None]] = []


def before_fork(hook: Hook) -> Hook:
    """Run `hook` in the parent, before it forks."""
    _before.insert(0, hook)
    return hook


def after_fork_in_parent(hook: Hook) -> Hook:
    """Run `hook` in the parent, after it has forked."""
    _in_parent.append(hook)
    return hook


def after_fork_in_child(hook: Hook) -> Hook:
    """Run `hook` in the child, before anything else runs there."""
    _in_child.append(hook)
    return hook


def _run(hooks: Iterable[Callable[[], None]]) -> None:
    """Run all of them, even if one raises."""
    with ExitStack() as stack:
        for hook in reversed([*hooks]):
            stack.callback(hook)


os.register_at_fork(
    before=lambda: _run(_before),
    after_in_parent=lambda: _run(_in_parent),
    after_in_child=lambda: _run(_in_child),
)
