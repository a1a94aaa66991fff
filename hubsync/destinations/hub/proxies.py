"""The proxies that the environment names, for messages. Their passwords are never shown."""

from __future__ import annotations

import os
import urllib.request
from urllib.parse import urlsplit

_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def proxy_text(scheme: str, host: str) -> str | None:
    """Return the proxy for a URL, as "the proxy http://proxy:3128 (HTTPS_PROXY)"; None if there is no proxy."""
    for name in (f"{scheme.upper()}_PROXY", "ALL_PROXY"):
        variable, value = _variable(name)
        if value:
            return None if urllib.request.proxy_bypass(host) else f"the proxy {_origin(value)} ({variable})"
    return None


def problem_text(error: Exception) -> str:
    """Return why httpx does not accept the environment, and what to do; `error` is what it raised."""
    import httpx

    for variable, value in map(_variable, _NAMES):
        if not value:
            continue
        if isinstance(error, ImportError) and value.lower().startswith("socks"):
            return f"{variable} names a SOCKS proxy, which needs another package: pip install 'httpx[socks]'"
        try:
            httpx.Proxy(value if "://" in value else f"http://{value}")
        except (ValueError, httpx.InvalidURL):
            return f"{variable} is not the URL of a proxy, such as http://proxy.example:3128"
    variable, value = _variable("NO_PROXY")
    if value:
        return f"{variable} is not a list of host names, such as localhost,.example.com: {value!r}"
    return f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: {type(error).__name__}"


def _variable(name: str) -> tuple[str, str]:
    """Return the variable that is set, in lower or upper case, and its value; an empty value if none is."""
    for variable in (name.lower(), name):
        if value := os.environ.get(variable):
            return variable, value
    return name, ""


def _origin(value: str) -> str:
    """Return a proxy's address without its user and password."""
    parts = urlsplit(value if "://" in value else f"http://{value}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
