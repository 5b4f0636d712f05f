"""The dispatchers of a client: which one a unique goes to, which are in back-off, and the connection to each.

Promises: the same unique goes to the same server as long as that server is up, so that jobs of one unique meet; a
server that failed is tried last until its back-off ends (1, 2, 4 … 30 s), but it is tried where all others fail; at
most one connection per server; one attempt to connect serves all who wait for it.
"""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from fleetd.dispatchers.address import Address, parse_address
from fleetd.dispatchers.submit import Limits, SubmitConnection, connect
from fleetd.errors import UnreachableError, UsageError

FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 30.0


class Server:
    """One dispatcher and the connection to it, opened at need."""

    def __init__(self, address: Address, limits: Limits) -> None:
        self.address = address
        self.retry_at = 0.0  # on the event loop's clock
        self._limits = limits
        self._failures = 0
        self._reason = ""
        self._live: SubmitConnection | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    def __str__(self) -> str:
        return str(self.address)

    async def connection(self) -> SubmitConnection:
        """Return a live connection; raises UnreachableError."""
        if self._live is not None and self._live.lost is None:
            return self._live
        seen = self._failures
        async with self._opening:
            self._refuse_if_closed()
            if self._live is not None and self._live.lost is None:
                return self._live
            if self._failures != seen:  # another task tried while this one waited in line
                raise UnreachableError(self._reason)
            try:
                self._live = await connect(self.address, self._limits)
            except UnreachableError as error:
                self.failed(str(error))
                raise
            if self._closed:
                await self._live.close()
            self._refuse_if_closed()
            self._failures, self.retry_at = 0, 0.0
            return self._live

    def failed(self, reason: str) -> None:
        """Note a failure: the server goes to the end of the line for a while."""
        backoff_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._reason = reason
        self.retry_at = asyncio.get_running_loop().time() + backoff_s

    async def close(self) -> None:
        """Close the connection; safe twice."""
        self._closed = True
        if self._live is not None:
            await self._live.close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UnreachableError(f"dispatcher {self.address}: this client is closed")


class Ring:
    """All servers of a client."""

    def __init__(self, servers: Sequence[str] | str, limits: Limits) -> None:
        texts = [servers] if isinstance(servers, str) else list(servers)
        if not texts:
            raise UsageError("client: servers: at least one dispatcher is needed, as '10.0.0.5:4730'")
        self.servers = [Server(address, limits) for address in dict.fromkeys(map(parse_address, texts))]
        self._by_address = {str(server): server for server in self.servers}

    def order(self, unique: str) -> list[Server]:
        """Return the servers in the order to try: those in back-off last, else by rendezvous hash.

        So the jobs of a server that fails spread over all others, and no other job moves.
        """
        if len(self.servers) == 1:
            return self.servers
        now = asyncio.get_running_loop().time()
        return sorted(self.servers, key=lambda server: (server.retry_at > now, _weight(server, unique)))

    def find(self, address: str) -> Server:
        """Return the server of a handle; raises UsageError where it is none of this client's."""
        server = self._by_address.get(address)
        if server is None:
            raise UsageError(f"client: {address!r} is none of its dispatchers: {', '.join(self._by_address)}")
        return server

    async def close(self) -> None:
        """Close every connection; safe twice."""
        for server in self.servers:
            await server.close()


def _weight(server: Server, unique: str) -> bytes:
    return blake2b(f"{server}\0{unique}".encode(), digest_size=8).digest()
