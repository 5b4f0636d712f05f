"""A persistent admin connection to one dispatcher: asks `status` and its like, one command at a time.

Promises: each command ends within `timeout_s`; what it raises is `UnreachableError`, `ProtocolError` or
`CommandRefusedError`, each naming the address; a command that was cancelled, timed out or answered wrongly drops the
connection, so that no answer is ever taken for that of another command; the next command connects anew.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fleetd.codecs import admin
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.credentials import Credentials, heed, read_credentials, refusal
from fleetd.dispatchers.dial import dial
from fleetd.dispatchers.faults import reason
from fleetd.errors import ProtocolError, UnreachableError

DEFAULT_TIMEOUT_S: Final = 2.0
Parsed = TypeVar("Parsed")


class AdminConnection:
    """Opened by the first command; use it from one event loop. `timeout_s` bounds a command, connecting included.

    `credentials`: those of the environment at each connecting, unless given.
    """

    def __init__(
        self, address: Address, *, timeout_s: float = DEFAULT_TIMEOUT_S, credentials: Credentials | None = None
    ) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._credentials = credentials
        self._line: _AdminLine | None = None
        self._turn = asyncio.Lock()

    async def status(self) -> tuple[admin.FunctionStatus, ...]:
        """Return every function with its jobs (running ones included), running jobs and capable workers."""
        return self._parsed(admin.parse_status, await self.ask(admin.STATUS))

    async def priority_status(self) -> tuple[admin.FunctionBacklog, ...]:
        """Return every function with its waiting jobs by priority."""
        return self._parsed(admin.parse_priority_status, await self.ask(admin.PRIORITY_STATUS))

    async def workers(self) -> tuple[admin.Peer, ...]:
        """Return every connection of the dispatcher, this one included."""
        return self._parsed(admin.parse_workers, await self.ask(admin.WORKERS))

    async def jobs(self) -> tuple[admin.QueuedJob, ...]:
        """Return every job that waits or runs."""
        return self._parsed(admin.parse_jobs, await self.ask(admin.SHOW_JOBS))

    async def version(self) -> str:
        """Return the dispatcher's version, as "1.1.20+ds"."""
        return self._parsed(admin.parse_version, await self.ask(admin.VERSION))

    async def cancel_job(self, handle: str) -> bool:
        """Take a waiting job out of its queue; False where no such job is known. A running one is not stopped."""
        return self._parsed(admin.parse_cancel, await self.ask(admin.cancel_job(handle)))

    async def ask(self, command: admin.Command) -> tuple[str, ...]:
        """Send one command and return the lines of its answer. Waiting for the turn counts against the time-out."""
        try:
            async with asyncio.timeout(self._timeout_s), self._turn:
                return await self._ask_in_turn(command)
        except TimeoutError:
            what = f"{command.text!r} was not answered within {self._timeout_s:g} s"
            raise UnreachableError(f"dispatcher {self.address}: {what}") from None

    async def close(self) -> None:
        """Drop the connection; safe twice."""
        line, self._line = self._line, None
        if line is not None:
            await line.close()

    async def _ask_in_turn(self, command: admin.Command) -> tuple[str, ...]:
        line = self._line
        if line is not None and line.usable:
            try:
                return await self._exchange(line, command)
            except _HungUpError:
                # The dispatcher was restarted since the last command. Only now, and only what does no harm twice.
                if not command.repeatable:
                    raise
        return await self._exchange(await self._connect(), command)

    async def _connect(self) -> "_AdminLine":
        if self._line is not None:
            self._line.drop()
        credentials = self._credentials or read_credentials()
        hint = f"; {credentials.hint()}" if self.address.tls else ""
        line = await dial(self.address, lambda: _AdminLine(self.address, hint), self._timeout_s, credentials)
        self._line = line
        if credentials.token:
            (said,) = await self._exchange(line, _Token("token", block=False, token=credentials.token))
            if said != "OK":
                self._heed(line, said)
        return line

    def _heed(self, line: "_AdminLine", said: str) -> None:
        try:
            heed(self.address, said)
        except UnreachableError:
            line.drop()
            raise

    async def _exchange(self, line: "_AdminLine", command: admin.Command) -> tuple[str, ...]:
        in_step = False
        try:
            lines = await line.exchange(command)
            if not command.block and (why := refusal(lines[0])):
                raise UnreachableError(f"dispatcher {self.address}: {why}")
            in_step = True
        except admin.CommandRefusedError as error:
            if why := refusal(str(error)):
                raise UnreachableError(f"dispatcher {self.address}: {why}") from None
            in_step = True
            raise admin.CommandRefusedError(f"dispatcher {self.address}: {error}") from None
        finally:
            if not in_step:
                line.drop()
        return lines

    def _parsed(self, parse: Callable[[Sequence[str]], Parsed], lines: Sequence[str]) -> Parsed:
        """Read an answer; one that makes no sense costs the connection, for what follows it cannot be trusted."""
        try:
            return parse(lines)
        except ProtocolError as error:
            if self._line is not None:
                self._line.drop()
            raise ProtocolError(f"dispatcher {self.address}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Token(admin.Command):
    """The command `token T`; what errors show of it is its name alone."""

    token: str = field(default="", repr=False)

    def encode(self) -> bytes:
        return f"{self.text} {self.token}\n".encode()


class _HungUpError(UnreachableError):
    """The peer closed the connection before the first byte of an answer."""


class _AdminLine(asyncio.Protocol):
    """One connection's life, with at most one command under way."""

    def __init__(self, address: Address, hint: str) -> None:
        self._address = address
        self._hint = hint  # for as long as it has said nothing
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._decoder: admin.AnswerDecoder | None = None
        self._answer: asyncio.Future[tuple[str, ...]] | None = None
        self._begun = False
        self.usable = True

    async def exchange(self, command: admin.Command) -> tuple[str, ...]:
        self._decoder = admin.AnswerDecoder(command)
        self._answer = asyncio.get_running_loop().create_future()
        self._begun = False
        if self._transport is None or not self.usable:
            raise self._hung_up()
        self._transport.write(command.encode())
        try:
            return await self._answer
        finally:
            self._decoder = self._answer = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if self._decoder is None or answer is None or answer.done():
            self.drop()  # nobody asked: these bytes would be taken for the next answer
            return
        self._begun = True
        self._hint = ""
        try:
            lines = self._decoder.feed(data)
        except admin.CommandRefusedError as error:
            answer.set_exception(error)
        except ProtocolError as error:
            self.usable = False
            answer.set_exception(ProtocolError(f"dispatcher {self._address}: {error}"))
        else:
            if lines is not None:
                answer.set_result(lines)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if isinstance(exc, ssl.SSLError):
            self._hint = f": {reason(exc)}"
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._hung_up())
        if not self._closed.done():
            self._closed.set_result(None)

    def drop(self) -> None:
        """Give the connection up at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Give the connection up and wait until it is gone."""
        self.drop()
        await asyncio.shield(self._closed)

    def _hung_up(self) -> UnreachableError:
        if self._begun:
            return UnreachableError(f"dispatcher {self._address}: closed the connection in the middle of an answer")
        return _HungUpError(f"dispatcher {self._address}: closed the connection instead of answering{self._hint}")
