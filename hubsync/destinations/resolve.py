"""From a repo id to the parts that serve it: endpoint, token, spool and destination, as huggingface_hub resolves them.

The one place that reads the environment.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Callable
from urllib.parse import urlsplit

from hubsync._runtime.secret import Secret
from hubsync._runtime.validation import check_repo_id, check_type
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.errors import AuthenticationError, ConfigError, HubsyncError
from hubsync.model.target import Target
from hubsync.policies import RetryPolicy

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


def destination_of(target: Target, token: Secret | str | None, retry: RetryPolicy) -> HubDataset | None:
    """The Hub behind `target`; None where HF_HUB_OFFLINE forbids it."""
    source = token_source(token)
    del token
    if is_offline():
        return None
    if target.endpoint.startswith("http:") and not _is_this_machine(target.endpoint):
        _log.warning("%s is plain HTTP: the token and the rows can be read on the way. Use https://", target.endpoint)
    return HubDataset(target, source, timeout_s=retry.request_timeout_s)


def online_destination(target: Target, token: Secret | str | None, retry: RetryPolicy) -> HubDataset:
    """Return the Hub behind `target`, for work that needs it.

    Raises:
        HubsyncError: HF_HUB_OFFLINE is set.
    """
    found = destination_of(target, token, retry)
    if found is None:
        raise HubsyncError(f"HF_HUB_OFFLINE is set, and this needs {target.repo} on the Hub. Unset it and try again.")
    return found


def _is_this_machine(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
