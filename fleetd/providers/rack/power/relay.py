"""Wake-on-LAN in another network: asks the `fleetd wol-relay` there to send the packet, and `serve` is that relay.

Promises: a relay sends nothing but magic packets, only for requests that its key signed, each once, within a minute of
its making, and only to machines on its list where it was given one. What it says no to, it says why.
"""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final

from fleetd.codecs.magic import (
    MAX_REQUEST,
    WINDOW_S,
    RelayRequest,
    magic_packet,
    open_answer,
    open_request,
    sign_answer,
    sign_request,
)
from fleetd.errors import ProtocolError, ProviderError
from fleetd.providers.rack.inventory import EVERYBODY, Machine
from fleetd.providers.rack.power import State

LIMIT_S: Final = 10.0
MOST_NONCES: Final = 100_000
Say = Callable[[str], None]


class Relayed:
    """Asks a relay for the packet; can neither ask the machine nor switch it off."""

    tells = False
    cuts = False

    def __init__(self, machine: Machine) -> None:
        assert machine.relay is not None, "the table gives it to machines that have one"
        self._machine, self._relay = machine, machine.relay

    async def on(self) -> None:
        """Have the packet sent."""
        machine, relay = self._machine, self._relay
        place = f"{machine.name}: the relay at {relay.address}"
        # Without an address of its own the relay knows best where its network ends.
        broadcast = "" if machine.broadcast == EVERYBODY else machine.broadcast
        request = RelayRequest(machine.mac, machine.secureon, broadcast, time.time(), secrets.token_hex(16))
        key = relay.key.get_secret_value().encode()
        host, _, port = relay.address.rpartition(":")
        try:
            async with asyncio.timeout(LIMIT_S):
                line = await _ask(host.strip("[]"), int(port), sign_request(key, request))
            problem = open_answer(key, request, line)
        except TimeoutError:
            raise ProviderError(f"{place} does not answer within {LIMIT_S:.0f} s") from None
        except OSError as error:
            raise ProviderError(f"{place} cannot be reached: {error.strerror or error}") from None
        except (ProtocolError, ValueError) as error:
            raise ProviderError(f"{place}: {error}") from None
        if problem:
            raise ProviderError(f"{place} did not send the packet: {problem}")

    async def off(self) -> None:
        """A packet wakes, and does nothing else."""
        raise ProviderError(f"{self._machine.name}: wake-on-LAN switches nothing off: its worker does, or a BMC")

    async def state(self) -> State | None:
        """A packet is not answered."""
        return None

    async def close(self) -> None:
        """Nothing is held."""


async def _ask(host: str, port: int, line: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=MAX_REQUEST)
    try:
        writer.write(line)
        return await reader.readline()
    finally:
        writer.close()


class RelayAgent:
    """The other side: listens in a network that magic packets do not reach from outside."""

    def __init__(
        self, key: bytes, macs: frozenset[str], target: tuple[str, int], say: Say, *, source: str = ""
    ) -> None:
        """Without any `macs` it wakes whomever it is asked to; packets that name no address go to `target`."""
        self._key, self._macs, self._target, self._say = key, macs, target, say
        self._source = source
        self._nonces: dict[str, float] = {}  # by when they are too old to matter

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen; the server is the caller's to close."""
        return await asyncio.start_server(self._hear, host, port, limit=MAX_REQUEST)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                writer.write(self.answer(await reader.readline(), time.time()))
                await writer.drain()
        except (TimeoutError, OSError, ValueError):
            pass  # who says nothing, or says too much, is not answered
        finally:
            writer.close()

    def answer(self, line: bytes, now: float) -> bytes:
        """Do what a request asks for, where it may; return what to say to it. What is not signed is not answered."""
        try:
            request = open_request(self._key, line, now)
        except ProtocolError as error:
            self._say(f"refused: {error}")
            return b""
        problem = self._problem(request, now) or self._send(request)
        self._say(f"{request.mac}: {problem or 'woken'}")
        return sign_answer(self._key, request, problem)

    def _problem(self, request: RelayRequest, now: float) -> str:
        self._nonces = {nonce: until for nonce, until in self._nonces.items() if until > now}
        if request.nonce in self._nonces:
            return "this request was sent before"
        if len(self._nonces) >= MOST_NONCES:
            return "too many requests"
        self._nonces[request.nonce] = request.at + WINDOW_S + 1.0
        if self._macs and request.mac not in self._macs:
            return f"{request.mac} is not on its list (--mac)"
        return ""

    def _send(self, request: RelayRequest) -> str:
        host, port = self._target
        target = request.broadcast or host
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                if self._source:
                    sender.bind((self._source, 0))
                sender.sendto(magic_packet(request.mac, request.secureon), (target, port))
        except OSError as error:
            return f"it could not be sent to {target}: {error.strerror or error}"
        return ""
