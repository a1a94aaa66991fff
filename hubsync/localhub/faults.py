"""Typed faults, and the set of active ones, which decides what goes wrong with a request.

    Fault.latency | bandwidth      slow the request down
    Fault.status | rate_limit | conflict | stale      refuse it
    Fault.reset | hang | outage    send no response, before the effect or after it took place
    Fault.late                     send an error at once, and let the effect take place later
    Fault.hostile                  send a response that no Hub would send

A fault names the operations it is for, when it strikes, and how often. Drawing is thread-safe and, with a seeded
generator, repeatable.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_args

import msgspec

from hubsync.localhub.limits import commit_limit_text
from hubsync.localhub.protocol import Operation

Kind = Literal["latency", "bandwidth", "status", "reset", "hang", "late", "outage", "hostile"]
When = Literal["before", "after"]
Shape = Literal["html", "garbage", "huge", "redirect", "empty", "truncated", "wrong-shape"]
RateShape = Literal["api", "commits", "retry-after"]

_OPERATIONS = {*map(str, Operation), "*"}
_API_POLICY = ("RateLimit-Policy", '"fixed window";"api";q=1000;w=300')


class Aim(TypedDict, total=False):
    """The requests that a fault is for; every constructor of `Fault` takes these.

    `on`: operations, or "*" for all (the default). `times`: how often it strikes; None for no limit. `after`: how many
    matching requests pass before it strikes. `probability`: that it strikes a matching request. `repo`: only requests
    that name this `namespace/name`.
    """

    on: str | Collection[str]
    times: int | None
    after: int
    probability: float
    repo: str | None


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to fail. Build it with the constructors below; times are real seconds, whatever the Hub's clock says.

    Attributes:
        kind: What goes wrong.
        on: The operations that it may strike, as `Operation` names them; "*" for all.
        times: How many requests it strikes; None for no limit.
        after: How many matching requests pass before it strikes.
        probability: That it strikes a matching request, a number from 0 to 1.
        repo: Only requests to this repo; None for all.
        when: "before" the effect takes place, or "after" it.
        seconds, bytes_per_s, code, body, headers, shape: Parameters of its kind; `code` is an HTTP status.
    """

    kind: Kind
    on: str | Collection[str] = "*"
    times: int | None = None
    after: int = 0
    probability: float = 1.0
    repo: str | None = None
    when: When = "before"
    seconds: float | None = None
    bytes_per_s: float | None = None
    code: int | None = None
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    shape: Shape | None = None

    def __post_init__(self) -> None:
        operations = (self.on,) if isinstance(self.on, str) else tuple(map(str, self.on))
        msgspec.structs.force_setattr(self, "on", operations)
        if unknown := {*operations} - _OPERATIONS:
            raise ValueError(f"unknown operations {sorted(unknown)}; there are {sorted(_OPERATIONS)}")
        if self.kind not in get_args(Kind) or self.when not in get_args(When):
            raise ValueError(f"unknown kind {self.kind!r} or time {self.when!r}")
        needs = {
            "status": ("a code from 400 to 599", self.code is not None and 400 <= self.code < 600),
            "hostile": (f"a shape, one of {get_args(Shape)}", self.shape in get_args(Shape)),
            "latency": ("seconds", self.seconds is not None),
            "bandwidth": ("bytes_per_s above 0", (self.bytes_per_s or 0) > 0),
        }
        what, has_it = needs.get(self.kind, ("", True))
        if not has_it:
            raise ValueError(f"a {self.kind} fault needs {what}")
        if not 0 <= self.probability <= 1 or self.after < 0 or (self.times is not None and self.times < 1):
            raise ValueError("probability must be in 0..1, after at least 0, times at least 1")

    @classmethod
    def latency(cls, seconds: float, **aim: Unpack[Aim]) -> Fault:
        """Wait before the Hub looks at the request."""
        return cls(kind="latency", seconds=seconds, **aim)

    @classmethod
    def bandwidth(cls, bytes_per_s: float, **aim: Unpack[Aim]) -> Fault:
        """Transfer the bodies of request and response at this rate."""
        return cls(kind="bandwidth", bytes_per_s=bytes_per_s, **aim)

    @classmethod
    def status(
        cls,
        code: int,
        *,
        when: When = "before",
        body: str | None = None,
        retry_after: float | None = None,
        **aim: Unpack[Aim],
    ) -> Fault:
        """Answer with an error status; with `when="after"`, although the effect took place.

        Args:
            code: The status, from 400 to 599.
            when: Whether the effect takes place ("after") or not ("before").
            body: The body to send, as it is; None for a JSON error.
            retry_after: Seconds for the `Retry-After` header; None for no header.
            **aim: The requests that it is for: the fields of `Aim`.
        """
        headers = () if retry_after is None else (("Retry-After", f"{retry_after:g}"),)
        return cls(kind="status", code=code, when=when, body=body, headers=headers, **aim)

    @classmethod
    def rate_limit(cls, shape: RateShape = "api", *, seconds: int = 60, **aim: Unpack[Aim]) -> Fault:
        """Answer 429 in one of the Hub's shapes.

        Args:
            shape: "api" has `RateLimit` with `r=0` and `t=seconds`. "commits" has headers that describe an API window
                with requests left, and a body about commits per hour. "retry-after" has only `Retry-After: seconds`.
            seconds: Until the client may try again.
            **aim: The requests that it is for: the fields of `Aim`.
        """
        if shape == "retry-after":
            return cls.status(429, retry_after=seconds, **aim)
        if shape == "commits":
            limit, error = '"api";r=936;t=271', commit_limit_text(128, 3600)
        else:
            limit, error = f'"api";r=0;t={seconds}', f"We had to rate limit you. Retry after {seconds} seconds."
        headers = (("RateLimit", limit), _API_POLICY)
        return cls(kind="status", code=429, body=json.dumps({"error": error}), headers=headers, **aim)

    @classmethod
    def conflict(cls, **aim: Unpack[Aim]) -> Fault:
        """Answer 409: another commit is in progress."""
        error = "Another commit is in progress on this branch. Please retry later."
        return cls.status(409, body=json.dumps({"error": error}), **aim)

    @classmethod
    def stale(cls, **aim: Unpack[Aim]) -> Fault:
        """Answer 412: the parent is not the head."""
        error = "The branch was updated since you opened this page. Please refresh and try again."
        return cls.status(412, body=json.dumps({"error": error}), **aim)

    @classmethod
    def reset(cls, *, when: When = "before", **aim: Unpack[Aim]) -> Fault:
        """Abort the connection (RST), before or after the effect takes place."""
        return cls(kind="reset", when=when, **aim)

    @classmethod
    def hang(cls, seconds: float | None = None, *, when: When = "before", **aim: Unpack[Aim]) -> Fault:
        """Keep the connection silent for `seconds`, or until `release()` or `clear()`, then abort it."""
        return cls(kind="hang", seconds=seconds, when=when, **aim)

    @classmethod
    def late(cls, seconds: float | None = None, *, code: int | None = 504, **aim: Unpack[Aim]) -> Fault:
        """Answer `code` at once (None: a reset); the effect takes place `seconds` later, or at `release()`."""
        return cls(kind="late", seconds=seconds, code=code, **aim)

    @classmethod
    def outage(cls, **aim: Unpack[Aim]) -> Fault:
        """Drop every connection without a response."""
        return cls(kind="outage", **aim)

    @classmethod
    def hostile(cls, shape: Shape, *, when: When = "before", **aim: Unpack[Aim]) -> Fault:
        """Answer with HTML, garbage, 64 MiB of text, a redirect elsewhere, nothing, half a response, or other JSON."""
        return cls(kind="hostile", shape=shape, when=when, **aim)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fault:
        """Return a fault of the control API.

        Args:
            value: The fields of this class; `kind` may also be `rate_limit` (with `shape` and `seconds`), `conflict`
                or `stale`.

        Raises:
            ValueError: A field is unknown or has a wrong value.
        """
        fields = dict(value)
        if isinstance(fields.get("headers"), dict):
            fields["headers"] = tuple(fields["headers"].items())
        try:
            if fields.get("kind") in ("rate_limit", "conflict", "stale"):
                made: Fault = getattr(cls, fields.pop("kind"))(**fields)
                return made
            return msgspec.convert(fields, cls)
        except TypeError as error:
            raise ValueError(f"bad fault: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return its fields in the form of the control API."""
        return msgspec.structs.asdict(self) | {"headers": dict(self.headers), "on": list(self.on)}

    def matches(self, operation: Operation, repo: str | None) -> bool:
        """Return whether it is for a request of this operation, to this repo."""
        aimed = "*" in self.on or operation in tuple(self.on)
        return aimed and (self.repo is None or (repo or "").lower() == self.repo.lower())

    @property
    def ends(self) -> bool:
        """Whether it decides how the request ends, and does not only slow it down."""
        return self.kind not in ("latency", "bandwidth")


@dataclass
class _Active:
    fault: Fault
    seen: int = 0
    struck: int = 0

    def strikes(self, generator: random.Random) -> bool:
        self.seen += 1
        if self.seen <= self.fault.after or (self.fault.times is not None and self.struck >= self.fault.times):
            return False
        if self.fault.probability < 1 and generator.random() >= self.fault.probability:
            return False
        self.struck += 1
        return True


@dataclass(frozen=True)
class Drawn:
    """What goes wrong with one request: a wait, a rate, and at most one fault that decides how it ends."""

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    fault: Fault | None = None


class Faults:
    """The active faults; a seeded `generator` makes probabilities repeatable."""

    def __init__(self, generator: random.Random | None = None) -> None:
        self._lock = threading.Lock()
        self._generator = generator or random.Random()
        self._active: dict[int, _Active] = {}
        self._numbers = itertools.count(1)
        self._held: dict[int, tuple[asyncio.AbstractEventLoop, asyncio.Event]] = {}

    def add(self, fault: Fault) -> int:
        """Activate a fault; return its number, for `remove`. Earlier faults strike first."""
        with self._lock:
            number = next(self._numbers)
            self._active[number] = _Active(fault)
            return number

    def remove(self, number: int) -> bool:
        """Remove a fault by the number that `add` returned; return False if it is not active."""
        with self._lock:
            return self._active.pop(number, None) is not None

    def clear(self) -> None:
        """Remove all faults, and release every held request."""
        with self._lock:
            self._active.clear()
        self.release()

    def active(self) -> list[dict[str, Any]]:
        """Return the active faults, with how many requests they have matched (`seen`) and struck (`struck`)."""
        with self._lock:
            return [
                {"id": number, "seen": item.seen, "struck": item.struck, **item.fault.to_json()}
                for number, item in self._active.items()
            ]

    def struck(self, number: int) -> int:
        """Return how many requests a fault has struck; 0 if it is not active."""
        with self._lock:
            item = self._active.get(number)
            return 0 if item is None else item.struck

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Drop every connection without a response, while the block runs."""
        number = self.add(Fault.outage())
        try:
            yield
        finally:
            self.remove(number)

    @property
    def held(self) -> int:
        """The number of requests that hang, and of effects that have yet to take place."""
        with self._lock:
            return len(self._held)

    def release(self) -> None:
        """End every hang, and let every late effect take place now."""
        with self._lock:
            held = list(self._held.values())
        for loop, event in held:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(event.set)

    def draw(self, operation: Operation, repo: str | None) -> Drawn:
        """Decide what goes wrong with a request. Once a fault ends it, later ones neither see nor strike it."""
        delay, rate, end = 0.0, None, None
        with self._lock:
            for item in self._active.values():
                fault = item.fault
                if (end and fault.ends) or not fault.matches(operation, repo) or not item.strikes(self._generator):
                    continue
                if fault.ends:
                    end = fault
                elif fault.kind == "latency":
                    delay += fault.seconds or 0.0
                else:
                    rate = min(rate or float("inf"), fault.bytes_per_s or float("inf"))
        return Drawn(delay, rate, end)

    async def hold(self, seconds: float | None) -> None:
        """Wait for `seconds`, or until `release()`."""
        event = asyncio.Event()
        key = id(event)
        with self._lock:
            self._held[key] = (asyncio.get_running_loop(), event)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), seconds)
        finally:
            with self._lock:
                del self._held[key]
