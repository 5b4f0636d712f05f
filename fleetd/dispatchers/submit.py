"""A connection to one dispatcher that submits many jobs at once and hears of those in the foreground.

Promises: nothing is sent that a dispatcher would cut, merge or mistake; every call ends, by its own deadline or by
the connection's `Limits`; an error tells whether the dispatcher may have the job (`ConnectionLostError`) or certainly
has not (`NotSentError`, `JobRefusedError`, `UsageError`). It is one connection's life: it never reconnects.
"""

import asyncio
import time
from collections.abc import Sequence

from fleetd.codecs.gearman import Kind, Packet, encode
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.credentials import Credentials, heed, read_credentials, refusal
from fleetd.dispatchers.dial import dial
from fleetd.dispatchers.follow import Follower, Listeners
from fleetd.dispatchers.jobs import ConnectionLostError, JobRefusedError, JobStatus, NotSentError, Submission
from fleetd.dispatchers.line import Limits, Line, Request
from fleetd.errors import JobTimeoutError, ProtocolError, UnreachableError

__all__ = ["Limits", "SubmitConnection", "connect"]


class SubmitConnection:
    """Made by `connect`. Safe for many tasks of one event loop."""

    def __init__(self, line: Line) -> None:
        self.address = line.address
        self.limits = line.limits
        self.exceptions = False  # whether a worker's exception text reaches us
        self._line = line

    @property
    def lost(self) -> str | None:
        """Why the connection ended; None while it lives."""
        return self._line.lost

    async def run(self, submission: Submission, *, wait_s: float, listeners: Listeners | None = None) -> bytes:
        """Submit in the foreground and return the result, after any data that no listener took.

        Raises JobTimeoutError after `wait_s`, JobError where the worker failed, JobRefusedError where the dispatcher
        did not take it, NotSentError or ConnectionLostError, UsageError. A job given up on may still run.
        """
        data = submission.encode(background=False, max_payload=self.limits.max_payload)
        follower = Follower(submission.function, self.limits.max_result)
        try:
            async with asyncio.timeout(wait_s) as deadline:
                (answer,) = await self._line.ask(Request(Kind.JOB_CREATED, data, follower=follower))
                if isinstance(answer, JobRefusedError):
                    raise answer
                return await follower.follow(listeners or Listeners())
        except TimeoutError:
            if not deadline.expired():
                raise  # a listener's own
            what = f"job {submission.function}: no result within {wait_s:g} s; it may still run"
            raise JobTimeoutError(f"dispatcher {self.address}: {what}") from None
        finally:
            follower.leave()

    async def submit(self, batch: Sequence[Submission], *, wait_s: float) -> list[str | JobRefusedError]:
        """Submit in the background, all in one send; return each one's handle, or the refusal that took its place.

        A batch may be larger than the window, but is then sent alone. Raises NotSentError or ConnectionLostError for
        the whole of it (also after `wait_s` seconds), and UsageError, before anything is sent.
        """
        if not batch:
            return []
        cap = self.limits.max_payload
        data = b"".join([one.encode(background=True, max_payload=cap) for one in batch])
        request = Request(Kind.JOB_CREATED, data, len(batch))
        try:
            async with asyncio.timeout(wait_s):
                answers = await self._line.ask(request)
        except TimeoutError:
            kind = ConnectionLostError if request.sent else NotSentError
            raise kind(f"dispatcher {self.address}: did not take the job within {wait_s:g} s") from None
        return [
            answer if isinstance(answer, JobRefusedError) else answer.args[0].decode(errors="backslashreplace")
            for answer in answers
        ]

    async def status(self, handle: str) -> JobStatus:
        """Return what the dispatcher knows of a job. Raises NotSentError, ConnectionLostError, JobRefusedError."""
        data = encode(Kind.GET_STATUS, handle.encode(errors="backslashreplace"))
        answer = await self._ask_one(Kind.STATUS_RES, data)
        try:
            known, running, numerator, denominator = map(int, answer.args[1:])
        except ValueError:
            self._line.lose(f"malformed status {answer.args!r:.80}")
            raise ProtocolError(f"dispatcher {self.address}: malformed status {answer.args!r:.80}") from None
        return JobStatus(bool(known), bool(running), numerator, denominator)

    async def ping(self) -> float:
        """Send an echo through the dispatcher; return the seconds it took. Raises as `status` does."""
        start = time.monotonic()
        answer = await self._ask_one(Kind.ECHO_RES, encode(Kind.ECHO_REQ, b"fleetd"))
        if answer.args != (b"fleetd",):
            self._line.lose("the echo came back changed")
            raise ProtocolError(f"dispatcher {self.address}: the echo came back changed")
        return time.monotonic() - start

    async def close(self) -> None:
        """End the connection; what is under way fails with ConnectionLostError. Safe twice."""
        await self._line.close()

    async def greet(self, token: str = "") -> None:
        """Show the token, then ask for exception texts. Its answer also proves that a dispatcher is listening.

        Raises UnreachableError where the dispatcher wants a token, or another one.
        """
        if token:
            try:
                await self._ask_one(Kind.OPTION_RES, encode(Kind.OPTION_REQ, b"token:" + token.encode()))
            except JobRefusedError as error:
                heed(self.address, error.code)
        try:
            await self._ask_one(Kind.OPTION_RES, encode(Kind.OPTION_REQ, b"exceptions"))
        except JobRefusedError as error:
            if why := refusal(error.code):
                raise UnreachableError(f"dispatcher {self.address}: {why}") from None
            return  # an old dispatcher; failures then come without their text
        self.exceptions = True

    async def _ask_one(self, answer: Kind, data: bytes) -> Packet:
        (found,) = await self._line.ask(Request(answer, data))
        if isinstance(found, JobRefusedError):
            raise found
        return found


async def connect(
    address: Address, limits: Limits | None = None, credentials: Credentials | None = None
) -> SubmitConnection:
    """Connect and prove that a dispatcher answers, each within its limit; raises UnreachableError, UsageError.

    `credentials`: those of the environment unless given. The caller closes the connection.
    """
    limits, credentials = limits or Limits(), credentials or read_credentials()
    connection = SubmitConnection(await dial(address, lambda: Line(address, limits), limits.connect_s, credentials))
    greeted = False
    try:
        async with asyncio.timeout(limits.connect_s):
            await connection.greet(credentials.token)
        greeted = True
    except TimeoutError:
        what = f"connected, but no dispatcher answered within {limits.connect_s:g} s"
        raise UnreachableError(f"dispatcher {address}: {what}") from None
    except (ConnectionLostError, NotSentError) as error:
        hint = credentials.hint() if address.tls else "is a Gearman dispatcher listening there?"
        raise UnreachableError(f"{error}; {hint}") from None
    finally:
        if not greeted:
            await connection.close()
    return connection
