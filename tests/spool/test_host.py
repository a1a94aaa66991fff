"""A spool belongs on a machine's own disk, and to one machine at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hubsync import SpoolPolicy, Uploader
from hubsync._runtime import filesystem
from hubsync._runtime.clock import SystemClock
from hubsync._runtime.filesystem import is_in_memory, network_file_system, statfs_type
from hubsync.errors import SpoolBusy, SpoolError, SpoolLost
from hubsync.localhub import LocalHub
from hubsync.maintenance.drain import drain
from hubsync.model.target import default_directory, default_home
from hubsync.spool import host
from hubsync.spool.opening import open_spool
from hubsync.spool.spool import Spool
from tests.conftest import Dataset
from tests.spool.conftest import TARGET, batch, writer_of
from tests.waiting import until

NFS, FUSE, EXT4 = 0x6969, 0x65735546, 0xEF53


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is on NFS according to statfs."""
    shared = tmp_path / "home"
    shared.mkdir()

    def statfs(path: Path) -> int:
        return NFS if path.is_relative_to(shared) else EXT4

    monkeypatch.setattr(filesystem, "statfs_type", statfs)
    monkeypatch.setattr(host, "_WATCH_S", 1.0)
    monkeypatch.setattr(host, "_STEP_S", 0.05)
    return shared


def used_elsewhere(spool: Path) -> None:
    (spool / "host").write_bytes(msgspec.json.encode({"boot": "another boot", "name": "node17"}))


# Which file system it is.


def test_the_kernel_tells_the_type_of_a_file_system() -> None:
    assert statfs_type(Path("/proc")) == 0x9FA0
    assert statfs_type(Path("/does/not/exist")) == 0
    assert network_file_system(Path("/proc/does/not/exist")) is None
    assert is_in_memory(Path("/dev/shm")) == (statfs_type(Path("/dev/shm")) == 0x01021994)


@pytest.mark.parametrize(
    ("magic", "kind"),
    [(0x6969, "nfs"), (0x0BD00BD0, "lustre"), (0x47504653, "gpfs"), (0x00C36400, "ceph"), (0x19830326, "beegfs"),
     (0xFF534D42, "cifs"), (0x01021997, "9p"), (EXT4, None), (0x58465342, None), (0x794C7630, None)],
)  # fmt: skip
def test_network_file_systems_are_known_by_their_number(
    magic: int, kind: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(filesystem, "statfs_type", lambda path: magic)
    assert network_file_system(tmp_path / "not" / "there") == kind


@pytest.mark.parametrize(
    ("mounted", "kind"),
    [("fuse.sshfs", "fuse.sshfs"), ("fuse.s3fs", "fuse.s3fs"), ("fuse.fuse-overlayfs", None), ("virtiofs", None),
     (None, "fuse")],
)  # fmt: skip
def test_of_fuse_the_mount_decides(
    mounted: str | None, kind: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(filesystem, "statfs_type", lambda path: FUSE)
    monkeypatch.setattr(filesystem, "_mounted_type", lambda path: mounted)
    assert network_file_system(tmp_path) == kind


def test_the_mount_of_a_directory_is_found() -> None:
    assert filesystem._mounted_type(Path("/proc")) == "proc"


# The default directory.


@pytest.fixture
def home_on_nfs(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HUBSYNC_HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(network))
    for name in ("node", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "node"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path / "node" / f"hubsync-{os.getuid()}"


def test_a_home_on_nfs_moves_the_spool_to_the_nodes_own_disk(
    home_on_nfs: Path, network: Path, hub: LocalHub, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with Uploader("user/rows", endpoint=hub.endpoint, token=hub.token) as up:
        up.put([{"id": 1}])
        assert up.spool.parent == home_on_nfs == default_home()
        assert home_on_nfs.stat().st_mode & 0o777 == 0o700
    assert dataset.ids() == [1]
    (said,) = [record.message for record in caplog.records if "network file system" in record.message]
    assert f"(nfs), so the spool is on this machine's own disk: {up.spool}" in said
    assert "a restart on another machine does not upload them" in said
    assert list(network.iterdir()) == []


def test_a_spool_of_an_earlier_version_on_nfs_is_named(
    home_on_nfs: Path, network: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = default_directory(TARGET, network / ".local" / "state" / "hubsync")
    earlier.mkdir(parents=True)
    open_spool(TARGET, None, SystemClock()).close()
    assert f"Rows of an earlier version may be in {earlier}: hubsync drain {earlier}" in caplog.text


def test_a_directory_that_others_may_replace_is_refused(home_on_nfs: Path) -> None:
    home_on_nfs.mkdir()
    home_on_nfs.chmod(0o777)
    with pytest.raises(SpoolError, match="not this user's own directory"):
        open_spool(TARGET, None, SystemClock())


@pytest.mark.parametrize("how", ["spool", "home"])
def test_a_spool_that_is_put_on_nfs_is_refused(how: str, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBSYNC_HOME", str(network))
    where = network / "spool" if how == "spool" else None
    with pytest.raises(SpoolError, match=r"network file system \(nfs\).*spool='.*allow_network=True"):
        open_spool(TARGET, where, SystemClock())
    assert list(network.iterdir()) == []


@pytest.mark.parametrize("how", ["policy", "environment"])
def test_it_can_be_allowed(how: str, network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "environment":
        monkeypatch.setenv("HUBSYNC_ALLOW_NETWORK_SPOOL", "1")
    policy = SpoolPolicy(directory=network / "spool", allow_network=how == "policy")
    open_spool(TARGET, policy, SystemClock()).close()
    open_spool(None, network / "spool", SystemClock()).close()  # and looked at without


# Another machine.


@pytest.fixture
def shared(network: Path) -> Iterator[Callable[[], Spool]]:
    opened: list[Spool] = []

    def make() -> Spool:
        policy = SpoolPolicy(directory=network / "spool", allow_network=True)
        opened.append(open_spool(TARGET, policy, SystemClock()))
        return opened[-1]

    yield make
    for spool in opened:
        spool.close()


def test_a_second_live_machine_is_refused(shared: Callable[[], Spool], network: Path) -> None:
    writer = writer_of(shared())
    used_elsewhere(network / "spool")
    done = threading.Event()

    def beat() -> None:  # as the other machine does
        while not done.wait(0.05):
            os.utime(network / "spool" / "writers" / f"{writer.name}.lock")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(SpoolBusy, match="node17 has the spool"):
            shared()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("age_s", [1, 3600])
def test_the_spool_of_a_dead_machine_is_taken_over(
    age_s: int, shared: Callable[[], Spool], network: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(shared())
    writer.append([batch(1)])
    writer.close()
    beat = time.time() - age_s
    os.utime(network / "spool" / "writers" / f"{writer.name}.lock", (beat, beat))
    used_elsewhere(network / "spool")
    spool = shared()
    spool.recovery.adopt()
    assert spool.depth().sealed == 1
    assert "node17 used the spool" in caplog.text
    shared()  # it is ours now
    assert caplog.text.count("node17 used the spool") == 1


def test_the_machine_that_was_taken_over_stops(network: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUBSYNC_ALLOW_NETWORK_SPOOL", "1")
    up = Uploader("user/rows", endpoint=hub.endpoint, token=hub.token, spool=network / "spool").open()
    up.put([{"id": 1}], ack="spooled")
    used_elsewhere(network / "spool")
    until(lambda: up._engine.failure is not None)
    assert isinstance(up._engine.failure, SpoolLost)
    with pytest.raises(SpoolLost, match=r"node17 took over the spool .* safe there"):
        up.close()


def test_a_reboot_of_a_machine_with_its_own_disk_needs_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    open_spool(TARGET, tmp_path / "spool", SystemClock()).close()
    used_elsewhere(tmp_path / "spool")
    open_spool(TARGET, tmp_path / "spool", SystemClock()).close()
    assert b"another boot" not in (tmp_path / "spool" / "host").read_bytes()


def test_drain_takes_over_the_spool_of_a_dead_machine(
    network: Path, hub: LocalHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        policy = SpoolPolicy(directory=network / "spool", allow_network=True)
        with Uploader("user/rows", endpoint=hub.endpoint, spool=policy) as up:
            up.put([{"id": 1}])
    used_elsewhere(network / "spool")
    drain(network / "spool", timeout=60)
    assert dataset.ids() == [1]
