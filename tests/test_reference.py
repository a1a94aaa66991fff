"""The reference is built from docstrings: every public name is in it, and says what it takes, returns and raises."""

from __future__ import annotations

import builtins
import logging
import re
from functools import cache
from typing import get_args

import griffe
import pytest

import hubsync
from tests.snippets import ROOT

# What each module offers; without names, what its `__all__` says.
MODULES = {
    "hubsync": (),
    "hubsync.reader": ("shards", "rows", "follow", "Shards", "Rows", "Shard"),
    "hubsync.pipeline": (),
    "hubsync.integrations.distilabel": ("HuggingFaceHubCheckpointer",),
    "hubsync.localhub": (),
}
# What those above return and take.
NAMED = ("telemetry.status.State", "model.stats.Counts", "model.stats.QueueDepth", "model.stats.SpoolDepth")
BARE = ("HuggingFaceHubCheckpointer",)  # its methods are the framework's to call
NOT_CONSTRUCTED = ("Receipt", "Shards", "Rows")  # by callers
# A number says its unit by its name, or its description has one of these words.
UNITS = re.compile(
    r"^\w+(_s|_bytes)\b|bytes|seconds|rows|batches|shards|commits|files|port|status|offset|\bs\b|times|requests|number",
    re.I,
)


@cache
def source() -> griffe.Module:
    """Return the package as griffe reads it, without importing it: distilabel is in another environment."""
    logging.getLogger("griffe").setLevel(logging.CRITICAL)  # `make docs` reports what it warns of
    found = griffe.load("hubsync", docstring_parser="google", resolve_aliases=True, search_paths=[str(ROOT)])
    assert isinstance(found, griffe.Module)
    return found


def target(thing: object) -> griffe.Object:
    while isinstance(thing, griffe.Alias):
        thing = thing.target
    assert isinstance(thing, griffe.Object)
    return thing


def public(module: str) -> list[griffe.Object]:
    """Return what a module offers."""
    home = source()[module.partition(".")[2]] if "." in module else source()
    names = MODULES[module] or [str(name) for name in home.exports or () if str(name) != "__version__"]
    found = [target(home[name]) for name in names]
    return found + [target(source()[name]) for name in NAMED] if module == "hubsync" else found


def members(thing: griffe.Object) -> list[griffe.Object]:
    """Return the public methods and properties of a class, with those of its bases."""
    if not isinstance(thing, griffe.Class) or thing.name in BARE:
        return []
    every = [target(member) for name, member in thing.all_members.items() if not name.startswith("_")]
    return [member for member in every if member.is_function or "property" in member.labels]


def is_error(thing: griffe.Object) -> bool:
    return isinstance(thing, griffe.Class) and any(str(base.name) == "HubsyncError" for base in [thing, *thing.mro()])


THINGS = {thing.path: thing for module in MODULES for thing in public(module)}
EVERY = {each.path: each for thing in THINGS.values() for each in [thing, *members(thing)]}


def docstrings(each: griffe.Object) -> list[griffe.Docstring]:
    """Return its docstring, and that of its constructor; those of what it is like, if it says "Like `that`"."""
    parts = [each, each.all_members.get("__init__") if isinstance(each, griffe.Class) else None]
    found = [target(part).docstring for part in parts if part is not None]
    text = "\n".join(str(docstring.value) for docstring in found if docstring)
    like = re.search(r"^(?:As|Like) `([\w.]+)`", text, re.M)
    others = [other for path, other in EVERY.items() if like and path.endswith(f".{like[1]}") and other is not each]
    return [*(docstring for docstring in found if docstring), *(one for other in others for one in docstrings(other))]


def section(each: griffe.Object, kind: str) -> list[griffe.DocstringElement]:
    """Return the entries of a section, such as "raises", of all its docstrings."""
    return [
        entry
        for docstring in docstrings(each)
        for found in docstring.parse("google")
        if found.kind.value == kind
        for entry in found.value
    ]


def parameters(each: griffe.Object) -> list[griffe.Parameter]:
    made_by = (
        target(each.all_members["__init__"])
        if isinstance(each, griffe.Class) and "__init__" in each.all_members
        else each
    )
    if not isinstance(made_by, griffe.Function) or each.name in NOT_CONSTRUCTED:
        return []
    return [p for p in made_by.parameters if p.name not in ("self", "cls") and p.kind.value[:8] != "variadic"]


@pytest.mark.parametrize("path", THINGS)
def test_a_public_name_says_what_it_is_and_in_which_units(path: str) -> None:
    for each in [THINGS[path], *members(THINGS[path])]:
        assert each.docstring is not None, each.path
        first = str(each.docstring.value).split("\n\n")[0]
        assert first[0] == first[0].upper(), first
        assert first.endswith((".", ":", "`", "…")), first
        around = [each.parent.docstring] if each.parent is not None and each.parent.docstring else []
        text = "\n".join(str(one.value) for one in [*docstrings(each), *around])
        for parameter in [] if is_error(each) else parameters(each):
            if re.search(r"\b(int|float)\b", str(parameter.annotation or "")):
                descriptions = re.findall(rf"[^\n]*\b{parameter.name}\b[^\n]*(?:\n {{4,}}[^\n]*)*", text)
                assert UNITS.search(" ".join([parameter.name, *descriptions])), (
                    f"{each.path}: {parameter.name} in which unit?"
                )


@pytest.mark.parametrize("path", THINGS)
def test_each_exception_has_an_entry_of_its_own_under_raises(path: str) -> None:
    """griffe takes one name an entry: "AError, BError: …" would be shown as nothing, or as one of them."""
    for each in [THINGS[path], *members(THINGS[path])]:
        text = "\n".join(str(one.value) for one in docstrings(each))
        raised = section(each, "raises")
        assert ("Raises" in re.findall(r"^(\w+)[^\n]*:$", text, re.M)) == bool(raised), (
            f"{each.path}: Raises is not read"
        )
        for entry in raised:
            assert is_exception(str(entry.annotation)), f"{each.path} raises {entry.annotation}?"
            inside = re.findall(r"(\w+)(?=[,:(] )", entry.description.partition(": ")[2])
            assert [name for name in inside if is_exception(name)] == [], f"{each.path}: one entry per exception"


@pytest.mark.parametrize("path", ["hubsync.uploader.sync.Uploader", "hubsync.uploader.aio.AsyncUploader"])
def test_every_argument_of_an_uploader_has_an_entry(path: str) -> None:
    for each in [THINGS[path], *members(THINGS[path])]:
        documented = {entry.name for entry in section(each, "parameters")}
        assert {parameter.name for parameter in parameters(each)} - documented == set(), each.path


def test_put_shows_every_exception_that_it_raises() -> None:
    raised = {str(entry.annotation) for entry in section(EVERY["hubsync.uploader.sync.Uploader.put"], "raises")}
    assert {"RowError", "TransformError", "SchemaConflict", "BatchTooLarge", "QueueFull", "ClosedError"} <= raised
    assert {"OffsetUnknown", "WaitTimeout", "NotDrained", "BlockedError", "ShardsRefused"} <= raised


def is_exception(name: str) -> bool:
    ours = {thing.name for thing in THINGS.values() if is_error(thing)} | {*source()["errors"].members}
    known = getattr(builtins, name, None)
    return name in ours or (isinstance(known, type) and issubclass(known, BaseException))


def test_every_public_name_is_on_a_page_of_the_reference() -> None:
    text = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", text, re.M))
    assert "hubsync.errors" in shown, "which shows all errors"
    offered = {f"{module}.{thing.name}" for module in MODULES for thing in public(module) if not is_error(thing)}
    named = {f"hubsync.{name}" for name in NAMED}
    aliases = {f"hubsync.{name.rpartition('.')[2]}" for name in NAMED}
    assert (offered - aliases | named) - shown - {"hubsync.pipeline.StepInput", "hubsync.pipeline.StepOutput"} == set()


def test_what_is_imported_from_hubsync_is_in_the_reference() -> None:
    assert {name for name in hubsync.__all__ if name != "__version__"} <= {thing.name for thing in THINGS.values()}
    assert set(get_args(hubsync.policies.Ack)) == {"queued", "spooled", "committed"}


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in str(hubsync.errors.__doc__).splitlines():
        if found := re.match(r" {4}((?:[│ ] {3}|[├└]── )*)(\w+)", line):
            above[len(found[1]) // 4 :] = [found[2]]
            drawn[found[2]] = above[-2] if len(above) > 1 else None
    classes = {name: kind for name, kind in vars(hubsync.errors).items() if isinstance(kind, type)}
    errors = {name: kind for name, kind in classes.items() if issubclass(kind, hubsync.HubsyncError)}
    assert drawn == {name: kind.__bases__[0].__name__ for name, kind in errors.items()} | {"HubsyncError": None}
