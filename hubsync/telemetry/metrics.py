"""OpenTelemetry metrics, if it is installed (`pip install 'hf-hubsync[otel]'`); otherwise nothing happens.

Observable instruments read counts from memory in the exporter's thread, so they cost `put` nothing. Stages and commits
also record their durations. The providers are the global ones. A closed uploader keeps its totals, so the last
collection misses nothing, and loses its gauges. A forked child starts with no uploaders.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from hubsync._runtime.fork import after_fork_in_child
from hubsync.model.stats import QueueDepth, SpoolDepth
from hubsync.telemetry.status import StateKind, Status

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Observation
    from opentelemetry.trace import Tracer


# So many closed uploaders, by repo and writer, keep their totals.
_REMEMBERED = 1_000
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)  # of a stage or a commit


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """An open uploader. Its values are in memory, so reading them never waits."""

    repo: str
    writer: str
    status: Status
    queue: Callable[[], QueueDepth]
    spool: Callable[[], SpoolDepth]
    now: Callable[[], float]

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of every value."""
        return {"hubsync.repo": self.repo, "hubsync.writer": self.writer}


# A value, and its attributes in addition to repo and writer.
Points = Iterable[tuple[float, Mapping[str, str]]]


class Metric(NamedTuple):
    """One instrument. The sums of a counter outlive their uploader; levels (such as a queue's) and gauges do not."""

    name: str
    kind: Literal["gauge", "level", "counter", "histogram"]
    unit: str
    description: str
    read: Callable[[Source], Points] = lambda source: ()


def _one(read: Callable[[Source], float]) -> Callable[[Source], Points]:
    return lambda source: [(read(source), {})]


def _oldest_age(source: Source) -> float:
    return source.spool().oldest_age_s(source.now(), source.queue().oldest_at) or 0.0


def _shards(source: Source) -> Points:
    depth = source.spool()
    states = {"open": depth.open, "sealed": depth.sealed, "staged": depth.staged, "dead": depth.dead}
    return [(number, {"hubsync.shard.state": state}) for state, number in states.items()]


def _states(source: Source) -> Points:
    now = source.status.state.kind
    return [(int(kind == now), {"hubsync.state": kind}) for kind in get_args(StateKind)]


def _full(source: Source) -> Points:
    depth = source.queue()
    outcomes = {"blocked": depth.blocked, "raised": depth.raised, "dropped": depth.dropped}
    return [(number, {"hubsync.queue.outcome": outcome}) for outcome, number in outcomes.items()]


METRICS = (
    Metric("hubsync.rows.oldest_age", "gauge", "s",
           "how long the oldest row not yet committed has waited; 0 where none waits", _one(_oldest_age)),
    Metric("hubsync.state", "level", "{uploader}",
           "1 for the state that the worker is in, by `hubsync.state`; 0 for the others", _states),
    Metric("hubsync.queue.size", "level", "{batch}", "batches in memory", _one(lambda s: s.queue().batches)),
    Metric("hubsync.queue.bytes", "level", "By", "their bytes", _one(lambda s: s.queue().bytes)),
    Metric("hubsync.queue.full", "counter", "{batch}",
           "batches that met a full queue, by `hubsync.queue.outcome`: `blocked`, `raised`, `dropped`", _full),
    Metric("hubsync.spool.rows", "level", "{row}",
           "rows on disk and not yet committed, of all writers of the spool", _one(lambda s: s.spool().rows)),
    Metric("hubsync.spool.bytes", "level", "By", "their bytes", _one(lambda s: s.spool().bytes)),
    Metric("hubsync.spool.shards", "level", "{shard}",
           "shards by `hubsync.shard.state`: `open`, `sealed`, `staged`, and `dead` (the dead letter)", _shards),
    Metric("hubsync.rows.accepted", "counter", "{row}",
           "rows that this uploader has spooled", _one(lambda s: s.status.counts.spooled_rows)),
    Metric("hubsync.bytes.accepted", "counter", "By", "their bytes", _one(lambda s: s.status.counts.spooled_bytes)),
    Metric("hubsync.rows.committed", "counter", "{row}",
           "rows that this process has committed, for all writers of the spool",
           _one(lambda s: s.status.counts.committed_rows)),
    Metric("hubsync.bytes.committed", "counter", "By", "their bytes", _one(lambda s: s.status.counts.committed_bytes)),
    Metric("hubsync.commits", "counter", "{commit}", "commits", _one(lambda s: s.status.counts.commits)),
    Metric("hubsync.retries", "counter", "{retry}",
           "requests that failed in a way that passes, and were waited out", _one(lambda s: s.status.counts.retries)),
    Metric("hubsync.refusals", "counter", "{shard}",
           "shards that the Hub rejected, now in the dead letter", _one(lambda s: s.status.counts.refusals)),
    Metric("hubsync.stage.duration", "histogram", "s", "to upload a lot of shards, by `hubsync.outcome`"),
    Metric("hubsync.commit.duration", "histogram", "s", "to send one commit, by `hubsync.outcome`"),
)  # fmt: skip


class _Registry:
    """The open uploaders of this process, and the sums of the closed ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Source] = []
        self._ended: dict[tuple[str, str], dict[str, dict[tuple[tuple[str, str], ...], float]]] = {}

    def add(self, source: Source) -> None:
        with self._lock:
            self._open.append(source)

    def remove(self, source: Source) -> None:
        with self._lock:
            if source not in self._open:
                return
            self._open.remove(source)
            key = source.repo, source.writer
            sums = self._ended[key] = self._ended.pop(key, {})
            for metric in METRICS:
                if metric.kind == "counter":
                    _add(sums.setdefault(metric.name, {}), source, metric)
            while len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]

    def points(self, metric: Metric) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the values by their attributes. Uploaders with equal attributes are added up."""
        found: dict[tuple[tuple[str, str], ...], float] = {}
        with self._lock:
            for sums in self._ended.values():
                found.update(sums.get(metric.name, {}))
            for source in self._open:
                _add(found, source, metric)
        return found


def _add(to: dict[tuple[tuple[str, str], ...], float], source: Source, metric: Metric) -> None:
    for value, more in metric.read(source):
        key = tuple({**source.attributes, **more}.items())
        to[key] = to.get(key, 0) + value if metric.kind != "gauge" else max(to.get(key, 0), value)


_registry = _Registry()


@after_fork_in_child
def _begin_anew() -> None:
    global _registry
    _registry = _Registry()


class _Instruments(NamedTuple):
    tracer: Tracer
    histograms: Mapping[str, Histogram]


@cache
def instruments() -> _Instruments | None:
    """Return the instruments; None if OpenTelemetry is not installed.

    They are created once per process, because OpenTelemetry never releases a callback.
    """
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    from hubsync import __version__

    meter = metrics.get_meter("hubsync", __version__)
    observable: dict[str, Callable[..., Any]] = {
        "gauge": meter.create_observable_gauge,
        "level": meter.create_observable_up_down_counter,
        "counter": meter.create_observable_counter,
    }
    histograms = {}
    for metric in METRICS:
        if metric.kind == "histogram":
            histograms[metric.name] = meter.create_histogram(
                metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=_SECONDS
            )
        else:
            observable[metric.kind](metric.name, [partial(_observe, metric)], metric.unit, metric.description)
    return _Instruments(trace.get_tracer("hubsync", __version__), histograms)


def _observe(metric: Metric, options: object) -> list[Observation]:
    from opentelemetry.metrics import Observation

    return [Observation(value, dict(attributes)) for attributes, value in _registry.points(metric).items()]


def register_source(source: Source) -> Callable[[], None]:
    """Include an uploader in the metrics; return a function that removes it."""
    if instruments() is None:
        return lambda: None
    _registry.add(source)
    return lambda: _registry.remove(source)
