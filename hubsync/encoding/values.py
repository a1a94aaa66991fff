"""The JSON encoder, with the values that msgspec does not know: arrays, pandas, pydantic, mappings, subclasses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

import msgspec

BINARY = (bytes, bytearray, memoryview)
INFINITE = "{} has no JSON form, and null would hide it. Use None or a string."
_NO_LENGTH = "a numpy.timedelta64 in {} has no fixed length. Convert it to days or seconds."
_FINE = "{} is finer than a nanosecond, which no reader keeps. Round it, or use a string."
_DAY = 86_400 * 10**9
NS = {"W": 7 * _DAY, "D": _DAY, "h": 3_600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1_000, "ns": 1}
_PER_NS = {"ps": 10**3, "fs": 10**6, "as": 10**9}
_TO_LIST = ("tolist", "to_list", "to_pylist")  # numpy and torch; polars; pyarrow


def to_known(value: Any) -> Any:
    """Convert a value to one that msgspec knows.

    Raises:
        TypeError: The value has no JSON form.
        ValueError: It has none that readers would get back: an infinity, or a duration without a fixed length.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if type(value).__name__ in ("NaTType", "NAType") and type(value).__module__.startswith("pandas"):
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, date | time):  # such as pandas.Timestamp; in the form of a plain datetime
        return iso_text(value)
    if isinstance(value, timedelta):
        return duration(duration_ns(value))
    return _from_array(value)


def iso_text(value: date | time) -> str:
    """Return a date or time in ISO 8601, with all of its zone: msgspec leaves out an offset's seconds."""
    text = value.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def duration_ns(value: timedelta) -> int:
    """Return a duration in nanoseconds, which `pandas.Timedelta` has as well."""
    exact = timedelta(value.days, value.seconds, value.microseconds)
    return exact // timedelta(microseconds=1) * 1_000 + getattr(value, "nanoseconds", 0)


def duration_text(ns: int) -> str:
    """Return a duration in ISO 8601."""
    text = msgspec.to_builtins(duration(ns))
    assert isinstance(text, str)
    return text


def spell_out_times(value: Any) -> Any:
    """Return plain values with their datetimes and times as text."""
    if isinstance(value, dict):
        return {key: spell_out_times(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spell_out_times(item) for item in value]
    return iso_text(value) if isinstance(value, datetime | time) else value


def duration(ns: int) -> timedelta | str:
    """Return a duration; as text in ISO 8601 if it needs nanoseconds, which a timedelta does not have."""
    if ns % 1_000 == 0:
        return timedelta(microseconds=ns // 1_000)
    days, rest = divmod(abs(ns), _DAY)
    seconds, fraction = divmod(rest, 10**9)
    return f"{'-' if ns < 0 else ''}P{f'{days}D' if days else ''}T{seconds}.{fraction:09d}".rstrip("0") + "S"


def _from_array(value: Any) -> Any:
    """Return the Python values of an array, a tensor, a series, or one of their scalars. Imports none of them."""
    if hasattr(value, "dtype") and type(value).__module__.partition(".")[0] == "numpy":
        return _from_numpy(value)
    if hasattr(value, "as_py"):  # a scalar of pyarrow
        return value.as_py()
    if hasattr(value, "columns"):
        raise TypeError("a DataFrame is not a value.")
    for name in _TO_LIST:
        if callable(convert := getattr(value, name, None)):
            plain = convert()
            if not isinstance(plain, type(value)):
                return plain
    if hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        import numpy as np

        return _from_numpy(np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value))
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def _from_numpy(value: Any) -> Any:
    import numpy as np

    kind = value.dtype.kind
    if kind in "mMV" and value.ndim:
        return list(value)  # each element comes back to here
    if kind == "M":
        return None if np.isnat(value) else np.datetime_as_string(value).tolist()
    if kind == "m":
        return None if np.isnat(value) else duration(numpy_ns(value))
    if kind == "V" and value.dtype.names is not None:
        return {name: value[name] for name in value.dtype.names}
    plain = value.tolist()
    if isinstance(plain, type(value)):  # such as a longdouble
        raise TypeError(f"{type(value).__name__} has no JSON form.")
    return plain


def numpy_ns(value: Any) -> int:
    """Return a numpy.datetime64 or timedelta64 in nanoseconds.

    Raises:
        ValueError: It is NaT, counts months or years, or is finer than a nanosecond.
    """
    import numpy as np

    unit, step = np.datetime_data(value.dtype)
    count = int(value.astype("i8")) * step
    if unit in NS and not np.isnat(value):
        return count * NS[unit]
    if unit not in _PER_NS:
        raise ValueError(_NO_LENGTH.format({"Y": "years", "M": "months"}.get(unit, "no unit")))
    whole, rest = divmod(count, _PER_NS[unit])
    if rest:
        raise ValueError(_FINE.format(value))
    return whole


encoder = msgspec.json.Encoder(enc_hook=to_known)
