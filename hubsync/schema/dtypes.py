"""Widen the scalar types that a dataset card names, such as `int32` and `timestamp[ms, tz=UTC]`.

Imports neither pyarrow nor `datasets`.
"""

from __future__ import annotations

import re

_BITS = {"int": 63, "uint": 64}
_MANTISSA = {"float16": 11, "float32": 24, "float64": 53}  # bits of an int that the float holds exactly
_UNITS = ("s", "ms", "us", "ns")
_LARGE = {("string", "large_string"): "large_string", ("binary", "large_binary"): "large_binary"}
_TEMPORAL = re.compile(r"(timestamp|duration)\[(s|ms|us|ns)((?:, *tz=.+)?)\]")
_DECIMAL = re.compile(r"decimal(?:128|256)\((\d+), *(-?\d+)\)")
_MAX_DIGITS = {128: 38, 256: 76}


def join(one: str, other: str) -> str | None:
    """Return the type that holds every value of both exactly; None if no type does.

    Two names are not a card's: "int", an int64 within what a float64 holds exactly, and "wide", any other int64.
    """
    if one == other:
        return one
    number, other_number = _number(one), _number(other)
    if number is not None and other_number is not None:
        return _join_numbers(number, other_number)
    if large := _LARGE.get((min(one, other, key=len), max(one, other, key=len))):
        return large
    first, second = _TEMPORAL.fullmatch(one), _TEMPORAL.fullmatch(other)
    if first and second and (first[1], first[3]) == (second[1], second[3]) and "ns" not in (first[2], second[2]):
        return f"{first[1]}[{max(first[2], second[2], key=_UNITS.index)}{first[3]}]"
    first, second = _DECIMAL.fullmatch(one), _DECIMAL.fullmatch(other)
    if first and second:
        return _join_decimals(*(int(text) for match in (first, second) for text in match.groups()))
    return None


def _number(name: str) -> tuple[str, int] | None:
    """Return the kind of a number and its bits without the sign."""
    if name in ("int", "wide"):
        return "int", 53 if name == "int" else 63
    if name in _MANTISSA:
        return "float", _MANTISSA[name]
    kind, digits = name.rstrip("0123456789"), name.lstrip("uint")
    if kind not in _BITS or not digits:
        return None
    return kind, int(digits) - (kind == "int")


def _join_numbers(one: tuple[str, int], other: tuple[str, int]) -> str | None:
    (kind, bits), (other_kind, other_bits) = sorted((one, other))  # floats first, then signed ints
    most = max(bits, other_bits)
    if kind == "float":
        return next((name for name, exact in _MANTISSA.items() if exact >= most), None)
    if kind == other_kind == "uint":
        return f"uint{most}"
    if most > 63:
        return None  # no int holds both a negative number and a uint64
    for size in (8, 16, 32):
        if most < size and 53 not in (bits, other_bits):
            return f"int{size}"
    return "int" if most <= 53 else "wide"


def _join_decimals(digits: int, scale: int, other_digits: int, other_scale: int) -> str | None:
    joined = max(scale, other_scale)
    whole = max(digits - scale, other_digits - other_scale)
    width = next((width for width, most in _MAX_DIGITS.items() if whole + joined <= most), None)
    return None if width is None else f"decimal{width}({whole + joined}, {joined})"
