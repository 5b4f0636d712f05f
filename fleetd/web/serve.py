"""Serves the API in the controller's own event loop, on a socket that is bound before anything is started.

Promises: what is no HTTP, or comes too slowly to be any, gets a refusal of the usual shape and is counted; every answer
says the version that gave it; at the end, long polls and streams go at once.
"""

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleetd import __version__
from fleetd.errors import FleetdError
from fleetd.web.wire import JSON, dump

LINGER_S: Final = 1
BACKLOG: Final = 2048
HEAD_S: Final = 20.0
MOST_HEAD: Final = 64 * 1024
VERSION_HEADER: Final = "Fleetd-Version"
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class Connection(H11Protocol):
    """uvicorn's connection, with refusals of our shape, a time limit for the head of a request, and a way to cut it."""

    refused: Counter[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """Begin to wait for a request; handlers find `request.state.abort`."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": self._cut}
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read on. The time limit is a head's, however its bytes drip in; bodies have theirs where they are read."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None and self.conn.trailing_data[0] and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_S, self._late)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        del msg
        self._refuse(400, "Bad Request", "request: is no HTTP/1.1 that could be read")

    def _cut(self) -> None:
        """End the connection now: what the client has not taken yet is not kept for it, here or in the kernel."""
        if not self.transport.is_closing():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self.conn.our_state is h11.IDLE and not self.transport.is_closing():
            self._refuse(408, "Request Timeout", f"request: its head did not come within {HEAD_S:.0f} s")

    def _refuse(self, code: int, reason: str, line: str) -> None:
        self.refused[code] += 1
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._cut()  # in the middle of an answer: what is said now would be taken for a part of it
            return
        body = dump({"error": line})
        head = {"Content-Type": JSON, "Content-Length": len(body), "Connection": "close", VERSION_HEADER: __version__}
        lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn, but signals are the controller's business, and streams end before it waits for them."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then the rest."""
        self._app.state.events.let_go()
        await super().shutdown(sockets)


def make_server(app: Starlette, **more: Any) -> Server:
    """Return a server that says nothing and lets long polls go at once when it ends. `more` is for uvicorn."""
    connection = type("Connection", (Connection,), {"refused": app.state.refused})
    config = uvicorn.Config(
        app,
        http=connection,
        ws="none",
        log_config=None,
        log_level="error",  # what is no HTTP is counted, and fills no log
        access_log=False,
        lifespan="off",
        headers=[(VERSION_HEADER, __version__)],
        server_header=False,
        timeout_graceful_shutdown=LINGER_S,
        h11_max_incomplete_event_size=MOST_HEAD,
        **more,
    )
    return Server(config, app)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises FleetdError naming the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named since asyncio sets TCP_NODELAY only where it is: without, every answer waits some 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # here, so that a second controller fails here: two may bind one port, one may listen
    except OSError as error:
        listener.close()
        raise FleetdError(f"controller.listen: {host}:{port}: {error.strerror}; is another controller there?") from None
    listener.setblocking(False)  # noqa: FBT003 - its only argument
    return listener
