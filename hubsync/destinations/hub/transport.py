"""One request to the Hub, and what its answer means.

Sends a request once, never retries, and turns whatever comes back (or doesn't) into bytes or a typed error: that is
where *transient*, *blocked* and *defect* are told apart. Trusts no server: bodies are bounded, unpacked and in time;
redirects are followed on the Hub's own origin only; and the token goes nowhere else, into no message and no log, also
where a server sends it back.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.secret import Secret, hide, in_use, quieten_logs
from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    BlockedError,
    ConfigError,
    HubError,
    TransientError,
)

if TYPE_CHECKING:
    import httpx
from hubsync.destinations.hub.responses import classify

T = TypeVar("T")
Body = Callable[[], AsyncIterable[bytes]]  # of a request: begun anew where the Hub sends it on
MAX_BODY = 8 * 1024 * 1024  # of an answer, unpacked; a page of a tree with 1,000 files is a fraction of one MiB
_PIECE = 1 << 20
_MAX_REDIRECTS = 5
_CONNECT_S = 10.0
_PATIENCE = 10  # times the time-out of one read: what a whole answer may take, however it drips
_STEP = 64 * 1024  # bytes of a download that earn it as much time again
_HOST = re.compile(rb"[A-Za-z0-9_.:-]+")
_SAME_BODY = (307, 308)  # a redirect that keeps method and body, as the Hub's where a repo was renamed


class _Link:
    """An absolute URL. Only its origin shows: what follows may be a signature that lets everybody in."""

    __slots__ = ("origin", "secrets", "url")

    def __init__(self, url: httpx.URL, *, signed: bool) -> None:
        self.url = url
        self.origin = f"{url.scheme}://{url.netloc.decode()}"
        self.secrets = (Secret(str(url)), Secret(url.raw_path.decode()), Secret(url.query.decode())) if signed else ()

    def __repr__(self) -> str:
        return f"{self.origin}/…"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end, in which nothing that was kept secret stands. Header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def decode(self, what: str, shape: type[T], *, effect: bool = False) -> T:
        """The body as JSON of this shape. Another comes from a proxy, not from the Hub, and may be right next time."""
        try:
            return msgspec.json.decode(self.body, type=shape, dec_hook=_secret)
        except msgspec.ValidationError as error:
            why = f"an answer that can't be read ({error})"
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            kind = self.headers.get("content-type", "of no type")
            why = f"the answer is no JSON ({len(self.body):,} bytes, {kind})"
        # Not within the `except`: the context of this error would be one that holds the body.
        raise (AmbiguousError if effect else TransientError)(f"{what}: {why}.", status=self.status)

    def json(self, what: str, *, effect: bool = False) -> Any:
        """The body as any JSON."""
        return self.decode(what, Any, effect=effect)


def _secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str | int):  # a number among headers
        return Secret(str(value))
    raise ValueError("Expected `str`")


class HubHTTP:
    """A connection pool to one Hub. Used by the tasks of one event loop."""

    def __init__(
        self,
        endpoint: str,
        token: Callable[[], Secret | str | None],
        *,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises `ConfigError` where the environment (proxies, certificates) can't work. There is no way to switch the
        verification of certificates off: SSL_CERT_FILE names those of a private authority.
        """
        import httpx

        self.endpoint = endpoint.rstrip("/")
        self._base = _Link(httpx.URL(self.endpoint + "/"), signed=False)
        self._token = token
        self._patience_s = _PATIENCE * timeout_s
        self._client = _client(timeout_s, transport)
        self.sender = {"user-agent": self._client.headers["user-agent"]}  # for what others send on our behalf
        quieten_logs()

    def token(self) -> Secret | None:
        """The token, read anew each time: it may have been renewed.

        Raises:
            AuthenticationError: it is none that a header can hold.
        """
        token = Secret.of(self._token())
        if token is not None and not token.fits_a_header:
            raise AuthenticationError(
                "the token holds a character that no token has, such as a space or a line break: copy it anew "
                "(to token=…, HF_TOKEN or hf auth login)."
            )
        return token

    def authorization(self) -> dict[str, str]:
        """The header with the token; empty without one. For the call that needs it, never for a variable."""
        return _bearer(self.token())

    def is_safe(self, url: str) -> bool:
        """Whether rows may go there: by HTTPS, or as plainly as to the Hub itself."""
        import httpx

        try:
            return self._is_safe(httpx.URL(url))
        except (httpx.InvalidURL, ValueError):
            return False

    def _is_safe(self, url: httpx.URL) -> bool:
        return _is_address(url) and url.scheme in ("https", self._base.url.scheme)

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
        effect: bool = False,
        max_body: int = MAX_BODY,
        abroad: bool = False,
    ) -> Answer:
        """Sends one request; `url` may be a path on the Hub. `what` names it in messages.

        With `effect`, an answer that is lost, cut or a 5xx raises `AmbiguousError`: it may have taken effect. Only with
        `abroad` may the URL be another server's, which does not get the token.

        Raises:
            HubError: of the kind that says what to do next.
        """
        link = self._link(what, url)
        if link.origin != self._base.origin and not (abroad and self._is_safe(link.url)):
            raise TransientError(f"{what}: sent to {link.origin}, which is not the Hub or not safe; not followed.")
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if json is not None:
            content = msgspec.json.encode(json)
            sent["content-type"] = "application/json"
        lost = AmbiguousError if effect else TransientError
        for _ in range(_MAX_REDIRECTS):
            answer = _given(await self._exchange(what, method, link, lost, sent, max_body, content=content, data=form))
            if answer.is_success:
                return answer
            location = Secret.of(answer.headers.get("location"))
            if not (300 <= answer.status < 400 and location):
                raise classify(what, answer.status, answer.headers, answer.body, effect=effect, ours=not abroad)
            origin, link = link.origin, self._link(what, location, link)
            if {origin, link.origin} != {self._base.origin}:
                raise TransientError(f"{what}: sent on to {link.origin}, which is not the Hub; not followed.")
            if callable(content) and answer.status not in _SAME_BODY:
                raise TransientError(f"{what}: sent on by {answer.status}, which leaves the body behind; not followed.")
        raise TransientError(f"{what}: redirected in a circle.")

    async def download(self, what: str, url: str, take: Callable[[bytes], object]) -> None:
        """GETs `url` and hands the body to `take`, piece by piece, however large it is.

        Unlike `send` it follows redirects to other origins, where the Hub keeps large files; the token stays behind.
        Whether what comes has the oid that the Hub lists is the caller's to check: it may come from anywhere.

        Raises:
            HubError: as `send`. What another origin refuses is transient: the Hub's signed URL may have run out.
        """
        link = self._link(what, url)
        for _ in range(_MAX_REDIRECTS):
            ours = link.origin == self._base.origin
            if not self._is_safe(link.url):
                raise TransientError(f"{what}: sent on to {link.origin}, which is not safe; not followed.")
            answer = _given(await self._take(what, link, take))
            if answer.is_success:
                return
            location = Secret.of(answer.headers.get("location"))
            if not (300 <= answer.status < 400 and location):
                refusal = classify(what, answer.status, answer.headers, answer.body, ours=ours)
                if ours or isinstance(refusal, TransientError):
                    raise refusal
                raise TransientError(str(refusal), status=refusal.status)
            link = self._link(what, location, link)
        raise TransientError(f"{what}: redirected in a circle.")

    def _link(self, what: str, url: str | Secret, base: _Link | None = None) -> _Link:
        """`url` as seen from `base`; a signed one must be whole by itself."""
        link = _link_of(url, base or (None if isinstance(url, Secret) else self._base))
        if link is None:
            raise TransientError(f"{what}: sent to something that is no URL; not followed.")
        return link

    async def _exchange(
        self,
        what: str,
        method: str,
        link: _Link,
        lost: type[TransientError],
        headers: Mapping[str, str | Secret],
        max_body: int,
        **body: Any,
    ) -> Answer | HubError:
        """One question and its whole answer."""
        with anyio.move_on_after(self._patience_s) as scope:
            if callable(content := body.get("content")):
                body["content"] = _renewing(content(), scope, self._patience_s)
            answer = await self._ask(what, method, link, lost, headers, **body)
            if isinstance(answer, HubError):
                return answer
            if lost is AmbiguousError:
                failpoint(Failpoint.LANDED)
            return await self._hear(what, answer, lost, max_body)
        return self._no_end(lost, what)

    def _no_end(self, lost: type[TransientError], what: str) -> HubError:
        return lost(f"{what}: no whole answer in {self._patience_s:g} s.")

    async def _take(self, what: str, link: _Link, take: Callable[[bytes], object]) -> Answer | HubError:
        """GETs `link`; a success goes to `take`, and only its head comes back."""
        import httpx

        with anyio.move_on_after(self._patience_s) as scope:
            answer = await self._ask(what, "GET", link, TransientError, {})
            if isinstance(answer, HubError):
                return answer
            if not answer.is_success:
                return await self._hear(what, answer, TransientError, MAX_BODY)
            fresh = 0
            try:
                async for piece in _pieces(answer):
                    take(piece)
                    fresh += len(piece)
                    if fresh >= _STEP:
                        fresh, scope.deadline = 0, anyio.current_time() + self._patience_s
                return self._answer(answer, b"")
            except HubError as error:
                return error.with_traceback(None)  # whose frames hold what came, unlike an `Answer`
            except (httpx.HTTPError, _BadBody) as error:
                return self._failed(TransientError, f"{what}: the answer broke off", error, answer.status_code)
            finally:
                await answer.aclose()
        return self._no_end(TransientError, what)

    async def _ask(
        self,
        what: str,
        method: str,
        link: _Link,
        lost: type[TransientError],
        headers: Mapping[str, str | Secret],
        **body: Any,
    ) -> httpx.Response | HubError:
        """Sends a request, with the token where it goes to the Hub itself; the answer's body is still to be read.

        An error is returned and not raised here: the frames below hold the token, and an error raised in an `except`
        would keep them as its context, for crash reports to show.
        """
        import httpx

        token = self.token()
        given = tuple(value for value in headers.values() if isinstance(value, Secret))
        in_use.set((*((token,) if token else ()), *given, *link.secrets))
        try:
            return await self._client.send(
                self._client.build_request(method, link.url, headers=self._shown(link, token, headers), **body),
                stream=True,
            )
        except (HubError, OSError) as error:  # what was to be sent can't be read
            raise error.with_traceback(None) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            if _is_about_certificates(error):
                return BlockedError(
                    f"{what}: the certificate of {link.origin} can't be trusted ({_brief(error)}), and nothing was "
                    "sent. Behind a company's proxy, or with a Hub of your own, name its authority in SSL_CERT_FILE; a "
                    "wrong clock does this too, and so does a network that first wants you to log in."
                )
            return self._failed(TransientError, f"{what}: {link.origin} can't be reached", error)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: headers that are none
            return self._failed(lost, f"{what}: no answer", error)

    def _shown(self, link: _Link, token: Secret | None, given: Mapping[str, str | Secret]) -> dict[str, str]:
        shown = {name: value.reveal() if isinstance(value, Secret) else value for name, value in given.items()}
        return {**_bearer(token), **shown} if link.origin == self._base.origin else shown

    async def _hear(
        self, what: str, answer: httpx.Response, lost: type[TransientError], max_body: int
    ) -> Answer | HubError:
        """The whole answer, up to a bound."""
        import httpx

        body = bytearray()
        try:
            async for piece in _pieces(answer):
                body += piece
                if len(body) > max_body:
                    return lost(f"{what}: the answer is larger than {max_body:,} bytes.", status=answer.status_code)
            return self._answer(answer, bytes(body))
        except (httpx.HTTPError, _BadBody) as error:
            return self._failed(lost, f"{what}: the answer broke off", error, answer.status_code)
        finally:
            await answer.aclose()

    def _answer(self, answer: httpx.Response, body: bytes) -> Answer:
        """What was answered, without the secrets that a server may have sent back: nothing that is made of it can hold
        one, be it a message, the catalogue or a commit.
        """
        headers = {name.lower(): hide(value) for name, value in answer.headers.items()}
        return Answer(answer.status_code, headers, hide(body.decode("latin-1")).encode("latin-1"))

    def _failed(self, kind: type[TransientError], what: str, error: Exception, status: int | None = None) -> HubError:
        return kind(hide(f"{what} ({_brief(error)})."), status=status)

    async def aclose(self) -> None:
        await self._client.aclose()


def _client(timeout_s: float, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    import http.cookiejar

    import httpx

    from hubsync import __version__

    # No server gets to keep something here and have it sent back, more and more of it.
    no_cookies = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=()))
    try:
        return httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=30),
            headers={"user-agent": user_agent(__version__), "accept-encoding": "identity"},
            cookies=no_cookies,
            follow_redirects=False,
        )
    except OSError as error:
        why = f"SSL_CERT_FILE or SSL_CERT_DIR: {error}"
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # whose text may show the proxy's password
        why = f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY ({type(error).__name__})"
    raise ConfigError(f"no connection can be made with what the environment says: {why}.")


def _bearer(token: Secret | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token.reveal()}"}


def _given(answer: Answer | HubError) -> Answer:
    if isinstance(answer, HubError):
        raise answer
    return answer


def _link_of(url: str | Secret, base: _Link | None) -> _Link | None:
    """httpx alone reads an address, and httpx sends to it: two readers could see two hosts. None where it is none."""
    import httpx

    try:
        found = httpx.URL(url.reveal() if isinstance(url, Secret) else url)
        if base is not None and not found.is_absolute_url:
            found = base.url.join(found)
        return _Link(found, signed=isinstance(url, Secret)) if _is_address(found) else None
    except (httpx.InvalidURL, ValueError):
        return None


def _is_address(url: httpx.URL) -> bool:
    """Whether it can be connected to, and says plainly where it leads: no user, no host that is none."""
    host = _HOST.fullmatch(url.raw_host)
    return url.scheme in ("http", "https") and host is not None and not url.userinfo and (url.port or 1) < 2**16


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def user_agent(version: str) -> str:
    """What the Hub sees of this library, in the form that huggingface_hub builds."""
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers(token=False, library_name="hubsync", library_version=version)
    return headers.get("user-agent", f"hubsync/{version}")


class _BadBody(Exception):
    """A body that can't be unpacked, or is packed in a way that was not asked for."""


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The body, in pieces of at most one MiB.

    Not by httpx's own unpacking, which does a piece whole and layer upon layer, so that kilobytes become gigabytes.
    Nothing packed was asked for; one layer of gzip is understood all the same, since stores may keep files so.
    """
    import httpx

    packed = answer.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("identity", "gzip"):
        raise _BadBody(f"it is packed by {packed[:40]!r}")
    unpack = zlib.decompressobj(31) if packed == "gzip" else None
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    async for raw in answer.stream:
        if unpack is None:
            yield raw
            continue
        while raw:
            try:
                yield unpack.decompress(raw, _PIECE)
            except zlib.error as error:
                raise _BadBody(str(error)) from None
            raw = unpack.unconsumed_tail
    if unpack is not None:
        yield unpack.flush()
        if not unpack.eof:
            raise _BadBody("its packing has no end")


async def _renewing(content: AsyncIterable[bytes], scope: anyio.CancelScope, patience_s: float) -> AsyncIterator[bytes]:
    """What is sent, for as long as it moves."""
    async for piece in content:
        scope.deadline = anyio.current_time() + patience_s
        yield piece


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
