"""What `put` takes, to a type checker: `make lint` checks this file, and an `ignore` that is not needed is an error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict

import datasets
import msgspec
import pyarrow
import pydantic

from hubsync import AsyncUploader, Uploader


@dataclasses.dataclass
class Data:
    id: int


class Struct(msgspec.Struct):
    id: int


class Model(pydantic.BaseModel):
    id: int


class Typed(TypedDict):
    id: int


def generated() -> Iterator[Typed]:
    yield {"id": 1}


def takes(up: Uploader, some: Sequence[Mapping[str, object]], mixed: list[dict[str, int] | Data], what: Any) -> None:
    up.put([{"id": 1}, {"id": 2, "text": "a"}])
    up.put([Data(1), Struct(1)])
    up.put([Model(id=1)])
    up.put([Typed(id=1)])
    up.put(generated())
    up.put({"id": n} for n in range(3))
    up.put([])
    up.put(some)
    up.put({"id": 1})
    up.put(Data(1))
    up.put(mixed)
    up.put(what)
    up.put(pyarrow.table({"id": [1]}))
    up.put(datasets.Dataset.from_dict({"id": [1]}))
    up.put(up.encode([{"id": 1}]))


async def refuses(up: Uploader, asynchronous: AsyncUploader) -> None:
    up.put("abc")  # type: ignore[arg-type]
    up.put([1])  # type: ignore[list-item]
    up.put([{1: 2}])  # type: ignore[dict-item]
    await asynchronous.put("abc")  # type: ignore[arg-type]
