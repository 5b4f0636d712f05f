"""Serves the API in the controller's own event loop, on a socket that is bound before anything is started."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette

from fleetd.errors import FleetdError

LINGER_S: Final = 1
BACKLOG: Final = 2048


class Server(uvicorn.Server):
    """uvicorn, but signals are the controller's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def make_server(app: Starlette) -> Server:
    """Return a server that says nothing and lets long polls go at once when it ends."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=LINGER_S,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config)


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
