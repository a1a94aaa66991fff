"""Everything public says what it is: shapes, units, errors. docs/api.md is made of it."""

from __future__ import annotations

import builtins
import re
from typing import get_args

import griffe
import pytest

import hubsync
from benchmarks.reference import MODULES, is_error, members, public, source

THINGS = {thing.path: thing for module in MODULES for thing in public(module)}
EVERY = {each.path: each for thing in THINGS.values() for each in [thing, *members(thing)]}
# A number says its unit by its name, or its description has one of these words.
UNITS = re.compile(
    r"^\w+(_s|_bytes)\b|bytes|seconds|rows|batches|shards|commits|files|port|status|offset|\bs\b|times|requests|number"
)


def text_of(each: griffe.Object) -> str:
    """Its docstring, and that of the constructor, of the class around it, and of what it is like."""
    parts = [each, each.parent if each.parent is not None and each.parent.is_class else None]
    parts += [each.all_members.get("__init__")] if isinstance(each, griffe.Class) else []
    text = "\n".join(str(part.docstring.value) for part in parts if part is not None and part.docstring)
    like = re.search(r"^As `([\w.]+)`", text, re.M)
    paths = [path for path in EVERY if like and path.endswith(f".{like[1]}")]
    return "\n".join([text, *(text_of(EVERY[path]) for path in paths if EVERY[path] is not each)])


def parameters(each: griffe.Object) -> list[griffe.Parameter]:
    made_by = each.all_members.get("__init__") if isinstance(each, griffe.Class) else each
    if not isinstance(made_by, griffe.Function) or each.name in ("Receipt", "Shards", "Rows"):
        return []
    return [p for p in made_by.parameters if p.name not in ("self", "cls") and p.kind.value[:8] != "variadic"]


@pytest.mark.parametrize("path", THINGS)
def test_a_public_name_says_what_it_is_in_which_units_and_what_is_raised(path: str) -> None:
    for each in [THINGS[path], *members(THINGS[path])]:
        assert each.docstring is not None, each.path
        first = str(each.docstring.value).split("\n\n")[0]
        assert first[0] == first[0].upper(), first
        assert first.endswith((".", ":", "`", "…")), first
        for parameter in [] if is_error(each) else parameters(each):
            if re.search(r"\b(int|float)\b", str(parameter.annotation or "")):
                told = re.findall(rf"[^\n]*\b{parameter.name}\b[^\n]*(?:\n {{4,}}[^\n]*)*", text_of(each))
                assert UNITS.search(" ".join([parameter.name, *told])), f"{each.path}: {parameter.name} in which unit?"
        for names in re.findall(r"^    ([A-Z]\w*(?:, [A-Z]\w*)*): ", text_of(each).partition("Raises")[2], re.M):
            assert [name for name in names.split(", ") if not is_known(name)] == [], each.path


def is_known(name: str) -> bool:
    """Whether there is such an exception."""
    others = {thing.name for thing in THINGS.values()} | {*source()["errors"].members}
    return name in others or hasattr(builtins, name)


def test_what_is_imported_from_hubsync_is_told() -> None:
    assert {name for name in hubsync.__all__ if name != "__version__"} <= {thing.name for thing in THINGS.values()}
    assert set(get_args(hubsync.policy.Ack)) == {"queued", "spooled", "committed"}
