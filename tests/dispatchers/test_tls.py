"""Every kind of connection over TLS and with a token, against our own dispatcher; each fault is one clear line."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from fleetd.client import AsyncClient, Client
from fleetd.codecs.gearman import RES, Kind, Packet, encode
from fleetd.dispatchers import submit, work
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.dispatchers.credentials import Credentials
from fleetd.dispatchers.work import State, TlsConnection, WorkConnection
from fleetd.errors import FleetdError, UnreachableError
from fleetd.sources.gearman import GearmanOptions, GearmanSource
from tests import servers
from tests.certificates import Certificates
from tests.dispatchers.embedded.serving import embedded
from tests.dispatchers.peers import liar, says, silent

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef0123456789abcdef"
PLAIN = "answers in plain text; Debian's gearmand has no TLS and ignores --ssl: use a tunnel, or fleetd dispatcher"


async def _submit(address: Address, credentials: Credentials) -> None:
    connection = await submit.connect(address, submit.Limits(connect_s=1), credentials)
    try:
        assert await connection.ping() < 5
        assert connection.exceptions
    finally:
        await connection.close()


async def _admin(address: Address, credentials: Credentials) -> None:
    connection = AdminConnection(address, timeout_s=1, credentials=credentials)
    try:
        assert await connection.status() == ()
    finally:
        await connection.close()


async def _admin_line(address: Address, credentials: Credentials) -> None:
    connection = AdminConnection(address, timeout_s=1, credentials=credentials)
    try:
        assert (await connection.version()).startswith("1.1.20")
    finally:
        await connection.close()


async def _work(address: Address, credentials: Credentials) -> None:
    link = await work.dial(address, 1, credentials)
    try:
        assert isinstance(link, TlsConnection) is address.tls
        link.grab()
        assert await _packets(link) == [(Kind.NO_JOB, ())]
    finally:
        link.release()


async def _packets(link: WorkConnection, limit_s: float = 5.0) -> list[Packet]:
    give_up_at = time.monotonic() + limit_s
    while time.monotonic() < give_up_at:
        if found := link.receive():
            return list(found)
    return []


Use = Callable[[Address, Credentials], Awaitable[None]]
every_kind = pytest.mark.parametrize("use", [_submit, _admin, _admin_line, _work])


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture(scope="module")
def secured(certificates: Certificates, token_file: Path) -> Iterator[int]:
    """The port of one that serves TLS and asks for the token."""
    with embedded(*certificates.serve(), "--token-file", str(token_file)) as server:
        yield server.port


@pytest.fixture(scope="module")
def picky(certificates: Certificates) -> Iterator[int]:
    """The port of one that asks for a client certificate."""
    with embedded(*certificates.serve(), "--tls-client-ca", certificates.pem("ca")) as server:
        yield server.port


@pytest.fixture(scope="module")
def guarded(token_file: Path) -> Iterator[int]:
    """The port of one without TLS that asks for the token."""
    with embedded("--token-file", str(token_file)) as server:
        yield server.port


async def _refused(use: Use, address: Address, credentials: Credentials, *says: str) -> None:
    with pytest.raises(UnreachableError) as caught:
        await use(address, credentials)
    text = str(caught.value)
    assert text.startswith(f"dispatcher {address}: ")
    assert all(one in text for one in says), text
    assert "\n" not in text
    assert TOKEN not in text


# ── what works


@every_kind
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls_and_token(use: Use, host: str, secured: int, certificates: Certificates):
    await use(Address(host, secured, tls=True), Credentials(TOKEN, ca=certificates.pem("ca")))


@every_kind
async def test_a_client_certificate(use: Use, picky: int, certificates: Certificates):
    own = Credentials(ca=certificates.pem("ca"), cert=certificates.pem("client"), key=certificates.key("client"))
    await use(Address("localhost", picky, tls=True), own)


@every_kind
async def test_a_token_without_tls(use: Use, guarded: int):
    await use(Address("127.0.0.1", guarded), Credentials(TOKEN))


@every_kind
async def test_a_token_that_nobody_asks_for_does_no_harm(use: Use, picky: int, certificates: Certificates):
    own = Credentials(TOKEN, certificates.pem("ca"), certificates.pem("client"), certificates.key("client"))
    await use(Address("localhost", picky, tls=True), own)


# ── what does not


@every_kind
@pytest.mark.parametrize("tls", [True, False])
async def test_a_wrong_token(use: Use, *, tls: bool, secured: int, guarded: int, certificates: Certificates):
    address = Address("127.0.0.1", secured if tls else guarded, tls)
    credentials = Credentials(TOKEN[1:] + "x", ca=certificates.pem("ca"))
    await _refused(use, address, credentials, "it refuses the token of FLEETD_DISPATCHER_TOKEN")


@every_kind
async def test_no_token(use: Use, secured: int, certificates: Certificates):
    credentials = Credentials(ca=certificates.pem("ca"))
    await _refused(use, Address("localhost", secured, tls=True), credentials, "it asks for a token: set FLEETD_")


@pytest.mark.parametrize("use", [_submit, _admin, _admin_line])
async def test_no_token_without_tls(use: Use, guarded: int):
    await _refused(use, Address("localhost", guarded), Credentials(), "it asks for a token: set FLEETD_")


@every_kind
async def test_a_certificate_by_somebody_else(use: Use, secured: int, certificates: Certificates):
    address = Address("localhost", secured, tls=True)
    for credentials in (Credentials(TOKEN, ca=certificates.pem("other")), Credentials(TOKEN)):
        await _refused(use, address, credentials, "its certificate is refused: ", "is FLEETD_TLS_CA the authority")


@every_kind
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("expired", "its certificate is refused: certificate has expired"),
        ("elsewhere", "its certificate is refused: Hostname mismatch, certificate is not valid for 'localhost'"),
    ],
)
async def test_a_certificate_that_does_not_hold(use: Use, name: str, says: str, certificates: Certificates):
    with embedded(*certificates.serve(name)) as server:
        await _refused(use, Address("localhost", server.port, tls=True), Credentials(ca=certificates.pem("ca")), says)


@every_kind
async def test_no_client_certificate_or_a_strangers(use: Use, picky: int, certificates: Certificates):
    address, ca = Address("localhost", picky, tls=True), certificates.pem("ca")
    await _refused(use, address, Credentials(ca=ca), "client certificate", "set FLEETD_TLS_CERT and FLEETD_TLS_KEY")
    stranger = Credentials(ca=ca, cert=certificates.pem("stranger"), key=certificates.key("stranger"))
    await _refused(use, address, stranger, "FLEETD_TLS_CERT")


@every_kind
async def test_plain_text_where_tls_was_asked_for(use: Use, guarded: int):
    await _refused(use, Address("127.0.0.1", guarded, tls=True), Credentials(TOKEN), PLAIN)


@every_kind
async def test_plain_text_that_does_not_answer_the_handshake(use: Use):
    """One that waits for the line's end; it answers `version` alone."""

    async def behave(reader, writer, told):
        while data := await reader.read(65536):
            if data == b"version\n":
                writer.write(b"OK 1.1.20\n")

    async with liar(behave) as fake:
        began = time.monotonic()
        await _refused(use, Address("127.0.0.1", fake.port, tls=True), Credentials(), PLAIN)
        assert time.monotonic() - began < 1, "within the time to connect"


@pytest.mark.parametrize(("use", "within_s"), [(_submit, 1.0), (_admin, 1.0), (_work, 1.0)])
async def test_one_that_says_nothing_at_all_is_not_called_plain(use: Use, within_s: float):
    async with liar(silent) as fake:
        began = time.monotonic()
        await _refused(use, Address("127.0.0.1", fake.port, tls=True), Credentials(), "no TLS connection within 0.6 s")
        assert time.monotonic() - began < within_s


@every_kind
async def test_nobody_there_over_tls(use: Use):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = Address("127.0.0.1", probe.getsockname()[1], tls=True)
    await _refused(use, address, Credentials(), "onnect")


@every_kind
async def test_a_token_that_is_never_answered(use: Use):
    async with liar(silent) as fake:
        await _refused(use, Address("127.0.0.1", fake.port), Credentials(TOKEN), "answered within 1 s")


async def test_a_slots_dispatcher_that_hangs_up_or_babbles_at_the_token():
    async with liar(says(b"", then_close=True)) as fake:
        address = Address("127.0.0.1", fake.port)
        await _refused(_work, address, Credentials(TOKEN), "it closed the connection instead of answering")
    async with liar(says(b"HTTP/1.1 400 Bad Request\r\n")) as fake:
        await _refused(_work, Address("127.0.0.1", fake.port), Credentials(TOKEN), "RES")


async def test_an_admin_connection_refused_its_token_is_never_used():
    async with liar(says(b"NO\n")) as fake:
        admin = AdminConnection(Address("127.0.0.1", fake.port), timeout_s=1, credentials=Credentials(TOKEN))
        for _ in range(2):
            with pytest.raises(UnreachableError, match="the token was answered by 'NO'"):
                await admin.status()
        assert fake.connections == 2
        await admin.close()


# ── the real gearmand


@pytest.mark.real
@every_kind
@pytest.mark.parametrize("options", [[], ["--ssl"]])
async def test_gearmand_is_known_to_speak_plain_text(use: Use, options: list[str]):
    with servers.gearmand(*options) as server:
        await _refused(use, Address("127.0.0.1", server.port, tls=True), Credentials(TOKEN), PLAIN)


@pytest.mark.real
@every_kind
async def test_gearmand_is_used_without_the_token_and_it_is_said(
    use: Use, gearmand: servers.Server, caplog: pytest.LogCaptureFixture
):
    await use(Address("127.0.0.1", gearmand.port), Credentials(TOKEN))
    assert "knows no tokens and lets anybody in" in caplog.text
    assert TOKEN not in caplog.text


# ── client and source, by the environment


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, certificates: Certificates, token_file: Path) -> None:
    monkeypatch.setenv("FLEETD_TLS_CA", certificates.pem("ca"))
    monkeypatch.setenv("FLEETD_DISPATCHER_TOKEN_FILE", str(token_file))


@pytest.mark.usefixtures("environment")
async def test_a_client_runs_and_submits_and_a_source_reads(secured: int, certificates: Certificates):
    server = f"tls://localhost:{secured}"
    link = await work.dial(Address("localhost", secured, tls=True), 5)
    link.greet("w", ["upper", "later"])
    source = GearmanSource("main", GearmanOptions(servers=[server]), {"all": "*"})
    async with AsyncClient([server]) as client:
        running = asyncio.create_task(client.run("upper", b"x" * 200_000))
        handle = await client.submit("later")
        await asyncio.sleep(0.1)
        (reading,) = await source.read()
        assert (reading.waiting, reading.running, reading.partial) == (2, 0, ())
        assert (await client.status(handle)).known
        assert handle.server == server
        taken = {}
        for _ in range(2):
            link.grab()
            (packet,) = await asyncio.to_thread(asyncio.run, _packets(link))
            taken[packet.args[1]] = packet.args
            link.answer(encode(Kind.WORK_COMPLETE, packet.args[0], packet.args[3].upper()), grab=False)
            link.state = State.IDLE
        assert await running == b"X" * 200_000
        assert set(taken) == {b"upper", b"later"}
    link.close()
    await source.close()


@pytest.mark.usefixtures("environment")
def test_the_client_for_threads_tells_a_refusal(secured: int, picky: int, monkeypatch: pytest.MonkeyPatch):
    with Client(f"tls://localhost:{secured}") as client:
        assert client.ping()[f"tls://localhost:{secured}"] is not None
        assert client.submit("never").handle
    with Client(f"tls://localhost:{picky}") as client, pytest.raises(UnreachableError, match="FLEETD_TLS_CERT"):
        client.submit("never")
    monkeypatch.setenv("FLEETD_TLS_CA", "/nonexistent")
    with Client(f"tls://localhost:{secured}") as client, pytest.raises(FleetdError, match="FLEETD_TLS_CA: /nonex"):
        client.submit("never")


@pytest.mark.usefixtures("environment")
async def test_a_source_without_its_authority_is_blind_with_the_reason(secured: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FLEETD_TLS_CA")
    source = GearmanSource("main", GearmanOptions(servers=[f"tls://localhost:{secured}"]), {"all": "*"})
    with pytest.raises(FleetdError, match=r"source main: dispatcher tls://localhost:\d+: its certificate is refused"):
        await source.read()
    await source.close()


# ── a slot's connection


@pytest.mark.parametrize("chunk", [1000, 64 * 1024])
async def test_what_waits_in_the_tls_layer_is_read_before_it_is_waited_for(
    chunk: int, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    """Many packets in one record, one packet in many records, and records that are larger than what is read at once."""
    monkeypatch.setattr(work, "_CHUNK", chunk)
    many = b"".join(encode(Kind.NOOP, magic=RES) for _ in range(2000))
    large = encode(Kind.JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p" * 300_000, magic=RES)
    context = _serving(certificates)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(encode(Kind.ECHO_RES, b"fleetd", magic=RES))
        await reader.read(100)
        writer.write(many)
        writer.write(large)
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(behave, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    link = await work.dial(Address("localhost", port, tls=True), 5, Credentials(ca=certificates.pem("ca")))
    link.grab()
    packets: list[Packet] = []
    give_up_at = time.monotonic() + 10
    while len(packets) < 2001 and time.monotonic() < give_up_at:
        packets += link.receive()
        assert isinstance(link, TlsConnection)
        assert not link._tls.pending(), "an event loop sees the socket alone"
        await asyncio.sleep(0)
    assert len(packets) == 2001
    link.release()
    server.close()
    await server.wait_closed()


async def test_a_tls_dispatcher_that_reads_nothing_is_given_up(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work, "SEND_S", 0.3)
    entered = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(encode(Kind.ECHO_RES, b"fleetd", magic=RES))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await entered.wait()
        writer.transport.abort()

    server = await asyncio.start_server(behave, "127.0.0.1", 0, ssl=_serving(certificates))
    port = server.sockets[0].getsockname()[1]
    link = await work.dial(Address("localhost", port, tls=True), 5, Credentials(ca=certificates.pem("ca")))
    with pytest.raises(UnreachableError, match=r"took no bytes for 0\.3 s"):
        await asyncio.to_thread(link.send, b"x" * 50_000_000)
    link.release()
    entered.set()
    server.close()
    await server.wait_closed()


def _serving(certificates: Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.pem("server"), certificates.key("server"))
    return context
