"""Secrets never appear, and the spool is private: tokens, signed URLs, file modes, dependencies.

Hostile responses are in destinations/test_hostile.py, certificates in destinations/test_tls.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import httpx
import huggingface_hub
import pytest
from click.testing import CliRunner

from hubsync import AsyncUploader, AuthenticationError, ConfigError, HubError, ShardsRefused, SpoolError, Uploader
from hubsync._runtime.secret import Secret
from hubsync.cli.main import cli
from hubsync.cli.stdin_reader import read_stream
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.destinations.resolve import destination_of, target_of, token_source
from hubsync.errors import BlockedError, TransientError
from hubsync.localhub import Fault, LocalHub
from hubsync.localhub.state import HubState
from hubsync.maintenance.drain import drain
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.verify import verify
from hubsync.model.target import Target
from hubsync.policies import CommitPolicy, QueuePolicy, RetryPolicy, ShardPolicy, SpoolPolicy
from tests.conftest import Dataset
from tests.destinations.hostile import BATCH, HUB, SHA, TOKEN, FakeHub, FakeXet, lfs_at, plain_lfs, shard, xet

Make = Callable[..., Uploader]
CARD = b"---\nlicense: mit\n---\n"
__all__ = ["plain_lfs", "shard", "xet"]  # fixtures
ACCESS = "xet_access_QmFzZTY0IGxvb2tzIGxpa2UgdGhpcw"
BASIC = "dXNlcjpwYXNzd29yZCB0aGF0IGlzIGxvbmc"
SIGNATURE = "X-Amz-Signature=0123456789abcdef0123456789abcdef"
SECRETS = (TOKEN, ACCESS, BASIC, SIGNATURE)


# A whole job, in its own process.


def trouble(token: str) -> list[Fault]:
    """Cause each kind of failure once, from a server that sends back what it received."""
    echo = f'{{"error": "you sent: authorization: Bearer {token}"}}'
    headers = (("X-Error-Message", f"bad token {token}"), ("X-Request-Id", token), ("Set-Cookie", f"t={token}"))
    faults = [Fault(kind="status", code=code, body=echo, on="commit", times=1) for code in (401, 403, 409, 500, 503)]
    faults += [Fault(kind="status", code=429, body=echo, headers=(("Retry-After", "0"),), on="commit", times=1)]
    for operation in ("preupload", "repo-info", "paths-info", "xet-token", "lfs-batch", "lfs-verify", "resolve"):
        faults += [
            Fault(kind="status", code=403, headers=headers, on=operation, times=1),
            Fault(kind="status", code=500, body=f"<html>{token}", headers=headers, on=operation, times=1),
            Fault(kind="status", code=502, body=token, on=operation, times=1),
            Fault.reset(on=operation, times=1),
        ]
    faults += [Fault(kind="status", code=403, body=token, headers=headers, on="lfs-upload", times=1)]
    for shape in ("html", "garbage", "redirect", "empty", "truncated", "wrong-shape"):
        faults.append(Fault.hostile(shape, on=("commit", "preupload", "paths-info"), times=1))  # type: ignore[arg-type]
    return faults


@pytest.mark.slow("runs a job with every logger on, in a process of its own")
@pytest.mark.parametrize("store", ["xet", "lfs", "async"])
def test_a_job_never_shows_its_token_whatever_fails(
    hub: LocalHub, tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    signed: list[str] = [hub.token]
    sign = HubState.sign
    monkeypatch.setattr(HubState, "sign", lambda hub, claims: (signed.append(sign(hub, claims)), signed[-1])[1])
    hub.add_user("user", TOKEN)
    dataset.api.create_repo(dataset.repo, repo_type="dataset")
    dataset.api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=dataset.repo, repo_type="dataset")
    for fault in trouble(TOKEN) if store != "async" else ():
        hub.faults.add(fault)
    signed[0] = TOKEN
    homes = {name: str(tmp_path / name) for name in ("JOB_SPOOL", "HF_HOME", "HUBSYNC_HOME", "TMPDIR")}
    (tmp_path / "TMPDIR").mkdir()
    loud = {"RUST_LOG": "trace", "HF_DEBUG": "1", "PYTHONFAULTHANDLER": "1", "PYTHONASYNCIODEBUG": "1"}
    given = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": str(int(store == "lfs"))}
    with (tmp_path / "stderr").open("wb") as stderr:
        job = subprocess.Popen(
            [sys.executable, "-m", "tests.leaky_job", store],
            env={**os.environ, **homes, **loud, **given, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
    assert job.stdout is not None
    stdout = job.stdout.readline()
    assert stdout == "revoke\n", (tmp_path / "stderr").read_text()[-3_000:]
    idle = {operation for fault in hub.faults.active() if not fault["struck"] for operation in fault["on"]}
    assert idle <= ({"lfs-batch", "lfs-verify", "lfs-upload"} if store == "xet" else {"xet-token", "lfs-verify"})
    hub.faults.clear()
    commits = [f"{c.title} {c.message}" for c in dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")]
    contents = [dataset.read(path) for path in dataset.paths("")]
    hub.revoke(TOKEN)
    stdout += job.communicate("go on\n")[0]

    stderr = (tmp_path / "stderr").read_text()
    assert job.returncode == 1
    assert "CRASHED" in stderr
    assert "AuthenticationError" in stderr
    assert "httpcore" in stderr  # every logger was loud
    assert len(commits) > 1
    assert len(signed) > 1 or store == "async"
    places = {"stdout": stdout.encode(), "stderr": stderr.encode(), "commits": repr(commits).encode()}
    places |= {f"file {number} of the dataset": content for number, content in enumerate(contents)}
    for home in homes.values():
        places |= {str(file): file.read_bytes() for file in Path(home).rglob("*") if file.is_file()}
    assert_hidden(places, signed)


def assert_hidden(places: Mapping[str, bytes], secrets: list[str]) -> None:
    for place, content in places.items():
        for secret in secrets:
            at = content.find(secret.encode())
            assert at < 0, f"{secret[:12]}… in {place}: …{content[max(0, at - 200) : at]!r}"


# Errors, as a crash reporter sees them.


def report(error: BaseException) -> str:
    """Return everything that an error and its causes hold: texts, notes, attributes and the variables of every frame.

    The frames of the tests are left out.
    """
    text = io.StringIO()
    todo, seen = [error], set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        print(one, repr(one), one.args, vars(one), getattr(one, "__notes__", ()), file=text)
        todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]  # type: ignore[list-item]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if "/tests/" not in frame.f_code.co_filename:
                print(frame.f_code, {name: safe_repr(value) for name, value in frame.f_locals.items()}, file=text)
    print(pickle.dumps(error), file=text)
    return text.getvalue()


def safe_repr(value: object) -> str:
    text = ""
    for part in (lambda: repr(value), lambda: repr(vars(value))):
        with contextlib.suppress(Exception):
            text += part()
    return text


def outcome(server: Callable[[httpx.Request], Any], ask: Callable[[HubDataset], Any], token: Any = None) -> HubError:
    """Return the error of asking a server, with all its frames."""

    async def main() -> HubError:
        transport = httpx.MockTransport(server)
        source = token_source(TOKEN) if token is None else token
        hub = HubDataset(Target(HUB, "user/rows"), source, timeout_s=5, transport=transport)
        try:
            await ask(hub)
        except HubError as error:
            return error
        finally:
            await hub.aclose()
        raise AssertionError("no error")

    return anyio.run(main)


def echo(request: httpx.Request) -> str:
    return f"{request.method} {request.url} {request.headers.raw!r}"


def fails(kind: type[Exception]) -> Callable[[httpx.Request], httpx.Response]:
    def server(request: httpx.Request) -> httpx.Response:
        raise kind(f"failed at {echo(request)}")

    return server


ECHOES: dict[str, Callable[[httpx.Request], httpx.Response]] = {
    **{f"{code} body": lambda r, code=code: httpx.Response(code, text=echo(r)) for code in (200, 400, 401, 429, 500)},
    "json": lambda r: httpx.Response(403, json={"error": echo(r)}),
    "other json": lambda r: httpx.Response(200, json={"sha": TOKEN, "files": [{"path": TOKEN, "uploadMode": TOKEN}]}),
    "cut": lambda r: httpx.Response(200, content=f'{{"accessToken": "{ACCESS}", "casUrl": "{echo(r)!r}'.encode()),
    "message": lambda r: httpx.Response(401, headers={"x-error-message": r.headers.get("authorization", "")}),
    "code": lambda r: httpx.Response(401, headers={"x-error-code": r.headers.get("authorization", "")}),
    "id": lambda r: httpx.Response(500, headers={"x-request-id": r.headers.get("authorization", "")}),
    "type": lambda r: httpx.Response(200, text="x", headers={"content-type": r.headers.get("authorization", "")}),
    "packed": lambda r: httpx.Response(200, stream=_Body(b"x"), headers={"content-encoding": TOKEN}),
    "host": lambda r: httpx.Response(302, headers={"location": f"https://{TOKEN}.evil.test/"}),
    "query": lambda r: httpx.Response(302, headers={"location": f"https://evil.test/?{SIGNATURE}"}),
    "path": lambda r: httpx.Response(302, headers={"location": f"/{TOKEN}"}),
    "bad url": lambda r: httpx.Response(302, headers={"location": f"https://[{TOKEN}/"}),
    "reset": fails(httpx.ReadError),
    "refused": fails(httpx.ConnectError),
    "protocol": fails(httpx.LocalProtocolError),
    "value": fails(ValueError),
    "bad body": lambda r: httpx.Response(200, stream=_Body(httpx.ReadError(echo(r)))),
}


class _Body(httpx.AsyncByteStream):
    def __init__(self, what: bytes | Exception) -> None:
        self._what = what

    async def __aiter__(self) -> Any:
        if isinstance(self._what, Exception):
            raise self._what
        yield self._what


@pytest.mark.parametrize("how", ECHOES)
def test_no_error_shows_secrets_that_a_server_sent_back(
    plain_lfs: None, shard: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(1)
    answer = ECHOES[how]
    signed = lfs_at(f"https://store.test/x?{SIGNATURE}", Authorization=f"Basic {BASIC}")
    cases = [
        outcome(FakeHub(replaced={"revision": answer}), lambda hub: hub.head()),
        outcome(FakeHub(replaced={"preupload": answer}), lambda hub: hub.ensure_repo(private=None)),
        outcome(
            FakeHub(replaced={"resolve": answer}, files={"README.md": b"#"}),
            lambda hub: hub.read_file("README.md", SHA),
        ),
        outcome(FakeHub(lfs=signed, replaced={"batch": answer}), lambda hub: hub.stage([shard])),
    ]
    if not how.startswith("200") and how not in ("other json", "cut", "type"):  # a store's success has no body to read
        cases.append(outcome(FakeHub(lfs=signed, replaced={"elsewhere": answer}), lambda hub: hub.stage([shard])))
    for error in cases:
        text = report(error)
        assert_hidden({"the error": text.encode()}, list(SECRETS))
    assert_hidden({"the log": caplog.text.encode()}, list(SECRETS))


@pytest.mark.parametrize("href", ["http://store.test/x", "ftp://store.test/x", "https://u@store.test/x", "x", "//[x"])
def test_no_error_shows_a_rejected_signed_url(plain_lfs: None, shard: Any, href: str) -> None:
    fake = FakeHub(lfs=lfs_at(f"{href}?{SIGNATURE}", Authorization=f"Basic {BASIC}"))
    error = outcome(fake, lambda hub: hub.stage([shard]))
    assert_hidden({"the error": report(error).encode()}, list(SECRETS))


@pytest.mark.parametrize("content", [None, b""])
def test_an_unreadable_shards_error_shows_no_signed_url(plain_lfs: None, shard: Any, content: bytes | None) -> None:
    def cut(request: httpx.Request) -> httpx.Response:
        shard.file.write_bytes(content) if content is not None else shard.file.unlink()
        return httpx.Response(200, json=signed)

    async def take(request: httpx.Request) -> httpx.Response:
        if request.url.host == "store.test":
            await request.aread()
        return fake(request)

    signed = lfs_at(f"https://store.test/x?{SIGNATURE}", Authorization=f"Basic {BASIC}")
    fake = FakeHub(lfs=signed, replaced={"batch": cut})
    error = outcome(take, lambda hub: hub.stage([shard]))
    assert isinstance(error, TransientError)
    assert_hidden({"the error": report(error).encode()}, list(SECRETS))


@pytest.mark.parametrize("how", ["200 body", "cut", "type", "500 body"])
def test_no_error_shows_a_xet_grant(xet: list[str], shard: Any, how: str) -> None:
    fake = FakeHub(lfs=BATCH, replaced={"xet-write-token": ECHOES[how]})
    assert_hidden({"the error": report(outcome(fake, lambda hub: hub.stage([shard]))).encode()}, list(SECRETS))


def test_no_error_shows_secrets_from_hf_xet(xet: list[str], shard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FakeXet, **how: Any) -> None:
        raise ConnectionError(f"refused: {how}")

    monkeypatch.setattr(FakeXet, "new_upload_commit", refuse)
    body = {"casUrl": "https://cas.test", "accessToken": ACCESS, "exp": 2_000_000_000}
    fake = FakeHub(lfs=BATCH, replaced={"xet-write-token": lambda request: httpx.Response(200, json=body)})
    error = outcome(fake, lambda hub: hub.stage([shard]))
    assert "refused" in str(error)
    assert_hidden({"the error": report(error).encode()}, list(SECRETS))


@pytest.mark.parametrize("token", [TOKEN + " x", TOKEN + "\nx: y", TOKEN + "é", "Bearer\t" + TOKEN, TOKEN + "\x00"])
def test_an_invalid_token_is_reported_without_showing_it(token: str) -> None:
    seen: list[httpx.Request] = []
    error = outcome(lambda r: seen.append(r), lambda hub: hub.head(), token_source(token))
    assert isinstance(error, AuthenticationError)
    assert_hidden({"the error": report(error).encode()}, [TOKEN])
    assert seen == []


def test_a_trailing_line_break_is_stripped_from_a_token() -> None:
    found = token_source(f" {TOKEN}\n")()
    assert found is not None
    assert found.reveal() == TOKEN


@pytest.mark.parametrize("given", [TOKEN, f" {TOKEN}\n", f"{TOKEN[:20]}\n{TOKEN[20:]}", " ", ""])
def test_hf_token_is_read_as_huggingface_hub_reads_it(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", given)
    found, theirs = token_source(None)(), huggingface_hub.get_token()
    assert (found and found.reveal()) == theirs


def test_an_empty_token_does_not_fall_back_to_another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    target = target_of("user/rows", HUB, "main")
    for token in ("", " \n", Secret(" ")):
        hub = destination_of(target, token, RetryPolicy())
        assert (token_source(token)(), hub and hub._http.token()) == (None, None)
    assert token_source(None)() is not None
    with pytest.raises(ConfigError, match="token must be a non-empty string"):
        Uploader("user/rows", token="")


def test_an_unreadable_token_file_needs_an_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN.encode() + b"\xff")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(file))
    error = outcome(lambda r: httpx.Response(200), lambda hub: hub.head(), token_source(None))
    assert isinstance(error, AuthenticationError)
    assert_hidden({"the error": report(error).encode()}, [TOKEN])


def test_a_secret_is_never_shown_or_pickled() -> None:
    secret = Secret(TOKEN)
    assert {str(secret), repr(secret), f"{secret}", "%s" % secret, repr({"a": [secret]})[7:10]} == {"***"}  # noqa: UP031
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(secret)
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("face", [Uploader, AsyncUploader])
def test_an_uploader_shows_no_token(face: type, tmp_path: Path) -> None:
    up = face("user/rows", token=TOKEN, endpoint=HUB, spool=tmp_path)
    policies = [QueuePolicy(), ShardPolicy(), CommitPolicy(), RetryPolicy(), SpoolPolicy()]
    assert_hidden({"repr": repr([up, *policies]).encode()}, [TOKEN])


@pytest.mark.parametrize("face", [Uploader, AsyncUploader])
def test_no_variable_of_an_uploader_is_a_token(face: type, tmp_path: Path) -> None:
    up = face("user/rows", token=TOKEN, endpoint=HUB, spool=tmp_path)
    assert_hidden({"vars": repr(vars(up)).encode()}, [TOKEN])
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(up)
    with pytest.raises(ConfigError) as caught:
        face("no repo", token=TOKEN)
    assert_hidden({"the error": report(caught.value).encode()}, [TOKEN])


def test_no_variable_of_verify_is_a_token(hub: LocalHub) -> None:
    with pytest.raises(HubError) as caught:
        verify("user/none", token=TOKEN, endpoint=hub.endpoint)
    assert_hidden({"the error": report(caught.value).encode()}, [TOKEN])


@pytest.mark.parametrize(
    "endpoint",
    ["https://user:pa55word@hub.test", "https://pa55word@hub.test", "user:pa55word@hub.test", "https://hub.test/?pa55word",
     "ftp://user:pa55word@hub.test", "https://user:pa55word@hub.test:port", "https://user:pa55word@[::1"],
)  # fmt: skip
def test_an_endpoint_with_a_password_is_rejected_and_not_shown(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="without a user") as caught:
        target_of("user/rows", endpoint, "main")
    assert "pa55word" not in report(caught.value)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConfigError) as caught:
        Uploader("user/rows")
    assert "pa55word" not in report(caught.value)
    assert target_of("user/rows", "https://hub.test:8443/prefix/", "main").endpoint == "https://hub.test:8443/prefix"


def test_a_proxys_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://user:pa55word@proxy.test")
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        HubHTTP(HUB, lambda: TOKEN)
    assert "pa55word" not in report(caught.value)


def test_plain_http_logs_one_warning_with_the_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    for endpoint in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://hub.test"):
        destination_of(Target(endpoint, "user/rows"), TOKEN, RetryPolicy())
    assert caplog.text == ""
    destination_of(Target("http://hub.test", "user/rows"), TOKEN, RetryPolicy())
    assert caplog.text.count("http://hub.test is plain HTTP") == 1


# The spool.


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {str(path.relative_to(directory)): stat.S_IMODE(path.lstat().st_mode) for path in directory.rglob("*")}


@pytest.mark.parametrize(
    "mask", [0o000, *(pytest.param(mask, marks=pytest.mark.slow("hides less")) for mask in (0o022, 0o077))]
)
def test_a_spool_is_private_whatever_the_umask(uploader: Make, hub: LocalHub, tmp_path: Path, mask: int) -> None:
    found: dict[str, int] = {}
    with umask(mask), uploader() as up:
        up.put([{"id": 1}])
        up.flush()
        hub.faults.add(Fault.status(422, on="commit", times=4))
        up.put([{"id": 2}])
        with pytest.raises(ShardsRefused):
            up.flush()
        read, write = os.pipe()
        os.write(write, b'{"id": 3}\nno json\n')
        os.close(write)
        read_stream(read, up, bad_lines="set-aside")
        os.close(read)
        found = modes(tmp_path / "spool")
    found |= modes(tmp_path / "spool")
    kinds = {
        "catalogue.sqlite",
        "catalogue.sqlite-wal",
        "catalogue.sqlite-shm",
        "committer.lock",
        "dead-letter/lines.txt",
    }
    assert kinds <= found.keys()
    assert {name.split("/")[0] for name in found if "/" in name} == {"segments", "writers", "dead-letter"}
    assert len([name for name in found if name.startswith("dead-letter/")]) == 2
    loose = {name: oct(mode) for name, mode in found.items() if mode not in (0o600, 0o700)}
    assert loose == {}
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def test_the_directory_of_all_spools_is_private(uploader: Make, tmp_path: Path) -> None:
    with umask(0o000), uploader(spool=None) as up:
        assert up.spool.parent == tmp_path / "state"
        assert stat.S_IMODE(up.spool.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o755, 0o1777])
def test_an_existing_spool_directory_is_made_private(uploader: Make, tmp_path: Path, mode: int) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    spool.chmod(mode)
    uploader().open().close()
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    for path in (spool, spool / "segments", spool / "catalogue.sqlite"):
        path.chmod(mode)
    uploader().open().close()
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    assert set(modes(spool).values()) <= {0o600, 0o700}


def test_a_file_at_the_spools_path_is_not_changed(uploader: Make, tmp_path: Path) -> None:
    file = tmp_path / "spool"
    file.write_text("mine")
    file.chmod(0o644)
    with pytest.raises(SpoolError, match="is a file"):
        uploader().open()
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("mine", 0o644)


def test_a_directory_with_other_files_keeps_its_permissions(uploader: Make, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "thesis.tex").touch()
    spool.chmod(0o777)
    with pytest.raises(SpoolError, match="other things"):
        uploader().open()
    assert [path.name for path in spool.iterdir()] == ["thesis.tex"]
    spool.chmod(0o755)
    uploader().open().close()
    assert stat.S_IMODE(spool.stat().st_mode) == 0o755
    assert modes(spool)["segments"] == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("part", ["", "segments", "catalogue.sqlite"])
def test_another_users_spool_gets_no_token(uploader: Make, hub: LocalHub, tmp_path: Path, part: str) -> None:
    uploader().open().close()
    hub.clear_requests()
    os.chown(tmp_path / "spool" / part, 12345, 12345)
    for use in (uploader().open, lambda: drain(tmp_path / "spool")):
        with pytest.raises(SpoolError, match="another user"):
            use()
    assert hub.requests() == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_spool_is_not_rebuilt(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    uploader().open().close()
    hub.clear_requests()
    (tmp_path / "spool" / "catalogue.sqlite").unlink()
    os.chown(tmp_path / "spool", 12345, 12345)
    with pytest.raises(SpoolError, match="another user"):
        rebuild(tmp_path / "spool")
    assert hub.requests() == ()


def test_a_servers_text_cannot_style_the_status_output(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    with uploader() as up:
        said = "no [/red] markup [link=https://evil.test]here[/link]"
        hub.faults.add(Fault(kind="status", code=403, body=json.dumps({"error": said}), on="commit", times=1))
        up.put([{"id": 1}])
        with pytest.raises(BlockedError):
            up.flush()
        shown = CliRunner().invoke(cli, ["status", str(tmp_path / "spool")], env={"COLUMNS": "400"})
    assert shown.exit_code == 1, shown.exception  # the spool is blocked
    assert said in shown.output


# Dependencies.

CLEAN = {"name": "a", "version": "1", "vulns": []}
FLAW = {"id": "PYSEC-1", "fix_versions": ["2"], "aliases": ["CVE-1"], "description": ""}
FLAWED = {"name": "b", "version": "1", "vulns": [FLAW]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.slow("starts an interpreter")
@pytest.mark.parametrize(
    ("found", "code", "expected"),
    [
        ({"dependencies": [CLEAN, UNKNOWN]}, 0, "1 packages audited, 0 known vulnerabilities; 1 packages are not in"),
        ({"dependencies": [CLEAN, FLAWED]}, 1, "b 1: PYSEC-1, CVE-1; fixed in 2\n2 packages audited, 1 known"),
        ({"dependencies": [UNKNOWN]}, 0, "not audited: the list knows none of 1 packages\n"),
        (None, 0, "not audited: the list of vulnerabilities cannot be reached (ConnectionError: no network)\n"),
    ],
)
def test_an_audit_fails_for_a_vulnerability_but_not_without_a_network(
    tmp_path: Path, found: Any, code: int, expected: str
) -> None:
    (tmp_path / "pip_audit.py").write_text(
        f"import sys; print({json.dumps(found)!r})" if found else "raise ConnectionError('no network')"
    )
    done = subprocess.run(
        [sys.executable, Path(__file__).parents[1] / ".ci" / "audit.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout[: len(expected)]) == (code, expected), done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_unreadable_spool_is_reported(uploader: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors are simulated, because another user's process could not enter pytest's directories."""
    home = tmp_path / "state"
    home.mkdir()
    (home / "a-file").touch()
    uploader(spool=home / "theirs").open().close()
    os.chown(home / "theirs", 12345, 12345)
    looked, stat_of = [], os.stat

    def refused(path: Any, **given: Any) -> os.stat_result:
        if str(path).endswith("theirs/catalogue.sqlite"):
            looked.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return stat_of(path, **given)

    monkeypatch.setattr(os, "stat", refused)
    shown = CliRunner().invoke(cli, ["status"], env={"COLUMNS": "400"})
    assert (shown.exit_code, bool(looked)) == (1, True)
    assert "Run this as that user" in shown.output
