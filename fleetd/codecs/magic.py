"""Wake-on-LAN as bytes: hardware addresses, magic packets, and the requests to a relay that sends them elsewhere.

Promises: sans I/O; text becomes one normal form or a ValueError with a short sentence; whatever bytes come in, the
answer is a value, None or a ProtocolError. A relay's request is signed with a key that both know and never send, holds
the time and a number used once, and so can be neither forged nor sent again; the answer is bound to it.
"""

import hashlib
import hmac
import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Final

from fleetd.errors import ProtocolError

SYNC: Final = b"\xff" * 6
REPEATS: Final = 16
LENGTH: Final = 6 * (1 + REPEATS)
SECUREON: Final = 6  # bytes of the password that some cards ask for after the addresses
MAX_REQUEST: Final = 1024
WINDOW_S: Final = 60.0  # how far two clocks may be apart
_FORMS: Final = (
    re.compile(r"[0-9a-f]{12}"),
    re.compile(r"([0-9a-f]{2})([:-])(?:[0-9a-f]{2}\2){4}[0-9a-f]{2}"),
    re.compile(r"(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}"),
)


@dataclass(frozen=True, slots=True)
class Magic:
    """What a magic packet says: whom it wakes, with which password (none: empty)."""

    mac: str
    secureon: bytes = b""


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """A machine to be woken by a relay: where the packet goes is the relay's to know, unless `broadcast` says it."""

    mac: str
    secureon: str = ""
    broadcast: str = ""
    at: float = 0.0
    nonce: str = ""


def mac_text(text: str) -> str:
    """Return a machine's hardware address as 52:54:00:12:34:07, from any of the usual ways to write it."""
    octets = _six(text)
    if octets is None:
        raise ValueError(f"expected six bytes as in 52:54:00:12:34:07, got {_shown(text)}")
    if octets[0] & 1:
        raise ValueError(f"{_shown(text)} is the address of a group, not of a machine: its first byte is odd")
    if not any(octets):
        raise ValueError(f"{_shown(text)} is no machine's address")
    return octets.hex(":")


def secureon_text(text: str) -> str:
    """Return a SecureOn password, six bytes written as an address is."""
    octets = _six(text)
    if octets is None:
        raise ValueError("expected a SecureOn password of six bytes as in 00:11:22:33:44:55")
    return octets.hex(":")


def magic_packet(mac: str, secureon: str = "") -> bytes:
    """Return the packet that wakes a machine."""
    password = bytes.fromhex(secureon_text(secureon).replace(":", "")) if secureon else b""
    return SYNC + bytes.fromhex(mac_text(mac).replace(":", "")) * REPEATS + password


def find_magic(data: bytes) -> Magic | None:
    """Return the magic packet in a payload, wherever it begins, as a card would; None where there is none."""
    at = data.find(SYNC)
    while at >= 0:
        mac = data[at + 6 : at + 12]
        if len(mac) == 6 and data[at + 6 : at + LENGTH] == mac * REPEATS and mac != SYNC:
            rest = data[at + LENGTH : at + LENGTH + SECUREON]
            return Magic(mac.hex(":"), rest if len(rest) == SECUREON else b"")
        at = data.find(SYNC, at + 1)
    return None


# ── the relay


def sign_request(key: bytes, request: RelayRequest) -> bytes:
    """Return a request as one line."""
    return json.dumps(asdict(request) | {"signature": _signature(key, "wake", request)}).encode() + b"\n"


def open_request(key: bytes, line: bytes, now: float) -> RelayRequest:
    """Return a request that its key signed within the window; raises ProtocolError. Nonces are the caller's to keep."""
    try:
        body: Any = json.loads(line) if len(line) <= MAX_REQUEST else None
        texts = [body[name] for name in ("mac", "secureon", "broadcast", "nonce", "signature")]
        at = float(body["at"])
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
        raise ProtocolError("relay: not a request") from None
    if not all(isinstance(text, str) and text.isascii() for text in texts):
        raise ProtocolError("relay: not a request")
    mac, secureon, broadcast, nonce, signature = texts
    request = RelayRequest(mac, secureon, broadcast, at, nonce)
    if not hmac.compare_digest(_signature(key, "wake", request), signature):
        raise ProtocolError("relay: the signature is wrong: the two have different keys")
    if not abs(now - at) <= WINDOW_S:
        raise ProtocolError(f"relay: sent {now - at:+.0f} s ago by the two clocks: set them, or it is an old request")
    try:
        return RelayRequest(mac_text(mac), secureon_text(secureon) if secureon else "", broadcast, at, nonce)
    except ValueError as error:
        raise ProtocolError(f"relay: {error}") from None


def sign_answer(key: bytes, request: RelayRequest, problem: str = "") -> bytes:
    """Return the relay's answer as one line: an empty problem is a packet sent."""
    said = {"problem": problem, "signature": _signature(key, f"answer {problem}", request)}
    return json.dumps(said).encode() + b"\n"


def open_answer(key: bytes, request: RelayRequest, line: bytes) -> str:
    """Return the problem that a relay tells of, empty where there was none; raises ProtocolError for a forged one."""
    try:
        body: Any = json.loads(line) if len(line) <= MAX_REQUEST else None
        problem, signature = body["problem"], body["signature"]
        good = hmac.compare_digest(_signature(key, f"answer {problem}", request).encode(), signature.encode())
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise ProtocolError("the relay's answer is not one") from None
    if not good:
        raise ProtocolError("the relay's answer has a wrong signature: the two have different keys")
    return str(problem)


def _signature(key: bytes, what: str, request: RelayRequest) -> str:
    told = [what, request.mac, request.secureon, request.broadcast, repr(request.at), request.nonce]
    return hmac.new(key, json.dumps(told).encode(), hashlib.sha256).hexdigest()


def _six(text: str) -> bytes | None:
    lower = text.strip().lower() if len(text) < 64 else ""
    if not any(form.fullmatch(lower) for form in _FORMS):
        return None
    return bytes.fromhex(re.sub("[.:-]", "", lower))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
