"""Values as the types of their places: exactly, or not at all.

This is the one place that decides whether a value fits a type that a column has already. It fits if readers get an
equal value back: no digit, name, zone or field is lost. Times are compared in nanoseconds, as numpy and pandas have
them, and numbers as Python compares them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from hubsync.encoding import media
from hubsync.encoding.diagnosis import check_rows, field_names, find_binary
from hubsync.encoding.values import BINARY, NS, duration_ns, numpy_ns, spell_out_times, to_known
from hubsync.errors import RowError
from hubsync.schema.arrow import arrow_type
from hubsync.schema.features import class_names, feature_name, is_decoded
from hubsync.schema.types import ColumnType, Foreign, ListOf, StructOf, describe

BASE64 = "base64"
_OWN = frozenset({bool, int, float, str, *BINARY, list, tuple, dict, datetime, date, time, timedelta, Decimal, UUID})
_LISTS = (list, tuple, set, frozenset)
_NO_TEXT = (bool, int, float, Mapping, *BINARY, *_LISTS)
_MISSING = frozenset({"NoneType", "NaTType", "NAType", "MaskedConstant"})
_EPOCH = datetime(1970, 1, 1)
_US = timedelta(microseconds=1)
_DAY_NS = 86_400 * 10**9
_FLOATS = {"float16": "<e", "float32": "<f", "float64": "<d"}  # as `struct` names them: these raise an OverflowError


class Unfit(Exception):
    """A value does not fit the type of its place.

    Attributes:
        path: The place.
        why: Why not, in a sentence.
    """

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(why)


def refusal(value: Any, kind: ColumnType) -> str:
    """Return why a value does not fit a type."""
    advice = " Declare float64." if isinstance(value, float) and _dtype(kind) in ("float16", "float32") else ""
    name = type(value).__name__
    return f"{name} does not fit the column's type, {describe(kind)}, without a change of the value.{advice}"


def fit(value: Any, kind: ColumnType, path: str, *, rounds: bool = False) -> Any:
    """Return a value as pyarrow takes it for a type.

    Args:
        value: The value.
        kind: The type.
        path: The place, for errors.
        rounds: Whether a float is rounded to the precision of its type.

    Raises:
        Unfit: The value would change.
        NotMedia: It can't become the media that its place holds.
    """
    if _is_missing(value, kind):
        return None
    if isinstance(kind, StructOf):
        return _fit_struct(value, kind, path, rounds=rounds)
    if isinstance(kind, ListOf):
        return _fit_list(value, kind, path, rounds=rounds)
    if isinstance(kind, Foreign) and (feature := feature_name(kind)) is not None:
        return _fit_feature(value, kind, feature, path, rounds=rounds)
    plain = known(value)
    if _is_missing(plain, kind):
        return None
    dtype = _dtype(kind) or ""
    is_rounded = rounds and dtype in _FLOATS and isinstance(plain, float)
    found = _to_float(plain, dtype, rounds=True) if is_rounded else _converter(dtype)(plain, dtype)
    if found is None:
        raise Unfit(path, refusal(value, kind))
    return found


def _is_missing(value: Any, kind: ColumnType) -> bool:
    """Return whether a value is a missing one of Python, numpy or pandas. NaN is one, except among floats."""
    if type(value).__name__ in _MISSING:
        return True
    is_nan = isinstance(value, float) and value != value
    return is_nan and _dtype(kind) not in ("float", *_FLOATS)


def _dtype(kind: ColumnType) -> str | None:
    """Return the name of a scalar type; None for any other."""
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) else kind
    return dtype if isinstance(dtype, str) else None


def known(value: Any) -> Any:
    """Return an equal value of Python's own types. A time that may be finer than Python's stays as it is."""
    if type(value) in _OWN:
        return value
    if isinstance(value, Enum):
        return known(value.value)
    if isinstance(value, date | time | timedelta) or moment(value) is not None:
        return value
    try:
        return to_known(value)
    except (TypeError, ValueError):
        return value


def mapping(value: Any) -> Mapping[str, Any] | None:
    """Return what `is_row` accepts as a mapping; None for others."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct) and not value.__struct_config__.array_like:
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if hasattr(value, "__dataclass_fields__") or hasattr(value, "__attrs_attrs__"):
        return {name: getattr(value, name) for name in field_names(value)}
    if hasattr(value, "model_dump"):
        dumped: dict[str, Any] = value.model_dump()
        return dumped
    return None


def _fit_struct(value: Any, kind: StructOf, path: str, *, rounds: bool = False) -> dict[str, Any]:
    if (fields := mapping(known(value))) is None:
        raise Unfit(path, refusal(value, kind))
    if extra := fields.keys() - kind.fields.keys():
        raise Unfit(f"{path}.{min(map(str, extra))}", f"the column's type, {describe(kind)}, has no such field.")
    below = kind.fields.items()
    return {name: fit(fields.get(name), field, f"{path}.{name}", rounds=rounds) for name, field in below}


def _fit_list(value: Any, kind: ListOf, path: str, *, rounds: bool) -> list[Any]:
    items = known(value)
    if not isinstance(items, _LISTS):
        raise Unfit(path, refusal(value, kind))
    if kind.length not in (-1, len(items)):
        raise Unfit(path, f"it has {len(items)} elements, and the column's lists have {kind.length}.")
    return [fit(item, kind.item, f"{path}[]", rounds=rounds) for item in items]


# The features of `datasets`.


def _fit_feature(value: Any, kind: Foreign, feature: str, path: str, *, rounds: bool) -> Any:
    if feature in media.FEATURES:
        return media.stored(value, feature, is_decoded=is_decoded(kind))
    if feature == "json":
        return _json(value, path)
    if feature == BASE64:
        if not isinstance(value, BINARY):
            raise Unfit(path, refusal(value, kind))
        return msgspec.to_builtins(bytes(value))
    if (names := class_names(kind)) is not None:
        return _label(known(value), names, path)
    if feature == "translation":
        return _fit_struct(value, StructOf(dict.fromkeys(_languages(kind), "string")), path)
    if feature == "translation_variable_languages":
        return _translations(value, kind, path)
    options = next(iter(kind.entry["dtype"].values()))
    return _grid(value, list(options["shape"]), Foreign({"dtype": options["dtype"]}, []), path, rounds=rounds)


def _languages(kind: Foreign) -> Sequence[str]:
    dtype = kind.entry["dtype"]
    return next(iter(dtype.values())).get("languages") or () if isinstance(dtype, Mapping) else ()


def _json(value: Any, path: str) -> str:
    try:
        plain = spell_out_times(msgspec.to_builtins(value, enc_hook=to_known, builtin_types=(datetime, time, *BINARY)))
        check_rows([{path: plain}], 0)
    except RowError as error:
        raise Unfit(error.path, error.reason) from None
    except (TypeError, ValueError) as error:
        raise Unfit(path, str(error)) from None
    if (binary := find_binary([{path: plain}])) is not None:
        raise Unfit(binary.path, "JSON has no bytes. Use text, such as base64.b64encode(value).decode().")
    return msgspec.json.encode(plain).decode()


def _label(value: Any, names: Sequence[str], path: str) -> int:
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        raise Unfit(path, f"the class label has {len(names)} names, and this is none of them.")
    number = _to_int(value, "int64")
    if number is None or not -1 <= number < len(names):
        raise Unfit(path, f"a class label with {len(names)} names is a name or an int from 0 to {len(names) - 1}.")
    return number


def _translations(value: Any, kind: Foreign, path: str) -> dict[str, list[str]]:
    """Return pairs of a language and a text, in the order in which `datasets` has them."""
    pair = {"language": ListOf("string"), "translation": ListOf("string")}
    fields = mapping(known(value))
    if fields is None or not fields:
        raise Unfit(path, refusal(value, kind))
    if fields.keys() != pair.keys():
        pairs = sorted((name, text) for name, texts in fields.items() for text in _texts(texts, f"{path}.{name}"))
        fields = {"language": [name for name, _ in pairs], "translation": [text for _, text in pairs]}
    found = _fit_struct(fields, StructOf(dict(pair)), path)
    allowed = _languages(kind)
    if extra := set(found["language"] or ()) - set(allowed or found["language"] or ()):
        raise Unfit(path, f"the column has the languages {', '.join(allowed)}, not {min(extra)}.")
    return found


def _texts(value: Any, path: str) -> list[str]:
    texts: list[str] | None = fit([value] if isinstance(value, str) else value, ListOf("string"), path)
    if texts is None:
        raise Unfit(path, "a language without a text is left out.")
    return texts


def _grid(value: Any, shape: list[int | None], kind: Foreign, path: str, *, rounds: bool) -> Any:
    if not shape:
        return fit(value, kind, path, rounds=rounds)
    items = known(value)
    if not isinstance(items, list | tuple):
        raise Unfit(path, f"a {type(value).__name__} is no array.")
    if shape[0] is not None and len(items) != shape[0]:
        raise Unfit(path, f"a dimension has {len(items)} elements, and the column's shape has {shape[0]}.")
    return [_grid(item, shape[1:], kind, path, rounds=rounds) for item in items]


# Scalars: each function returns None for a value that does not fit.


def _converter(dtype: str) -> Callable[[Any, str], Any]:
    """Return the function that converts a value to a scalar type."""
    return next((convert for prefix, convert in _CONVERTERS if dtype.startswith(prefix)), lambda value, dtype: None)


def _to_bool(value: Any, dtype: str) -> bool | None:
    return value if isinstance(value, bool) else None


def _to_int(value: Any, dtype: str) -> int | None:
    if isinstance(value, float):
        is_whole = value.is_integer() and (value or math.copysign(1, value) > 0)  # -0.0 has a sign
        return int(value) if is_whole else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _to_float(value: Any, dtype: str, *, rounds: bool = False) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    form = _FLOATS.get(dtype, "<d")
    try:
        (found,) = struct.unpack(form, struct.pack(form, value))
    except (OverflowError, struct.error):
        return None
    assert isinstance(found, float)
    return found if rounds or found == value or value != value else None


def _to_text(value: Any, dtype: str) -> str | None:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, _NO_TEXT):
        return None
    try:
        plain = msgspec.to_builtins(value, enc_hook=to_known, builtin_types=(datetime, time))
    except (TypeError, ValueError):
        return None
    plain = spell_out_times(plain)
    return plain if isinstance(plain, str) else None


def _to_binary(value: Any, dtype: str) -> bytes | None:
    return bytes(value) if isinstance(value, BINARY) else None


def _to_decimal(value: Any, dtype: str) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        return None
    try:
        found = Decimal(value)
    except InvalidOperation:
        return None  # it is text that is no number
    return found if found.is_finite() and (not isinstance(value, str) or str(found) == value) else None


def _to_time(value: Any, dtype: str) -> Any:
    """Return a time as a number of the type's units, or as pyarrow reads it from text."""
    import pyarrow

    stored = arrow_type(Foreign({"dtype": dtype}, []))
    if isinstance(value, str):
        try:
            return pyarrow.scalar(value).cast(stored) if dtype.startswith(("timestamp", "date")) else None
        except (pyarrow.ArrowException, UnicodeEncodeError):
            return None
    at = moment(value)
    return None if at is None else _count(at, stored)


_CONVERTERS: tuple[tuple[str, Callable[[Any, str], Any]], ...] = (
    ("bool", _to_bool), ("int", _to_int), ("uint", _to_int), ("wide", _to_int), ("float", _to_float),
    ("string", _to_text), ("literal", _to_text), ("large_string", _to_text),
    ("binary", _to_binary), ("large_binary", _to_binary), ("decimal", _to_decimal),
    ("timestamp", _to_time), ("date", _to_time), ("time", _to_time), ("duration", _to_time),
)  # fmt: skip


# Times.


class Moment(NamedTuple):
    """A time of any library.

    Attributes:
        family: What it is: a timestamp, a date, a time or a duration, as Arrow calls them.
        ns: Nanoseconds: since 1970, in UTC if it has a zone; since midnight; or how long.
        has_zone: Whether it has a zone.
    """

    family: str
    ns: int
    has_zone: bool = False


def moment(value: Any) -> Moment | None:
    """Return a time exactly; None for what is none, or is finer than a nanosecond, or has no fixed length."""
    if isinstance(value, datetime):
        plain = datetime(value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond)
        offset = value.utcoffset()
        since = plain - _EPOCH - (offset or timedelta())
        return Moment("timestamp", since // _US * 1_000 + getattr(value, "nanosecond", 0), offset is not None)
    if isinstance(value, date):
        return Moment("date", (value - _EPOCH.date()).days * _DAY_NS)
    if isinstance(value, time):
        seconds = (value.hour * 60 + value.minute) * 60 + value.second
        return Moment("time", seconds * 10**9 + value.microsecond * 1_000, value.tzinfo is not None)
    if isinstance(value, timedelta):
        return Moment("duration", duration_ns(value))
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M") and not getattr(value, "ndim", 0):
        return _moment_of_numpy(value)
    return _moment_of_arrow(value) if hasattr(value, "as_py") and hasattr(value, "value") else None


def _moment_of_numpy(value: Any) -> Moment | None:
    try:
        ns = numpy_ns(value)
    except ValueError:
        return None
    is_day = value.dtype.name in ("datetime64[D]", "datetime64[W]")
    return Moment("duration" if value.dtype.kind == "m" else "date" if is_day else "timestamp", ns)


def _moment_of_arrow(value: Any) -> Moment | None:
    """Return the time that a scalar of pyarrow is; None if it is none."""
    family, count = str(value.type).partition("[")[0].rstrip("0123456789"), value.value
    if family not in ("timestamp", "date", "time", "duration") or not isinstance(count, int):
        return None
    unit = getattr(value.type, "unit", "D" if value.type.bit_width == 32 else "ms")
    return Moment(family, count * NS[unit], getattr(value.type, "tz", None) is not None)


def _count(at: Moment, stored: Any) -> int | None:
    """Return a time as a number of the units of an Arrow type; None if it does not fit exactly."""
    from pyarrow import types

    family, unit = str(stored).partition("[")[0].rstrip("0123456789"), getattr(stored, "unit", "ms")
    if types.is_date32(stored):
        unit = "D"
    has_zone = types.is_timestamp(stored) and stored.tz is not None
    is_midnight = at.family in ("timestamp", "date") and at.ns % _DAY_NS == 0
    if at.family != family and not (is_midnight and {at.family, family} == {"timestamp", "date"}):
        return None
    if at.has_zone != has_zone or at.ns % NS[unit] or not _is_readable(at):
        return None
    return at.ns // NS[unit]


def _is_readable(at: Moment) -> bool:
    """Return whether Python has this time, and thus readers."""
    return at.family not in ("timestamp", "date") or _FIRST_NS <= at.ns <= _LAST_NS


_FIRST_NS = (datetime.min - _EPOCH) // _US * 1_000
_LAST_NS = (datetime.max - _EPOCH) // _US * 1_000 + 999
