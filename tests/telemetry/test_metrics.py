"""Metrics and spans, read by the real OpenTelemetry SDK, and the page that the real Prometheus exporter serves."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hubsync import AsyncUploader, BlockedError, NotDrained, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.model.stats import QueueDepth, SpoolDepth
from hubsync.telemetry import metrics as exported
from hubsync.telemetry.metrics import METRICS, Source
from hubsync.telemetry.status import Status
from hubsync.testing import ManualClock
from tests.conftest import FAST
from tests.waiting import until
from tests.zygote import Python

Make = Callable[..., Uploader]
Point = dict[str, Any]


class Received:
    """What the exporters received."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.exporter = InMemorySpanExporter()
        metrics.set_meter_provider(MeterProvider([self.reader]))
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        trace.set_tracer_provider(tracers)

    def points(self, name: str, **attributes: str) -> list[Any]:
        found = self.reader.get_metrics_data()
        every = [
            point
            for resource in (found.resource_metrics if found else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        wanted = {f"hubsync.{key.replace('_', '.')}": value for key, value in attributes.items()}
        return [point for point in every if wanted.items() <= dict(point.attributes or {}).items()]

    def value(self, name: str, **attributes: str) -> Any:
        (point,) = self.points(name, **attributes)
        return point.value

    def spans(self, name: str, repo: str) -> list[ReadableSpan]:
        return [
            span
            for span in self.exporter.get_finished_spans()
            if span.name == name and (span.attributes or {})["hubsync.repo"] == repo
        ]


@pytest.fixture(scope="session")
def received() -> Received:
    """The providers can be set once per process."""
    return Received()


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """Each test's own, so that none sees the points of another."""
    return "user/" + re.sub(r"\W+", "-", request.node.name)[:80].strip("-")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    assert exported._registry._open == []


@pytest.mark.slow("runs several jobs")
def test_a_job_is_seen_in_the_metrics(received: Received, uploader: Make, repo: str) -> None:
    with uploader(repo) as up:
        up.put([{"id": 1}, {"id": 2}])
        assert received.value("hubsync.spool.rows", repo=repo) == 2
        assert received.value("hubsync.rows.oldest_age", repo=repo) >= 0
        until(lambda: received.value("hubsync.state", repo=repo, state="ok") == 1)  # it may still retry a request
        assert received.value("hubsync.state", repo=repo, state="blocked") == 0
        up.flush()
        up.put([{"id": 3}])
    assert received.value("hubsync.rows.accepted", repo=repo) == 3
    assert received.value("hubsync.rows.committed", repo=repo) == 3
    assert (
        received.value("hubsync.bytes.committed", repo=repo)
        == received.value("hubsync.bytes.accepted", repo=repo)
        == 27
    )
    assert received.value("hubsync.commits", repo=repo) == 2
    (commits,) = received.points("hubsync.commit.duration", repo=repo, outcome="done")
    assert commits.count == 2
    assert commits.explicit_bounds[0] < 1  # seconds, and not milliseconds


def test_a_closed_uploader_leaves_its_sums_and_no_levels(received: Received, uploader: Make, repo: str) -> None:
    for n in range(2):
        with uploader(repo) as up:
            up.put([{"id": n}])
    for metric in METRICS:
        if metric.kind in ("gauge", "level"):
            assert received.points(metric.name, repo=repo) == [], metric.name
    assert received.value("hubsync.rows.committed", repo=repo) == 2  # of one writer, whose name was taken over


def test_the_oldest_age_is_the_clocks(received: Received, uploader: Make, repo: str) -> None:
    clock = ManualClock()
    with uploader(repo, clock=clock) as up:
        assert received.value("hubsync.rows.oldest_age", repo=repo) == 0
        up.put([{"id": 1}])
        clock.advance(90)
        assert received.value("hubsync.rows.oldest_age", repo=repo) == 90


def test_what_goes_wrong_is_counted_and_in_the_spans(
    received: Received, uploader: Make, hub: LocalHub, repo: str
) -> None:
    with uploader(repo) as up:
        hub.faults.add(Fault.status(503, on="commit", times=2))
        up.put([{"id": 1}])
        up.flush()
        assert received.value("hubsync.retries", repo=repo) == 2
    outcomes = [(span.attributes or {})["hubsync.outcome"] for span in received.spans("hubsync.commit", repo)]
    assert outcomes == ["answer lost", "answer lost", "done"]
    failed, _, done = received.spans("hubsync.commit", repo)
    assert (failed.attributes or {})["error.type"] == "AmbiguousError"
    assert "503" in str((failed.events[0].attributes or {})["exception.message"])
    assert {**(done.attributes or {})} == {
        "hubsync.repo": repo, "hubsync.writer": (done.attributes or {})["hubsync.writer"],
        "hubsync.shards": 1, "hubsync.rows": 1, "hubsync.bytes": 9, "hubsync.outcome": "done",
    }  # fmt: skip
    assert done.parent is None
    assert [(s.attributes or {})["hubsync.outcome"] for s in received.spans("hubsync.stage", repo)] == ["done"]


def test_a_drain_is_a_span_of_its_caller(received: Received, uploader: Make, hub: LocalHub, repo: str) -> None:
    tracer = trace.get_tracer("a job")
    with uploader(repo) as up, tracer.start_as_current_span("the job"):
        up.put([{"id": 1}])
        up.flush()
        hub.faults.add(Fault.outage())
        up.put([{"id": 2}])
        with pytest.raises(NotDrained):
            up.flush(timeout=0.01)
        hub.faults.clear()
    drains = received.spans("hubsync.drain", repo)
    assert [(span.attributes or {})["hubsync.outcome"] for span in drains] == ["done", "not drained", "done"]
    assert drains[0].parent is not None


def test_no_span_and_no_point_holds_the_token(received: Received, uploader: Make, hub: LocalHub, repo: str) -> None:
    token = hub.token
    with pytest.raises(BlockedError), uploader(repo) as up:
        up.put([{"id": 1}])
        echo = f'{{"error": "you sent Authorization: Bearer {token}"}}'
        hub.faults.add(Fault.status(500, on="commit", body=echo))
        with pytest.raises(NotDrained):
            up.flush(timeout=0.2)
        until(lambda: any("***" in span.to_json() for span in received.spans("hubsync.commit", repo)))
        hub.faults.clear()
        up.flush()
        hub.revoke(token)
        up.put([{"id": 2}])
        up.flush()
    assert any((s.attributes or {})["hubsync.outcome"] == "blocked" for s in received.spans("hubsync.stage", repo))
    assert token not in "".join(span.to_json() for span in received.exporter.get_finished_spans())
    assert token not in str(received.reader.get_metrics_data())


@pytest.mark.asyncio
async def test_tasks_are_seen_as_threads_are(received: Received, hub: LocalHub, tmp_path: Path, repo: str) -> None:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
    async with AsyncUploader(repo, **given) as up:
        await up.put([{"id": 1}])
        assert received.value("hubsync.spool.rows", repo=repo) == up.stats().spool.rows == 1
        await up.flush()
        assert received.value("hubsync.spool.rows", repo=repo) == up.stats().spool.rows == 0
    (commit,) = received.spans("hubsync.commit", repo)
    assert commit.parent is None
    assert received.value("hubsync.rows.committed", repo=repo) == 1


@pytest.mark.slow("makes a thousand of them")
def test_a_thousand_uploaders_leave_nothing_that_grows(received: Received) -> None:
    def one(repo: str) -> Source:
        depth = SpoolDepth(0, 0, 0, 0, 0, 0, None, 0, 0, 0)
        status = Status(lambda text: None, lambda: "")
        status.counts.spooled_rows = 5
        return Source(repo, "a-writer", status, lambda: QueueDepth(0, 0, 0, 0, 0, 0), lambda: depth, lambda: 0.0)

    def held() -> int:
        gc.collect()
        return sum(isinstance(thing, Source) for thing in gc.get_objects())

    before = held()
    for _ in range(1_000):
        exported.register_source(one("user/the-same"))()
    assert held() == before
    assert received.value("hubsync.rows.accepted", repo="user/the-same") == 5_000
    for n in range(3_000):
        exported.register_source(one(f"user/one-of-many-{n}"))()
    assert held() == before
    assert len(exported._registry._ended) == 1_000


def test_a_forked_child_exports_nothing_of_its_parent(received: Received, uploader: Make, repo: str) -> None:
    with uploader(repo) as up:
        up.put([{"id": 1}])
        assert received.points("hubsync.spool.rows", repo=repo)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            found = [m.name for m in METRICS if exported._registry.points(m)]
            os.write(write, repr(found).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(read, 10_000) == b"[]"
        os.close(read)
        os.close(write)


SCRAPED = """
import sys, urllib.request
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from hubsync import Uploader

server, thread = start_http_server(0, addr="127.0.0.1")
with Uploader("user/rows") as up:
    metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))  # also after the fact
    up.put([{"id": 1}])
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as page:
        print(page.read().decode())
"""


@pytest.mark.slow("runs a job in a process of its own")
def test_prometheus_scrapes_it(hub: LocalHub, python: Python) -> None:
    done = python.run("-c", SCRAPED, env={**os.environ, **hub.environ()})
    page = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    lines = [line for line in done.stdout.splitlines() if line.startswith("hubsync_")]
    assert any(re.match(r'hubsync_rows_oldest_age_seconds\{.*hubsync_repo="user/rows".*\} \d', line) for line in lines)
    assert any(re.match(r"hubsync_spool_rows\{.*\} 1\.0", line) for line in lines)
    assert any(re.match(r'hubsync_state\{.*hubsync_state="ok".*\} 1\.0', line) for line in lines)
    for name in {line.partition("{")[0] for line in lines}:  # by the names that the page gives
        assert re.sub(r"_(bucket|sum|count)$", "", name) in page, name


@pytest.mark.slow("starts an interpreter")
def test_a_job_works_without_opentelemetry(hub: LocalHub) -> None:
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from hubsync import Uploader
with Uploader("user/rows") as up:
    up.put([{"id": 1}])
    up.flush()
print(up.repo, "opentelemetry" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **hub.environ()}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("user/rows False\n", "")


@pytest.mark.slow("opens uploaders while a thread reads")
def test_reading_while_uploaders_come_and_go_is_safe(
    received: Received, uploader: Make, repo: str, tmp_path: Path
) -> None:
    stop, failed = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not stop.is_set():
                received.points("hubsync.spool.rows")
                time.sleep(0.0005)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for n in range(5):
            with uploader(repo) as up:
                up.put([{"id": n}])
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert received.value("hubsync.rows.committed", repo=repo) == 5
