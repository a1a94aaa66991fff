"""One request to the Hub, and what its answer means.

Sends a request once, never retries, and turns whatever comes back (or doesn't) into bytes or a typed error: that is
where *transient*, *blocked* and *defect* are told apart. Trusts no server: bodies are bounded, redirects are followed
on the Hub's own origin only, and the token goes nowhere else and into no message.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import msgspec

from hubsync.crashpoints import CrashPoint, reach
from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    BlockedError,
    DefectError,
    HubError,
    RateLimitedError,
    RepoMissingError,
    StaleParentError,
    StorageQuotaError,
    TransientError,
    WriteForbiddenError,
)

if TYPE_CHECKING:
    import httpx

_MAX_BODY = 32 * 1024 * 1024
_MAX_REDIRECTS = 5
_CONNECT_S = 10.0
_COMMIT_QUOTA = re.compile(r"commits?\b.{0,80}\bper hour|repository commits", re.IGNORECASE | re.DOTALL)
_RETRY_IN = re.compile(r"(?:in|after)\s+(?:about\s+)?(an?|\d+)\s*(second|minute|hour)", re.IGNORECASE)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_RATE_LIMIT = re.compile(r'"(\w+)"\s*;\s*r\s*=\s*(\d+)\s*;\s*t\s*=\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, what: str, *, effect: bool = False) -> Any:
        """The body as JSON. One that is none comes from a proxy, not from the Hub, and may be right the next time."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            kind = AmbiguousError if effect else TransientError
            raise kind(f"{what}: the answer is no JSON ({self.body[:80]!r}…).", status=self.status) from None


class HubHTTP:
    """A connection pool to one Hub. Used by the tasks of one event loop."""

    def __init__(
        self,
        endpoint: str,
        token: Callable[[], str | None],
        *,
        timeout_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        import httpx

        from hubsync import __version__

        self.endpoint = endpoint.rstrip("/")
        self._origin = _origin(self.endpoint)
        self._token = token
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=30),
            headers={"user-agent": user_agent(__version__)},
            follow_redirects=False,
        )

    def authorization(self) -> dict[str, str]:
        """The header with the token, which is read anew each time: it may have been renewed. Empty without one."""
        token = self._token()
        return {"authorization": f"Bearer {token}"} if token else {}

    async def send(
        self,
        what: str,
        method: str,
        url: str,
        *,
        json: Any = None,
        form: Mapping[str, Any] | None = None,
        content: AsyncIterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        effect: bool = False,
        max_body: int = _MAX_BODY,
    ) -> Answer:
        """Sends one request; `url` may be a path on the Hub. `what` names it in messages.

        With `effect`, an answer that is lost, cut or a 5xx raises `AmbiguousError`: it may have taken effect.

        Raises:
            HubError: of the kind that says what to do next.
        """
        import httpx

        url = _joined(what, self.endpoint + "/", url)
        sent = dict(headers or {})
        if json is not None:
            content = msgspec.json.encode(json)
            sent["content-type"] = "application/json"
        lost = AmbiguousError if effect else TransientError
        for _ in range(_MAX_REDIRECTS):
            answer = await self._begin(what, method, url, lost, content=content, data=form, headers=sent)
            if effect:
                reach(CrashPoint.LANDED)
            try:
                body = await _read(answer, max_body)
            except httpx.HTTPError as error:
                raise lost(f"{what}: the answer broke off ({_brief(error)}).", status=answer.status_code) from None
            except _TooLarge:
                raise lost(
                    f"{what}: the answer is larger than {max_body:,} bytes.", status=answer.status_code
                ) from None
            finally:
                await answer.aclose()
            if answer.is_success:
                return Answer(answer.status_code, answer.headers, body)
            location = answer.headers.get("location")
            if not (300 <= answer.status_code < 400 and location):
                raise classify(what, answer.status_code, answer.headers, body, effect=effect)
            url = _joined(what, url, location)
            if _origin(url) != self._origin or isinstance(content, AsyncIterable):
                raise TransientError(f"{what}: sent on to {_origin(url)}, which is not the Hub; not followed.")
        raise TransientError(f"{what}: redirected in a circle.")

    async def download(self, what: str, url: str, take: Callable[[bytes], object]) -> None:
        """GETs `url` and hands the body to `take`, piece by piece, however large it is.

        Unlike `send` it follows redirects to other origins, where the Hub keeps large files; the token stays behind.

        Raises:
            HubError: as `send`. What another origin refuses is transient: the Hub's signed URL may have run out.
        """
        import httpx

        url = _joined(what, self.endpoint + "/", url)
        for _ in range(_MAX_REDIRECTS):
            answer = await self._begin(what, "GET", url, TransientError)
            try:
                if answer.is_success:
                    async for piece in answer.aiter_bytes():
                        take(piece)
                    return
                body = await _read(answer, _MAX_BODY)
            except httpx.HTTPError as error:
                broke = f"{what}: the answer broke off ({_brief(error)})."
                raise TransientError(broke, status=answer.status_code) from None
            except _TooLarge:
                raise TransientError(f"{what}: an answer too large.", status=answer.status_code) from None
            finally:
                await answer.aclose()
            location = answer.headers.get("location")
            if not (300 <= answer.status_code < 400 and location):
                refusal = classify(what, answer.status_code, answer.headers, body)
                if _origin(url) == self._origin or isinstance(refusal, TransientError):
                    raise refusal
                raise TransientError(str(refusal), status=refusal.status)
            url = _joined(what, url, location)
            if urlsplit(url).scheme not in ("https", urlsplit(self.endpoint).scheme):
                raise TransientError(f"{what}: sent on to {_origin(url)}, which is not safe; not followed.")
        raise TransientError(f"{what}: redirected in a circle.")

    async def _begin(
        self,
        what: str,
        method: str,
        url: str,
        lost: type[TransientError],
        *,
        headers: Mapping[str, str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        """Sends a request, with the token where it goes to the Hub itself; the answer's body is still to be read."""
        import httpx

        token = self.authorization() if _origin(url) == self._origin else {}
        try:
            request = self._client.build_request(method, url, headers={**(headers or {}), **token}, **body)
            return await self._client.send(request, stream=True)
        except httpx.InvalidURL:
            raise TransientError(f"{what}: sent to {url[:80]!r}, which is no URL.") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TransientError(f"{what}: {_origin(url)} can't be reached ({_brief(error)}).") from None
        except httpx.HTTPError as error:
            raise lost(f"{what}: no answer ({_brief(error)}).") from None

    async def aclose(self) -> None:
        await self._client.aclose()


def user_agent(version: str) -> str:
    """What the Hub sees of this library, in the form that huggingface_hub builds."""
    from huggingface_hub.utils._headers import build_hf_headers

    headers = build_hf_headers(token=False, library_name="hubsync", library_version=version)
    return headers.get("user-agent", f"hubsync/{version}")


def classify(what: str, status: int, headers: Mapping[str, str], body: bytes, *, effect: bool = False) -> HubError:
    """The typed error of an answer that is no success."""
    code = headers.get("x-error-code", "")
    said = (headers.get("x-error-message") or _error_of(body)).strip()
    request_id = headers.get("x-request-id") or headers.get("x-amzn-trace-id")
    message = f"{what}: {status}" + (f", {said[:300]}" if said else "")
    if status == 429:
        return RateLimitedError(
            message,
            status=status,
            request_id=request_id,
            retry_after_s=retry_after(headers, said),
            commit_quota=_COMMIT_QUOTA.search(said) is not None,
        )
    if status in (408, 425) or status >= 500:
        kind: type[TransientError] = AmbiguousError if effect and status not in (425, 501) else TransientError
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after(headers, ""))
    if status in (409, 412):
        kind = StaleParentError if status == 412 else TransientError
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after(headers, ""))
    if code in ("RepoNotFound", "RevisionNotFound", "GatedRepo", "DisabledRepo"):
        return RepoMissingError(f"{message} ({code})", status=status, request_id=request_id)
    if status == 401:
        return AuthenticationError(message, status=status, request_id=request_id)
    if status in (402, 403) and (status == 402 or re.search(r"storage|quota", said, re.IGNORECASE)):
        return StorageQuotaError(message, status=status, request_id=request_id)
    if status == 403:
        return WriteForbiddenError(message, status=status, request_id=request_id)
    if status in (400, 413, 422):
        return DefectError(message, status=status, request_id=request_id)
    if status == 404:
        return RepoMissingError(message, status=status, request_id=request_id)
    return BlockedError(message, status=status, request_id=request_id)


def retry_after(headers: Mapping[str, str], said: str) -> float | None:
    """Seconds that the Hub asks to wait, or None.

    `Retry-After` first, in seconds or as a date; then `RateLimit`, which stands on every answer and so counts only
    where nothing remains (`r=0`); then the words of the commit quota's message.
    """
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    if value:
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            pass
    limit = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    if limit and limit[2] == "0":
        return float(limit[3])
    words = _RETRY_IN.search(said)
    if words:
        return float((1 if words[1].lower() in ("a", "an") else int(words[1])) * _SECONDS[words[2].lower()])
    return None


class _TooLarge(Exception):
    pass


async def _read(answer: httpx.Response, max_body: int) -> bytes:
    parts, size = [], 0
    async for part in answer.aiter_bytes():
        size += len(part)
        if size > max_body:
            raise _TooLarge
        parts.append(part)
    return b"".join(parts)


def _error_of(body: bytes) -> str:
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        text = body[:200].decode("utf-8", "replace")
        return "" if "<" in text else text
    error = parsed.get("error", "") if isinstance(parsed, dict) else ""
    return error if isinstance(error, str) else str(error)


def _joined(what: str, base: str, url: str) -> str:
    """`url` as seen from `base`, or `TransientError` where a server gave something that is none."""
    try:
        joined = urljoin(base, url)
        _ = urlsplit(joined).port  # parsed when it is asked for
    except ValueError:
        raise TransientError(f"{what}: sent to {url[:80]!r}, which is no URL.") from None
    return joined


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
