"""A worker's connection against a dispatcher that is played by the test."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from fleetd.codecs.gearman import REQ, RES, Decoder, Kind, Packet, encode
from fleetd.dispatchers import work
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.work import State, WorkConnection, dial
from fleetd.errors import UnreachableError


class Dispatcher:
    """One accepted connection, driven by hand."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self.listener.getsockname())
        self.decoder = Decoder(magic=REQ)
        self.sock: socket.socket | None = None

    def accept(self) -> socket.socket:
        """Take the connection that waits."""
        self.listener.settimeout(5)
        self.sock, _ = self.listener.accept()
        self.sock.settimeout(5)
        return self.sock

    def hear(self) -> list[Packet]:
        """Return what came in one piece."""
        assert self.sock is not None
        return self.decoder.feed(self.sock.recv(65536))

    def say(self, kind: Kind, *args: bytes) -> None:
        """Send a packet."""
        assert self.sock is not None
        self.sock.sendall(encode(kind, *args, magic=RES))


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    """A listening dispatcher."""
    made = Dispatcher()
    yield made
    made.listener.close()
    if made.sock is not None:
        made.sock.close()


@pytest.fixture
async def link(dispatcher: Dispatcher) -> Iterator[WorkConnection]:  # type: ignore[misc]  # asyncio_mode makes it one
    """An open connection to it."""
    made = await dial(dispatcher.address, 2)
    dispatcher.accept()
    yield made
    made.release()


def test_it_introduces_itself_in_one_send(link: WorkConnection, dispatcher: Dispatcher) -> None:
    link.greet("host/pool/0", ["a", "b"])
    assert dispatcher.hear() == [
        (Kind.SET_CLIENT_ID, (b"host/pool/0",)),
        (Kind.CAN_DO, (b"a",)),
        (Kind.CAN_DO, (b"b",)),
    ]


def test_the_answer_and_the_next_grab_travel_together(link: WorkConnection, dispatcher: Dispatcher) -> None:
    link.grab()
    assert [packet.kind for packet in dispatcher.hear()] == [Kind.GRAB_JOB_UNIQ]
    assert link.state is State.GRABBING
    dispatcher.say(Kind.JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p")
    assert link.receive() == [(Kind.JOB_ASSIGN_UNIQ, (b"H:1", b"f", b"u", b"p"))]
    link.state = State.ASSIGNED
    link.answer(encode(Kind.WORK_COMPLETE, b"H:1", b"r"), grab=True)
    assert [packet.kind for packet in dispatcher.hear()] == [Kind.WORK_COMPLETE, Kind.GRAB_JOB_UNIQ]
    assert (link.state, link.grabs) == (State.GRABBING, 2)


def test_a_second_grab_is_never_sent(link: WorkConnection) -> None:
    link.grab()
    with pytest.raises(AssertionError):
        link.grab()


def test_an_answer_without_a_grab_leaves_it_idle(link: WorkConnection, dispatcher: Dispatcher) -> None:
    link.state = State.ASSIGNED
    link.answer(encode(Kind.WORK_COMPLETE, b"H:1", b"r"), grab=False)
    assert [packet.kind for packet in dispatcher.hear()] == [Kind.WORK_COMPLETE]
    assert link.state is State.IDLE


def test_receiving_is_bounded(link: WorkConnection) -> None:
    began = time.monotonic()
    assert link.receive() == []
    assert time.monotonic() - began < 1


def test_packets_in_pieces_are_put_together(link: WorkConnection, dispatcher: Dispatcher) -> None:
    data = encode(Kind.JOB_ASSIGN_UNIQ, b"H:1", b"f", b"u", b"p" * 100, magic=RES)
    assert dispatcher.sock is not None
    dispatcher.sock.sendall(data[:50])
    assert link.receive() == []
    dispatcher.sock.sendall(data[50:])
    assert len(link.receive()) == 1


def test_a_hang_up_names_the_dispatcher(link: WorkConnection, dispatcher: Dispatcher) -> None:
    assert dispatcher.sock is not None
    dispatcher.sock.close()
    with pytest.raises(UnreachableError, match=f"dispatcher {dispatcher.address}: it closed the connection"):
        link.receive()
    link.send(b"x")  # answered with a reset
    time.sleep(0.05)
    with pytest.raises(UnreachableError, match=r"dispatcher 127\.0\.0\.1:\d+: Broken pipe"):
        link.send(b"x")


def test_garbage_is_a_lost_dispatcher(link: WorkConnection, dispatcher: Dispatcher) -> None:
    assert dispatcher.sock is not None
    dispatcher.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(UnreachableError, match=r"expected b'.*RES'"):
        link.receive()


def test_a_dispatcher_that_reads_nothing_is_given_up(dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "SEND_S", 1)
    link = asyncio.run(dial(dispatcher.address, 2))
    dispatcher.accept()
    with pytest.raises(UnreachableError, match="took no bytes for 1 s"):
        link.send(b"x" * 50_000_000)
    link.release()


def test_closing_delivers_the_answer_though_packets_are_unread(dispatcher: Dispatcher) -> None:
    for _ in range(50):
        link = asyncio.run(dial(dispatcher.address, 2))
        sock = dispatcher.accept()
        dispatcher.decoder = Decoder(magic=REQ)
        dispatcher.say(Kind.NOOP)
        time.sleep(0.001)
        link.answer(encode(Kind.WORK_COMPLETE, b"H:1", b"r"), grab=False)
        closer = threading.Thread(target=link.close)
        closer.start()
        assert [packet.kind for packet in dispatcher.hear()] == [Kind.WORK_COMPLETE]
        assert sock.recv(10) == b""
        time.sleep(0.005)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "an end in good order, not a reset"
        sock.close()
        closer.join(5)


def test_closing_is_bounded_and_safe_twice(link: WorkConnection) -> None:
    began = time.monotonic()
    link.close()
    link.close()
    assert time.monotonic() - began < 3


def test_releasing_ends_the_connection_whoever_else_holds_it(link: WorkConnection, dispatcher: Dispatcher) -> None:
    with socket.socket(fileno=socket.dup(link.fileno())):
        link.release()
        assert dispatcher.sock is not None
        with suppress(ConnectionResetError):
            assert dispatcher.sock.recv(10) == b""


async def test_no_dispatcher_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = Address(*probe.getsockname())
    with pytest.raises(UnreachableError, match=f"dispatcher {address}: "):
        await dial(address, 2)


async def test_a_host_name_is_looked_up_without_leaving_a_thread(dispatcher: Dispatcher) -> None:
    before = set(threading.enumerate())
    link = await dial(Address("localhost", dispatcher.address.port), 5)
    link.release()
    await asyncio.sleep(0.1)
    assert set(threading.enumerate()) <= before


async def test_an_impossible_name_is_an_error() -> None:
    with pytest.raises(UnreachableError, match=r"dispatcher nobody\.invalid:4730"):
        await dial(Address("nobody.invalid"), 5)
