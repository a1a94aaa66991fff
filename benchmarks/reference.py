"""The API reference, `docs/api.md`, from signatures and docstrings: `python -m benchmarks.pages` puts it there.

griffe reads the source without importing it, so distilabel's step is there too. The command line is asked for its help.
"""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

import click
import griffe
from click.testing import CliRunner

# What each module offers; without names, what its `__all__` says.
MODULES = {
    "hubsync": (),
    "hubsync.reader": ("shards", "rows", "follow", "Shards", "Rows", "Shard"),
    "hubsync.pipeline": (),
    "hubsync.integrations.distilabel": ("HuggingFaceHubCheckpointer",),
    "hubsync.localhub": (),
}
# What those above return and take.
NAMED = (
    "telemetry.status.State",
    "model.stats.Counts",
    "model.stats.QueueDepth",
    "model.stats.SpoolDepth",
    "policies.Ack",
)
_FIRST = ("Uploader", "AsyncUploader", "Receipt", "Stats")
_RETURNED = ("Receipt", "Shards", "Rows", "Distiset", "Faults")  # nobody makes one
_BARE = ("HuggingFaceHubCheckpointer",)  # whose methods are the framework's to call
_LONG = 100  # characters of a signature in one line
_LIST = re.compile(r"^(Args|Attributes|Raises[^\n]*):\n((?:(?: {4,}.*)?\n)+)", re.M)
_ITEM = re.compile(r"^([\w, ]+): (.*(?:\n {2,}.*)*)", re.M)


@cache
def source() -> griffe.Module:
    """The package as griffe reads it."""
    logging.getLogger("griffe").setLevel(logging.CRITICAL)  # it would tell of "config, split: …" as of a mistake
    found = griffe.load("hubsync", docstring_parser="google", resolve_aliases=True)
    assert isinstance(found, griffe.Module)
    return found


def public(module: str) -> list[griffe.Object]:
    """The names that a module offers, errors last."""
    home = source()[module.partition(".")[2]] if "." in module else source()
    names = MODULES[module] or [str(name) for name in home.exports or () if str(name) != "__version__"]
    found = [_target(home[name]) for name in names]
    if MODULES[module]:
        return found
    found += [_target(source()[name]) for name in NAMED] if module == "hubsync" else []
    return sorted(found, key=lambda t: (is_error(t), _FIRST.index(t.name) if t.name in _FIRST else len(_FIRST)))


def members(thing: griffe.Object) -> list[griffe.Object]:
    """The public methods and properties of a class, its bases' too; none of another kind of thing."""
    if not thing.is_class or thing.name in _BARE:
        return []
    every = [_target(member) for name, member in thing.all_members.items() if not name.startswith("_")]
    found = [m for m in every if m.is_function or "property" in m.labels]
    return sorted(found, key=lambda m: (m.parent is not thing, str(m.filepath), m.lineno or 0))


def is_error(thing: griffe.Object) -> bool:
    return thing.is_class and any(str(base.name) == "HubsyncError" for base in [thing, *thing.mro()])


def python() -> str:
    """The part about Python."""
    return "\n".join(line for module in MODULES for line in _module(module)).strip()


def _module(module: str) -> Iterator[str]:
    yield f"## {module}\n"
    errors = False
    for thing in public(module):
        if is_error(thing) and module == "hubsync" and not errors:
            errors = True
            tree = str(source()["errors"].docstring.value).partition("\n\n")[2]
            yield f"### Errors\n\n<!-- not run: a drawing -->\n```text\n{tree}\n```\n"
        yield f"{'####' if errors else '###'} {thing.name}\n"
        yield _signature(thing, thing.name)
        yield _words(thing)
        for member in members(thing):
            yield f"#### {thing.name}.{member.name}\n"
            yield _signature(member, member.name)
            yield _words(member)


def _target(thing: Any) -> griffe.Object:
    while thing.is_alias:
        thing = thing.target
    assert isinstance(thing, griffe.Object)
    return thing


def _signature(thing: griffe.Object, name: str) -> str:
    """As Python writes it, without a body."""
    if isinstance(thing, griffe.Attribute):
        is_property = "property" in thing.labels
        text = f"@property\ndef {name}(self) -> {thing.annotation}: ..." if is_property else f"{name} = {thing.value}"
    elif isinstance(thing, griffe.Class):
        text = _class(thing)
    else:
        text = _def(name, thing)
    text = text.replace("'", '"')  # as ruff writes it
    return f"<!-- not run: a signature -->\n```python\n{text}\n```\n"


def _class(thing: griffe.Class) -> str:
    """A class with its fields, or with what makes it."""
    bases = ", ".join(str(base) for base in thing.bases if str(base) != "BaseUploader")
    init = _target(thing.all_members["__init__"]) if "__init__" in thing.all_members else None
    is_plain = "dataclass" not in thing.labels
    body = [_field(m) for m in thing.members.values() if isinstance(m, griffe.Attribute) and is_plain and _is_field(m)]
    if any(str(base).endswith("Enum") for base in thing.bases):
        body = [f"{name} = {m.value}" for name, m in thing.members.items() if m.is_attribute and name.isupper()]
    is_made = isinstance(init, griffe.Function) and not is_error(thing) and thing.name not in _RETURNED
    if not body and is_made and len(init.parameters) > 1:  # type: ignore[union-attr]
        body = [_def("__init__", init)]  # type: ignore[arg-type]
    head = f"class {thing.name}{f'({bases})' if bases else ''}:"
    return f"{head}\n{textwrap.indent(chr(10).join(body), '    ')}" if body else f"{head} ..."


def _is_field(member: griffe.Attribute) -> bool:
    return bool(member.annotation) and "class-attribute" in member.labels and not member.name.startswith("_")


def _field(member: griffe.Attribute) -> str:
    """A class' field and its default; pydantic says more than that."""
    text, value = f"{member.name}: {member.annotation}", str(member.value)
    if found := re.match(r"Field\(default=([^,]+)", value):
        value = found[1]
    return text if member.value is None or "(" in value else f"{text} = {value}"


def _def(name: str, thing: griffe.Object) -> str:
    assert isinstance(thing, griffe.Function)
    given = list(_parameters(thing))
    head = ("async " if "async" in thing.labels else "") + f"def {name}("
    decorators = "".join(f"@{label}\n" for label in ("classmethod", "staticmethod") if label in thing.labels)
    tail = f") -> {thing.returns}: ..." if thing.returns else "): ..."
    line = head + ", ".join(given) + tail
    if len(line) > _LONG:
        line = head + "\n" + "".join(f"    {each},\n" for each in given) + tail
    return decorators + line


def _parameters(thing: griffe.Function) -> Iterator[str]:
    kinds = griffe.ParameterKind
    starred = False
    for each in thing.parameters:
        if each.kind is kinds.keyword_only and not starred:
            starred = True
            yield "*"
        starred = starred or each.kind is kinds.var_positional
        star = {kinds.var_positional: "*", kinds.var_keyword: "**"}.get(each.kind, "")
        text = star + each.name + (f": {each.annotation}" if each.annotation else "")
        if each.default is not None and not star:
            text += f" = {each.default}" if each.annotation else f"={each.default}"
        yield text


def _words(thing: griffe.Object) -> str:
    """A docstring, its lists as lists; a class' own and that of what makes it."""
    found = [str(thing.docstring.value)] if thing.docstring else []
    init = thing.all_members.get("__init__") if isinstance(thing, griffe.Class) else None
    if init is not None and thing.name not in _RETURNED and not is_error(thing) and (text := _target(init).docstring):
        found.append(str(text.value))
    return "\n".join(_text(_LIST.sub(_list, text + "\n")) + "\n" for text in found)


def _list(found: re.Match[str]) -> str:
    items = _ITEM.findall(textwrap.dedent(found[2]))
    title = "Arguments" if found[1] == "Args" else found[1]
    lines = [f"- `{'`, `'.join(names.split(', '))}`: {' '.join(text.split())}" for names, text in items]
    return f"{title}:\n\n" + "\n".join(lines) + "\n\n"


def _text(text: str) -> str:
    """Indented code becomes a block that is read and not run: it shows the shape, and is no whole program."""

    def code(found: re.Match[str]) -> str:
        return f"<!-- not run: it shows the shape -->\n```python\n{textwrap.dedent(found[0]).strip()}\n```\n"

    return re.sub(r"(?:^ {4}.*\n?(?:\n(?= {4}))?)+", code, text, flags=re.M).strip()


def command_line() -> str:
    """The part about the command line: what each command says of itself."""
    from hubsync.cli.main import cli

    return "\n".join(_help(cli, names) for names in _commands(cli)).strip()


def _commands(group: click.Group, *above: str) -> Iterator[list[str]]:
    yield [*above]
    for name in sorted(group.commands):
        command = group.commands[name]
        if isinstance(command, click.Group):
            yield from _commands(command, *above, name)
        elif not command.hidden:
            yield [*above, name]


def _help(cli: click.Group, names: list[str]) -> str:
    done = CliRunner().invoke(cli, [*names, "--help"], prog_name="hubsync", terminal_width=78)  # as wide as it ever is
    text = "\n".join(line.rstrip() for line in done.output.splitlines())
    name = " ".join(["hubsync", *names])
    return f"### {name}\n\n```console\n$ {name} --help\n{text}\n```\n"
