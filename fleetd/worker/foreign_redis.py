"""What Celery and RQ themselves say of one worker, asked through their Redis server.

Promises: RQ is only read. Celery is asked by its own remote control, to this one worker, and answers into one list of
ours; an answer that comes too late is taken with the next one. Whatever is no answer is an UnreachableError in one
line; no password is ever shown, it comes from FLEETD_PROBE_PASSWORD. The standard library alone: a node has no Redis
client of ours.
"""

import asyncio
import base64
import json
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fleetd.errors import UnreachableError, UsageError

PASSWORD_VARIABLE: Final = "FLEETD_PROBE_PASSWORD"  # noqa: S105 - its name, not its value
ANSWER_S: Final = 1  # a worker whose main process runs the task itself (solo) answers after it
Words = Sequence[str | int]


class Redis:
    """One connection to one server, for one command at a time; connects anew after any fault."""

    def __init__(self, url: str) -> None:
        """Raises UsageError."""
        form = f"probe {url!r:.100}: expected redis://HOST:PORT/DATABASE, or rediss:// for TLS"
        parts = urlsplit(url)
        try:
            self.port, self.database = parts.port or 6379, int(parts.path.strip("/") or 0)
        except ValueError:
            raise UsageError(form) from None
        if parts.password is not None:
            raise UsageError(f"probe: no password belongs into the URL; set {PASSWORD_VARIABLE}")
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(form)
        self.host, self._tls, self._user = parts.hostname, parts.scheme == "rediss", unquote(parts.username or "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, *commands: Words) -> list[Any]:
        """Run commands one after the other and return their answers. The caller limits the time."""
        whole = False
        try:
            if self._streams is None:
                await self._connect()
            answers = await self._exchange(commands)
            whole = True
        except (OSError, EOFError, ValueError, IndexError) as error:
            raise UnreachableError(f"redis {self.host}:{self.port}: {str(error) or type(error).__name__}") from None
        finally:
            if not whole:
                self.close()
        return answers

    def close(self) -> None:
        """Hang up; safe twice."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _connect(self) -> None:
        self._streams = await asyncio.open_connection(self.host, self.port, ssl=self._tls or None)
        password = os.environ.get(PASSWORD_VARIABLE, "")
        first: list[Words] = [["AUTH", self._user, password] if self._user else ["AUTH", password]] if password else []
        if self.database:
            first.append(["SELECT", self.database])
        await self._exchange(first)

    async def _exchange(self, commands: Sequence[Words]) -> list[Any]:
        assert self._streams is not None, "connected"
        reader, writer = self._streams
        for words in commands:
            writer.write(f"*{len(words)}\r\n".encode())
            for word in words:
                data = str(word).encode()
                writer.write(b"$%d\r\n%s\r\n" % (len(data), data))
        await writer.drain()
        return [await _answer(reader) for _ in commands]


async def _answer(reader: asyncio.StreamReader) -> Any:
    line = (await reader.readuntil(b"\r\n"))[:-2].decode(errors="replace")
    kind, rest = line[0], line[1:]
    match kind:
        case "+":
            return rest
        case "-":
            raise ValueError(rest[:200])
        case ":":
            return int(rest)
        case "$":
            return None if rest == "-1" else (await reader.readexactly(int(rest) + 2))[:-2].decode(errors="replace")
        case "*":
            return None if rest == "-1" else [await _answer(reader) for _ in range(int(rest))]
    raise ValueError("does not answer as a Redis server does")


class Rq:
    """Workers of RQ: those that this machine's registered worker processes are, by their pids."""

    name = "rq"

    def __init__(self, url: str) -> None:
        self._redis = Redis(url)
        self._host = socket.gethostname()

    async def busy(self, pids: Sequence[int]) -> int:
        """Return how many of them run a job."""
        (keys,) = await self._redis.ask(("SMEMBERS", "rq:workers"))
        told = await self._redis.ask(*(("HMGET", key, "pid", "hostname", "state") for key in keys))
        ours = {str(pid) for pid in pids}
        states = [state for pid, host, state in told if pid in ours and host == self._host]
        if not states:
            raise UnreachableError("no worker of RQ with these processes is registered yet")
        return states.count("busy")

    def close(self) -> None:
        """Hang up."""
        self._redis.close()


class Celery:
    """One worker of Celery, by its node name: `-n NAME` on its command line, celery@HOST without one."""

    name = "celery"

    def __init__(self, url: str, command: Sequence[str]) -> None:
        self._redis = Redis(url)
        self._node = node_name(command, socket.gethostname())
        self._reply = f"fleetd.{secrets.token_hex(8)}"

    async def busy(self, pids: Sequence[int]) -> int:
        """Return how many tasks it runs."""
        del pids
        ticket = secrets.token_hex(8)
        (listeners,) = await self._redis.ask(
            ("PUBLISH", f"/{self._redis.database}.celery.pidbox", self._question(ticket))
        )
        if not listeners:
            raise UnreachableError("no worker of Celery listens there")
        while True:  # an answer to an earlier question may come first
            (popped,) = await self._redis.ask(("BRPOP", self._reply, ANSWER_S))
            if popped is None:
                raise UnreachableError(f"Celery's worker {self._node} does not answer; is -n {self._node} its name?")
            with suppress(KeyError, TypeError, AttributeError, ValueError):
                message = json.loads(popped[1])
                if message["headers"]["ticket"] == ticket:
                    return len(json.loads(base64.b64decode(message["body"]))[self._node])

    def close(self) -> None:
        """Hang up."""
        self._redis.close()

    def _question(self, ticket: str) -> str:
        """Return a message as kombu would: `active`, to be answered into our list by the nameless exchange."""
        body = {
            "method": "active",
            "arguments": {},
            "destination": [self._node],
            "pattern": None,
            "matcher": None,
            "ticket": ticket,
            "reply_to": {"exchange": "", "routing_key": self._reply},
        }
        return json.dumps(
            {
                "body": base64.b64encode(json.dumps(body).encode()).decode(),
                "content-encoding": "utf-8",
                "content-type": "application/json",
                "headers": {"clock": 0, "expires": 0},
                "properties": {
                    "delivery_mode": 2,
                    "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
                    "priority": 0,
                    "body_encoding": "base64",
                    "delivery_tag": ticket,
                },
            }
        )


def node_name(command: Sequence[str], host: str) -> str:
    """Return the name that a Celery worker with this command line goes by."""
    given = "celery"
    for at, word in enumerate(command):
        if word in ("-n", "--hostname"):
            given = command[at + 1] if at + 1 < len(command) else given
        elif word.startswith("--hostname="):
            given = word.partition("=")[2]
        elif word.startswith("-n") and len(word) > 2 and not word.startswith("--"):
            given = word[2:]
    name, _, domain = host.partition(".")
    for mark, value in {"%h": host, "%n": name, "%d": domain}.items():
        given = given.replace(mark, value)
    return given if "@" in given else f"{given}@{host}"
