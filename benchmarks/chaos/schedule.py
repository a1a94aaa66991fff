"""The schedule of a run, drawn from its seed: when to kill or stop which process, and when the Hub has which faults.

The same seed draws the same kills, stops and fault periods in the same order. Their effects differ between runs,
because the processes run in real time.
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
    """A SIGKILL.

    Attributes:
        after_s: seconds after the last one.
        victim: which process to kill.
        pick: chooses among the processes that match, from 0 to 1.
    """

    after_s: float
    victim: Victim
    pick: float


@dataclass(frozen=True)
class Stop:
    """A SIGSTOP, like a debugger, a frozen container or a machine that sleeps.

    Attributes:
        after_s: seconds after the last one.
        seconds: how long the process is stopped.
        victim: which process to stop.
        pick: chooses among the processes that match, from 0 to 1.
    """

    after_s: float
    seconds: float
    victim: Victim
    pick: float


@dataclass(frozen=True)
class FaultPeriod:
    """A period during which the Hub has certain faults, or none.

    Attributes:
        seconds: how long it lasts.
        name: for the log.
        faults: of the Hub.
        expires: the token is revoked at the beginning, and a new one is issued at the end.
        retry_after_s: seconds that the Hub demands in a 429 response to every commit; committers must obey.
    """

    seconds: float
    name: str
    faults: tuple[Fault, ...] = ()
    expires: bool = False
    retry_after_s: int | None = None


def kills(seed: int) -> Iterator[Kill]:
    """Yield kills endlessly. Many come soon after a start, while a process opens, recovers or takes over."""
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
    """Yield stops endlessly; they never overlap. The longest let other processes take over."""
    rng = random.Random(f"{seed}/stops")
    while True:
        seconds = rng.uniform(0.1, 2) if rng.random() < 0.6 else rng.uniform(3, 6)
        yield Stop(rng.uniform(0.5, 6), seconds, _victim(rng), rng.random())


def _victim(rng: random.Random) -> Victim:
    victims: tuple[Victim, ...] = ("committer", "youngest", "any")
    return rng.choices(victims, weights=(5, 3, 2))[0]


def fault_periods(seed: int) -> Iterator[FaultPeriod]:
    """Yield fault periods endlessly."""
    rng = random.Random(f"{seed}/spells")  # another text would draw other periods for the same seed
    kinds, weights = zip(*_PERIODS, strict=True)
    while True:
        yield rng.choices(kinds, weights)[0](rng)


def _operations(rng: random.Random) -> list[str]:
    kind = rng.random()
    return ["commit"] if kind < 0.45 else ["*"] if kind < 0.7 else rng.sample(_OTHERS, rng.randint(1, 4))


def _probability(rng: random.Random) -> float:
    return rng.choice((0.2, 0.5, 1.0))


def _period(rng: random.Random, name: str, *faults: Fault, **more: Any) -> FaultPeriod:
    return FaultPeriod(rng.uniform(0.3, 1.5), name, faults, **more)


def _calm(rng: random.Random) -> FaultPeriod:
    return _period(rng, "calm")


def _slow(rng: random.Random) -> FaultPeriod:
    if rng.random() < 0.5:
        return _period(rng, "latency", {"kind": "latency", "on": _operations(rng), "seconds": rng.uniform(0.05, 1)})
    rate = 10 ** rng.uniform(4, 6)
    return _period(rng, "bandwidth", {"kind": "bandwidth", "on": _operations(rng), "bytes_per_s": rate})


def _limit(rng: random.Random) -> FaultPeriod:
    """Respond 429 in each form that the Hub uses; mostly to every commit, so the run can check that it is obeyed."""
    shape = rng.choice(("api", "commits", "retry-after"))
    retry_after_s = rng.choice((1, 2))
    if shape == "commits":
        # Like `Fault.rate_limit("commits")`, which demands an hour: only the body has the right delay.
        message = (
            "You have exceeded the rate limit for repository commits (128 per hour). "
            f"Retry this action in {retry_after_s} second{'s' if retry_after_s > 1 else ''}. "
            "If you're a new user, your limits will raise progressively over time."
        )
        headers = {
            "RateLimit": '"api";r=936;t=271',
            "RateLimit-Policy": '"fixed window";"api";q=1000;w=300',
        }
        fault: Fault = {"kind": "status", "code": 429, "body": json.dumps({"error": message}), "headers": headers}
    else:
        fault = {"kind": "rate_limit", "shape": shape, "seconds": retry_after_s}
    if rng.random() < 0.3:
        return _period(rng, f"429 {shape}", {**fault, "on": "*", "probability": 0.3})
    return FaultPeriod(rng.uniform(1, 3), f"429 {shape}", ({**fault, "on": "commit"},), retry_after_s=retry_after_s)


def _server_error(rng: random.Random) -> FaultPeriod:
    code = rng.choice((500, 502, 503, 504))
    when = rng.choice(("before", "after"))
    fault = {"kind": "status", "code": code, "when": when, "on": _operations(rng), "probability": _probability(rng)}
    return _period(rng, f"{code} {when}", fault)


def _conflict(rng: random.Random) -> FaultPeriod:
    kind = rng.choice(("conflict", "stale"))
    return _period(rng, kind, {"kind": kind, "on": "commit", "probability": _probability(rng)})


def _reset(rng: random.Random) -> FaultPeriod:
    when = rng.choice(("before", "after"))
    return _period(
        rng, f"reset {when}", {"kind": "reset", "when": when, "on": _operations(rng), "probability": _probability(rng)}
    )  # fmt: skip


def _hang(rng: random.Random) -> FaultPeriod:
    fault = {"kind": "hang", "when": rng.choice(("before", "after")), "seconds": rng.uniform(0.2, 2.5)}
    return _period(rng, "hang", {**fault, "on": _operations(rng), "probability": _probability(rng)})


def _late_response(rng: random.Random) -> FaultPeriod:
    fault = {"kind": "late", "seconds": rng.uniform(0.05, 2.5), "code": rng.choice((504, None))}
    return _period(
        rng, "late", {**fault, "on": rng.choice(("commit", "commit", "*")), "probability": _probability(rng)}
    )


def _outage(rng: random.Random) -> FaultPeriod:
    return _period(rng, "outage", {"kind": "outage", "on": "*"})


def _expired_token(rng: random.Random) -> FaultPeriod:
    return _period(rng, "expired token", expires=True)


def _hostile_response(rng: random.Random) -> FaultPeriod:
    shape = rng.choice(("html", "garbage", "truncated", "empty", "wrong-shape", "redirect"))
    fault = {"kind": "hostile", "shape": shape, "when": rng.choice(("before", "after"))}
    return _period(rng, f"hostile {shape}", {**fault, "on": _operations(rng), "probability": _probability(rng)})


def _slow_and_reset(rng: random.Random) -> FaultPeriod:
    """Lose responses of a Hub that is slow as well."""
    slow: Fault = {"kind": "latency", "on": "*", "seconds": rng.uniform(0.05, 0.5)}
    lost: Fault = {"kind": "reset", "when": "after", "on": "commit", "probability": 0.5}
    return _period(rng, "slow, reset after", slow, lost)


_PERIODS: tuple[tuple[Callable[[random.Random], FaultPeriod], int], ...] = (
    (_calm, 6), (_slow, 3), (_limit, 3), (_server_error, 4), (_conflict, 3), (_reset, 5), (_hang, 3),
    (_late_response, 5), (_outage, 2), (_expired_token, 2), (_hostile_response, 4), (_slow_and_reset, 3),
)  # fmt: skip
