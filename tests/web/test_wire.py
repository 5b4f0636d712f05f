"""What is no request of ours: each refused with the one shape, counted, and the server lives on."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleetd import __version__
from fleetd.web import serve, wire
from tests.control.fleet import until
from tests.web.site import TOKEN, Site, refusal, serving, two_pools

pytestmark = pytest.mark.slow

AUTH = f"Authorization: Bearer {TOKEN}\r\n".encode()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(two_pools(tmp_path)) as site:
        yield site
        assert (await site.http.get("/healthz")).status_code == 200


async def said(site: Site, raw: bytes, *, then: float = 0.0) -> tuple[int, dict[str, Any]]:
    """Send bytes and return what comes back: the code, and the body that must be JSON with the right headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(raw)
    async with asyncio.timeout(5.0 + then):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
    writer.close()
    assert "content-type: application/json" in head
    assert f"fleetd-version: {__version__}" in head
    assert "server:" not in head
    return int(head.split()[1]), json.loads(body)


NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nA: b\rX: y\r\n\r\n",
    b"GET /v1/\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/status HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    b"POST /v1/wake HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/wake HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/wake HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"GET /" + b"a" * 400_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 400_000 + b"\r\n\r\n",
]


async def test_what_is_no_http_is_400_in_the_one_shape_and_counted(site: Site) -> None:
    for raw in NO_HTTP:
        assert await said(site, raw) == (400, {"error": "request: is no HTTP/1.1 that could be read"}), raw[:80]
    assert site.app.state.refused == {400: len(NO_HTTP)}


async def test_a_head_that_drips_is_408_however_it_drips(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_S", 0.5)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    answer = asyncio.create_task(reader.read())
    for byte in b"GET /v1/status HTTP/1.1\r\nA: " + b"x" * 60:
        if answer.done():
            break
        writer.write(bytes([byte]))
        await asyncio.sleep(0.03)
    else:
        raise AssertionError("every byte gave it more time")
    raw = await asyncio.wait_for(answer, 2.0)
    assert raw.startswith(b"HTTP/1.1 408 ")
    assert json.loads(raw.partition(b"\r\n\r\n")[2]) == {"error": "request: its head did not come within 0 s"}
    assert site.app.state.refused[408] == 1
    writer.close()


async def test_the_second_head_of_a_connection_has_its_limit_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_S", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b'{"ok":true}')
    writer.write(b"GET /hea")
    assert (await asyncio.wait_for(reader.read(), 2.0)).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_long_poll_is_no_slow_head(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HEAD_S", 0.2)
    poll = asyncio.create_task(site.signed("GET", f"/v1/orders?node=local/1.1&after={1 << 40}"))
    await asyncio.sleep(0.5)
    assert not poll.done()
    site.fleet.controller.leases.let_go()
    assert (await poll).status_code == 204


async def test_a_body_that_drips_is_408(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "BODY_S", 0.2)
    raw = b"POST /v1/wake HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n" + AUTH + b"\r\n{"
    assert await said(site, raw) == (408, {"error": "body: did not come within 0 s"})
    assert site.app.state.refused[408] == 1


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "x"])
async def test_a_body_of_another_kind_is_415(site: Site, kind: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
    answer = await site.http.post("/v1/wake", content=b'{"pool": "local"}', headers=headers)
    assert refusal(answer) == (415, f"body: must be application/json, not {kind}")


async def test_json_of_any_spelling_is_read(site: Site) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "Application/JSON; charset=utf-8"}
    assert (await site.http.post("/v1/pause", content=b"", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("path", "query", "line"),
    [
        ("/v1/pause", "paused=false", "paused: goes into the body: this call has no parameters"),
        ("/v1/end", "x=", "x: goes into the body: this call has no parameters"),
    ],
)
async def test_a_command_has_no_parameters(site: Site, path: str, query: str, line: str) -> None:
    assert refusal(await site.operator("POST", f"{path}?{query}")) == (422, line)
    assert not site.fleet.controller.memory.ending


async def test_a_wrong_method_is_told_the_right_ones(site: Site) -> None:
    answer = await site.operator("DELETE", "/v1/dead")
    assert refusal(answer)[0] == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


async def test_head_is_get_without_the_body(site: Site) -> None:
    answer = await site.http.head("/healthz")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_no_header_can_be_put_into_an_answer(site: Site) -> None:
    for path in ("/v1/nothing%0d%0aX-Evil:%20yes", "/v1/dead/a%0d%0aX-Evil:%20yes", "/v1/logs?node=a%0d%0aX-Evil:%20y"):
        answer = await site.operator("GET", path)
        assert answer.status_code in (404, 422)
        assert "x-evil" not in answer.headers
        assert "\n" not in refusal(answer)[1]


def test_half_a_surrogate_pair_in_an_answer_is_a_question_mark() -> None:
    """A worker's text may hold one. Seen to fail with a plain encode()."""
    assert json.loads(wire.dump({"text": "a\ud800b"})) == {"text": "a?b"}


async def test_every_answer_says_the_version_and_refusals_are_counted_by_code(site: Site) -> None:
    answer = await site.operator("GET", "/v1/status")
    assert answer.headers["fleetd-version"] == __version__
    for _ in range(3):
        await site.http.get("/v1/status")
    await site.http.get("/nowhere")
    assert dict(site.app.state.refused) == {401: 3, 404: 1}


async def test_a_client_that_leaves_in_mid_body_is_counted_and_nothing_else(site: Site) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"POST /v1/wake HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n" + AUTH + b"\r\n{")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await until(lambda: site.app.state.refused[400] == 1)
