"""Where a dispatcher listens, and the one way a connection to it is opened.

Promises: standard library only; every connection has TCP_NODELAY and keep-alive; a connection that cannot be opened
in time is an `UnreachableError` that names the address.
"""

import asyncio
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from fleetd.errors import UnreachableError, UsageError

DEFAULT_PORT: Final = 4730
# A peer that vanished without a word is noticed after about a minute; the kernel's default is two hours.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_ADDRESS: Final = re.compile(
    r"(?: \[ (?P<v6> [0-9A-Fa-f:.]+ (?:%[\w.-]+)? ) \] | (?P<host> [^\s:/@\[\]]+ ) ) (?: : (?P<port> [0-9]{1,5} ) )?",
    re.VERBOSE,
)
ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or IP address (IPv6 without its brackets) and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read "host", "host:port", "[ipv6]" or "[ipv6]:port"; without a port it is 4730. Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"dispatcher address: expected text such as '10.0.0.5:4730', got {text!r:.80}")
    if text.count(":") > 1 and not text.startswith("[") and "/" not in text:
        raise UsageError(f"dispatcher address {text!r:.80}: put an IPv6 address in brackets, as in '[::1]:4730'")
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise UsageError(f"dispatcher address {text!r:.80}: expected HOST, HOST:PORT or [IPV6]:PORT")
    port = int(found["port"] or DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise UsageError(f"dispatcher address {text!r:.80}: the port must be 1 to 65535")
    return Address(found["host"] or found["v6"], port)


async def dial(address: Address, factory: Callable[[], ProtocolT], connect_s: float) -> ProtocolT:
    """Connect within `connect_s` seconds and return the protocol; raises UnreachableError."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(connect_s):
            transport, protocol = await loop.create_connection(
                factory, address.host, address.port, happy_eyeballs_delay=0.25
            )
    except TimeoutError:
        raise UnreachableError(f"dispatcher {address}: no connection within {connect_s:g} s") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that DNS cannot spell
        raise UnreachableError(f"dispatcher {address}: {_reason(error)}") from None
    tune(transport.get_extra_info("socket"))
    return protocol


def tune(sock: socket.socket) -> None:
    """Send small packets at once, and notice a peer that vanished. What the system does not know is left out."""
    with suppress(OSError):  # the peer may have hung up already; the first read will tell
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _reason(error: Exception) -> str:
    """The words of an error without its number, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
