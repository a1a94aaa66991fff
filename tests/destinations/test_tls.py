"""Certificates are always verified, whatever the environment; nothing is sent if one is invalid."""

from __future__ import annotations

import contextlib
import http.server
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

from hubsync import ConfigError, HubError
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import BlockedError, TransientError
from hubsync.model.target import Target
from tests.destinations.hostile import HUB, SHA, TOKEN, FakeHub, lfs_at, plain_lfs, shard, talk

__all__ = ["plain_lfs", "shard"]  # fixtures


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append(self.headers.get("authorization"))  # type: ignore[attr-defined]
        body = b'{"sha": "%s"}' % SHA.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextlib.contextmanager
def tls_server(certificate: trustme.LeafCert) -> Iterator[Any]:
    """Serve one page by HTTPS; `seen` holds the tokens that arrived."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.seen = []
    server.handle_error = lambda *_: None  # a handshake that the client breaks off
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def head_of(server: Any, backend: str = "asyncio") -> Any:
    async def main() -> Any:
        hub = HubDataset(Target(f"https://127.0.0.1:{server.server_port}", "user/rows"), lambda: TOKEN, timeout_s=5)
        try:
            return await hub.head()
        except HubError as error:
            return error
        finally:
            await hub.aclose()

    return anyio.run(main, backend=backend)


# What other programs read as "do not verify", or what looks like it.
CARELESS = {
    "PYTHONHTTPSVERIFY": "0",
    "HF_HUB_DISABLE_SSL_VERIFY": "1",
    "HF_HUB_DISABLE_SSL_VERIFICATION": "1",
    "CURL_CA_BUNDLE": "",
    "REQUESTS_CA_BUNDLE": "",
    "SSL_CERT_FILE": "",
    "NODE_TLS_REJECT_UNAUTHORIZED": "0",
    "GIT_SSL_NO_VERIFY": "1",
}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_untrusted_certificate_needs_an_operator(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    for name, value in CARELESS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    # What some people do to their whole process, for requests and urllib.
    monkeypatch.setattr(ssl, "_create_default_https_context", ssl._create_unverified_context)
    with tls_server(authority.issue_cert("127.0.0.1")) as server:
        error = head_of(server, backend)
        assert type(error) is BlockedError
        assert "SSL_CERT_FILE" in str(error)
        assert server.seen == []


def test_a_certificate_of_another_host_or_time_is_rejected(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime

    trust(authority, tmp_path, monkeypatch)
    for certificate in (
        authority.issue_cert("hub.test"),
        authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC)),
    ):
        with tls_server(certificate) as server:
            assert type(head_of(server)) is BlockedError
            assert server.seen == []


def test_ssl_cert_file_adds_a_private_authority(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(authority, tmp_path, monkeypatch)
    with tls_server(authority.issue_cert("127.0.0.1")) as server:
        assert head_of(server).sha == SHA
        assert server.seen == [f"Bearer {TOKEN}"]


def trust(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


def test_certificates_are_loaded_once_and_again_when_their_file_changes(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")  # each proxy has connections of its own
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    trust(trustme.CA(), tmp_path, monkeypatch)
    with tls_server(authority.issue_cert("127.0.0.1")) as server:
        assert type(head_of(server)) is BlockedError
        loaded: list[object] = []
        load = httpx.create_ssl_context
        monkeypatch.setattr(httpx, "create_ssl_context", lambda: loaded.append(None) or load())
        trust(authority, tmp_path, monkeypatch)
        os.utime(tmp_path / "ca.pem", (1, 1))
        for _ in range(3):
            assert head_of(server).sha == SHA
    assert len(loaded) == 1


def test_a_missing_certificate_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        HubHTTP(HUB, lambda: TOKEN)


def test_a_store_with_an_untrusted_certificate_needs_an_operator(
    authority: trustme.CA, plain_lfs: None, shard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("failed") from ssl.SSLCertVerificationError("self-signed certificate")

    fake = FakeHub(lfs=lfs_at("https://store.test/x?sig=1"), replaced={"elsewhere": refused})
    assert type(talk(fake, lambda hub: hub.stage([shard]))) is BlockedError
    fake = FakeHub(lfs=lfs_at("https://store.test/x"), replaced={"verify": refused})
    assert type(talk(fake, lambda hub: hub.stage([shard]))) is BlockedError
    fake = FakeHub(lfs=lfs_at("https://store.test/x"), replaced={"elsewhere": lambda r: httpx.Response(403)})
    assert type(talk(fake, lambda hub: hub.stage([shard]))) is TransientError
