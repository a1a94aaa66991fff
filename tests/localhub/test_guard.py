"""The control API obeys programs of this machine, and no page that its browser shows."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import httpx
import pytest

from hubsync.localhub import Fault, LocalHub
from tests.dashboard.browser import browser, chromium
from tests.waiting import PATIENCE_S

OUTAGE = b'{"kind": "outage", "on": "commit"}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def control(local_hub: LocalHub) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{local_hub.endpoint}/_localhub", timeout=PATIENCE_S) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "a@127.0.0.1", "[::1", ""]
)
@pytest.mark.parametrize("path", ["/_localhub/requests", "/_localhub/faults", "/api/datasets", "/api/whoami-v2"])
def test_a_name_that_a_site_gave_this_machine_is_refused(local_hub: LocalHub, host: str, path: str) -> None:
    refused = httpx.get(local_hub.endpoint + path, headers={"Host": host, "Authorization": f"Bearer {local_hub.token}"})
    assert (refused.status_code, list(refused.json())) == (421, ["error"])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:7860", "LOCALHOST", "[::1]:80", "10.1.2.3:7860"])
def test_names_that_no_site_can_take_are_answered(control: httpx.Client, host: str) -> None:
    assert control.get("/health", headers={"Host": host}).status_code == 200


def test_a_hub_that_listens_on_the_network_guards_the_control_api_alone() -> None:
    with LocalHub(host="0.0.0.0") as hub:
        address = f"http://127.0.0.1:{hub.port}"
        assert httpx.get(f"{address}/api/datasets", headers={"Host": "hub.internal:7860"}).status_code == 200
        assert httpx.get(f"{address}/_localhub/health", headers={"Host": "hub.internal:7860"}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/requests"), ("POST", "/faults"), ("DELETE", "/requests")])
def test_a_page_of_another_site_is_refused(
    local_hub: LocalHub, control: httpx.Client, headers: dict[str, str], method: str, path: str
) -> None:
    refused = control.request(method, path, content=OUTAGE, headers={**JSON, **headers})
    assert refused.status_code == 403
    assert not [name for name in refused.headers if name.startswith("access-control-")]
    assert local_hub.faults.active() == []


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/faults"), ("POST", "/release"), ("PATCH", "/limits")])
def test_what_a_form_can_send_changes_nothing(
    local_hub: LocalHub, control: httpx.Client, media_type: str | None, method: str, path: str
) -> None:
    """An old browser sends a form of another site without saying whose it is."""
    refused = control.request(method, path, content=OUTAGE, headers={"Content-Type": media_type} if media_type else {})
    assert (refused.status_code, "application/json" in refused.json()["error"]) == (415, True)
    assert local_hub.faults.active() == []


def test_a_preflight_is_not_granted(control: httpx.Client) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    answer = control.options("/faults", headers=asked)
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (403, False)


def test_a_program_is_obeyed(local_hub: LocalHub, control: httpx.Client) -> None:
    number = control.post("/faults", content=OUTAGE, headers={"Content-Type": "application/json; charset=utf-8"}).json()
    assert [fault["id"] for fault in local_hub.faults.active()] == [number["id"]]
    assert control.post("/release", json={}).status_code == 200
    assert control.delete("/faults").status_code == 200
    assert local_hub.faults.active() == []


def test_another_method_or_path_is_refused(control: httpx.Client) -> None:
    assert control.put("/faults", json={}).status_code == 405
    assert control.post("/health", json={}).status_code == 405
    assert control.get("/nothing").status_code == 404


PAGE = """<!doctype html><iframe name=hidden></iframe>
<form id=form method=post action=HUB/_localhub/faults enctype=text/plain target=hidden>
<input name='{"kind": "outage", "x' value='": 1}'></form>
<script>
const fetches = [
  ["faults", {method: "POST", mode: "no-cors", body: '{"kind": "outage"}'}],
  ["faults", {method: "POST", mode: "no-cors", body: new Blob(['{"kind": "outage"}'])}],
  ["faults", {method: "POST", body: '{"kind": "outage"}', headers: {"Content-Type": "application/json"}}],
  ["requests", {method: "DELETE"}], ["faults/1", {method: "DELETE"}], ["release", {method: "POST", mode: "no-cors"}],
  ["requests", {}], ["requests", {mode: "no-cors"}],
].map(([path, options]) => fetch("HUB/_localhub/" + path, options).then(r => r.text(), e => "failed"));
document.getElementById("form").submit();
Promise.all(fetches).then(texts => { document.title = JSON.stringify(texts); });
</script>"""


@pytest.mark.slow("starts a browser")
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_page_in_a_browser_changes_and_learns_nothing(local_hub: LocalHub, control: httpx.Client, name: str) -> None:
    path = chromium()
    if path is None:
        pytest.skip("there is no chromium here")

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.replace("HUB", local_hub.endpoint).encode())

        def log_message(self, *_: object) -> None:
            pass

    number = local_hub.faults.add(Fault.latency(0.001, on="commit"))
    httpx.get(f"{local_hub.endpoint}/api/datasets")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        with browser(path) as chrome:
            tab = chrome.new_page()
            posted = []
            tab.on("response", lambda response: posted.append(response.status) if "faults" in response.url else None)
            with tab.expect_response(
                lambda response: response.request.is_navigation_request() and "faults" in response.url
            ):
                tab.goto(f"http://{name}:{site.server_port}")
            tab.wait_for_function("document.title")
            texts = tab.title()
        site.shutdown()
    assert "datasets" not in texts
    assert [fault["id"] for fault in local_hub.faults.active()] == [number]
    assert local_hub.counters() == {"repo-list": 1}
    assert set(posted) <= {403}
