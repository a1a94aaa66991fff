"""The glob patterns of a card, read as `datasets` and fsspec read them: which paths match, and which patterns meet.

`*` stays within a folder, `**` is a whole part of a path and spans folders. Names that begin with `.`, and folders that
begin with `__`, match only if the pattern names them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

MAGIC = re.compile(r"[*?[]")
_PIECE = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_OPAQUE = ("\ue000", "\ue000\ue001\ue002", "0", "a0-b")  # examples of what a `*` may match


def normalized(pattern: str) -> str:
    """Return a pattern relative to the repo's root, without `./` and empty parts."""
    return "/".join(part for part in pattern.split("/") if part not in ("", "."))


def matches(pattern: str, path: str) -> bool:
    """Return whether `datasets` finds `path` by `pattern`."""
    pattern = normalized(pattern)
    is_listed = "**" in pattern or path.count("/") == pattern.count("/")
    if not is_listed or _regex(pattern).fullmatch(path) is None:
        return False
    return _hidden(path) == _hidden(pattern) and _special(path) == _special(pattern)


@lru_cache(maxsize=256)
def _regex(pattern: str) -> re.Pattern[str]:
    """Return a pattern for paths; hidden names are not treated specially."""
    regex, parts = "", pattern.split("/")
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if part == "**":
            regex += ".*" if is_last else "(?:.+/)?"
        else:
            regex += ("[^/]+" if part == "*" else "".join(map(_piece, _PIECE.findall(part)))) + ("" if is_last else "/")
    return re.compile(regex, re.DOTALL)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return a compiled pattern for the paths that `datasets` finds by `glob`, apart from hidden ones."""
    return _regex(normalized(glob))


def _piece(piece: str) -> str:
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if len(piece) > 1:
        inside = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(piece)


def _hidden(path: str) -> int:
    return sum(part.startswith(".") for part in path.split("/"))


def _special(path: str) -> int:
    return sum(part.startswith("__") for part in path.split("/")[:-1])


def covers(pattern: str, glob: str) -> bool:
    """Return whether `pattern` finds everything that `glob` can find, where `glob` has no wildcard but `*`."""
    return all(matches(pattern, glob.replace("*", text)) for text in _OPAQUE)


def may_meet(one: str, other: str) -> bool:
    """Return whether some path could match both patterns. It errs towards yes."""
    return _parts_meet(normalized(one).split("/"), normalized(other).split("/"))


def _parts_meet(one: list[str], other: list[str]) -> bool:
    if not one or not other:
        return all(part == "**" for part in (*one, *other))
    if "**" in (one[0], other[0]):
        first, second = (one, other) if one[0] == "**" else (other, one)
        rest_may_be_hidden = second[0] != "**" and second[0].startswith((".", "__"))
        skips = not rest_may_be_hidden and _parts_meet(first, second[1:])
        return skips or _parts_meet(first[1:], second) or (len(first) == 1 and not rest_may_be_hidden)
    return _names_meet(one[0], other[0]) and _parts_meet(one[1:], other[1:])


def _names_meet(one: str, other: str) -> bool:
    """Return whether a name could match two patterns without `/`."""
    if MAGIC.search(one) is None and MAGIC.search(other) is None:
        return one == other
    left, right = _PIECE.findall(one), _PIECE.findall(other)
    reached = {(0, 0)}
    waiting = [(0, 0)]
    while waiting:
        at = waiting.pop()
        if at == (len(left), len(right)):
            return True
        for following in _steps(left, right, *at):
            if following not in reached:
                reached.add(following)
                waiting.append(following)
    return False


def _steps(left: list[str], right: list[str], i: int, j: int) -> Iterator[tuple[int, int]]:
    one, other = left[i] if i < len(left) else "", right[j] if j < len(right) else ""
    if one.startswith("*"):
        yield i + 1, j
        if other and not other.startswith("*"):
            yield i, j + 1
    if other.startswith("*"):
        yield i, j + 1
        if one and not one.startswith("*"):
            yield i + 1, j
    if one and other and not one.startswith("*") and not other.startswith("*") and _characters_meet(one, other):
        yield i + 1, j + 1


def _characters_meet(one: str, other: str) -> bool:
    if len(one) > 1 and len(other) > 1:  # two sets: say yes
        return True
    if len(other) > 1 or other == "?":
        one, other = other, one
    return one == "?" or (re.fullmatch(_piece(one), other) is not None if len(one) > 1 else one == other)
