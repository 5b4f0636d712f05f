"""A worker slot's connection to one dispatcher: blocking, bounded and lean, for a process that runs one job at a time.

Promises: at most one GRAB is outstanding; an answer and the next GRAB travel in one send; no call waits longer than
`SEND_S` for the dispatcher to take a packet's next bytes, or `WAIT_S` for its next packet; every failure is an
`UnreachableError` that names the dispatcher, after which only `release` is left to call. It never sends CANT_DO or
RESET_ABILITIES: gearmand 1.1.20 re-queues the running jobs of a connection that does.

It is a blocking socket on purpose: the kernel's own time-outs cost nothing per call, where a poll before each would.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import Enum, auto
from typing import Any, Final

from fleetd.codecs.gearman import Decoder, Kind, Packet, encode
from fleetd.dispatchers.address import Address, tune
from fleetd.errors import ProtocolError, UnreachableError

WAIT_S: Final = 0.02  # a dispatcher answers a GRAB at once; after this the slot looks at its other business
SEND_S: Final = 10.0
CLOSE_S: Final = 1.0
_CHUNK: Final = 64 * 1024
_TIMEVAL: Final = struct.Struct("@ll")
GRAB: Final = encode(Kind.GRAB_JOB_UNIQ)
PRE_SLEEP: Final = encode(Kind.PRE_SLEEP)


def failure(handle: bytes, reason: str) -> bytes:
    """Return the packets that end a job without a result: the reason as a warning to its client, then the failure.

    Not WORK_EXCEPTION: to a client that did not ask for exceptions gearmand 1.1.20 passes it on as a WORK_FAIL with a
    NUL too many after the handle, and libgearman then waits for ever.
    """
    return encode(Kind.WORK_WARNING, handle, reason.encode(errors="backslashreplace")) + encode(Kind.WORK_FAIL, handle)


class State(Enum):
    """What the connection is doing, as the slot sees it."""

    CLOSED = auto()  # never opened, lost, or being opened again
    IDLE = auto()  # may be asked for a job
    GRABBING = auto()  # a GRAB is out: NO_JOB or a job comes back
    ASLEEP = auto()  # PRE_SLEEP is out: NOOP comes once there is a job
    ASSIGNED = auto()  # a job of this connection runs, or waits for its turn in this slot


class WorkConnection:
    """One open connection. `state` is its slot's to change where no method does; `grabs` counts the GRABs sent."""

    __slots__ = ("_decoder", "_sock", "address", "grabs", "state")

    def __init__(self, address: Address, sock: socket.socket) -> None:
        self.address = address
        self.state = State.IDLE
        self.grabs = 0
        self._sock = sock
        self._decoder = Decoder()
        sock.setblocking(True)  # noqa: FBT003
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, int(WAIT_S * 1e6)))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(SEND_S), 0))

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop and for the supervisor's duplicate."""
        return self._sock.fileno()

    def greet(self, client_id: str, functions: Iterable[str]) -> None:
        """Name this worker and what it can do."""
        packets = [encode(Kind.SET_CLIENT_ID, client_id.encode())]
        packets += [encode(Kind.CAN_DO, name.encode()) for name in functions]
        self.send(b"".join(packets))

    def grab(self) -> None:
        """Ask for a job; NO_JOB or JOB_ASSIGN_UNIQ will come."""
        assert self.state is not State.GRABBING
        self.state = State.GRABBING
        self.grabs += 1
        self.send(GRAB)

    def sleep(self) -> None:
        """Say that this worker waits for a NOOP. One comes at once where a job was queued since the NO_JOB."""
        self.state = State.ASLEEP
        self.send(PRE_SLEEP)

    def answer(self, packet: bytes, *, grab: bool) -> None:
        """Send the job's last packet and, in the same segment, ask for the next job."""
        if grab:
            self.state = State.GRABBING
            self.grabs += 1
            self.send(packet + GRAB)
        else:
            self.state = State.IDLE
            self.send(packet)

    def send(self, data: bytes) -> None:
        """Send everything; raises UnreachableError."""
        try:
            self._sock.sendall(data)
        except BlockingIOError:
            raise UnreachableError(f"dispatcher {self.address}: took no bytes for {SEND_S:g} s") from None
        except OSError as error:
            raise self._broke(error) from None

    def receive(self) -> list[Packet]:
        """Return the packets that came, after `WAIT_S` at most; none where none is whole. Raises UnreachableError."""
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return []
        except OSError as error:
            raise self._broke(error) from None
        if not data:
            raise UnreachableError(f"dispatcher {self.address}: it closed the connection")
        try:
            return self._decoder.feed(data)
        except ProtocolError as error:
            raise UnreachableError(f"dispatcher {self.address}: {error}") from None

    def close(self) -> None:
        """End in good order: what was sent arrives, even where unread packets are left. Safe twice.

        Closing a socket with unread bytes resets the connection, and the reset may overtake a job's answer.
        """
        give_up_at = time.monotonic() + CLOSE_S
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < give_up_at:
                with suppress(BlockingIOError):
                    if not self._sock.recv(_CHUNK):
                        break
        self.release()

    def release(self) -> None:
        """End now: the dispatcher re-queues this connection's job at once. Safe twice.

        The shutdown ends the connection itself, so that duplicates in other processes hold nothing up.
        """
        self.state = State.CLOSED
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _broke(self, error: OSError) -> UnreachableError:
        return UnreachableError(f"dispatcher {self.address}: {error.strerror or error}")


async def dial(address: Address, connect_s: float) -> WorkConnection:
    """Connect within `connect_s` seconds; raises UnreachableError."""
    try:
        async with asyncio.timeout(connect_s):
            return WorkConnection(address, await _connect(address))
    except TimeoutError:
        raise UnreachableError(f"dispatcher {address}: no connection within {connect_s:g} s") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot spell
        raise UnreachableError(f"dispatcher {address}: {getattr(error, 'strerror', None) or error}") from None


async def _connect(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    last: OSError = OSError("the name has no address")
    for family, kind, protocol, _, where in await _resolve(address):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)  # noqa: FBT003
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            tune(sock)
            return sock
    raise last


_Found = Sequence[tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]]


async def _resolve(address: Address) -> _Found:
    """Look the name up. Only a name costs a thread, and it ends with the lookup: a slot stays single-threaded."""
    with suppress(socket.gaierror):
        return _lookup(address, socket.AI_NUMERICHOST)
    threads = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, _lookup, address, 0)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _lookup(address: Address, flags: int) -> _Found:
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
