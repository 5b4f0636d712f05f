"""Where a dispatcher listens, and how the sockets of connections to it are set.

Promises: standard library only; what is no address is a `UsageError` that shows the form of one.
"""

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fleetd.errors import UsageError

DEFAULT_PORT: Final = 4730
# A peer that vanished without a word is noticed after about a minute; the kernel's default is two hours.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
_ADDRESS: Final = re.compile(
    r"(?: \[ (?P<v6> [0-9A-Fa-f:.]+ (?:%[\w.-]+)? ) \] | (?P<host> [^\s:/@\[\]]+ ) ) (?: : (?P<port> [0-9]{1,5} ) )?",
    re.VERBOSE,
)
_TLS: Final = "tls://"


@dataclass(frozen=True, slots=True)
class Address:
    """A host name or IP address (IPv6 without its brackets), a TCP port, and whether TLS is spoken there."""

    host: str
    port: int = DEFAULT_PORT
    tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_TLS if self.tls else ''}{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read "host", "host:port", "[ipv6]" or "[ipv6]:port", each with "tls://" before it or not. Raises UsageError.

    Without a port it is 4730.
    """
    if not isinstance(text, str):
        raise UsageError(f"dispatcher address: expected text such as '10.0.0.5:4730', got {text!r:.80}")
    tls, place = text.startswith(_TLS), text.removeprefix(_TLS)
    if place.count(":") > 1 and not place.startswith("[") and "/" not in place:
        raise UsageError(f"dispatcher address {text!r:.80}: put an IPv6 address in brackets, as in '[::1]:4730'")
    found = _ADDRESS.fullmatch(place)
    if found is None:
        forms = "HOST, HOST:PORT or [IPV6]:PORT, with tls:// before it where TLS is spoken"
        raise UsageError(f"dispatcher address {text!r:.80}: expected {forms}")
    port = int(found["port"] or DEFAULT_PORT)
    if not 1 <= port <= 65535:
        raise UsageError(f"dispatcher address {text!r:.80}: the port must be 1 to 65535")
    return Address(found["host"] or found["v6"], port, tls)


def tune(sock: socket.socket) -> None:
    """Send small packets at once, and notice a peer that vanished. What the system does not know is left out."""
    with suppress(OSError):  # the peer may have hung up already; the first read will tell
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
