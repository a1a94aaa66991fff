"""Each fault: what the client sees, and whether the effect took place."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import httpx
import pytest
from huggingface_hub import HfApi

from hubsync.localhub import Fault, Faults, LocalHub, Operation, app
from tests.localhub.conftest import REPO, commit, file_line, ndjson

BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.ConnectError)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition was never met"
        time.sleep(0.005)


def paths(api: HfApi, repo: str) -> set[str]:
    return set(api.list_repo_files(repo, repo_type="dataset")) - {".gitattributes"}


def test_a_fault_strikes_its_operation_as_often_as_it_says(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    number = local_hub.faults.add(Fault.status(503, on="commit", times=2, after=1))
    statuses = [commit(http, ndjson(file_line(str(turn)))).status_code for turn in range(4)]
    assert statuses == [200, 503, 503, 200]
    assert local_hub.faults.struck(number) == 2
    assert http.get("/api/whoami-v2").status_code == 200


def test_an_error_before_the_effect_commits_nothing(
    local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client
) -> None:
    local_hub.faults.add(Fault.status(500, on="commit", times=1))
    assert commit(http, ndjson(file_line("a"))).status_code == 500
    assert paths(api, repo) == set()


def test_an_error_after_the_effect_hides_a_commit_that_landed(
    local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client
) -> None:
    local_hub.faults.add(Fault.status(504, when="after", on="commit", times=1))
    assert commit(http, ndjson(file_line("a"))).status_code == 504
    assert paths(api, repo) == {"a"}


@pytest.mark.parametrize(("when", "landed"), [("before", set()), ("after", {"a"})])
def test_a_reset_breaks_the_connection_and_lands_only_after(
    local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client, when: str, landed: set[str]
) -> None:
    local_hub.faults.add(Fault.reset(when=when, on="commit", times=1))
    with pytest.raises(BROKEN):
        commit(http, ndjson(file_line("a")))
    assert paths(api, repo) == landed
    assert local_hub.requests("commit")[-1].status == 0


@pytest.mark.parametrize(("when", "landed"), [("before", set()), ("after", {"a"})])
def test_a_hang_holds_until_released_and_lands_only_after(
    local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client, when: str, landed: set[str]
) -> None:
    local_hub.faults.add(Fault.hang(when=when, on="commit", times=1))
    outcome: list[type[BaseException]] = []

    def send() -> None:
        try:
            commit(http, ndjson(file_line("a")))
        except BROKEN as error:
            outcome.append(type(error))

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: local_hub.faults.held == 1)
    assert paths(api, repo) == landed
    assert not outcome
    local_hub.faults.release()
    thread.join(10)
    assert outcome


def test_a_hang_ends_when_the_client_goes_away(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.hang(on="whoami", times=1))
    with pytest.raises(httpx.ReadTimeout):
        http.get("/api/whoami-v2", timeout=0.2)
    until(lambda: local_hub.faults.held == 0)


@pytest.mark.parametrize("code", [504, None])
def test_a_late_commit_lands_after_its_client_got_an_error(
    local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client, code: int | None
) -> None:
    local_hub.faults.add(Fault.late(code=code, on="commit", times=1))
    body = ndjson(file_line("a"))
    if code is None:
        with pytest.raises(BROKEN):
            commit(http, body)
    else:
        assert commit(http, body).status_code == code
    assert paths(api, repo) == set()
    local_hub.faults.release()
    until(lambda: paths(api, repo) == {"a"})


def test_an_outage_drops_every_request_until_it_ends(local_hub: LocalHub, http: httpx.Client) -> None:
    with local_hub.faults.outage():
        for _ in range(3):
            with pytest.raises(BROKEN):
                http.get("/api/whoami-v2")
    assert http.get("/api/whoami-v2").status_code == 200


def test_a_stopped_hub_refuses_connections_and_comes_back_on_its_port(
    local_hub: LocalHub, repo: str, http: httpx.Client
) -> None:
    commit(http, ndjson(file_line("a")))
    endpoint = local_hub.endpoint
    local_hub.stop()
    with pytest.raises(BROKEN):
        http.get("/api/whoami-v2")
    local_hub.start()
    assert local_hub.endpoint == endpoint
    assert http.get(f"/datasets/{repo}/resolve/main/a", follow_redirects=True).text == "x"


def test_a_stop_ends_hanging_requests(local_hub: LocalHub, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.hang(on="whoami"))
    broken = threading.Event()

    def send() -> None:
        try:
            http.get("/api/whoami-v2")
        except BROKEN:
            broken.set()

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: local_hub.faults.held == 1)
    local_hub.stop()
    thread.join(10)
    assert broken.is_set()


def test_the_api_429_says_in_its_headers_how_long_to_wait(local_hub: LocalHub, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.rate_limit("api", seconds=17, on="whoami"))
    answer = http.get("/api/whoami-v2")
    assert (answer.status_code, answer.headers["RateLimit"]) == (429, '"api";r=0;t=17')
    assert "Retry-After" not in answer.headers


def test_the_commit_429_names_commits_only_in_its_body(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.rate_limit("commits", on="commit"))
    answer = commit(http, ndjson(file_line("a")))
    assert answer.status_code == 429
    assert "128 per hour" in answer.json()["error"]
    assert "r=0" not in answer.headers["RateLimit"]
    assert "Retry-After" not in answer.headers


def test_the_plain_429_has_a_retry_after(local_hub: LocalHub, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.rate_limit("retry-after", seconds=5))
    assert http.get("/api/whoami-v2").headers["Retry-After"] == "5"


def test_conflicts_and_stale_parents_can_be_simulated(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.conflict(on="commit", times=1))
    local_hub.faults.add(Fault.stale(on="commit", times=1))
    assert [commit(http, ndjson(file_line(name))).status_code for name in "abc"] == [409, 412, 200]


def test_hostile_answers_are_what_no_hub_would_send(
    local_hub: LocalHub, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_HUGE_BYTES", 1 << 20)

    def get(shape: str) -> httpx.Response:
        local_hub.faults.clear()
        local_hub.faults.add(Fault.hostile(shape, times=1))  # type: ignore[arg-type]
        return http.get("/api/whoami-v2")

    assert get("html").text.startswith("<!DOCTYPE html>")
    assert get("empty").content == b""
    assert len(get("huge").content) > 1 << 20
    assert isinstance(get("wrong-shape").json(), list)
    assert get("redirect").headers["Location"].startswith("http://localhub.invalid/")
    with pytest.raises(ValueError):
        get("garbage").json()
    with pytest.raises(BROKEN):
        get("truncated")


def test_a_slow_hub_serves_the_right_content(local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client) -> None:
    local_hub.faults.add(Fault.latency(0.01))
    local_hub.faults.add(Fault.bandwidth(1e6))
    assert commit(http, ndjson(file_line("a", "x" * 1000))).status_code == 200
    assert http.get(f"/datasets/{repo}/resolve/main/a", follow_redirects=True).text == "x" * 1000


def test_a_fault_can_be_for_one_repo(local_hub: LocalHub, api: HfApi, repo: str, http: httpx.Client) -> None:
    api.create_repo("user/other", repo_type="dataset")
    local_hub.faults.add(Fault.status(500, on="commit", repo="USER/other"))
    assert commit(http, ndjson(file_line("a"))).status_code == 200
    assert commit(http, ndjson(file_line("a")), repo="user/other").status_code == 500


@pytest.mark.slow("waits for hf_xet's own retries")
@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(503, on="xorb", times=1),
        Fault.reset(when="after", on="xorb", times=1, repo=REPO),
        Fault.reset(when="after", on="shard", times=1, repo=REPO),
        Fault.hostile("truncated", on="xet-token", times=1),
    ],
)
def test_hf_xet_retries_after_faults_of_the_cas(local_hub: LocalHub, api: HfApi, repo: str, fault: Fault) -> None:
    number = local_hub.faults.add(fault)
    content = random.Random(repr(fault)).randbytes(100_000)
    api.upload_file(path_or_fileobj=content, path_in_repo="a.bin", repo_id=repo, repo_type="dataset")
    assert local_hub.faults.struck(number) == 1
    assert paths(api, repo) == {"a.bin"}


def test_a_seeded_generator_makes_probabilities_repeatable() -> None:
    def draws(seed: int) -> list[bool]:
        faults = Faults(random.Random(seed))
        faults.add(Fault.status(500, probability=0.5))
        return [faults.draw(Operation.COMMIT, None).fault is not None for _ in range(50)]

    assert draws(7) == draws(7) != draws(8)


def test_an_earlier_fault_that_ends_a_request_spares_the_later_ones() -> None:
    faults = Faults()
    first = faults.add(Fault.status(500, times=1))
    second = faults.add(Fault.status(503, times=1))
    codes = [drawn.fault.code if drawn.fault else None for drawn in (faults.draw(Operation.TREE, None) for _ in "123")]
    assert codes == [500, 503, None]
    assert (faults.struck(first), faults.struck(second)) == (1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "status"},
        {"kind": "status", "code": 200},
        {"kind": "nothing"},
        {"kind": "latency"},
        {"kind": "bandwidth", "bytes_per_s": 0},
        {"kind": "hostile", "shape": "polite"},
        {"kind": "reset", "on": "comit"},
        {"kind": "reset", "times": 0},
        {"kind": "reset", "probability": 2},
        {"kind": "reset", "colour": "red"},
    ],
)
def test_an_invalid_fault_is_refused(http: httpx.Client, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Fault.from_json(fields)
    assert http.post("/_localhub/faults", json=fields).status_code == 400


def test_another_process_controls_faults_over_http(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    made = http.post("/_localhub/faults", json={"kind": "rate_limit", "shape": "commits", "on": "commit", "times": 1})
    number = made.json()["id"]
    assert commit(http, ndjson(file_line("a"))).status_code == 429
    (shown,) = http.get("/_localhub/faults").json()
    assert (shown["id"], shown["struck"], shown["on"]) == (number, 1, ["commit"])
    assert http.delete(f"/_localhub/faults/{number}").status_code == 200
    assert http.delete(f"/_localhub/faults/{number}").status_code == 404
    http.post("/_localhub/faults", json={"kind": "outage"})
    assert http.get("/_localhub/health").json() == {"status": "ok", "held": 0}
    assert http.delete("/_localhub/faults").status_code == 200
    assert http.get("/api/whoami-v2").status_code == 200
    seen = http.get("/_localhub/requests", params={"operation": "commit"}).json()
    assert seen["counters"]["commit"] == 1
    assert (seen["requests"][0]["status"], seen["requests"][0]["fault"]) == (429, "status")


def test_served_requests_are_logged_and_counted(local_hub: LocalHub, repo: str, http: httpx.Client) -> None:
    local_hub.clear_requests()
    body = ndjson(file_line("a"))
    commit(http, body)
    (served,) = local_hub.requests("commit")
    assert (served.method, served.status, served.bytes_in, served.repo) == ("POST", 200, len(body), repo)
    assert local_hub.counters() == {"commit": 1}
    assert local_hub.commits_served == 1
