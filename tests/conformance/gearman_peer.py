"""A client or worker by hand: one blocking socket, packets out and in."""

import socket
import time
from types import TracebackType
from typing import Self

from fleetd.codecs.gearman import Decoder, Kind, Packet, encode
from tests.servers import Server

LIMIT_S = 5.0
QUIET_S = 0.15  # so long nothing comes from a dispatcher that has nothing to say


class Peer:
    """As a context it closes itself, and the dispatcher knows of that when the block has ended."""

    def __init__(self, server: Server, *functions: bytes) -> None:
        self.sock = socket.create_connection((server.host, server.port), LIMIT_S)
        self._server = server
        self._decoder = Decoder()
        self._packets: list[Packet] = []
        for name in functions:
            self.send(Kind.CAN_DO, name)
        if functions:
            self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()
        if kind is None and self._server.process.poll() is None:
            ask(self._server, "version")

    def send(self, kind: Kind, *args: bytes) -> None:
        self.sock.sendall(encode(kind, *args))

    def ask(self, kind: Kind, *args: bytes) -> Packet:
        self.send(kind, *args)
        return self.read_one()

    def settle(self) -> None:
        """Return once all that was sent is taken in."""
        assert self.ask(Kind.ECHO_REQ, b"settled").kind is Kind.ECHO_RES

    def submit(
        self, kind: Kind = Kind.SUBMIT_JOB, name: bytes = b"f", unique: bytes = b"", payload: bytes = b"p"
    ) -> bytes:
        """Return the handle."""
        packet = self.ask(kind, name, unique, payload)
        assert packet.kind is Kind.JOB_CREATED, packet
        return packet.args[0]

    def grab(self) -> Packet:
        """Return the job that there must be: handle, function, unique, payload."""
        packet = self.ask(Kind.GRAB_JOB_UNIQ)
        assert packet.kind is Kind.JOB_ASSIGN_UNIQ, packet
        return packet

    def grab_nothing(self) -> bool:
        return self.ask(Kind.GRAB_JOB_UNIQ).kind is Kind.NO_JOB

    def sleep(self) -> None:
        self.send(Kind.PRE_SLEEP)
        self.settle()

    def read(self, count: int) -> list[Packet]:
        return [self.read_one() for _ in range(count)]

    def read_one(self) -> Packet:
        self.sock.settimeout(LIMIT_S)
        while not self._packets:
            data = self.sock.recv(65536)
            assert data, "the dispatcher hung up"
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    def hears(self, limit_s: float = QUIET_S) -> list[Kind]:
        """Return what comes within a moment."""
        self.sock.settimeout(limit_s)
        try:
            while data := self.sock.recv(65536):
                self._packets += self._decoder.feed(data)
        except TimeoutError:
            pass
        found, self._packets = self._packets, []
        return [packet.kind for packet in found]

    def is_closed(self, limit_s: float = LIMIT_S) -> bool:
        self.sock.settimeout(limit_s)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        return True


def ask(server: Server, command: str) -> str:
    """Return the answer to a text command."""
    block = command in {"dead", "oldest", "prioritystatus", "show jobs", "show unique jobs", "status", "workers"}
    with socket.create_connection((server.host, server.port), LIMIT_S) as sock:
        sock.sendall(command.encode() + b"\n")
        text = b""
        while not text.endswith(b"\n") or (block and not text.startswith(b"ERR") and not _ended(text)):
            data = sock.recv(65536)
            assert data, f"hung up after {text!r}"
            text += data
    return text.decode()


def left(server: Server, others: int) -> None:
    """Return once only so many connections are there besides the asking one: a threaded server hears of an end late."""
    deadline = time.monotonic() + LIMIT_S
    while ask(server, "workers").count("\n") - 1 > others + 1:
        assert time.monotonic() < deadline, ask(server, "workers")
        time.sleep(0.01)


def _ended(text: bytes) -> bool:
    return text == b".\n" or text.endswith(b"\n.\n")
