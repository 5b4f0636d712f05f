"""Which DHCP servers answer on a network card: two that give out addresses on one LAN boot machines by chance.

Promises: nothing is taken from a server: it is asked for an offer that nobody accepts. Needs the right to bind port 68
and to name a card (root); without it, that is said. Blocks for a few seconds.
"""

import secrets
import socket
import time
from collections.abc import Sequence
from typing import Final, Literal

from fleetd.codecs.dhcp import ARCH, CLIENT_PORT, OFFER, SERVER_PORT, VENDOR, Reply, ask, read
from fleetd.errors import FleetdError

WAIT_S: Final = 5.0  # dnsmasq pings an address for 3 s before it offers it
OURS: Final = b"PXEClient:Arch:00000:UNDI:002001"
Dhcp = Literal["full", "proxy", "none"]


def offers(interface: str, wait_s: float = WAIT_S) -> list[Reply]:
    """Return the offers to a machine that is not there, one a server; raises FleetdError where that cannot be asked."""
    mac, number = b"\x02" + secrets.token_bytes(5), secrets.randbits(32)
    packet = ask(mac, number, options={VENDOR: OURS, ARCH: b"\0\0", 97: b"\0" + bytes(16), 55: bytes([1, 3, 6, 67])})
    found: dict[str, Reply] = {}
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            sock.bind(("", CLIENT_PORT))
            end = time.monotonic() + wait_s
            sock.sendto(packet, ("255.255.255.255", SERVER_PORT))
            while (left_s := end - time.monotonic()) > 0:
                sock.settimeout(left_s)
                reply = read(sock.recv(2048), mac, number)
                if reply is not None and reply.kind == OFFER:
                    found.setdefault(reply.server, reply)
    except TimeoutError:
        pass
    except OSError as error:
        raise FleetdError(f"{interface}: cannot ask for DHCP servers: {error.strerror}") from None
    return [found[server] for server in sorted(found)]


def conflict(found: Sequence[Reply], dhcp: Dhcp, ours: str) -> str:
    """Return what is wrong with the servers that answered, in a line, or "". `ours`: where our dnsmasq is."""
    others = [reply.server for reply in found if reply.server != ours and reply.address != "0.0.0.0"]  # noqa: S104
    mine = [reply for reply in found if reply.server == ours]
    listed = ", ".join(others)
    match dhcp:
        case "full" if others:
            return f"DHCP conflict: {listed} gives out addresses here, too: turn it off, or set boot.dhcp to proxy"
        case "proxy" if not others:
            return "no DHCP server gives out addresses here: boot.dhcp is proxy, which needs one; or set it to full"
        case "proxy" if len(others) > 1:
            return f"DHCP conflict: several give out addresses here: {listed}: leave one of them on"
        case "full" | "proxy" if not mine:
            return f"dnsmasq does not answer at {ours}: start it with what `fleetd boot dnsmasq` prints"
    return ""
