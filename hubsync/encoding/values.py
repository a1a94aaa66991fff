"""The JSON encoder, with the values that msgspec does not know: numpy, pandas, pydantic, mappings, subclasses."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, time
from typing import Any

import msgspec

INFINITE = "{} has no JSON form, and null would hide it. Use None or a string."


def to_known(value: Any) -> Any:
    """Convert a value to one that msgspec knows.

    Raises:
        TypeError: The value has no JSON form.
        ValueError: It is an infinity.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "tolist"):
        return _from_numpy(value)
    if module == "pandas" and type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, date | time):  # such as pandas.Timestamp; in the form of a plain datetime
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def _from_numpy(value: Any) -> Any:
    import numpy as np

    if value.dtype.kind == "M":
        return np.datetime_as_string(value).tolist()  # ISO 8601; `tolist` alone would turn nanoseconds into ints
    if value.dtype.kind == "f" and np.isinf(value).any():
        raise ValueError(INFINITE.format("an infinity"))
    plain = value.tolist()
    if isinstance(plain, type(value)):  # such as an array of Python objects
        raise TypeError(f"{type(value).__name__} has no JSON form.")
    return plain


encoder = msgspec.json.Encoder(enc_hook=to_known)
