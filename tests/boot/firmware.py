"""A machine's firmware as far as DHCP goes: `python -m tests.boot.firmware '{"mac": …, "arch": 7}'`, on its LAN."""

import json
import secrets
import socket
import sys
import time
from typing import Any

from fleetd.codecs.dhcp import ACK, ARCH, OFFER, REQUEST, SERVER, SERVER_PORT, VENDOR, Reply, ask, read

WANTED = bytes([1, 3, 43, 54, 60, 66, 67])


def talk(mac: str, arch: int, *, ipxe: bool = False, wait_s: float = 2.5) -> list[dict[str, Any]]:
    """Discover, request what was offered (from a proxy: at port 4011), and return every answer."""
    card, number = bytes.fromhex(mac.replace(":", "")), secrets.randbits(32)
    kind = "HTTPClient" if arch == 16 else "PXEClient"
    options = {VENDOR: f"{kind}:Arch:{arch:05}:UNDI:003016".encode(), ARCH: arch.to_bytes(2, "big"), 55: WANTED}
    options |= {97: b"\0" + card.rjust(16, b"\1"), 94: b"\1\3\x10"}
    if ipxe:
        options |= {77: b"iPXE", 175: b"\x13\1\1\xb1\4\1\2\3\4"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"card0\0")
        sock.bind(("", 68))
        sock.sendto(ask(card, number, options=options), ("255.255.255.255", SERVER_PORT))
        offers = [reply for reply in _heard(sock, card, number, wait_s) if reply.kind == OFFER]
        giver = next((offer for offer in offers if offer.address != "0.0.0.0"), None)
        answers = list(offers)
        if giver is not None:
            of = {SERVER: socket.inet_aton(giver.server), 50: socket.inet_aton(giver.address)}
            sock.sendto(ask(card, number, REQUEST, options | of), ("255.255.255.255", SERVER_PORT))
            answers += [reply for reply in _heard(sock, card, number, 1.0) if reply.kind == ACK]
    return [_plain(reply) for reply in answers]


def at_4011(mac: str, arch: int, own: str, server: str, menu: int | None) -> list[dict[str, Any]]:
    """Ask a proxy for the boot file, with an address by now; a BIOS names an item of the menu that it was offered."""
    card, number = bytes.fromhex(mac.replace(":", "")), secrets.randbits(32)
    options = {VENDOR: f"PXEClient:Arch:{arch:05}:UNDI:003016".encode(), ARCH: arch.to_bytes(2, "big"), 55: WANTED}
    options |= {97: b"\0" + card.rjust(16, b"\1")}
    if menu is not None:
        options[43] = bytes([71, 4]) + menu.to_bytes(2, "big") + bytes([0, 0, 255])
    packet = bytearray(ask(card, number, REQUEST, options))
    packet[10:12] = bytes(2)
    packet[12:16] = socket.inet_aton(own)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((own, 68))
        sock.sendto(bytes(packet), (server, 4011))
        return [_plain(reply) for reply in _heard(sock, card, number, 1.5)]


def _heard(sock: socket.socket, card: bytes, number: int, wait_s: float) -> list[Reply]:
    found, end = [], time.monotonic() + wait_s
    while (left_s := end - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            reply = read(sock.recv(4096), card, number)
        except TimeoutError:
            break
        if reply is not None:
            found.append(reply)
    return found


def _plain(reply: Reply) -> dict[str, Any]:
    vendor = reply.options.get(VENDOR, b"").decode("latin-1")
    known = {"kind": reply.kind, "server": reply.server, "address": reply.address, "next": reply.next_server}
    return known | {"file": reply.file, "vendor": vendor, "more": reply.options.get(43, b"").hex()}


if __name__ == "__main__":
    question = json.loads(sys.argv[1])
    print(json.dumps(at_4011(**question) if "own" in question else talk(**question)))
