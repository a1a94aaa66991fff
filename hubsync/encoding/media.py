"""Images, audio and video as `datasets` stores them: the bytes of a file, and its name.

A file on this machine is read now, since no reader would find it. Pixels are kept as they are: an image that is no
unchanged file becomes a PNG. Sound that is an array becomes a WAV with the array's own samples.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping
from typing import Any

from hubsync.errors import RowError
from hubsync.schema.arrow import replace_items
from hubsync.schema.features import feature_name
from hubsync.schema.types import ColumnType, ListOf, StructOf

FEATURES = frozenset({"image", "audio", "video", "pdf", "nifti"})
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_WAV_FORMATS = {"u1": 1, "i2": 1, "i4": 1, "f4": 3, "f8": 3}  # of samples, by numpy's name: PCM or float


class NotMedia(ValueError):
    """A value can't become the media that its column holds. The message says why."""


def feature_of(value: Any) -> str | None:
    """Return which feature a value is without being declared: a PIL image, or what `datasets` decoded; None if none."""
    if hasattr(value, "_hf_encoded"):
        return {"AudioDecoder": "audio", "VideoDecoder": "video"}.get(type(value).__name__)
    module = type(value).__module__.partition(".")[0]
    return "image" if module == "PIL" and hasattr(value, "getbands") else None


def stored(value: Any, feature: str) -> dict[str, Any] | None:
    """Return a value of a column of this feature as `{"bytes", "path"}`; None for a missing one.

    Raises:
        NotMedia: The value is none, or its file can't be read.
    """
    if value is None:
        return None
    if (encoded := getattr(value, "_hf_encoded", None)) is not None:
        return stored(encoded, feature)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value), "path": None}
    if isinstance(value, str | os.PathLike):
        return from_file(os.fspath(value))
    if isinstance(value, Mapping):
        return _from_mapping(value, feature)
    if feature == "image":
        if hasattr(value, "getbands"):
            return _from_image(value)
        if hasattr(value, "__array_interface__"):
            return _from_pixels(value)
    raise NotMedia(f"a {type(value).__name__} can't become {feature}. Use its encoded bytes.")


def from_file(path: str) -> dict[str, Any]:
    """Return a file as `{"bytes", "path"}`, with its name alone as the path.

    Raises:
        NotMedia: It can't be read.
    """
    try:
        if "://" in path:
            from datasets.utils.file_utils import xopen

            with xopen(path, "rb") as file:
                return {"bytes": file.read(), "path": os.path.basename(path.partition("::")[0])}
        with open(path, "rb") as file:
            return {"bytes": file.read(), "path": os.path.basename(path)}
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NotMedia(f"the file {path!r} can't be read ({reason}), and readers elsewhere can't, either.") from error


def _from_mapping(value: Mapping[str, Any], feature: str) -> dict[str, Any] | None:
    if feature == "audio" and value.get("array") is not None:
        if value.get("sampling_rate") is None:
            raise NotMedia("the array has no sampling_rate.")
        return {"bytes": _wav(value["array"], int(value["sampling_rate"])), "path": None}
    if not {"bytes", "path"}.issuperset(value):
        keys = ", ".join(map(repr, value))[:80]
        raise NotMedia(f"a mapping of {feature} has the keys 'bytes' and 'path', not {keys}.")
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return {"bytes": bytes(data), "path": None if path is None else os.fspath(path)}
    return None if path is None else from_file(os.fspath(path))


def _from_image(image: Any) -> dict[str, Any]:
    from PIL import Image

    name = getattr(image, "filename", "")
    if name and isinstance(name, str | os.PathLike) and os.path.isfile(name):
        found = from_file(os.fspath(name))
        with Image.open(io.BytesIO(found["bytes"])) as original:
            if (original.mode, original.size) == (image.mode, image.size) and original.tobytes() == image.tobytes():
                return found  # it was not changed since it was opened
    buffer = io.BytesIO()
    if getattr(image, "is_animated", False):
        image.save(buffer, format=image.format, save_all=True)
    else:
        image.save(buffer, format="PNG" if image.mode in _PNG_MODES else "TIFF")
    return {"bytes": buffer.getvalue(), "path": None}


def _from_pixels(array: Any) -> dict[str, Any]:
    import numpy as np

    try:
        from PIL import Image

        image = Image.fromarray(np.asarray(array))
    except (ImportError, TypeError, ValueError) as error:
        raise NotMedia(f"the array can't become an image ({error}).") from error
    return _from_image(image)


def _wav(array: Any, rate: int) -> bytes:
    """Return a WAV file with the samples of an array: of one channel, or channels by samples."""
    import numpy as np

    samples = np.asarray(array)
    if samples.ndim == 2:
        samples = samples.T if samples.shape[0] < samples.shape[1] else samples
    name = samples.dtype.str[1:]
    if name not in _WAV_FORMATS or samples.ndim not in (1, 2) or not samples.size:
        raise NotMedia(f"an array of {samples.dtype} with {samples.ndim} dimensions is no sound. Use float32 or int16.")
    data = np.ascontiguousarray(samples, samples.dtype.newbyteorder("<")).tobytes()
    channels = samples.shape[1] if samples.ndim == 2 else 1
    block = channels * samples.dtype.itemsize
    bits = 8 * samples.dtype.itemsize
    form = struct.pack("<HHIIHH", _WAV_FORMATS[name], channels, rate, rate * block, block, bits)
    size = 4 + 8 + len(form) + 8 + len(data) + len(data) % 2
    chunks = [b"RIFF", struct.pack("<I", size), b"WAVE", b"fmt ", struct.pack("<I", len(form)), form]
    return b"".join([*chunks, b"data", struct.pack("<I", len(data)), data, b"\0" * (len(data) % 2)])


def embedded(column: Any, kind: ColumnType, first_row: int) -> Any:
    """Return a column with the bytes of files that it names by their path alone, as `push_to_hub` does.

    Raises:
        RowError: A file can't be read.
    """
    import pyarrow

    return pyarrow.chunked_array([_embedded(chunk, kind, first_row) for chunk in column.chunks], type=column.type)


def _embedded(array: Any, kind: ColumnType, first_row: int) -> Any:
    import pyarrow
    from pyarrow import compute

    if isinstance(kind, StructOf):
        children = zip(array.flatten(), kind.fields.values(), strict=True)
        new = [_embedded(child, field, first_row) for child, field in children]
        return pyarrow.StructArray.from_arrays(new, fields=list(array.type), mask=array.is_null())
    if isinstance(kind, ListOf) and kind.length == -1 and holds_media(kind.item):
        return replace_items(array, _embedded(array.flatten(), kind.item, first_row))
    if feature_name(kind) not in FEATURES:
        return array
    data, paths = array.flatten()
    is_missing = compute.and_(data.is_null(), paths.is_valid())
    if not compute.any(is_missing).as_py():
        return array
    values, names = data.to_pylist(), paths.to_pylist()
    for index, is_path_only in enumerate(is_missing.to_pylist()):
        if is_path_only:
            try:
                found = from_file(names[index])
            except NotMedia as error:
                raise RowError(first_row, "", str(error)) from error
            values[index], names[index] = found["bytes"], found["path"]
    parts = [pyarrow.array(values, data.type), pyarrow.array(names, paths.type)]
    return pyarrow.StructArray.from_arrays(parts, fields=list(array.type), mask=array.is_null())


def holds_media(kind: ColumnType) -> bool:
    """Return whether a type is media, or has a part that is."""
    if isinstance(kind, StructOf):
        return any(map(holds_media, kind.fields.values()))
    return holds_media(kind.item) if isinstance(kind, ListOf) else feature_name(kind) in FEATURES
