"""A reader's position: fingerprints, cursors as text, and jobs, rewrites, squashes and readers in any order."""

from __future__ import annotations

import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hubsync.errors import ConfigError, DatasetRewritten
from hubsync.localhub import LocalHub
from hubsync.reader import cursor as cursors
from hubsync.reader import rows
from hubsync.reader.cursor import Cursor, ReadRange, fingerprint
from hubsync.reader.rewrites import RangeMatcher, have_same_rows

EXAMPLES = int(os.environ.get("HUBSYNC_READER_EXAMPLES", "25"))


def test_a_fingerprint_depends_on_the_content_of_a_row_not_its_notation() -> None:
    row = {"a": 1, "b": {"c": [1.5, None, {"d": None, "e": "é"}]}, "n": None}
    assert fingerprint(row) == fingerprint({"b": {"c": [1.5, None, {"e": "é"}]}, "a": 1})
    for other in ({**row, "a": 2}, {**row, "a": "1"}, {"b": row["b"]}, {**row, "b": {"c": [1.5, {"e": "é"}]}}):
        assert fingerprint(other) != fingerprint(row)


@given(
    st.lists(st.tuples(st.text(), st.integers(0, 2**64 - 1), st.booleans())), st.dictionaries(st.integers(), st.just(1))
)
def test_a_cursor_survives_encoding(pieces: list[tuple[str, int, bool]], again: dict[int, int]) -> None:
    made = [ReadRange(place, "ab" * 8, 3, total, total // 2, whole) for place, total, whole in pieces]
    again = {key % 2**64: value for key, value in again.items()}
    cursor = Cursor("user/rows", "f" * 40, {piece.path: piece for piece in made}, made[:1], again)
    assert Cursor.decode(cursor.encode(), "user/rows") == cursor
    with pytest.raises(ConfigError):
        Cursor.decode(cursor.encode(), "user/other")


@given(st.randoms(use_true_random=False))
def test_a_cursor_encoded_after_each_step_is_complete_each_time(rng: random.Random) -> None:
    cursor = Cursor("user/rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cursors, "_BLOCK", 2)
        patch.setattr(cursors, "_FANOUT", 3)
        patch.setattr(cursors, "_MAX_COUNTED_OFF", 3)
        for step in range(40):
            match rng.randrange(6):
                case 0 | 1 | 2:
                    read = cursor.range_of(f"data/{rng.randrange(step + 1)}.jsonl", "ab" * 8)
                    for _ in range(rng.randrange(3)):
                        read.add(rng.randrange(4))
                        cursor.was_read(rng.randrange(4))
                case 3:
                    cursor.expect_again(rng.randrange(4) for _ in range(5))
                case 4:
                    standing = [one for one in cursor.ranges.values() if rng.random() < 0.8]
                    changed = standing[: rng.randrange(2)]
                    for one in changed:
                        one.is_duplicated = not one.is_duplicated
                    lost = [one for one in cursor.ranges.values() if one not in standing]
                    cursor.replace(standing, lost, changed)
                    cursor.commit = f"{step:040x}"
                case 5 if cursor.ranges:
                    cursor.forget([rng.choice(list(cursor.ranges))])
            again = Cursor.decode(cursor.encode(), "user/rows")
            assert again == cursor
            if rng.random() < 0.1:
                cursor = again


def test_a_cursor_costs_each_row_the_same_after_any_number_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = [0]

    def count_bytes(data: bytes, level: int) -> bytes:
        compressed[0] += len(data)
        return zlib.compress(data, level)

    def cost_of(files: int) -> float:
        """Return the bytes that are compressed per row while this many files of one row are read."""
        cursor, compressed[0] = Cursor("user/rows", "f" * 40), 0
        for n in range(files):
            read = cursor.range_of(f"data/train-{n:05d}.jsonl", f"{n:016x}")
            read.add(n)
            read.is_complete = True
            cursor.encode()
        assert len(Cursor.decode(cursor.encode(), "user/rows").ranges) == files
        return compressed[0] / files

    monkeypatch.setattr(cursors, "zlib", SimpleNamespace(compress=count_bytes, decompressobj=zlib.decompressobj))
    few, many = cost_of(1_000), cost_of(8_000)
    assert many < 2 * few


def test_a_cursor_of_an_earlier_version_is_read() -> None:
    text = (
        "hubsync-1:eAFrXVKUWpC_srQ4tUi_KL-8eFlyfm5uZslNjTQiwbKCzNTk1OLGNSmJJYn6iXpZxfl5Od"
        "NReBsSk1AhMyvT4UNLcvKLSyZCVSZB9G1ITkGFjOzshw8tTUxPzMxr5GQCAKwPRqo="
    )
    found = Cursor.decode(text, "user/rows")
    assert (found.commit, found.skip_counts) == ("f" * 40, {9: 2})
    assert found.ranges == {"data/a.jsonl": ReadRange("data/a.jsonl", "ab" * 8, 3, 5, 2, is_complete=True)}
    assert found.lost == [ReadRange("data/b.jsonl", "cd" * 8, 1, 7, 7, is_complete=True)]
    assert Cursor.decode(found.encode(), "user/rows") == found


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=8), st.randoms(use_true_random=False))
def test_ranges_are_found_in_any_order(parts: list[list[int]], rng: random.Random) -> None:
    made = []
    for part in parts:
        piece = ReadRange("somewhere")
        for mark in part:
            piece.add(mark)
        made.append(piece)
    joined = list(parts)
    rng.shuffle(joined)
    marks = [100, *(mark for part in joined for mark in part), 101]
    found, known, others = RangeMatcher(made).find(marks)
    assert Counter(known) + Counter(others) == Counter(marks)
    assert {100, 101} <= set(others)
    assert have_same_rows(found, known)
    if len({tuple(part) for part in parts}) == len({part[0] for part in parts}):  # nothing begins alike
        assert len(others) == 2


class World:
    """One dataset that several jobs fill and people rewrite, and a reader that is started again and again."""

    def __init__(self, hub: LocalHub, repo: str, *, alike: bool) -> None:
        self._hub, self._repo = hub, repo
        self._alike = alike  # many rows are the same
        self._numbers = count()
        self.is_squashed = self.is_refused = False
        self._api = HfApi(endpoint=hub.endpoint, token=hub.token)
        self._api.create_repo(repo, repo_type="dataset")
        self._files: dict[str, list[int]] = {}
        self._made = 0
        self._next: dict[str, int] = {"a": 0, "b": 0}
        self.put: Counter[int] = Counter()
        self.had: Counter[int] = Counter()
        self.cursor: str | None = None

    def _rows(self, ids: list[int]) -> list[int]:
        return ids if self._alike else [next(self._numbers) for _ in ids]

    def shard(self, writer: str, ids: list[int]) -> None:
        ids = self._rows(ids)
        path = f"data/train-{writer}-{self._next[writer]:05d}.jsonl"
        self._next[writer] += 1
        self.put += Counter(ids)
        mark = {"writer": writer, "epoch": 1, "next": {f"data/train-{writer}-*.jsonl": self._next[writer]}}
        self._commit({path: ids}, [], {f".hubsync/{writer}.json": json.dumps(mark).encode()})

    def grow(self, number: int, ids: list[int]) -> None:
        path = sorted(self._files)[number % len(self._files)]
        ids = self._rows(ids)
        self.put += Counter(ids)
        self._commit({path: self._files[path] + ids}, [])

    def compact(self, numbers: list[int], rng: random.Random | None, more: list[int]) -> None:
        """Merge some files and some new rows into one file."""
        paths = {sorted(self._files)[number % len(self._files)] for number in numbers}
        pieces = Cursor.decode(self.cursor, self._repo).ranges.values() if self.cursor else ()
        known = {piece.path for piece in pieces if piece.rows}
        if known and not known & paths:
            return  # by chance it may have the same rows as another existing shard, so a reader cannot know
        more = self._rows(more)
        parts = [self._files[path] for path in sorted(paths)]
        made = [n for part in parts for n in part] + more
        if rng is not None:
            rng.shuffle(made)
        self.put += Counter(more)
        self._made += 1
        self._commit({f"data/all-{self._made}.jsonl": made}, sorted(paths))

    def squash(self) -> None:
        self._api.super_squash_history(self._repo, repo_type="dataset")
        self.is_squashed = True

    def read(self, count: int | None) -> None:
        with rows(self._repo, since=self.cursor, endpoint=self._hub.endpoint, token=self._hub.token) as reader:
            try:
                for row in islice(reader, count):
                    self.had[row["id"]] += 1
            except DatasetRewritten:
                # If a new shard has the same rows as a part of a merged one, and the history is gone, a reader cannot
                # know which is which.
                assert self._alike
                assert self.is_squashed
                self.is_refused = True
            self.cursor = reader.cursor
        assert self.had <= self.put

    def _commit(self, add: dict[str, list[int]], delete: list[str], more: dict[str, bytes] | None = None) -> None:
        content = {path: b"".join(b'{"id": %d}\n' % n for n in ids) for path, ids in add.items()}
        operations: list[Any] = [CommitOperationAdd(path, data) for path, data in {**content, **(more or {})}.items()]
        operations += [CommitOperationDelete(path) for path in delete]
        self._api.create_commit(self._repo, operations, commit_message="Change", repo_type="dataset")
        self._files = {path: ids for path, ids in {**self._files, **add}.items() if path not in delete}


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


IDS = st.lists(st.integers(0, 5), min_size=1, max_size=4)  # so that many rows are the same
STEPS = st.one_of(
    st.tuples(st.just("shard"), st.sampled_from("ab"), IDS),
    st.tuples(st.just("grow"), st.integers(0, 9), IDS),
    st.tuples(st.just("compact"), st.lists(st.integers(0, 9), min_size=1), st.just(None), st.lists(st.integers(0, 5))),
    st.tuples(st.just("read"), st.integers(0, 12)),
    st.tuples(st.just("read"), st.none()),
)
SQUASH = st.tuples(st.just("squash"))
SHUFFLE = st.tuples(
    st.just("compact"), st.lists(st.integers(0, 9), min_size=1), st.randoms(use_true_random=False), st.just([])
)


# A file that is both shuffled and squashed cannot be recognized, and is refused: see test_row_iterator.
@pytest.mark.slow("tries many histories of a dataset on a Hub")
@pytest.mark.parametrize("alike", [False, True])
@settings(max_examples=EXAMPLES)
@example(
    steps=[
        ("read", None), ("shard", "a", [0]), ("shard", "a", [0]), ("grow", 1, [1, 0, 0]), ("read", 3),
        ("shard", "a", [0]), ("squash",), ("compact", [0, 1], None, []),
    ]
)  # fmt: skip
@given(st.one_of(*[st.lists(st.one_of(STEPS, more), max_size=15) for more in (SQUASH, SHUFFLE)]))
def test_each_row_is_read_once_however_the_dataset_is_rewritten(
    one_hub: LocalHub, alike: bool, steps: list[tuple[Any, ...]]
) -> None:
    world = World(one_hub, f"user/rows-{random.SystemRandom().randrange(1 << 60)}", alike=alike)
    world.shard("a", [0, 1])
    for name, *args in steps:
        getattr(world, name)(*args)
    world.read(None)
    assert world.had == world.put or world.is_refused
