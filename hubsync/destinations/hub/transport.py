"""One HTTP request to the Hub, and its response.

`HubHTTP` sends a request once and never retries. It returns the response, or raises the typed error that says what to
do next (see `responses`). It trusts no server: a response is bounded in time and in unpacked size, and redirects are
followed only within the Hub's origin. The token is sent to the Hub only, and never appears in a message or a log, even
if a server sends it back.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.secret import Secret, hide, in_use, quieten_logs
from hubsync.destinations.hub.proxies import problem_text, proxy_text
from hubsync.destinations.hub.responses import classify
from hubsync.errors import AmbiguousError, AuthenticationError, BlockedError, ConfigError, HubError, TransientError

if TYPE_CHECKING:
    import httpx

    Read = Callable[[httpx.Response, anyio.CancelScope], Awaitable["Response | HubError"]]

T = TypeVar("T")
Body = Callable[[], AsyncIterable[bytes]]  # the body of a request, started again after a redirect
MAX_BODY = 8 * 1024 * 1024  # unpacked bytes of a response; a page of a tree with 1,000 files is less than 1 MiB
_PIECE = 1 << 20
_MAX_REDIRECTS = 5
_CONNECT_S = 10.0
# A whole response may take this many times the timeout of one read, however slowly its bytes arrive.
_RESPONSE_TIMEOUTS = 10
_PROGRESS = 64 * 1024  # bytes of a download that restart this timeout
_CERTIFICATE_ADVICE = (
    " A wrong clock or a network that requires a login can be the cause. Behind a company proxy, or with a Hub of your "
    "own, set SSL_CERT_FILE to the certificate of its authority."
)
_HOST = re.compile(rb"[A-Za-z0-9_.:-]+")
_KEEPS_BODY = (307, 308)  # redirects that keep the method and the body, like the Hub's after a repo was renamed


class _Address:
    """An absolute URL. Its repr shows only the origin: the rest may be a signature that gives access to anyone."""

    __slots__ = ("origin", "secrets", "url")

    def __init__(self, url: httpx.URL, *, signed: bool) -> None:
        self.url = url
        self.origin = f"{url.scheme}://{url.netloc.decode()}"
        self.secrets = (Secret(str(url)), Secret(url.raw_path.decode()), Secret(url.query.decode())) if signed else ()

    def __repr__(self) -> str:
        return f"{self.origin}/…"


@dataclass(frozen=True, slots=True)
class _Request:
    """What to send, whatever its address. `lost` is raised if no whole response arrives."""

    what: str
    method: str = "GET"
    headers: Mapping[str, str | Secret] = field(default_factory=dict, repr=False)
    content: Body | bytes | None = field(default=None, repr=False)
    form: Mapping[str, Any] | None = field(default=None, repr=False)
    lost: type[TransientError] = TransientError

    def failed(
        self, kind: type[HubError], why: str, error: Exception, *, status: int | None = None, advice: str = ""
    ) -> HubError:
        brief = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return kind(hide(f"{self.what}: {why} ({brief}).{advice}"), status=status)


@dataclass(frozen=True, slots=True)
class Response:
    """A response that was read to its end. Contains no secrets. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def decode(self, what: str, shape: type[T], *, has_effect: bool = False) -> T:
        """Decode the JSON body.

        Args:
            what: The name of the request in messages.
            shape: The type to decode.
            has_effect: Whether the request took effect although its response cannot be read.

        Raises:
            TransientError: The body is not JSON of this shape. It is a proxy's, not the Hub's, and a retry may succeed.
            AmbiguousError: The same, with `has_effect`.
        """
        try:
            return msgspec.json.decode(self.body, type=shape, dec_hook=_decode_secret)
        except msgspec.ValidationError as error:
            why = f"unexpected response ({error})"
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            kind = self.headers.get("content-type", "no content type")
            why = f"the response is not JSON ({len(self.body):,} bytes, {kind})"
        # Outside of the `except`: otherwise the error's context would hold the body.
        raise (AmbiguousError if has_effect else TransientError)(f"{what}: {why}.", status=self.status)


def _decode_secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str | int):  # a header's value may be a number
        return Secret(str(value))
    raise ValueError("Expected `str`")


class HubHTTP:
    """A connection pool to one Hub, for the tasks of one event loop."""

    def __init__(
        self,
        endpoint: str,
        token: Callable[[], Secret | str | None],
        *,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create the pool, without connecting.

        Certificates are always verified. SSL_CERT_FILE names those of a private authority.

        Args:
            endpoint: URL of the Hub.
            token: Returns the current token.
            timeout_s: Timeout of one read or write, in seconds.
            transport: Replaces the network in tests.

        Raises:
            ConfigError: The environment's proxies or certificates are invalid.
        """
        _import_httpx()
        import httpx

        self.endpoint = endpoint.rstrip("/")
        self._hub = _Address(httpx.URL(self.endpoint + "/"), signed=False)
        self._token = token
        self._response_timeout_s = _RESPONSE_TIMEOUTS * timeout_s
        self._client = _client(timeout_s, transport)
        self.sender = {"user-agent": self._client.headers["user-agent"]}  # for hf_xet's requests
        quieten_logs()

    def token(self) -> Secret | None:
        """Return the token. It is read anew each time, because it may have been renewed.

        Raises:
            AuthenticationError: The token cannot be sent in a header.
        """
        token = Secret.of(self._token())
        if token is not None and not token.fits_a_header:
            raise AuthenticationError(
                "the token contains a character that no token has, such as a space or a line break: copy it again "
                "(to token=…, HF_TOKEN or hf auth login)."
            )
        return token

    def authorization(self) -> dict[str, str]:
        """Return the header with the token; empty without one. Never keep it in a variable."""
        return _bearer(self.token())

    def is_safe(self, url: str) -> bool:
        """Return whether rows may be sent to `url`: by HTTPS, or by HTTP if the Hub itself uses HTTP."""
        import httpx

        try:
            return self._is_safe(httpx.URL(url))
        except (httpx.InvalidURL, ValueError):
            return False

    def _is_safe(self, url: httpx.URL) -> bool:
        return _is_plain(url) and url.scheme in ("https", self._hub.url.scheme)

    async def send(
        self,
        what: str,
        method: str,
        url: str | Secret,
        *,
        json: Any = None,
        form: Mapping[str, Any] | None = None,
        content: Body | bytes | None = None,
        headers: Mapping[str, str | Secret] | None = None,
        has_effect: bool = False,
        max_body: int = MAX_BODY,
        any_host: bool = False,
    ) -> Response:
        """Send one request and read its response.

        Args:
            what: The name of the request in messages.
            method: The HTTP method.
            url: A path on the Hub, or an absolute URL.
            json: The body, to encode as JSON.
            form: The body, to encode as a form.
            content: The body.
            headers: Added to the default headers.
            has_effect: Whether the request changes the repo: if its response is lost, truncated or a 5xx, it raises
                `AmbiguousError`.
            max_body: The most unpacked bytes to read.
            any_host: Whether `url` may be on another server, which does not get the token.

        Raises:
            HubError: The request failed; the type says what to do next.
        """
        address = self._address(what, url)
        if address.origin != self._hub.origin and not (any_host and self._is_safe(address.url)):
            raise TransientError(f"{what}: not sent to {address.origin}, which is not the Hub or not safe.")
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if json is not None:
            content = msgspec.json.encode(json)
            sent["content-type"] = "application/json"
        request = _Request(what, method, sent, content, form, AmbiguousError if has_effect else TransientError)
        response, _ = await self._follow(request, address, partial(self._read, request, max_body))
        if not response.is_success:
            raise classify(
                what, response.status, response.headers, response.body, has_effect=has_effect, token_sent=not any_host
            )
        return response

    async def download(self, what: str, url: str, write: Callable[[bytes], object]) -> None:
        """GET `url` and pass the body to `write`, piece by piece, however large it is.

        Unlike `send`, this follows redirects to other hosts, where the Hub keeps large files; they do not get the
        token. The caller must check the content against the oid that the Hub lists.

        Raises:
            HubError: The request failed; the type says what to do next. An error of another host is transient: the
                Hub's signed URL may have expired.
        """
        request, address = _Request(what), self._address(what, url)
        response, address = await self._follow(request, address, partial(self._save, request, write), any_host=True)
        if not response.is_success:
            from_hub = address.origin == self._hub.origin
            error = classify(what, response.status, response.headers, response.body, token_sent=from_hub)
            if from_hub or isinstance(error, TransientError):
                raise error
            raise TransientError(str(error), status=error.status)

    def _address(self, what: str, url: str | Secret, base: _Address | None = None) -> _Address:
        """Resolve `url` relative to `base`, by default the Hub. A signed URL must be absolute."""
        address = _address_of(url, base or (None if isinstance(url, Secret) else self._hub))
        if address is None:
            raise TransientError(f"{what}: invalid URL; not followed.")
        return address

    async def _follow(
        self, request: _Request, address: _Address, read: Read, *, any_host: bool = False
    ) -> tuple[Response, _Address]:
        """Send `request` and follow redirects; return the response that is not a redirect, and its address."""
        for _ in range(_MAX_REDIRECTS):
            if any_host and not self._is_safe(address.url):
                raise TransientError(
                    f"{request.what}: redirected to {address.origin}, which is not safe; not followed."
                )
            response = await self._exchange(request, address, read)
            if isinstance(response, HubError):
                raise response
            location = Secret.of(response.headers.get("location"))
            if not (300 <= response.status < 400 and location):
                return response, address
            previous, address = address, self._address(request.what, location, address)
            if not any_host and {previous.origin, address.origin} != {self._hub.origin}:
                why = f"redirected to {address.origin}, which is not the Hub"
            elif callable(request.content) and response.status not in _KEEPS_BODY:
                why = f"redirected by {response.status}, which drops the body"
            else:
                continue
            raise TransientError(f"{request.what}: {why}; not followed.")
        raise TransientError(f"{request.what}: redirected in a circle.")

    async def _exchange(self, request: _Request, address: _Address, read: Read) -> Response | HubError:
        """Send a request to one address and read the whole response."""
        import httpx

        with anyio.move_on_after(self._response_timeout_s) as scope:
            response = await self._send(request, address, scope)
            if isinstance(response, HubError):
                return response
            if request.lost is AmbiguousError:
                failpoint(Failpoint.LANDED)
            try:
                return await read(response, scope)
            except HubError as error:
                return error.with_traceback(None)  # its frames hold what was received
            except (httpx.HTTPError, _BadBody) as error:
                return request.failed(request.lost, "the response broke off", error, status=response.status_code)
            finally:
                await response.aclose()
        return request.lost(f"{request.what}: no complete response in {self._response_timeout_s:g} s.")

    async def _send(self, request: _Request, address: _Address, scope: anyio.CancelScope) -> httpx.Response | HubError:
        """Send a request, with the token if it goes to the Hub; the response's body is not read yet.

        Errors are returned, not raised: the frames below hold the token, and an error raised in an `except` would keep
        them as its context, where crash reports show them.
        """
        import httpx

        token = self.token()
        given = [value for value in request.headers.values() if isinstance(value, Secret)]
        in_use.set((*((token,) if token else ()), *given, *address.secrets))
        try:
            return await self._client.send(self._built(request, address, token, scope), stream=True)
        except (HubError, OSError) as error:  # the content to send cannot be read
            raise error.with_traceback(None) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            if _is_about_certificates(error):
                why = f"nothing was sent, because the certificate of {address.origin} cannot be verified"
                return request.failed(BlockedError, why, error, advice=_CERTIFICATE_ADVICE)
            proxy = proxy_text(address.url.scheme, address.url.host)
            there = address.origin if proxy is None else f"{proxy} for {address.origin}"
            return request.failed(TransientError, f"{there} is unreachable", error)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: invalid headers
            return request.failed(request.lost, "no response", error)

    def _built(
        self, request: _Request, address: _Address, token: Secret | None, scope: anyio.CancelScope
    ) -> httpx.Request:
        headers = _bearer(token) if address.origin == self._hub.origin else {}
        for name, value in request.headers.items():
            headers[name] = value.reveal() if isinstance(value, Secret) else value
        content = request.content
        return self._client.build_request(
            request.method,
            address.url,
            headers=headers,
            content=_extending(content(), scope, self._response_timeout_s) if callable(content) else content,
            data=request.form,
        )

    async def _read(
        self, request: _Request, max_body: int, response: httpx.Response, scope: anyio.CancelScope
    ) -> Response | HubError:
        """Read a response of at most `max_body` bytes."""
        body = bytearray()
        async for piece in _pieces(response):
            body += piece
            if len(body) > max_body:
                why = f"the response is larger than {max_body:,} bytes"
                return request.lost(f"{request.what}: {why}.", status=response.status_code)
        return _without_secrets(response, bytes(body))

    async def _save(
        self, request: _Request, write: Callable[[bytes], object], response: httpx.Response, scope: anyio.CancelScope
    ) -> Response | HubError:
        """Pass the body of a successful response to `write`; return its head."""
        if not response.is_success:
            return await self._read(request, MAX_BODY, response, scope)
        received = 0
        async for piece in _pieces(response):
            write(piece)
            received += len(piece)
            if received >= _PROGRESS:
                received, scope.deadline = 0, anyio.current_time() + self._response_timeout_s
        return _without_secrets(response, b"")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _client(timeout_s: float, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    import http.cookiejar

    import httpx

    from hubsync import __version__

    # No server may store anything here and have it sent back.
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
    try:
        return httpx.AsyncClient(
            transport=transport,
            verify=_certificates(),
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=16, keepalive_expiry=30),
            headers={"user-agent": user_agent(__version__), "accept-encoding": "identity"},
            cookies=no_cookies,
            follow_redirects=False,
        )
    except OSError as error:
        why = f"check SSL_CERT_FILE or SSL_CERT_DIR: {error}"
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # its text may show the proxy's password
        why = problem_text(error)
    raise ConfigError(f"the environment does not allow a connection: {why}.")


def _certificates() -> ssl.SSLContext:
    """Return what verifies servers, loaded once for all connections and proxies: it takes 25 ms and 1 MB.

    A file or directory that the environment names is loaded again once it changes.
    """
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR") or ""
    return _load_certificates(named, os.stat(named).st_mtime_ns if named else 0)


@lru_cache(maxsize=1)
def _load_certificates(named: str, changed_ns: int) -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


def _import_httpx() -> None:
    """Import httpx without its command line, which loads click, rich and pygments: 5 MB, and as long as the rest.

    `httpx/__init__.py` imports its command line whenever click and rich are installed, and offers no other way.
    """
    if "httpx" in sys.modules:
        return
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # so that its import fails, as httpx allows it to
    try:
        import httpx  # noqa: F401
    finally:
        sys.modules.pop("httpx._main", None)


def user_agent(version: str) -> str:
    """Return the User-Agent header, in the form that huggingface_hub uses for libraries.

    Its own function also loads its HTTP client and asks the Hub for a list of coding agents.
    """
    from huggingface_hub import __version__ as hub_version
    from huggingface_hub import constants

    parts = [f"hubsync/{version}", f"hf_hub/{hub_version}", f"python/{sys.version.split()[0].rstrip('+')}"]
    if not constants.HF_HUB_DISABLE_TELEMETRY and find_spec("torch") is not None:
        from importlib import metadata

        with suppress(metadata.PackageNotFoundError):
            parts.append(f"torch/{metadata.version('torch')}")
    if constants.HF_HUB_USER_AGENT_ORIGIN:
        parts.append(f"origin/{constants.HF_HUB_USER_AGENT_ORIGIN}")
    return "; ".join(parts)


def _bearer(token: Secret | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token.reveal()}"}


def _address_of(url: str | Secret, base: _Address | None) -> _Address | None:
    """Parse a URL; None if it is invalid. Only httpx parses it: two parsers could see two different hosts."""
    import httpx

    try:
        found = httpx.URL(url.reveal() if isinstance(url, Secret) else url)
        if base is not None and not found.is_absolute_url:
            found = base.url.join(found)
        return _Address(found, signed=isinstance(url, Secret)) if _is_plain(found) else None
    except (httpx.InvalidURL, ValueError):
        return None


def _is_plain(url: httpx.URL) -> bool:
    """Whether it is an HTTP URL that shows clearly where it leads: no user, a valid host and port."""
    host = _HOST.fullmatch(url.raw_host)
    return url.scheme in ("http", "https") and host is not None and not url.userinfo and (url.port or 1) < 2**16


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _without_secrets(response: httpx.Response, body: bytes) -> Response:
    """Remove secrets that a server sent back: what is made from a response goes into messages and commits."""
    headers = {name.lower(): hide(value) for name, value in response.headers.items()}
    return Response(response.status_code, headers, hide(body.decode("latin-1")).encode("latin-1"))


class _BadBody(Exception):
    """The body cannot be unpacked, or has an encoding that was not requested."""


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the unpacked body, in pieces of at most 1 MiB.

    httpx would unpack each piece at once, and several layers, so kilobytes could become gigabytes. No encoding was
    requested; one layer of gzip is accepted because a store may serve a file that was stored compressed.
    """
    import httpx

    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise _BadBody(f"its encoding is {encoding[:40]!r}")
    gzip = zlib.decompressobj(31) if encoding == "gzip" else None
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for raw in response.stream:
        if gzip is None:
            yield raw
            continue
        while raw:
            try:
                yield gzip.decompress(raw, _PIECE)
            except zlib.error as error:
                raise _BadBody(str(error)) from None
            raw = gzip.unconsumed_tail
    if gzip is not None:
        yield gzip.flush()
        if not gzip.eof:
            raise _BadBody("its gzip data is truncated")


async def _extending(content: AsyncIterable[bytes], scope: anyio.CancelScope, seconds: float) -> AsyncIterator[bytes]:
    """Yield the content, and extend the scope's deadline while it makes progress."""
    async for piece in content:
        scope.deadline = anyio.current_time() + seconds
        yield piece
