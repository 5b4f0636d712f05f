"""The wire between supervisor, generation and slots: JSON messages with descriptors, one datagram each.

Promises: a message arrives whole or not at all; descriptors arrive with it or are closed; an end of the other side is
`None`. SOCK_SEQPACKET keeps bounds and order, and what a dead process had sent can still be read.
"""

import json
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

MAX_BYTES: Final = 150_000  # below the kernel's default send buffer, which bounds a datagram
MAX_FDS: Final = 4
SEND_S: Final = 1


@dataclass(frozen=True, slots=True)
class Message:
    """What came, and the descriptors that came with it; they belong to whoever received them."""

    body: dict[str, Any]
    fds: tuple[int, ...] = ()


class Control:
    """One end of the wire. Blocking unless made otherwise; a send to a dead peer says so by returning False."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """The descriptor, for an event loop."""
        return self._sock.fileno()

    def send(self, body: dict[str, Any], *fds: int) -> bool:
        """Send one message; False where nobody is there, or has read nothing for too long, to take it."""
        try:
            socket.send_fds(self._sock, [json.dumps(body).encode()], fds)
        except OSError:
            return False
        return True

    def receive(self) -> Message | None:
        """Return the next message, or None at the end. Raises BlockingIOError where there is none yet."""
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MAX_BYTES + 1000, MAX_FDS)
        except ConnectionError:
            return None
        if not data:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003
        return Message(json.loads(data), tuple(fds))

    def wait(self, limit_s: float | None) -> Message | None:
        """Return the next message; raises TimeoutError after `limit_s` seconds."""
        blocking = self._sock.gettimeout()
        self._sock.settimeout(limit_s)
        try:
            return self.receive()
        finally:
            self._sock.settimeout(blocking)

    def close(self) -> None:
        """Close this end. Safe twice."""
        with suppress(OSError):
            self._sock.close()


def pair() -> tuple[Control, socket.socket]:
    """Return the supervisor's end, which never blocks, and the bare socket for the other process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)  # noqa: FBT003
    # A slot must not wait for a supervisor that somebody has stopped.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", SEND_S, 0))
    return Control(ours), theirs
