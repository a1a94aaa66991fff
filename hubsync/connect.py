"""From a repo id to the parts that serve it: endpoint, token, spool and destination, as huggingface_hub resolves them.

The one place that reads the environment.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from hubsync.catalogue import corrupt
from hubsync.clock import Clock
from hubsync.errors import AuthenticationError, ConfigError, SpoolError, SpoolMismatch
from hubsync.hub import HubDataset
from hubsync.policy import RetryPolicy, SpoolPolicy, check_repo_id, check_type
from hubsync.secret import Secret
from hubsync.spool import Spool
from hubsync.target import Target, default_directory

_log = logging.getLogger("hubsync")
_TRUE = ("1", "ON", "YES", "TRUE")


def target_of(repo: str, endpoint: str | None, revision: str) -> Target:
    """The branch that is meant.

    Raises:
        ConfigError: no repo id, or no URL.
    """
    from huggingface_hub import constants

    # One variable, which a crash report may show: a password in it is gone before anything is raised.
    url, endpoint = str(endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"), None
    if not _is_endpoint(url):
        url = url.rpartition("@")[2].partition("?")[0]
        raise ConfigError(
            f"endpoint {url!r} is none: it is a URL such as https://hub.example, without a user, a password or a "
            "query. The token is given by token=…, HF_TOKEN or hf auth login."
        )
    check_type(str, "a branch", revision=revision)
    if not revision or any(c in revision for c in "\0 \n\\"):
        raise ConfigError(f"revision {revision!r} is no branch.")
    return Target(url, check_repo_id(repo), revision)


def _is_endpoint(url: str) -> bool:
    """Whether it has a host, and nothing that may be secret: an endpoint is stored, logged and told."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return good and url.isprintable() and not set(url) & set(" @?#\\")


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network at all."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE or bool(constants.HF_HUB_OFFLINE)


def token_source(token: Secret | str | None) -> Callable[[], Secret | None]:
    """The token as it is now: given, or what HF_TOKEN or `hf auth login` hold at the moment it is needed."""
    given, is_given = Secret.of(token), token is not None
    del token

    def current() -> Secret | None:
        if is_given:  # and be it empty: nobody is to find himself with another account's
            return given
        from huggingface_hub import get_token

        try:
            return Secret.of(get_token())
        except Exception as error:  # noqa: BLE001  (its file, or how a CI exchanges it for another)
            why = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
        # Not within the `except`: an error of decoding holds what could not be decoded.
        raise AuthenticationError(f"huggingface_hub finds no token ({why}): hf auth login, or set HF_TOKEN.")

    return current


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


def destination_of(target: Target, token: Secret | str | None, retry: RetryPolicy) -> HubDataset | None:
    """The Hub behind `target`; None where HF_HUB_OFFLINE forbids it."""
    source = token_source(token)
    del token
    if is_offline():
        return None
    if target.endpoint.startswith("http:") and not _is_this_machine(target.endpoint):
        _log.warning("%s is plain HTTP: the token and the rows can be read on the way. Use https://", target.endpoint)
    return HubDataset(target, source, timeout_s=retry.request_timeout_s)


def _is_this_machine(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
