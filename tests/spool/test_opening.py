"""Where a spool is: absolute from the start, or refused."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from hubsync import SpoolPolicy, Uploader
from hubsync._runtime.clock import SystemClock
from hubsync.errors import ConfigError
from hubsync.localhub import LocalHub
from hubsync.model.target import Target, default_directory, default_home
from hubsync.spool.opening import open_spool
from tests.conftest import FAST, Dataset
from tests.spool.conftest import TARGET


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_relative_home_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUBSYNC_HOME", "state")
    with pytest.raises(ConfigError, match=r"HUBSYNC_HOME='state' is relative.*/state'"):
        open_spool(TARGET, None, SystemClock())
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_in_the_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("HUBSYNC_HOME", "~/state")
    assert default_home() == tmp_path / "me" / "state"
    monkeypatch.setenv("HUBSYNC_HOME", "~no-such-user/state")
    with pytest.raises(ConfigError, match="~no-such-user"):
        default_directory(TARGET)


def test_a_relative_xdg_state_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HUBSYNC_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert default_home() == tmp_path / ".local" / "state" / "hubsync"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_home() == tmp_path / "xdg" / "hubsync"


def test_a_user_without_a_home_directory_is_asked_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HUBSYNC_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(ConfigError, match="no home directory"):
        open_spool(TARGET, None, SystemClock())
    with pytest.raises(ConfigError, match="that has none"):
        open_spool(TARGET, "~/spool", SystemClock())
    assert list(tmp_path.iterdir()) == []


def test_a_job_may_change_its_directory(hub: LocalHub, dataset: Dataset, tmp_path: Path) -> None:
    with Uploader("user/rows", endpoint=hub.endpoint, token=hub.token, spool="state", **FAST) as up:
        up.put([{"id": 1}], ack="spooled")
        (tmp_path / "elsewhere").mkdir()
        os.chdir(tmp_path / "elsewhere")
        up.put([{"id": 2}], ack="committed", timeout=60)
        assert up.spool == tmp_path / "state"
    assert dataset.ids() == [1, 2]


def test_the_target_tells_default_directories_apart() -> None:
    first, second = (default_directory(Target("http://127.0.0.1:1", "user/rows", name)) for name in ("main", "next"))
    assert first.parent == second.parent == default_home()
    assert first != second


def test_a_relative_spool_is_that_of_the_directory_in_which_the_uploader_was_made(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = Uploader("user/rows", endpoint=hub.endpoint, token=hub.token, spool="state", **FAST)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with made as up:
        assert up.spool == tmp_path / "state"


@pytest.mark.parametrize("home", ["", None])
def test_without_a_value_for_home_the_system_knows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    for name in ("HUBSYNC_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    me = pwd.getpwuid(os.getuid())
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd((*me[:5], str(tmp_path), me[6])))
    assert default_home() == tmp_path / ".local" / "state" / "hubsync"
    assert SpoolPolicy(directory="~/spool").directory == tmp_path / "spool"


def test_a_relative_home_directory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "me")
    with pytest.raises(ConfigError, match="the home directory of a user that has none"):
        SpoolPolicy(directory="~/spool")
    monkeypatch.delenv("HUBSYNC_HOME")
    with pytest.raises(ConfigError, match="no home directory"):
        default_home()


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="spool is empty, so it names no directory"):
        Uploader("user/rows", spool="")
