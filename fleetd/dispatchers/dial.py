"""Opens connections to a dispatcher: TCP, TLS where the address says so, and the proof of the token.

Promises: a connection that cannot be opened in time is an `UnreachableError` that names the address; names and
certificates are verified before a byte of ours is sent; a dispatcher that answers in plain text where TLS was asked
for is told from one that does not answer; a slot's process gets no lasting thread from it.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar

from fleetd.codecs.gearman import Decoder, Kind, Packet, encode
from fleetd.dispatchers.address import Address, tune
from fleetd.dispatchers.credentials import Credentials, heed
from fleetd.dispatchers.faults import PLAIN_TEXT, hung_up, reason
from fleetd.errors import ProtocolError, UnreachableError

# Of the time to connect: the rest is for a look at whether it is a dispatcher without TLS that gave no answer.
_HANDSHAKE: Final = 0.6
_PROBE: Final = 0.3
_MAX_ANSWER: Final = 64 * 1024
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def dial(
    address: Address, factory: Callable[[], ProtocolT], connect_s: float, credentials: Credentials
) -> ProtocolT:
    """Connect within `connect_s` seconds and return the protocol; the token is its owner's to prove.

    Raises UnreachableError, and UsageError where the credentials cannot be used.
    """
    loop = asyncio.get_running_loop()
    context = credentials.context() if address.tls else None
    try:
        async with asyncio.timeout(_share(address, connect_s)):
            transport, protocol = await loop.create_connection(
                factory,
                address.host,
                address.port,
                ssl=context,
                server_hostname=_name(address) if context else None,
                happy_eyeballs_delay=0.25,
            )
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot spell
        raise await _unreachable(address, error, connect_s, credentials) from None
    tune(transport.get_extra_info("socket"))
    return protocol


async def open_socket(address: Address, connect_s: float, credentials: Credentials) -> socket.socket:
    """Connect, prove the token, each within its limit, and return the socket. Raises as `dial`.

    It does not block; for `tls://` it is an SSLSocket.
    """
    context = credentials.context() if address.tls else None
    try:
        async with asyncio.timeout(_share(address, connect_s)):
            sock = await _connect(address)
            if context is not None:
                sock = await _handshake(address, sock, context)
    except (OSError, UnicodeError) as error:
        raise await _unreachable(address, error, connect_s, credentials) from None
    if address.tls or credentials.token:
        try:
            async with asyncio.timeout(connect_s):
                await _prove(address, sock, credentials)
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError):
                what = f"connected, but no dispatcher answered within {connect_s:g} s"
                raise UnreachableError(f"dispatcher {address}: {what}") from None
            raise
    return sock


def _share(address: Address, connect_s: float) -> float:
    return connect_s * _HANDSHAKE if address.tls else connect_s


def _name(address: Address) -> str:
    """What the certificate must be for; an IPv6 address' zone is this host's own business."""
    return address.host.partition("%")[0]


# ── why not


async def _unreachable(
    address: Address, error: Exception, connect_s: float, credentials: Credentials
) -> UnreachableError:
    """Return the error to raise for a connection that did not come about."""
    if not address.tls:
        what = f"no connection within {connect_s:g} s" if isinstance(error, TimeoutError) else reason(error)
    elif isinstance(error, ssl.SSLCertVerificationError):
        what = reason(error)
    elif await _speaks_plain_text(address, connect_s * _PROBE):
        what = PLAIN_TEXT
    elif isinstance(error, TimeoutError):
        what = f"no TLS connection within {_share(address, connect_s):g} s"
    elif hung_up(error):
        what = f"it closed the connection in the TLS handshake; {credentials.hint()}"
    else:
        what = reason(error)
    return UnreachableError(f"dispatcher {address}: {what}")


async def _speaks_plain_text(address: Address, limit_s: float) -> bool:
    """Ask for the version on a connection of its own; a dispatcher that wants a token answers this as well."""
    try:
        async with asyncio.timeout(limit_s):
            with await _connect(address) as sock:
                sock.send(b"version\n")
                await _ready(sock)
                return sock.recv(64).startswith((b"OK ", b"ERR "))
    except (OSError, UnicodeError):
        return False


# ── a slot's socket


async def _handshake(address: Address, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    tls = sock
    try:
        tls = context.wrap_socket(sock, server_hostname=_name(address), do_handshake_on_connect=False)
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(tls)
            except ssl.SSLWantWriteError:
                await _ready(tls, writing=True)
            else:
                return tls
    except BaseException:
        tls.close()
        raise


async def _prove(address: Address, sock: socket.socket, credentials: Credentials) -> None:
    """Show the token. Without one an echo shows that the dispatcher took our certificate, or wants none.

    In TLS 1.3 the handshake ends, on our side, before the other side has looked at that.
    """
    token = credentials.token.encode()
    packet = encode(Kind.OPTION_REQ, b"token:" + token) if token else encode(Kind.ECHO_REQ, b"fleetd")
    try:
        answer = await _exchange(sock, packet)
    except ProtocolError as error:
        raise UnreachableError(f"dispatcher {address}: {error}") from None
    except OSError as error:
        if not hung_up(error):
            raise UnreachableError(f"dispatcher {address}: {reason(error)}") from None
        answer = None
    if answer is None:
        hint = f"; {credentials.hint()}" if address.tls else ""
        raise UnreachableError(f"dispatcher {address}: it closed the connection instead of answering{hint}")
    if answer.kind is Kind.ERROR:
        heed(address, answer.args[0].decode(errors="backslashreplace"))


async def _exchange(sock: socket.socket, packet: bytes) -> Packet | None:
    """Send the first packet of a connection and return its answer; None where the other side hung up."""
    sock.send(packet)  # whole: nothing is under way yet
    decoder = Decoder(max_bytes=_MAX_ANSWER)
    while True:
        try:
            data = sock.recv(_MAX_ANSWER)
        except (BlockingIOError, ssl.SSLWantReadError):
            await _ready(sock)
            continue
        if not data:
            return None
        if packets := decoder.feed(data):
            return packets[0]


async def _ready(sock: socket.socket, *, writing: bool = False) -> None:
    """Wait until there is something to read, or room to write."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        remove(sock.fileno())


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
