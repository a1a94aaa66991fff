"""A spool whose catalogue is corrupt or gone: its rows are uploaded once, and what is unknown is reported."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hubsync import NotDrained, ShardPolicy, SpoolBusy, SpoolError, SpoolLost, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.inspect import inspect_spool
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.maintenance.rebuild import rebuild
from tests.conftest import Dataset


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(autouse=True)
def _login(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)


def fill(hub: LocalHub, uploader: Callable[..., Uploader], **about: Any) -> None:
    """Rows 0 to 9 are on the Hub, 10 to 29 are not: in six full shards, and one with two rows."""
    up = uploader(shard=ShardPolicy(max_rows=3, linger_s=3600), **about).open()
    for n in range(30):
        if n == 10:
            up.flush()
            hub.faults.add(Fault.outage())
        up.put([{"id": n}], offset=n, source="a")
    with pytest.raises(NotDrained):
        up.close(timeout=0.2)
    hub.faults.clear()


def header(spool: Path) -> None:
    with (spool / "catalogue.sqlite").open("r+b") as file:
        file.write(os.urandom(512))


def emptied(spool: Path) -> None:
    (spool / "catalogue.sqlite").write_bytes(b"")


def removed(spool: Path) -> None:
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()


def middle(spool: Path) -> None:
    size = (spool / "catalogue.sqlite").stat().st_size
    with (spool / "catalogue.sqlite").open("r+b") as file:
        for page in range(2, size // 4096, 2):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def directory_in_the_place_of(suffix: str) -> Callable[[Path], None]:
    def damage(spool: Path) -> None:
        file = spool / f"catalogue.sqlite{suffix}"
        file.unlink(missing_ok=True)
        file.mkdir()

    return damage


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_directory_in_the_place_of_a_catalogues_file_is_named_and_rescued(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path, suffix: str
) -> None:
    fill(hub, uploader)
    directory_in_the_place_of(suffix)(spool)
    rescue = rf"catalogue\.sqlite{suffix}, which is not a regular file.*hubsync drain --rescue {spool}$"
    with pytest.raises(SpoolLost, match=rescue):
        uploader().open()
    if suffix != "-shm":  # without which SQLite can read
        with pytest.raises(SpoolLost, match=rescue):
            inspect_spool(spool)
    assert rebuild(spool) is not None
    drain(spool, timeout=60)
    assert dataset.ids() == list(range(30))


@pytest.mark.parametrize("damage", [header, removed])
def test_a_repo_that_a_rebuild_creates_is_as_private_as_the_job_asked(
    hub: LocalHub,
    uploader: Callable[..., Uploader],
    dataset: Dataset,
    spool: Path,
    damage: Callable[[Path], None],
) -> None:
    fill(hub, uploader, private=True)
    damage(spool)
    for bring_up in (rebuild, drain):
        dataset.api.delete_repo(dataset.repo, repo_type="dataset")
        bring_up(spool)
        assert dataset.api.dataset_info(dataset.repo).private


@pytest.mark.slow("rebuilds and drains a spool for each kind of damage")
@pytest.mark.parametrize("damage", [header, emptied, removed, middle])
@pytest.mark.parametrize("path", [None, "data/{split}-{seq:05d}.jsonl"], ids=["a name each", "one series"])
def test_every_row_is_uploaded_once_whatever_is_broken(
    hub: LocalHub,
    uploader: Callable[..., Uploader],
    dataset: Dataset,
    spool: Path,
    damage: Callable[[Path], None],
    path: str | None,
) -> None:
    fill(hub, uploader, path=path)
    damage(spool)
    with pytest.raises(SpoolError):
        drain(spool)
    found = rebuild(spool)
    assert found is not None
    assert found.rows == 20
    assert (found.kept is None) == (damage is removed)
    assert drain(spool, timeout=60).rows == 0
    assert dataset.ids() == list(range(30))
    with uploader(path=path) as up:
        assert up.offset("a") in (9, 29)  # from the dataset, or from the old catalogue
        up.put([{"id": 30}])
    assert dataset.ids() == list(range(31))


def test_rows_that_were_just_committed_are_recognized_by_content(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path
) -> None:
    with uploader(shard=ShardPolicy(max_rows=3)) as up:
        up.put([{"id": n} for n in range(3)])
        (file,) = (spool / "segments").iterdir()
        content = file.read_bytes()
    file.write_bytes(content)  # the process died between the commit and the file's end
    removed(spool)
    found = rebuild(spool)
    assert found is not None
    assert (found.rows, found.on_hub) == (0, 1)
    drain(spool, timeout=60)
    assert dataset.ids() == [0, 1, 2]


def test_a_torn_tail_is_cut_and_what_is_unknown_is_reported(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path
) -> None:
    fill(hub, uploader)
    last = max((spool / "segments").iterdir())
    with last.open("ab") as file:
        file.write(b'{"id": 30}\n{"id": 3')
    removed(spool)
    found = rebuild(spool)
    assert found is not None
    assert any("offsets" in line for line in found.unknown)
    assert any("keys" in line for line in found.unknown)
    assert any(last.name in line and "acknowledged" in line for line in found.unknown)
    drain(spool, timeout=60)
    assert dataset.ids() == list(range(31))


def test_config_and_split_come_from_the_writers_note(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path
) -> None:
    for config, split in (("math", "train"), ("code", "test")):
        hub.faults.add(Fault.outage())
        up = uploader(config=config, split=split).open()
        up.put([{"id": 1}])
        with pytest.raises(NotDrained):
            up.close(timeout=0.1)
    hub.faults.clear()
    removed(spool)
    rebuild(spool)
    drain(spool, timeout=60)
    assert [path.rsplit("-", 2)[0] for path in dataset.paths()] == ["code/test", "math/train"]


def test_the_dead_letter_is_kept(hub: LocalHub, uploader: Callable[..., Uploader], spool: Path) -> None:
    hub.faults.add(Fault.status(422, on="commit"))
    with pytest.raises(Exception, match="422"), uploader() as up:
        up.put([{"id": 1}])
    hub.faults.clear()
    before = sorted(file.read_bytes() for file in (spool / "dead-letter").iterdir())
    removed(spool)
    (spool / "segments" / "ab-00000099.jsonl").write_bytes(b'{"id":2}\n')
    rebuild(spool)
    assert drain(spool, timeout=60).dead == 1
    assert sorted(file.read_bytes() for file in (spool / "dead-letter").iterdir()) == before


def test_a_sound_catalogue_and_a_running_job_are_left_alone(uploader: Callable[..., Uploader], spool: Path) -> None:
    with uploader() as up:
        up.put([{"id": 1}])
        with pytest.raises(SpoolBusy):
            rebuild(spool)
    assert rebuild(spool) is None
    assert sqlite3.connect(spool / "catalogue.sqlite").execute("SELECT count(*) FROM segments").fetchone() == (1,)


@pytest.mark.parametrize("damage", [header, removed])
def test_the_card_shows_the_columns_of_rebuilt_rows(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path, damage: Callable[[Path], None]
) -> None:
    up = uploader().open()
    up.put([{"id": 1, "new": None}])
    up.flush()
    hub.faults.add(Fault.outage())
    up.put([{"id": 2, "new": ["x"]}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.2)
    hub.faults.clear()
    damage(spool)
    rebuild(spool)
    drain(spool)
    assert dataset.ids() == [1, 2]
    assert "list: string" in dataset.read("README.md").decode()


@pytest.mark.parametrize("name", ["run#3", "50%25", "what?"])
def test_a_sound_spool_is_sound_under_any_name(
    hub: LocalHub, uploader: Callable[..., Uploader], tmp_path: Path, name: str
) -> None:
    with uploader(spool=tmp_path / name) as up:
        up.put([{"id": 1}])
    assert rebuild(tmp_path / name) is None


def flipped(spool: Path, seed: int, flips: int) -> None:
    """Flip single bits of the catalogue; with 0, zero every 97th byte after its first page."""
    db = sqlite3.connect(spool / "catalogue.sqlite")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    db.close()
    chosen = random.Random(seed)
    data = bytearray((spool / "catalogue.sqlite").read_bytes())
    if flips == 0:
        for at in range(4096, len(data), 97):
            data[at] ^= 0xFF
    used = [at for at, byte in enumerate(data) if byte]
    for _ in range(flips):
        data[chosen.choice(used)] ^= 1 << chosen.randrange(8)
    (spool / "catalogue.sqlite").write_bytes(data)


@pytest.mark.slow("rebuilds and drains a spool for each flipped bit")
@pytest.mark.parametrize(("seed", "flips"), [(0, 0), *((seed, flips) for seed in range(3) for flips in (12, 60))])
def test_flipped_bits_cause_no_traceback_and_every_row_is_uploaded(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path, seed: int, flips: int
) -> None:
    fill(hub, uploader)
    flipped(spool, seed, flips)
    for look in (inspect_spool, lambda where: QuarantineCommands(where).shards()):
        with suppress(SpoolError):
            look(spool)
    rebuild(spool)
    assert drain(spool, timeout=60).rows == 0
    assert dataset.ids() == list(range(30))


@pytest.mark.slow("rebuilds a spool several times")
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE segments SET template = CAST(x'ff' AS TEXT)",  # which SQLite thinks sound
        "UPDATE meta SET value = '{' WHERE key = 'target'",
        "UPDATE segments SET schema = '{'; UPDATE schemas SET known = '{'",  # it may not read the latter
    ],
)
def test_undecodable_text_is_a_corrupt_catalogue_not_a_full_spool(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, spool: Path, damage: str
) -> None:
    fill(hub, uploader)
    with sqlite3.connect(spool / "catalogue.sqlite") as db:
        db.executescript(damage)
    db.close()
    with pytest.raises(SpoolLost, match="hubsync drain --rescue"):
        drain(spool, timeout=60)
    assert rebuild(spool) is not None
    assert drain(spool, timeout=60).rows == 0
    assert dataset.ids() == list(range(30))
