"""Resolve a repo id to its target and destination, with the endpoint and token that huggingface_hub would use.

Only this module reads the environment's endpoint and token.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import anyio

from hubsync._runtime.secret import Secret
from hubsync._runtime.validation import check_repo_id, check_type, is_set
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.errors import AuthenticationError, ConfigError, HubsyncError
from hubsync.model.target import Target
from hubsync.policies import RetryPolicy

_log = logging.getLogger("hubsync")


def target_of(repo: str, endpoint: str | None, revision: str, *, may_lack_namespace: bool = False) -> Target:
    """Return the branch of the dataset `repo`; `endpoint` defaults to HF_ENDPOINT, then to the Hugging Face Hub.

    With `may_lack_namespace`, the repo may be a name only; see `with_namespace`.

    Raises:
        ConfigError: The repo id, the endpoint or the revision is invalid.
    """
    from huggingface_hub import constants

    # One variable, which a crash report may show: a password in it is removed before anything is raised.
    url, endpoint = str(endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/"), None
    if not _is_endpoint(url):
        url = url.rpartition("@")[2].partition("?")[0]
        raise ConfigError(
            f"invalid endpoint {url!r}: expected an http(s) URL such as https://hub.example, without a user, a "
            "password or a query. Pass the token as token=…, set HF_TOKEN, or run hf auth login."
        )
    check_type(str, "a branch", revision=revision)
    if not revision or any(c in revision for c in "\0 \n\\"):
        raise ConfigError(f"invalid revision {revision!r}: expected the name of a branch.")
    if may_lack_namespace and isinstance(repo, str) and repo and "/" not in repo:
        check_repo_id(f"user/{repo}")
        return Target(url, repo, revision)
    return Target(url, check_repo_id(repo), revision)


def with_namespace(target: Target, token: Secret | str | None) -> Target:
    """Return a target whose repo belongs to the token's account if it names none, as in `Dataset.push_to_hub`.

    Raises:
        ConfigError: The Hub does not say whose token it is.
    """
    source = token_source(token)
    del token
    if "/" in target.repo:
        return target
    why = "HF_HUB_OFFLINE is set"
    if not is_offline():
        from huggingface_hub import HfApi

        try:
            secret = source()
            account = HfApi(endpoint=target.endpoint, token=secret.reveal() if secret else False).whoami()["name"]
            return replace(target, repo=check_repo_id(f"{account}/{target.repo}"))
        except Exception as error:  # noqa: BLE001  (of the network, or of the Hub)
            why = type(error).__name__
    raise ConfigError(
        f"the repo id {target.repo!r} has no namespace, and {target.endpoint} does not say whose token this is "
        f"({why}). Write it with one, such as 'user/{target.repo}'."
    )


def _is_endpoint(url: str) -> bool:
    """Whether `url` has a host and nothing that may be secret: an endpoint is stored, logged and displayed."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return good and url.isprintable() and not set(url) & set(" @?#\\")


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids all requests."""
    from huggingface_hub import constants

    return is_set("HF_HUB_OFFLINE") or bool(constants.HF_HUB_OFFLINE)


def token_source(token: Secret | str | None) -> Callable[[], Secret | None]:
    """Return a function that returns the current token: `token`, else that of HF_TOKEN or `hf auth login`."""
    given, is_given = Secret.of(token), token is not None
    del token

    def current() -> Secret | None:
        if is_given:  # even an empty one: it must not fall back to another account's token
            return given
        if not (os.environ.get("HF_OIDC_RESOURCE") or "google.colab" in sys.modules):  # which huggingface_hub prefers
            found = Secret.of(os.environ.get("HF_TOKEN"))
            if found is not None and found.fits_a_header:
                return found
        from huggingface_hub import get_token  # loads its HTTP client: 5 MB, 0.1 s

        try:
            return Secret.of(get_token())
        except Exception as error:  # noqa: BLE001  (reading the file, or a CI's token exchange)
            why = f"{type(error).__name__}: {error.strerror}" if isinstance(error, OSError) else type(error).__name__
        # Outside of the `except`: a decoding error holds the bytes that it could not decode.
        raise AuthenticationError(f"huggingface_hub finds no token ({why}). Run hf auth login, or set HF_TOKEN.")

    return current


def destination_of(target: Target, token: Secret | str | None, retry: RetryPolicy) -> HubDataset | None:
    """Return the destination of `target`; None if HF_HUB_OFFLINE is set."""
    source = token_source(token)
    del token
    if is_offline():
        return None
    if target.endpoint.startswith("http:") and not _is_loopback(target.endpoint):
        _log.warning("%s is plain HTTP: others can read the token and the rows. Use https://", target.endpoint)
    return HubDataset(target, source, timeout_s=retry.request_timeout_s)


def online_destination(target: Target, token: Secret | str | None, retry: RetryPolicy) -> HubDataset:
    """Return the destination of `target`, for work that needs it.

    Raises:
        HubsyncError: HF_HUB_OFFLINE is set.
    """
    found = destination_of(target, token, retry)
    if found is None:
        raise HubsyncError(f"HF_HUB_OFFLINE is set, and this needs {target.repo} on the Hub. Unset it and try again.")
    return found


@asynccontextmanager
async def open_hub(target: Target, token: Secret | None, retry: RetryPolicy | None = None) -> AsyncIterator[HubDataset]:
    """Open the destination of `target` for work that needs it; its connections are closed at the end.

    Raises:
        HubsyncError: HF_HUB_OFFLINE is set.
    """
    hub = online_destination(target, token, retry or RetryPolicy())
    try:
        yield hub
    finally:
        with anyio.CancelScope(shield=True):
            await hub.aclose()


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
