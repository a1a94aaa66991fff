"""Images, audio and video as `datasets` stores them: the bytes of a file, and its name.

A file on this machine is read now, since no reader would find it. Pixels are kept as they are: an image that is no
unchanged file becomes a PNG. Sound that is an array becomes a WAV with the array's own samples.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from hubsync.encoding.values import BINARY
from hubsync.errors import RowError
from hubsync.schema.arrow import replace_items
from hubsync.schema.features import feature_name, is_decoded
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


def stored(value: Any, feature: str, *, is_decoded: bool = True) -> dict[str, Any] | None:
    """Return a value of a column of this feature as `{"bytes", "path"}`; None for a missing one.

    Args:
        value: The value.
        feature: The feature's name in a card.
        is_decoded: Whether readers decode it. Bytes that PIL does not know are no image then.

    Raises:
        NotMedia: The value is none, or its file can't be read.
    """
    if value is None:
        return None
    if (encoded := getattr(value, "_hf_encoded", None)) is not None:
        return stored(encoded, feature, is_decoded=is_decoded)
    if feature == "image" and hasattr(value, "getbands"):
        return _from_image(value)
    if feature == "image" and getattr(value, "ndim", None) and hasattr(value, "__array_interface__"):
        return _from_pixels(value)
    if isinstance(value, BINARY):
        found: dict[str, Any] = {"bytes": bytes(value), "path": None}
    elif isinstance(value, str | os.PathLike):
        found = from_file(os.fspath(value))
    elif isinstance(value, Mapping):
        found = _from_mapping(value, feature)
    else:
        raise NotMedia(f"{type(value).__name__} can't become {feature}. Use the encoded bytes, or the path of a file.")
    if feature == "image" and is_decoded:
        check_image(io.BytesIO(found["bytes"]))
    return found


def check_image(file: Any) -> None:
    """Refuse a file that readers can't open as an image. It reads the header alone, in about 50 µs.

    Raises:
        NotMedia: PIL knows no such format. Without PIL, all bytes pass.
    """
    try:
        from PIL import Image
    except ImportError:
        return
    try:
        Image.open(file).close()
    except Exception as error:  # PIL raises builtins of many kinds for a damaged header
        why = "these bytes are no image that PIL can open, and readers would fail at them"
        raise NotMedia(f"{why}. For other formats, declare datasets.Image(decode=False), or 'binary'.") from error


def from_file(path: str) -> dict[str, Any]:
    """Return a file as `{"bytes", "path"}`, with its name alone as the path.

    Raises:
        NotMedia: It can't be read.
    """
    if "://" in path.rpartition("::")[2]:
        raise NotMedia(f"{path!r} is an address, and put never waits for the network. Put the file's bytes.")
    try:
        if "://" in path:  # in an archive, such as "zip://a.png::/archive.zip"
            from datasets.utils.file_utils import xopen

            with xopen(path, "rb") as file:
                return {"bytes": file.read(), "path": os.path.basename(path.partition("::")[0])}
        with open(path, "rb") as file:
            return {"bytes": file.read(), "path": os.path.basename(path)}
    except (OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NotMedia(f"the file {path!r} can't be read ({reason}), and readers elsewhere can't, either.") from error


def _from_mapping(value: Mapping[str, Any], feature: str) -> dict[str, Any]:
    if feature == "audio" and "array" in value:
        _check_keys(value, feature, "array", "sampling_rate", "path")
        return {"bytes": _wav(value["array"], value.get("sampling_rate")), "path": None}
    _check_keys(value, feature, "bytes", "path")
    data, path = value.get("bytes"), value.get("path")
    if path is not None and not isinstance(path, str | os.PathLike):
        raise NotMedia(f"its path is a {type(path).__name__}, not a string.")
    name = None if path is None else os.fspath(path)
    if data is not None:
        if not isinstance(data, BINARY):
            raise NotMedia(f"its bytes are a {type(data).__name__}, not bytes.")
        return {"bytes": bytes(data), "path": name}
    if name is None:
        raise NotMedia("it has neither bytes nor a path. Use None for a missing one.")
    return from_file(name)


def _check_keys(value: Mapping[str, Any], feature: str, *names: str) -> None:
    if extra := [key for key in value if key not in names]:
        keys = ", ".join(map(repr, names))
        raise NotMedia(f"a mapping of {feature} has the keys {keys}, not {', '.join(map(repr, extra))[:80]}.")


def _from_image(image: Any) -> dict[str, Any]:
    if (original := _original(image)) is not None:
        return original
    if getattr(image, "is_animated", False):
        raise NotMedia("an animated image whose file is not there any more would lose frames. Use its encoded bytes.")
    buffer = io.BytesIO()
    format = "PNG" if image.mode in _PNG_MODES else "TIFF"
    try:
        image.save(buffer, format=format)
    except (OSError, ValueError) as error:
        raise NotMedia(f"no file keeps an image of mode {image.mode}. Use image.convert('RGB').") from error
    if format == "TIFF" and not _shows(buffer.getvalue(), image):
        raise NotMedia(f"no file keeps an image of mode {image.mode}. Use image.convert('RGB').")
    return {"bytes": buffer.getvalue(), "path": None}


def _original(image: Any) -> dict[str, Any] | None:
    """Return the file that an image was read from; None if it was changed since then, or there is no file."""
    name, source = getattr(image, "filename", ""), getattr(image, "fp", None)
    if name and isinstance(name, str | os.PathLike) and os.path.isfile(name):
        found = from_file(os.fspath(name))
    elif source is not None and getattr(image, "is_animated", False):
        position = source.tell()
        source.seek(0)
        found = {"bytes": source.read(), "path": None}
        source.seek(position)
    else:
        return None
    return found if _shows(found["bytes"], image) else None


def _shows(data: bytes, image: Any) -> bool:
    """Return whether a file has the pixels of an image."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as saved:
            if frame := getattr(image, "tell", int)():
                saved.seek(frame)
            is_alike = (saved.mode, saved.size) == (image.mode, image.size)
            return is_alike and bool(saved.tobytes() == image.tobytes())
    except (OSError, EOFError, SyntaxError, ValueError):  # it is another file by now
        return False


def _from_pixels(array: Any) -> dict[str, Any]:
    import numpy as np

    try:
        from PIL import Image

        image = Image.fromarray(np.asarray(array))
    except (ImportError, TypeError, ValueError) as error:
        raise NotMedia(f"the array can't become an image ({error}).") from error
    return _from_image(image)


def _wav(array: Any, rate: Any) -> bytes:
    """Return a WAV file with the samples of an array: of one channel, or channels by samples."""
    import numpy as np

    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 0 < rate < 1 << 31:
        raise NotMedia("the array has no sampling_rate that is an int, of samples per second.")
    rate = int(rate)
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
    if len(data) >= 1 << 32 or rate * block >= 1 << 32 or channels >= 1 << 16:
        raise NotMedia("it is too large for a WAV file. Use encoded bytes.")
    form = struct.pack("<HHIIHH", _WAV_FORMATS[name], channels, rate, rate * block, block, bits)
    size = 4 + 8 + len(form) + 8 + len(data) + len(data) % 2
    chunks = [b"RIFF", struct.pack("<I", size), b"WAVE", b"fmt ", struct.pack("<I", len(form)), form]
    return b"".join([*chunks, b"data", struct.pack("<I", len(data)), data, b"\0" * (len(data) % 2)])


def embedded(column: Any, kind: ColumnType, name: str, first_row: int) -> Any:
    """Return a column with the bytes of files that it names by their path alone, as `push_to_hub` does.

    Raises:
        RowError: A file can't be read, or is no image.
    """
    import pyarrow

    chunks = []
    for chunk in column.chunks:
        chunks.append(_embedded(chunk, kind, name, range(first_row, first_row + len(chunk))))
        first_row += len(chunk)
    return pyarrow.chunked_array(chunks, type=column.type)


def _embedded(array: Any, kind: ColumnType, path: str, rows: Sequence[int]) -> Any:
    """Return an array with the bytes of files; `rows` are those of its elements."""
    import pyarrow
    from pyarrow import compute

    if isinstance(kind, StructOf):
        children = zip(array.flatten(), kind.fields.items(), strict=True)
        new = [_embedded(child, field, f"{path}.{name}", rows) for child, (name, field) in children]
        return pyarrow.StructArray.from_arrays(new, fields=list(array.type), mask=array.is_null())
    if isinstance(kind, ListOf) and kind.length == -1 and holds_media(kind.item):
        parents = compute.list_parent_indices(array).to_pylist()
        items = _embedded(array.flatten(), kind.item, f"{path}[]", [rows[parent] for parent in parents])
        return replace_items(array, items)
    if (feature := feature_name(kind)) not in FEATURES:
        return array
    data, paths = array.flatten()
    changed: dict[int, dict[str, Any]] = {}
    for index, (item, name, is_valid) in enumerate(zip(data, paths, array.is_valid(), strict=True)):
        try:
            if is_valid.as_py() and not item.is_valid:
                changed[index] = _from_mapping({"path": name.as_py()}, str(feature))
            if item.is_valid and feature == "image" and is_decoded(kind):
                check_image(pyarrow.BufferReader(item.as_buffer()))
        except NotMedia as error:
            raise RowError(rows[index], path, str(error)) from error
    if not changed:
        return array
    values, names = data.to_pylist(), paths.to_pylist()
    for index, found in changed.items():
        values[index], names[index] = found["bytes"], found["path"]
    parts = [pyarrow.array(values, data.type), pyarrow.array(names, paths.type)]
    return pyarrow.StructArray.from_arrays(parts, fields=list(array.type), mask=array.is_null())


def holds_media(kind: ColumnType) -> bool:
    """Return whether a type is media, or has a part that is."""
    if isinstance(kind, StructOf):
        return any(map(holds_media, kind.fields.values()))
    return holds_media(kind.item) if isinstance(kind, ListOf) else feature_name(kind) in FEATURES
