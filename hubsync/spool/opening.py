"""Find and open a spool: where it is, whether this user may use it, whether it belongs to the target."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from pathlib import Path

import msgspec

from hubsync._runtime.clock import Clock
from hubsync.errors import ConfigError, SpoolError, SpoolMismatch
from hubsync.model.target import Target, default_directory
from hubsync.policies import SpoolPolicy
from hubsync.spool.database import corrupt
from hubsync.spool.spool import Spool


def open_spool(
    target: Target | None, where: str | Path | SpoolPolicy | None, clock: Clock, *, private: bool | None = None
) -> Spool:
    """Opens (or makes) the spool at `where`; the target's own place where that is None.

    `private`, where it is chosen, is kept: whoever has to make the repo in the end, does it so.
    """
    policy = where if isinstance(where, SpoolPolicy) else SpoolPolicy(directory=where)
    if policy.directory is not None:
        directory = Path(policy.directory).expanduser().absolute()
    elif target is not None:
        directory = default_directory(target)
        with contextlib.suppress(OSError):  # what can't be made is told with the spool itself
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    else:
        raise ConfigError("which spool? Give its directory.")
    keep_to_its_owner(directory)
    try:
        spool = Spool(directory, target=target, policy=policy, clock=clock)
    except msgspec.DecodeError as error:
        raise corrupt(directory / "catalogue.sqlite", error) from error
    if private is not None and private != spool.private:
        spool.catalogue.set("private", json.dumps(private))
    return spool


def spool_of(target: Target, directory: Path, clock: Clock) -> Spool:
    """Opens a spool that is there, to look at it.

    Raises:
        SpoolError: there is none.
        SpoolMismatch: it is not the target's.
    """
    spool = open_spool(None, directory, clock)  # without a target it is never made
    its = spool.target
    if its != target:
        spool.close()
        raise SpoolMismatch(
            f"the spool {directory} belongs to another dataset: {its.repo} --revision {its.revision} --endpoint "
            f"{its.endpoint}"
        )
    return spool


def keep_to_its_owner(directory: Path) -> None:
    """A spool is one user's alone: its rows are private, and its catalogue says where the token is sent.

    What others may read or enter is closed to them, and what is another's is refused. A directory that holds other
    things is nobody's to close: where others may write to it, it is refused as well.

    Raises:
        SpoolError: it is not safe to use.
    """
    is_spool = os.path.exists(directory / "catalogue.sqlite")  # which another user's may not be asked: no, then
    parts = [directory, *(directory / name for name in ("segments", "writers", "dead-letter", "catalogue.sqlite"))]
    for path in parts:
        try:
            found = path.stat() if path == directory else path.lstat()
        except OSError:
            continue  # not there yet; or Spool says what is wrong with it
        if path == directory and not stat.S_ISDIR(found.st_mode):
            raise SpoolError(f"{path} is a file, and a spool is a directory. Give another with spool=…")
        if found.st_uid != os.geteuid():
            raise SpoolError(
                f"{path} belongs to another user (uid {found.st_uid}, not {os.geteuid()}), who could read the rows and "
                "send the token elsewhere. Nothing was touched. To use it, run this as that user; else give another "
                "spool with spool=…"
            )
        if not found.st_mode & 0o077 or stat.S_ISLNK(found.st_mode):
            continue
        if is_spool or path != directory or not any(directory.iterdir()):
            with contextlib.suppress(OSError):  # a file system without modes
                path.chmod(found.st_mode & 0o700)
        elif found.st_mode & 0o022:
            raise SpoolError(
                f"other users may write to {directory}, and it holds other things, so it can't be made private. "
                f"Give a directory of its own: spool={str(directory / 'hubsync')!r}"
            )
