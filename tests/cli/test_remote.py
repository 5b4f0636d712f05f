"""The command line against a controller elsewhere: by http and https, and one clear line for whatever is wrong."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fleetd import __version__
from fleetd.cli import remote
from fleetd.cli.entry import run
from fleetd.codecs.lease import DeadLetter
from fleetd.core.model import ControllerPolicy, Phase
from fleetd.store.sqlite import Entry
from fleetd.web import serve
from tests.certificates import Certificates
from tests.control.fleet import until
from tests.web.site import TOKEN, Site, serving, two_pools

pytestmark = pytest.mark.slow

VIEWER = "viewer" * 4


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fleet of this machine is ever looked at."""
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path / "state"))
    for name in ("FLEETD_URL", "FLEETD_TOKEN", "FLEETD_CA"):
        monkeypatch.delenv(name, raising=False)
    remote._warn.cache_clear()


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with serving(two_pools(tmp_path / "fleet", controller=ControllerPolicy(viewers=(VIEWER,)))) as site:
        monkeypatch.setenv("FLEETD_URL", f"http://127.0.0.1:{site.port}/")
        monkeypatch.setenv("FLEETD_TOKEN", f"{TOKEN}\n")  # as `cat` of a file gives it
        yield site


def command(*argv: str) -> int:
    try:
        return run(list(argv))
    except SystemExit as end:
        return int(end.code or 0)


async def asked(*argv: str) -> int:
    """Run a command while this loop serves the controller."""
    return await asyncio.to_thread(command, *argv)


async def test_every_command_works_over_the_network_alone(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    memory = lambda: site.fleet.controller.memory  # noqa: E731
    assert await asked("wake", "local", "--count", "2", "--for", "10m") == 0
    assert capsys.readouterr().out == "local holds at least 2 nodes for 600 s\n"
    await until(lambda: len(memory().nodes) == 2)
    await site.fleet.all_speak()
    await until(lambda: {node.phase for node in memory().nodes.values()} == {Phase.READY})
    for argv in (
        *(["status"], ["status", "--json"], ["pools"], ["nodes", "--json"], ["queues"], ["explain"]),
        *(["explain", "--at", "1m"], ["explain", "--deep"], ["journal", "--last", "5"]),
        *(["logs", "local/1.1"], ["dead", "list"], ["hold", "burst"], ["pause"], ["resume"]),
        *(["quarantine", "local/1.1"], ["unquarantine", "local/1.1"], ["drain", "local/2"]),
    ):
        assert await asked(*argv) == 0, argv
        out = capsys.readouterr()
        assert out.err == "", argv
        assert out.out or argv[0] == "dead" or "--at" in argv
    assert memory().nodes["local/2.1"].phase is Phase.DRAINING


async def test_the_journal_is_followed_from_where_it_was(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    store, memory = site.fleet.store, site.fleet.controller.memory
    store.commit(memory, [Entry("event", f"line {at}") for at in range(30)])
    assert await asked("journal", "--last", "3", "--json") == 0
    texts = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert len(texts) == 3
    assert texts == [entry.text for entry in store.journal(last=3)]


async def test_long_lists_come_whole(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_ROWS", 4)
    letters = [DeadLetter(f"l{at}", "resize_a", "u", "H:1", 3, "boom", "", "") for at in range(10)]
    site.fleet.store.add_dead("local", "local/1.1", letters)
    assert await asked("dead", "list", "--json") == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [f"l{at}" for at in range(9, -1, -1)]
    assert await asked("dead", "show", "l3") == 0
    capsys.readouterr()
    assert await asked("dead", "show", "../status") == 2
    assert capsys.readouterr().err.startswith("fleetd: GET /v1/dead/../status: there is no such thing here")


async def test_a_viewer_looks_and_is_told_what_it_may_not(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETD_TOKEN", VIEWER)
    assert await asked("status", "--json") == 0
    capsys.readouterr()
    assert await asked("pause") == 1
    url = f"http://127.0.0.1:{site.port}/v1/pause"
    line = f"fleetd: {url}: FLEETD_TOKEN is a viewer's token, which may look; this needs an operator's\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_a_token_that_is_refused_is_said_with_where_it_comes_from(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("FLEETD_TOKEN", token)
    assert await asked("status") == 1
    url = f"http://127.0.0.1:{site.port}/v1/status"
    line = f"{url}: the token was refused; set FLEETD_TOKEN to one of controller.token or controller.tokens"
    assert capsys.readouterr().err == f"fleetd: {line}\n"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("FLEETD_URL", "fleet:7117", "FLEETD_URL: fleet:7117: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "ftp://fleet", "FLEETD_URL: ftp://fleet: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "http://", "FLEETD_URL: http://: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "http://a:99999", "FLEETD_URL: http://a:99999: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "http://[::1", "FLEETD_URL: http://[::1: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "http://me:pw@a", "FLEETD_URL: http://me:pw@a: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_URL", "http://a?b", "FLEETD_URL: http://a?b: must be http://HOST:PORT or https://HOST:PORT"),
        ("FLEETD_TOKEN", "a\nb", "FLEETD_TOKEN: has characters that no token has; was all of a file taken?"),
        ("FLEETD_TOKEN", "ä", "FLEETD_TOKEN: has characters that no token has; was all of a file taken?"),
    ],
)
def test_a_wrong_setting_is_named_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, line: str
) -> None:
    monkeypatch.setenv("FLEETD_URL", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    assert command("status") == 2
    assert capsys.readouterr().err == f"fleetd: {line}\n"


def test_nobody_there_is_3(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETD_URL", "http://127.0.0.1:1")
    assert command("status") == 3
    assert capsys.readouterr().err.startswith("fleetd: the controller at http://127.0.0.1:1 does not answer: ")


@asynccontextmanager
async def answering(raw: bytes) -> AsyncIterator[str]:
    """Somebody who answers every request with these bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def page(body: str, code: str = "200 OK", version: str = __version__) -> bytes:
    head = f"HTTP/1.1 {code}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{f'Fleetd-Version: {version}' if version else 'Server: x'}\r\n\r\n{body}".encode()


NOT_OURS = "{url}/v1/status: the answer is not JSON; is that a fleetd controller?"
NO_VERSION = "{url}/v1/status: the answer says no version of fleetd; is that a fleetd controller?"
OTHER = page('{"error": "no such thing"}', "404 Not Found", "9.9.1")


@pytest.mark.parametrize(
    ("raw", "code", "line"),
    [
        (page("<html>hello</html>", version=""), 1, NOT_OURS),
        (page("[1]"), 1, NOT_OURS),
        (page("{}", version=""), 1, NO_VERSION),
        (OTHER, 2, "no such thing (the controller is fleetd 9.9.1, this is {own})"),
        (b"garbage\r\n\r\n", 3, "the controller at {url} does not answer: "),
        (b"", 3, "the controller at {url} does not answer: "),
        (page("{}", "302 Found"), 1, "HTTP 302"),
    ],
)
async def test_who_is_no_controller_of_ours_is_said_to_be_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, raw: bytes, code: int, line: str
) -> None:
    async with answering(raw) as url:
        monkeypatch.setenv("FLEETD_URL", url)
        assert await asked("status") == code
    assert capsys.readouterr().err.startswith(f"fleetd: {line.format(url=url, own=__version__)}")


async def test_another_version_that_answers_is_a_warning_once(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "__version__", "9.1.0")
    for _ in range(2):
        assert await asked("status", "--json") == 0
    out = capsys.readouterr()
    line = f"fleetd: warning: the controller is fleetd {__version__}, this is 9.1.0: what it says may differ\n"
    assert out.err == line
    assert site.app.state.refused == {}


def test_the_header_is_the_one_that_controllers_send() -> None:
    assert remote.VERSION_HEADER == serve.VERSION_HEADER


async def test_a_controller_that_says_nothing_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("FLEETD_URL", url)
        assert await asked("status") == 3
    assert capsys.readouterr().err == f"fleetd: the controller at {url} does not answer: nothing came within 0 s\n"


# ── https


@pytest.fixture
async def secured(tmp_path: Path, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """The API behind TLS, as a proxy or uvicorn itself gives it."""
    options: dict[str, Any] = {"ssl_certfile": certificates.pem("server"), "ssl_keyfile": certificates.key("server")}
    monkeypatch.setenv("FLEETD_TOKEN", TOKEN)
    async with serving(two_pools(tmp_path / "fleet"), **options) as site:
        yield site


async def test_https_with_the_authority_s_file(
    secured: Site, certificates: Certificates, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETD_URL", f"https://localhost:{secured.port}")
    monkeypatch.setenv("FLEETD_CA", certificates.pem("ca"))
    assert await asked("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fleet"] == "test"


async def test_a_certificate_that_is_not_trusted_is_said_with_the_fix(
    secured: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETD_URL", f"https://localhost:{secured.port}")
    assert await asked("status") == 3
    line = capsys.readouterr().err
    assert line.startswith(f"fleetd: the controller at https://localhost:{secured.port} does not answer: ")
    assert line.endswith("; set FLEETD_CA to the file of its authority, or mind the name in FLEETD_URL\n")


async def test_https_to_http_and_http_to_https_are_told_apart(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETD_URL", f"https://127.0.0.1:{site.port}")
    assert await asked("status") == 3
    assert capsys.readouterr().err.endswith("it speaks no TLS; is it http:// in FLEETD_URL?\n")


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), ("x", "holds no certificate in PEM")]
)
def test_a_wrong_ca_file_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    why: str,
) -> None:
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv("FLEETD_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("FLEETD_CA", str(path))
    assert command("status") == 2
    assert capsys.readouterr().err == f"fleetd: FLEETD_CA: {path}: {why}\n"
