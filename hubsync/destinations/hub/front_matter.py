"""A card's front matter: YAML that people write, edited so that every byte outside a change survives.

`FrontMatter` finds where each value is in the text and replaces only the values that differ, so comments, the order of
keys, `1.10`, `no`, CRLF and a byte order mark stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import yaml

# As huggingface_hub and the Hub find it; an empty block counts as well, and a byte order mark may precede it.
_BLOCK = re.compile(r"(\ufeff?\s*---(?:\r\n|\r|\n))(?:([\s\S]*?)(?:\r\n|\r|\n))??(?=---[ \t]*(?:\r?\n|$))")
_MAX_CHARS = 1 << 20  # of YAML, which is parsed in Python and blocks the job's threads
# Strings that only some YAML versions read as numbers: quoted, so that every reader gets the same config.
_LIKE_A_NUMBER = re.compile(r"[-+.]?\d[\w.+-]*|y|n|Y|N")
_UNESCAPED_BREAKS = re.compile("[\x85\u2028\u2029]")  # PyYAML reads them as line breaks, but does not escape them


class FrontMatterError(ValueError):
    """The YAML cannot be read, or cannot be edited without a risk to what people wrote."""


class _Edit(NamedTuple):
    start: int
    end: int
    text: str


class FrontMatter:
    """The YAML block at the beginning of a text, which may be missing.

    Attributes:
        text: The whole text.
        data: The keys and values, as `yaml.safe_load` returns them. Do not change them:
            pass a changed copy to `with_data`.
    """

    def __init__(self, text: str) -> None:
        """Parse the block once.

        Raises:
            FrontMatterError: The YAML is invalid, too large, or not a mapping.
        """
        found = _BLOCK.match(text)
        if found is None:
            mark = "\ufeff" if text.startswith("\ufeff") else ""
            self._before, self._yaml, self._after = mark, "", text[len(mark) :]
        else:
            self._before, self._yaml = found[1], found[2] or ""
            self._after = text[found.end() :]
        self.text = text
        self._is_missing = found is None
        first = re.search(r"\r\n|\r|\n", text)
        self._newline = first[0] if first else "\n"
        self._node, self.data = _parse(self._yaml)

    def with_data(self, new: Mapping[str, Any]) -> str:
        """Return the whole text with `new` in place of `data`. What is equal in both keeps its bytes.

        Raises:
            FrontMatterError: The text cannot be edited so that it says exactly this.
        """
        if _is_same(self.data, new):
            return self.text
        for is_fine in (True, False):  # if that fails, replace whole top-level values
            edited = self._edited(new, is_fine=is_fine)
            try:
                if _is_same(_parse(edited)[1], new):
                    break
            except FrontMatterError:
                continue
        else:
            raise FrontMatterError("its YAML can't be edited in place (anchors, or tags). Write it out in plain YAML")
        if self._is_missing:
            return f"{self._before}---{self._newline}{edited}{self._newline}---{self._newline}{self._after}"
        return f"{self._before}{edited}{self._newline}{self._after}"

    def _edited(self, new: Mapping[str, Any], *, is_fine: bool) -> str:
        if self._node is None:
            added = _dump(dict(new), self._newline)
            return f"{self._yaml}{self._newline}{added}" if self._yaml else added
        if self._node.flow_style or not self._node.value:  # the whole block is in flow style
            start, end = self._node.start_mark.index, self._node.end_mark.index
            return self._yaml[:start] + _dump(dict(new), self._newline) + self._yaml[end:]
        editor = _Editor(self._yaml, self._newline, is_fine=is_fine)
        editor.change(self._node, self.data, new)
        return editor.result()


def _parse(text: str) -> tuple[yaml.MappingNode | None, dict[str, Any]]:
    if len(text) > _MAX_CHARS:
        raise FrontMatterError(f"its YAML has {len(text):,} characters; more than {_MAX_CHARS:,} are not read")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _expanded_size(node, {}) > _MAX_CHARS:
            raise ValueError("its anchors expand to too much")
        data = None if node is None else loader.construct_document(node)
    except Exception as error:  # the YAML can have any shape
        raise FrontMatterError(f"{type(error).__name__}: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if data is None:
        return None, {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise FrontMatterError(f"its YAML is a {type(data).__name__}, and a card needs keys and values")
    return node, data


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many nodes a node holds with every alias written out."""
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_CHARS + 1  # for a node inside itself
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in children)
    return sizes[id(node)]


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal and of the same types: 1, 1.0 and True differ."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return set(one) == set(other) and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


class _Editor:
    """Collects edits of one YAML text.

    Only block style is edited inside. A value in flow style (`{a: 1}`), or one whose shape changes, is replaced.
    """

    def __init__(self, text: str, newline: str, *, is_fine: bool) -> None:
        self._text = text
        self._newline = newline
        self._is_fine = is_fine
        self._edits: list[_Edit] = []

    def result(self) -> str:
        """Return the text with all edits."""
        text = self._text
        for edit in sorted(self._edits, reverse=True):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text

    def change(self, node: yaml.MappingNode, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Edit a mapping: change, remove and append keys."""
        pairs = [(str(key.value), key, value) for key, value in node.value]
        column = node.start_mark.column
        for index, (name, key, value) in enumerate(pairs):
            if name not in old or name in [later for later, _, _ in pairs[index + 1 :]]:  # the last one counts
                continue
            if name not in new:
                following = pairs[index + 1][1] if index + 1 < len(pairs) else None
                self._remove(key, value, following)
            elif not _is_same(old[name], new[name]) and not self._enter(value, old[name], new[name]):
                self._replace(key.start_mark.index, value, {name: new[name]}, column)
        if added := {name: value for name, value in new.items() if name not in old}:
            self._insert_after(node, added, column)

    def _enter(self, node: yaml.Node, old: Any, new: Any) -> bool:
        """Edit inside a value, if its shape allows; return whether it did."""
        if not self._is_fine or not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
            return False
        if (
            isinstance(node, yaml.MappingNode)
            and isinstance(old, dict)
            and isinstance(new, dict)
            and set(old) & set(new)
        ):
            self.change(node, old, new)
            return True
        is_list = isinstance(old, list) and isinstance(new, list)
        if isinstance(node, yaml.SequenceNode) and is_list and len(new) >= len(old):
            self._change_items(node, old, new)
            return True
        return False

    def _change_items(self, node: yaml.SequenceNode, old: list[Any], new: list[Any]) -> None:
        column, more = node.start_mark.column, len(new) - len(old)
        if more and all(map(_is_same, old, new[more:])):
            start = node.start_mark.index
            lines = _dump(new[:more], self._newline, column)
            self._edits.append(_Edit(start, start, f"{lines}{self._newline}{' ' * column}"))
            return
        for item, before, after in zip(node.value, old, new, strict=False):
            if not _is_same(before, after) and not self._enter(item, before, after):
                self._replace(item.start_mark.index, item, after, item.start_mark.column)
        if more:
            self._insert_after(node, new[len(old) :], column)

    def _replace(self, start: int, last: yaml.Node, value: Any, column: int) -> None:
        self._edits.append(_Edit(start, self._end(last), _dump(value, self._newline, column)))

    def _remove(self, key: yaml.Node, value: yaml.Node, following: yaml.Node | None) -> None:
        start = key.start_mark.index
        line = max(self._text.rfind("\n", 0, start), self._text.rfind("\r", 0, start)) + 1
        if self._text[line:start].strip() and following is not None:  # the first key of an item: "- key: value"
            self._edits.append(_Edit(start, following.start_mark.index, ""))
        else:
            end = self._end_of_line(self._end(value))
            after = re.compile(r"\r\n|\r|\n").match(self._text, end)
            if after is not None:
                self._edits.append(_Edit(line, after.end(), ""))
            else:  # the last line of the block
                self._edits.append(_Edit(max(0, line - len(self._newline)), end, ""))

    def _insert_after(self, node: yaml.Node, value: Any, column: int) -> None:
        end = self._end_of_line(self._end(node))
        text = f"{self._newline}{' ' * column}{_dump(value, self._newline, column)}"
        self._edits.append(_Edit(end, end, text))

    def _end(self, node: yaml.Node) -> int:
        """Return where a value's own text ends: PyYAML counts the comments after a block as part of it."""
        if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return self._end(last[1] if isinstance(last, tuple) else last)
        end: int = node.end_mark.index
        if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
            return len(self._text[:end].rstrip())
        return end

    def _end_of_line(self, index: int) -> int:
        found = re.compile(r"[\r\n]").search(self._text, index)
        return len(self._text) if found is None else found.start()


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and quotes what only some YAML versions read as a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _LIKE_A_NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _dump(value: Any, newline: str, column: int = 0) -> str:
    """Return `value` in block style, without the last line break; further lines are indented to `column`."""
    dump = partial(yaml.dump, value, Dumper=_Dumper, sort_keys=False, width=1 << 30)
    text = str(dump(allow_unicode=True))
    if _UNESCAPED_BREAKS.search(text):
        text = str(dump(allow_unicode=False))
    lines = text.rstrip("\n").removesuffix("\n...").split("\n")
    return newline.join([lines[0], *(" " * column + line if line else line for line in lines[1:])])
