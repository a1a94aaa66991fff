"""Find and open a spool: where it is, whether this user may use it, whether it belongs to the target."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

import msgspec

from hubsync._runtime.clock import Clock
from hubsync._runtime.filesystem import network_file_system
from hubsync.errors import ConfigError, SpoolError, SpoolMismatch
from hubsync.model.target import Target, default_directory, node_local_home, state_home
from hubsync.policies import SpoolPolicy
from hubsync.spool.database import corrupt
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")


def open_spool(
    target: Target | None, where: str | Path | SpoolPolicy | None, clock: Clock, *, private: bool | None = None
) -> Spool:
    """Open a spool, creating it if a target is given.

    Args:
        target: the branch it belongs to; None for an existing spool, whatever it belongs to.
        where: its directory, or a policy with it; None for the target's default directory.
        clock: for its timestamps.
        private: whether a repo that is created later is private. It is kept in the spool, so that any process that
            creates the repo obeys it. None keeps what was chosen before.

    Raises:
        ConfigError: neither a target nor a directory is given.
        SpoolError: the spool does not exist, can't be written, or is not safe to use.
        SpoolMismatch: it belongs to another target.
        SpoolVersionError: a newer hubsync wrote it.
        SpoolLost: its catalogue is corrupt.
    """
    policy = where if isinstance(where, SpoolPolicy) else SpoolPolicy(directory=where)
    if policy.directory is not None:
        directory = Path(policy.directory)
    elif target is not None:
        directory = default_directory(target)
        with contextlib.suppress(OSError):  # opening the spool reports it
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.parent != state_home():
            _check_node_local(directory, target)
    else:
        raise ConfigError("which spool? Give its directory.")
    if target is not None:
        _refuse_network(directory, policy)
    restrict_to_owner(directory)
    try:
        spool = Spool(directory, target=target, policy=policy, clock=clock)
    except msgspec.DecodeError as error:
        raise corrupt(directory / "catalogue.sqlite", error) from error
    if private is not None and private != spool.private:
        spool.private = private
    return spool


def _check_node_local(directory: Path, target: Target) -> None:
    """Say that the spool is on this machine's own disk, and check that only this user can replace it there."""
    home = directory.parent
    about = home.lstat() if home.exists() else None
    if about is None or about.st_uid != os.geteuid() or not stat.S_ISDIR(about.st_mode) or about.st_mode & 0o022:
        raise SpoolError(
            f"{home} is not this user's own directory. Nothing was changed. Set HUBSYNC_HOME, or use spool=…"
        )
    shared = state_home()
    earlier = default_directory(target, shared)
    left = f" Rows of an earlier version may be in {earlier}: hubsync drain {earlier}" if earlier.exists() else ""
    _log.warning(
        "%s is on a network file system (%s), so the spool is on this machine's own disk: %s. "
        "Rows that are not on the Hub when the job ends stay there, and a restart on another machine does not upload "
        "them. To upload them, on this machine: hubsync drain %s. To choose another directory: HUBSYNC_HOME=….%s",
        shared, network_file_system(shared), directory, directory, left,
    )  # fmt: skip


def _refuse_network(directory: Path, policy: SpoolPolicy) -> None:
    kind = network_file_system(directory)
    if kind is None or policy.allow_network or os.environ.get("HUBSYNC_ALLOW_NETWORK_SPOOL") == "1":
        return
    local = node_local_home()
    use = f"such as spool={str(local / directory.name)!r}" if local is not None else "spool=…"
    raise SpoolError(
        f"{directory} is on a network file system ({kind}), where SQLite and file locks are not reliable. Nothing was "
        f"changed. Use a directory on this machine's own disk, {use}. If only one machine uses it at a time, and you "
        "accept the risk: SpoolPolicy(directory=…, allow_network=True), or HUBSYNC_ALLOW_NETWORK_SPOOL=1."
    )


def open_existing(target: Target, directory: Path, clock: Clock) -> Spool:
    """Open an existing spool of a target, to look at it.

    Raises:
        SpoolError: it does not exist.
        SpoolMismatch: it belongs to another target.
    """
    spool = open_spool(None, directory, clock)
    found = spool.target
    if found != target:
        spool.close()
        raise SpoolMismatch(
            f"the spool {directory} belongs to another dataset: {found.repo} --revision {found.revision} --endpoint "
            f"{found.endpoint}"
        )
    return spool


def existing_default_spool(target: Target) -> Path | None:
    """Return the spool that uploaders of `target` use by default; None if it does not exist on this machine."""
    directory = default_directory(target)
    return directory if (directory / "catalogue.sqlite").exists() else None


def restrict_to_owner(directory: Path) -> None:
    """Make sure that only this user can use a spool: its rows are private, and its catalogue says where the token goes.

    Parts of a spool that others may read or enter are closed to them; what belongs to another user is refused. A
    directory that holds other things is not closed, and is refused if others may write to it.

    Raises:
        SpoolError: it is not safe to use.
    """
    is_spool = os.path.exists(directory / "catalogue.sqlite")
    parts = [directory, *(directory / name for name in ("segments", "writers", "dead-letter", "catalogue.sqlite"))]
    for path in parts:
        try:
            found = path.stat() if path == directory else path.lstat()
        except OSError:
            continue  # it does not exist yet; or opening the spool reports what is wrong
        if path == directory and not stat.S_ISDIR(found.st_mode):
            raise SpoolError(f"{path} is a file, and a spool is a directory. Use another path: spool=…")
        if found.st_uid != os.geteuid():
            raise SpoolError(
                f"{path} belongs to another user (uid {found.st_uid}, not {os.geteuid()}), who could read the rows and "
                "send the token elsewhere. Nothing was changed. Run this as that user, or use another spool: spool=…"
            )
        if not found.st_mode & 0o077 or stat.S_ISLNK(found.st_mode):
            continue
        if is_spool or path != directory or not any(directory.iterdir()):
            with contextlib.suppress(OSError):  # a file system without modes
                path.chmod(found.st_mode & 0o700)
        elif found.st_mode & 0o022:
            raise SpoolError(
                f"other users may write to {directory}, and it holds other things, so it can't be made private. "
                f"Use a directory inside it: spool={str(directory / 'hubsync')!r}"
            )
