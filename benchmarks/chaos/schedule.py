"""What happens to a run, drawn from its seed alone: who is killed or stopped when, and the Hub's faults meanwhile.

The same seed draws the same kills, stops and spells in the same order. What they meet differs, since real time does.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Victim = Literal["committer", "youngest", "any"]
Fault = dict[str, Any]  # the fields of `hubsync.localhub.Fault`, as the control interface takes them

_OTHERS = (
    "preupload", "xorb", "shard", "xet-token", "lfs-batch", "lfs-upload", "lfs-verify", "paths-info", "repo-info",
    "resolve", "tree",
)  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """The next SIGKILL, `after_s` after the last one. `pick` says which of those that are as good, from 0 to 1."""

    after_s: float
    victim: Victim
    pick: float


@dataclass(frozen=True)
class Stop:
    """The next SIGSTOP, and how long it lasts: a debugger, a frozen container, a machine that sleeps."""

    after_s: float
    seconds: float
    victim: Victim
    pick: float


@dataclass(frozen=True)
class FaultPeriod:
    """Some weather, for so long.

    Attributes:
        name: for the log.
        faults: what the Hub does meanwhile.
        expires: the token is no longer good, and there is a new one at the end.
        asks_s: seconds that the Hub asks for in a 429 to every commit, which must then be obeyed.
    """

    seconds: float
    name: str
    faults: tuple[Fault, ...] = ()
    expires: bool = False
    asks_s: int | None = None


def kills(seed: int) -> Iterator[Kill]:
    """For ever. Many at once after a start, while it opens, recovers or takes over; now and then a breather."""
    rng = random.Random(f"{seed}/kills")
    while True:
        kind = rng.random()
        if kind < 0.25:
            after = rng.uniform(0, 0.2)
        elif kind < 0.9:
            after = rng.uniform(0, 1.5)
        else:
            after = rng.uniform(1.5, 3)
        yield Kill(after, _victim(rng), rng.random())


def stops(seed: int) -> Iterator[Stop]:
    """For ever, one at a time. The longest are long enough for others to take over."""
    rng = random.Random(f"{seed}/stops")
    while True:
        seconds = rng.uniform(0.1, 2) if rng.random() < 0.6 else rng.uniform(3, 6)
        yield Stop(rng.uniform(0.5, 6), seconds, _victim(rng), rng.random())


def _victim(rng: random.Random) -> Victim:
    victims: tuple[Victim, ...] = ("committer", "youngest", "any")
    return rng.choices(victims, weights=(5, 3, 2))[0]


def fault_periods(seed: int) -> Iterator[FaultPeriod]:
    """For ever."""
    rng = random.Random(f"{seed}/spells")
    kinds, weights = zip(*_KINDS, strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](rng)


def _where(rng: random.Random) -> list[str]:
    kind = rng.random()
    return ["commit"] if kind < 0.45 else ["*"] if kind < 0.7 else rng.sample(_OTHERS, rng.randint(1, 4))


def _often(rng: random.Random) -> float:
    return rng.choice((0.2, 0.5, 1.0))


def _spell(rng: random.Random, name: str, *faults: Fault, **more: Any) -> FaultPeriod:
    return FaultPeriod(rng.uniform(0.3, 1.5), name, faults, **more)


def _calm(rng: random.Random) -> FaultPeriod:
    return _spell(rng, "calm")


def _slow(rng: random.Random) -> FaultPeriod:
    if rng.random() < 0.5:
        return _spell(rng, "latency", {"kind": "latency", "on": _where(rng), "seconds": rng.uniform(0.05, 1)})
    rate = 10 ** rng.uniform(4, 6)
    return _spell(rng, "bandwidth", {"kind": "bandwidth", "on": _where(rng), "bytes_per_s": rate})


def _limit(rng: random.Random) -> FaultPeriod:
    """429 in each of the Hub's shapes; to every commit, so that it can be told whether it is obeyed."""
    shape = rng.choice(("api", "commits", "retry-after"))
    asks = rng.choice((1, 2))
    if shape == "commits":
        # As `Fault.rate_limit("commits")`, which asks for an hour: only the body tells the truth.
        words = (
            "You have exceeded the rate limit for repository commits (128 per hour). "
            f"Retry this action in {asks} second{'s' if asks > 1 else ''}. "
            "If you're a new user, your limits will raise progressively over time."
        )
        headers = {
            "RateLimit": '"api";r=936;t=271',
            "RateLimit-Policy": '"fixed window";"api";q=1000;w=300',
        }
        fault: Fault = {"kind": "status", "code": 429, "body": json.dumps({"error": words}), "headers": headers}
    else:
        fault = {"kind": "rate_limit", "shape": shape, "seconds": asks}
    if rng.random() < 0.3:
        return _spell(rng, f"429 {shape}", {**fault, "on": "*", "probability": 0.3})
    return FaultPeriod(rng.uniform(1, 3), f"429 {shape}", ({**fault, "on": "commit"},), asks_s=asks)


def _refused(rng: random.Random) -> FaultPeriod:
    code = rng.choice((500, 502, 503, 504))
    when = rng.choice(("before", "after"))
    fault = {"kind": "status", "code": code, "when": when, "on": _where(rng), "probability": _often(rng)}
    return _spell(rng, f"{code} {when}", fault)


def _conflict(rng: random.Random) -> FaultPeriod:
    kind = rng.choice(("conflict", "stale"))
    return _spell(rng, kind, {"kind": kind, "on": "commit", "probability": _often(rng)})


def _reset(rng: random.Random) -> FaultPeriod:
    when = rng.choice(("before", "after"))
    return _spell(
        rng, f"reset {when}", {"kind": "reset", "when": when, "on": _where(rng), "probability": _often(rng)}
    )  # fmt: skip


def _hang(rng: random.Random) -> FaultPeriod:
    fault = {"kind": "hang", "when": rng.choice(("before", "after")), "seconds": rng.uniform(0.2, 2.5)}
    return _spell(rng, "hang", {**fault, "on": _where(rng), "probability": _often(rng)})


def _late(rng: random.Random) -> FaultPeriod:
    fault = {"kind": "late", "seconds": rng.uniform(0.05, 2.5), "code": rng.choice((504, None))}
    return _spell(rng, "late", {**fault, "on": rng.choice(("commit", "commit", "*")), "probability": _often(rng)})


def _outage(rng: random.Random) -> FaultPeriod:
    return _spell(rng, "outage", {"kind": "outage", "on": "*"})


def _expired(rng: random.Random) -> FaultPeriod:
    return _spell(rng, "expired token", expires=True)


def _hostile(rng: random.Random) -> FaultPeriod:
    shape = rng.choice(("html", "garbage", "truncated", "empty", "wrong-shape", "redirect"))
    fault = {"kind": "hostile", "shape": shape, "when": rng.choice(("before", "after"))}
    return _spell(rng, f"hostile {shape}", {**fault, "on": _where(rng), "probability": _often(rng)})


def _two(rng: random.Random) -> FaultPeriod:
    """An answer that is lost from a Hub that is slow as well."""
    slow: Fault = {"kind": "latency", "on": "*", "seconds": rng.uniform(0.05, 0.5)}
    lost: Fault = {"kind": "reset", "when": "after", "on": "commit", "probability": 0.5}
    return _spell(rng, "slow, reset after", slow, lost)


_KINDS: tuple[tuple[Callable[[random.Random], FaultPeriod], int], ...] = (
    (_calm, 6), (_slow, 3), (_limit, 3), (_refused, 4), (_conflict, 3), (_reset, 5), (_hang, 3), (_late, 5),
    (_outage, 2), (_expired, 2), (_hostile, 4), (_two, 3),
)  # fmt: skip
