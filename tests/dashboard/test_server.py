"""The page's server, over a real socket."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from hubsync.dashboard import server
from tests.dashboard.conftest import Page


@pytest.fixture(scope="module")
def address(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with page(HUBSYNC_HOME=str(tmp_path_factory.mktemp("home"))) as address:
        yield address


def test_every_answer_says_what_a_browser_may_do_with_it(address: str) -> None:
    answers = [httpx.get(address + path) for path in ("/", "/page.css", "/page.js", "/plots.js", "/icon.svg")]
    answers += [httpx.get(f"{address}/api/spools"), httpx.get(f"{address}/nothing"), httpx.post(address)]
    answers += [httpx.get(address, headers={"Host": "evil.example"})]
    assert [answer.status_code for answer in answers] == [200] * 6 + [404, 405, 421]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("path", ["/", "/api/spools"])
def test_it_can_only_be_read(address: str, method: str, path: str) -> None:
    answer = httpx.request(method, address + path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "127.0.0.2", "evil@127.0.0.1", ""]
)
def test_another_name_for_this_machine_is_refused(address: str, host: str) -> None:
    answer = httpx.get(f"{address}/api/spools", headers={"Host": host})
    assert (answer.status_code, "spools" in answer.text) == (421, False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:7870", "127.0.0.1:1", "[::1]", "[::1]:9000"])
def test_the_names_of_this_machine_are_taken_with_any_port(address: str, host: str) -> None:
    """A tunnel has a port of its own."""
    answer = httpx.get(f"{address}/api/spools", headers={"Host": host})
    assert answer.json()["spools"] == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
def test_no_other_site_is_let_in(address: str, headers: dict[str, str]) -> None:
    answer = httpx.get(f"{address}/api/spools", headers=headers)
    assert (answer.status_code, "spools" in answer.text) == (403, False)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_a_link_on_another_site_leads_to_the_page(address: str) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert httpx.get(address, headers=headers).status_code == 200


def test_it_listens_on_the_loopback_address_alone(address: str) -> None:
    port = urlsplit(address).port
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", port))


def test_nothing_comes_from_elsewhere() -> None:
    files = list((Path(server.__file__).parent / "static").iterdir())
    assert len(files) == len(server._FILES)
    for file in files:
        found = re.findall(r"(?:https?:)?//[a-z][\w.]+", file.read_text())
        assert set(found) <= {"http://www.w3.org"}, file


def _run(*arguments: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {before}; from hubsync.cli import main; sys.argv[0] = 'hubsync'; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow("starts an interpreter")
def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _run("dashboard", f"--port={taken.getsockname()[1]}")
    assert done.returncode == 1
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize("missing", ["uvicorn", "starlette"])
def test_where_the_extra_is_not_installed_it_says_how_to(missing: str) -> None:
    done = _run("dashboard", before=f"sys.modules[{missing!r}] = None")
    assert done.returncode == 1
    assert "pip install 'hf-hubsync[dashboard]'" in done.stderr


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_in_order(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "hubsync", "dashboard", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
