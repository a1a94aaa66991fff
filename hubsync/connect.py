"""From a repo id to the parts that serve it: endpoint, token, spool and destination, as huggingface_hub resolves them.

The one place that reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hubsync.clock import Clock
from hubsync.errors import ConfigError
from hubsync.hub import HubDataset
from hubsync.policy import RetryPolicy, SpoolPolicy, check_repo_id
from hubsync.spool import Spool, Target, default_directory

_TRUE = ("1", "ON", "YES", "TRUE")


def target_of(repo: str, endpoint: str | None, revision: str) -> Target:
    """The branch that is meant.

    Raises:
        ConfigError: no repo id, or no URL.
    """
    from huggingface_hub import constants

    url = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    if not url.startswith(("https://", "http://")):
        raise ConfigError(f"endpoint {url!r} is no URL.")
    if not revision or any(c in revision for c in "\0 \n\\"):
        raise ConfigError(f"revision {revision!r} is no branch.")
    return Target(url, check_repo_id(repo), revision)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE asks for no network at all."""
    from huggingface_hub import constants

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE or bool(constants.HF_HUB_OFFLINE)


def token_source(token: str | None) -> Callable[[], str | None]:
    """The token as it is now: given, or what HF_TOKEN or `hf auth login` hold at the moment it is needed."""

    def current() -> str | None:
        if token is not None:
            return token
        from huggingface_hub import get_token

        return get_token()

    return current


def open_spool(target: Target | None, where: str | Path | SpoolPolicy | None, clock: Clock) -> Spool:
    """Opens (or makes) the spool at `where`; the target's own place where that is None."""
    policy = where if isinstance(where, SpoolPolicy) else SpoolPolicy(directory=where)
    if policy.directory is not None:
        directory = Path(policy.directory).expanduser().absolute()
    elif target is not None:
        directory = default_directory(target)
    else:
        raise ConfigError("which spool? Give its directory.")
    return Spool(directory, target=target, policy=policy, clock=clock)


def destination_of(target: Target, token: str | None, retry: RetryPolicy) -> HubDataset | None:
    """The Hub behind `target`; None where HF_HUB_OFFLINE forbids it."""
    if is_offline():
        return None
    return HubDataset(target, token_source(token), timeout_s=retry.request_timeout_s)
