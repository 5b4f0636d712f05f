"""As much of DHCP (RFC 2131) as it takes to ask who gives out addresses. Sans I/O.

Promises: what comes from the network is a Reply, or None where it is no answer to what was asked.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
KIND: Final = 53
SERVER: Final = 54
BOOTFILE: Final = 67
VENDOR: Final = 60
ARCH: Final = 93
_PAD, _OVERLOAD, _END = 0, 52, 255
_COOKIE: Final = b"\x63\x82\x53\x63"
_FIXED: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_BROADCAST: Final = 0x8000  # we have no address that an answer could be sent to


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of a server's: `kind` is OFFER or ACK, `server` who it says it is, `file` what is to be booted."""

    kind: int
    server: str
    address: str
    next_server: str
    file: str
    options: Mapping[int, bytes] = field(default_factory=dict)


def ask(mac: bytes, number: int, kind: int = DISCOVER, options: Mapping[int, bytes] | None = None) -> bytes:
    """Return a client's packet; `number` is what its answers bear, too."""
    none = bytes(4)
    fixed = _FIXED.pack(
        1, 1, 6, 0, number, 0, _BROADCAST, none, none, none, none, mac.ljust(16, b"\0"), b"", b"", _COOKIE
    )
    given = {KIND: bytes([kind]), **(options or {})}
    body = b"".join(bytes([code, len(value)]) + value for code, value in given.items())
    return (fixed + body + bytes([_END])).ljust(300, b"\0")


def read(packet: bytes, mac: bytes, number: int) -> Reply | None:
    """Return a server's answer to that client's packet; None for anything else."""
    if len(packet) < _FIXED.size:
        return None
    op, _, length, _, told, _, _, _, yours, server, _, card, name, file, cookie = _FIXED.unpack_from(packet)
    if op != 2 or told != number or length != 6 or card[:6] != mac or cookie != _COOKIE:
        return None
    options = _options(packet[_FIXED.size :])
    if options is None:
        return None
    for bit, field_ in ((1, file), (2, name)):  # the fields may hold more options
        if options.get(_OVERLOAD, b"\0")[-1] & bit:
            options |= _options(field_) or {}
            file = b"" if bit == 1 else file
    who = options.get(SERVER, b"")
    boot = options.get(BOOTFILE) or file
    return Reply(
        kind=options.get(KIND, b"\0")[-1],
        server=str(IPv4Address(who)) if len(who) == 4 else "",
        address=str(IPv4Address(yours)),
        next_server=str(IPv4Address(server)),
        file=boot.partition(b"\0")[0].decode("ascii", "replace"),
        options=options,
    )


def _options(data: bytes) -> dict[int, bytes] | None:
    """Return options by code; None where one is longer than what is there."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            return None
        stop = at + 2 + data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2 : stop]
        at = stop
    return found
