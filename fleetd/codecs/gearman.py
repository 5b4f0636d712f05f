"""The Gearman binary protocol, sans I/O: `encode` makes packets, `Decoder` finds them in a stream.

Promises: never reads or writes anything itself; holds at most one packet beyond `max_bytes`; every malformed byte
raises `ProtocolError` with its offset in the stream, and the decoder refuses to go on after it.

Source: PROTOCOL in gearmand's documentation, checked against gearmand 1.1.20. Left out on purpose: SUBMIT_REDUCE_JOB
and SUBMIT_JOB_SCHED (they do not work there) and ALL_YOURS (a no-op everywhere).
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple

from fleetd.errors import ProtocolError

REQ: Final = b"\0REQ"
RES: Final = b"\0RES"
HEADER: Final = Struct(">4sII")
MAX_UNIQUE: Final = 64  # gearmand refuses 65 bytes and more
DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024


class Kind(IntEnum):
    """Packet types, by their number on the wire."""

    CAN_DO = 1
    CANT_DO = 2
    RESET_ABILITIES = 3
    PRE_SLEEP = 4
    NOOP = 6
    SUBMIT_JOB = 7
    JOB_CREATED = 8
    GRAB_JOB = 9
    NO_JOB = 10
    JOB_ASSIGN = 11
    WORK_STATUS = 12
    WORK_COMPLETE = 13
    WORK_FAIL = 14
    GET_STATUS = 15
    ECHO_REQ = 16
    ECHO_RES = 17
    SUBMIT_JOB_BG = 18
    ERROR = 19
    STATUS_RES = 20
    SUBMIT_JOB_HIGH = 21
    SET_CLIENT_ID = 22
    CAN_DO_TIMEOUT = 23
    WORK_EXCEPTION = 25
    OPTION_REQ = 26
    OPTION_RES = 27
    WORK_DATA = 28
    WORK_WARNING = 29
    GRAB_JOB_UNIQ = 30
    JOB_ASSIGN_UNIQ = 31
    SUBMIT_JOB_HIGH_BG = 32
    SUBMIT_JOB_LOW = 33
    SUBMIT_JOB_LOW_BG = 34
    SUBMIT_JOB_EPOCH = 36
    GRAB_JOB_ALL = 39
    GET_STATUS_UNIQUE = 41
    STATUS_RES_UNIQUE = 42


_SUBMIT: Final = ("function", "unique", "payload")
# Arguments are separated by NUL; the last one runs to the packet's end and may itself hold NULs.
ARGUMENTS: Final[dict[Kind, tuple[str, ...]]] = {
    Kind.CAN_DO: ("function",),
    Kind.CANT_DO: ("function",),
    Kind.RESET_ABILITIES: (),
    Kind.PRE_SLEEP: (),
    Kind.NOOP: (),
    Kind.SUBMIT_JOB: _SUBMIT,
    Kind.JOB_CREATED: ("handle",),
    Kind.GRAB_JOB: (),
    Kind.NO_JOB: (),
    Kind.JOB_ASSIGN: ("handle", "function", "payload"),
    Kind.WORK_STATUS: ("handle", "numerator", "denominator"),
    Kind.WORK_COMPLETE: ("handle", "result"),
    Kind.WORK_FAIL: ("handle",),
    Kind.GET_STATUS: ("handle",),
    Kind.ECHO_REQ: ("payload",),
    Kind.ECHO_RES: ("payload",),
    Kind.SUBMIT_JOB_BG: _SUBMIT,
    Kind.ERROR: ("code", "text"),
    Kind.STATUS_RES: ("handle", "known", "running", "numerator", "denominator"),
    Kind.SUBMIT_JOB_HIGH: _SUBMIT,
    Kind.SET_CLIENT_ID: ("client_id",),
    Kind.CAN_DO_TIMEOUT: ("function", "seconds"),
    Kind.WORK_EXCEPTION: ("handle", "exception"),
    Kind.OPTION_REQ: ("option",),
    Kind.OPTION_RES: ("option",),
    Kind.WORK_DATA: ("handle", "data"),
    Kind.WORK_WARNING: ("handle", "data"),
    Kind.GRAB_JOB_UNIQ: (),
    Kind.JOB_ASSIGN_UNIQ: ("handle", "function", "unique", "payload"),
    Kind.SUBMIT_JOB_HIGH_BG: _SUBMIT,
    Kind.SUBMIT_JOB_LOW: _SUBMIT,
    Kind.SUBMIT_JOB_LOW_BG: _SUBMIT,
    Kind.SUBMIT_JOB_EPOCH: ("function", "unique", "epoch", "payload"),
    Kind.GRAB_JOB_ALL: (),
    Kind.GET_STATUS_UNIQUE: ("unique",),
    Kind.STATUS_RES_UNIQUE: ("unique", "known", "running", "numerator", "denominator", "clients"),
}
_BY_NUMBER: Final = {int(kind): (kind, max(0, len(names) - 1)) for kind, names in ARGUMENTS.items()}


class Packet(NamedTuple):
    """One packet: its kind and its arguments, as many and in the order that `ARGUMENTS` names."""

    kind: Kind
    args: tuple[bytes, ...]


def encode(kind: Kind, *args: bytes, magic: bytes = REQ) -> bytes:
    r"""Return the bytes of one packet. `magic` is `REQ` from clients and workers, `RES` from a dispatcher.

    Raises ProtocolError where the number of arguments is wrong or one but the last holds a NUL.

    >>> encode(Kind.CAN_DO, b"resize")
    b'\x00REQ\x00\x00\x00\x01\x00\x00\x00\x06resize'
    """
    names = ARGUMENTS[kind]
    if len(args) != len(names):
        raise ProtocolError(f"gearman: {kind.name} takes {len(names)} arguments, not {len(args)}")
    for name, value in zip(names[:-1], args, strict=False):
        if b"\0" in value:
            raise ProtocolError(f"gearman: {kind.name}: {name} must not hold a NUL byte: {value[:40]!r}")
    body = b"\0".join(args)
    return HEADER.pack(magic, kind, len(body)) + body


@dataclass(slots=True)
class Decoder:
    """Finds packets in a stream of bytes that arrives in pieces of any size.

    `magic` is the side that the bytes come from: `RES` for those of a dispatcher, `REQ` for those sent to one.
    """

    magic: bytes = RES
    max_bytes: int = DEFAULT_MAX_BYTES
    _buffer: bytearray | None = None
    _offset: int = 0
    _broken: bool = False

    def feed(self, data: bytes) -> list[Packet]:
        """Take the next bytes and return the packets that they complete.

        Raises ProtocolError at the first malformed one, and again at every later call: a stream that lost its
        framing cannot be trusted again.
        """
        if self._broken:
            raise ProtocolError("gearman: the stream was malformed before; close the connection")
        held = self._buffer
        if held is not None:
            held += data
            data = bytes(held) if self._is_complete(held) else b""
            if not data:
                return []
            self._buffer = None
        packets, at = self._take(data)
        if at < len(data):
            self._buffer = bytearray(data[at:])
        self._offset += at
        return packets

    def _take(self, data: bytes) -> tuple[list[Packet], int]:
        packets: list[Packet] = []
        at, end = 0, len(data)
        while end - at >= HEADER.size:
            kind, cuts, size = self._header(data, at)
            stop = at + HEADER.size + size
            if stop > end:
                break
            body = data[at + HEADER.size : stop]
            args = tuple(body.split(b"\0", cuts)) if ARGUMENTS[kind] else ()
            if len(args) != len(ARGUMENTS[kind]) or (size and not ARGUMENTS[kind]):
                wanted = len(ARGUMENTS[kind])
                raise self._fail(at, f"{kind.name} needs {wanted} arguments, got {len(args) or size}")
            packets.append(Packet(kind, args))
            at = stop
        if at < end < at + HEADER.size and not self.magic.startswith(data[at : at + 4]):
            raise self._fail(at, f"expected {self.magic!r}, got {data[at : at + 4]!r}")
        return packets, at

    def _header(self, data: bytes | bytearray, at: int) -> tuple[Kind, int, int]:
        magic, number, size = HEADER.unpack_from(data, at)
        if magic != self.magic:
            raise self._fail(at, f"expected {self.magic!r}, got {magic!r}")
        known = _BY_NUMBER.get(number)
        if known is None:
            raise self._fail(at, f"unknown packet type {number}")
        if size > self.max_bytes:
            raise self._fail(at, f"{known[0].name} of {size} bytes, more than the {self.max_bytes} allowed")
        return *known, size

    def _is_complete(self, held: bytearray) -> bool:
        """Whether the buffer can give a packet, so that a large one arriving in crumbs is not copied each time."""
        if len(held) < HEADER.size:
            return not self.magic.startswith(bytes(held[:4]))
        return len(held) >= HEADER.size + self._header(held, 0)[2]

    def _fail(self, at: int, what: str) -> ProtocolError:
        self._broken = True
        self._buffer = None
        return ProtocolError(f"gearman: byte {self._offset + at} of the stream: {what}")
