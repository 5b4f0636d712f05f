import asyncio
import contextlib
import hashlib
import http.client
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fleetd.boot import http as boot_http
from fleetd.boot.http import Answer, Asked, File, Files, said
from fleetd.boot.stock import Handle

pytestmark = pytest.mark.slow

CONTENT = random.Random(8).randbytes(3_000_001)  # the same in every process that collects these tests
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@contextlib.asynccontextmanager
async def served(folder: Path, **limits: Any) -> AsyncIterator[tuple[int, list[str]]]:
    """One file at /file, an echo at /echo, a fault at /fault."""
    (folder / "file").write_bytes(CONTENT)
    file = File(Handle(folder / "file"), len(CONTENT), DIGEST)
    faults: list[str] = []

    async def answer(asked: Asked) -> Answer:
        match asked.path:
            case "/file":
                return Answer(200, file=file)
            case "/echo":
                return Answer(200, f"{asked.method} {asked.query} {asked.body.decode()}".encode())
            case "/fault":
                raise RuntimeError("a fault")
        return said(404, "nothing here")

    files = Files(answer, faults.append, **limits)
    server = await files.start("127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], faults
    finally:
        server.close()
        await files.let_go()


def ask(port: int, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    link.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = link.getresponse()
    content = answer.read()
    link.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


async def asked(port: int, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return await asyncio.to_thread(ask, port, method, path, **headers)


async def test_a_file_comes_whole_with_its_length_and_its_digest_as_tag(tmp_path: Path) -> None:
    async with served(tmp_path) as (port, _):
        code, headers, content = await asked(port, "GET", "/file")
    assert (code, content) == (200, CONTENT)
    assert headers["content-length"] == str(len(CONTENT))
    assert headers["etag"] == f'"{DIGEST}"'
    assert headers["accept-ranges"] == "bytes"


async def test_head_says_the_same_without_the_bytes(tmp_path: Path) -> None:
    async with served(tmp_path) as (port, _):
        head = await asked(port, "HEAD", "/file", Range="bytes=0-9")
        get = await asked(port, "GET", "/file")
    same = {name: value for name, value in get[1].items() if name != "date"}
    assert (head[0], head[2]) == (200, b"")
    assert {name: value for name, value in head[1].items() if name != "date"} == same


@pytest.mark.parametrize(
    ("wanted", "code", "part", "told"),
    [
        ("bytes=0-9", 206, CONTENT[:10], "bytes 0-9/3000001"),
        ("bytes=3000000-", 206, CONTENT[-1:], "bytes 3000000-3000000/3000001"),
        ("bytes=-5", 206, CONTENT[-5:], "bytes 2999996-3000000/3000001"),
        ("bytes=2999999-9999999", 206, CONTENT[-2:], "bytes 2999999-3000000/3000001"),
        ("bytes=3000001-", 416, b"", "bytes */3000001"),
        ("bytes=-0", 416, b"", "bytes */3000001"),
        ("bytes=5-2", 200, CONTENT, None),
        ("bytes=0-1,3-4", 200, CONTENT, None),
        ("pages=1-2", 200, CONTENT, None),
    ],
)
async def test_ranges(tmp_path: Path, wanted: str, code: int, part: bytes, told: str | None) -> None:
    async with served(tmp_path) as (port, _):
        found = await asked(port, "GET", "/file", Range=wanted)
    assert (found[0], found[2], found[1].get("content-range")) == (code, part, told)
    assert found[1]["content-length"] == str(len(part))


async def test_what_a_client_has_already_is_not_sent_and_a_stale_part_is_not_joined(tmp_path: Path) -> None:
    async with served(tmp_path) as (port, _):
        known = await asked(port, "GET", "/file", If_None_Match=f'"x", "{DIGEST}"')
        other = await asked(port, "GET", "/file", Range="bytes=0-9", If_Range='"old"')
        same = await asked(port, "GET", "/file", Range="bytes=0-9", If_Range=f'"{DIGEST}"')
    assert (known[0], known[2]) == (304, b"")
    assert (other[0], other[2]) == (200, CONTENT)
    assert (same[0], same[2]) == (206, CONTENT[:10])


async def test_one_connection_serves_one_request_after_the_other(tmp_path: Path) -> None:
    def several(port: int) -> list[tuple[int, bytes]]:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        found = []
        for method, path, body in (("GET", "/file", None), ("POST", "/echo?a=b", "c"), ("HEAD", "/file", None)):
            link.request(method, path, body)
            answer = link.getresponse()
            found.append((answer.status, answer.read()))
            socket_used = link.sock
            assert socket_used is not None
        link.close()
        return found

    async with served(tmp_path) as (port, _):
        assert await asyncio.to_thread(several, port) == [(200, CONTENT), (200, b"POST a=b c"), (200, b"")]


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET /file HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET /" + b"a" * 40_000, b"431"),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n" + b"a" * 20_000, b"413"),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"417"),
    ],
)
async def test_what_is_no_request_of_ours_is_refused_and_the_connection_ends(
    tmp_path: Path, data: bytes, code: bytes
) -> None:
    async with served(tmp_path) as (port, faults):
        answer = await raw(port, data)
        assert answer.startswith(b"HTTP/1.1 " + code), answer[:100]
        assert (await asked(port, "GET", "/echo"))[0] == 200
    assert faults == []


async def test_a_fault_costs_one_answer_and_is_told(tmp_path: Path) -> None:
    async with served(tmp_path) as (port, faults):
        assert (await asked(port, "GET", "/fault"))[0] == 500
        assert (await asked(port, "GET", "/file"))[0] == 200
    assert faults == ["GET '/fault': RuntimeError: a fault"]


async def test_who_says_nothing_is_let_go(tmp_path: Path) -> None:
    async with served(tmp_path, head_s=0.2) as (port, _):
        assert await raw(port, b"GET /file HT") == b""


async def test_who_takes_nothing_is_let_go_and_who_is_slow_gets_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_http, "PART", 200_000)

    def connect(port: int) -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return sock

    def take(sock: socket.socket) -> bytes:
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += data
        return got

    async def slowly(sock: socket.socket) -> bytes:
        got = b""
        while data := await asyncio.to_thread(sock.recv, 300_000):
            got += data
            await asyncio.sleep(0.001)
        return got

    async with served(tmp_path, stall_s=0.5) as (port, _):
        stuck, slow = connect(port), connect(port)
        found = await slowly(slow)
        assert found.endswith(CONTENT[-1000:])
        assert len(found) > len(CONTENT)
        await asyncio.sleep(0.7)
        assert len(await asyncio.to_thread(take, stuck)) < len(CONTENT)
        stuck.close()
        slow.close()


async def test_too_many_at_a_time_are_told_to_come_back(tmp_path: Path) -> None:
    async with served(tmp_path, most=2) as (port, _):
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        await asyncio.sleep(0.05)
        code, headers, _ = await asked(port, "GET", "/file")
        assert (code, headers["retry-after"]) == (503, "5")
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert (await asked(port, "GET", "/file"))[0] == 200


async def test_two_hundred_at_once_get_every_byte_and_the_service_stays_small(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def one(port: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        made = hashlib.sha256()
        while data := await reader.read(2**16):
            made.update(data)
        writer.close()
        return made.hexdigest()

    async with served(tmp_path) as (port, faults):
        async with asyncio.timeout(60):
            found = await asyncio.gather(*(one(port) for _ in range(200)))
    assert set(found) == {DIGEST}
    assert faults == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB: of 600 MB that went out


async def test_a_client_that_breaks_off_harms_nobody(tmp_path: Path) -> None:
    async with served(tmp_path) as (port, faults):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
                await asyncio.to_thread(sock.recv, 100)
        assert (await asked(port, "GET", "/file"))[2] == CONTENT
    assert faults == []
