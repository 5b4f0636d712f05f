"""One connection to one Redis server, for looking: commands as a transaction, keys by a glob, errors as one line.

Promises: what is asked together is answered as of one moment; whatever goes wrong, also a cancellation, drops the
connection, so answers never fall out of step, and the next question connects anew; every fault is an UnreachableError
with one line and, where it is known, the way out. May not: limit its own time (the caller does), show a password.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis import exceptions
from redis.asyncio import Connection, SSLConnection

from fleetd.errors import UnreachableError, UsageError

SCAN_COUNT: Final = 1000
SCAN_ROUNDS: Final = 200  # a search goes through the whole database, every time
WILD: Final = re.compile(r"[*?\[]")
Command = tuple[str | bytes | int, ...]

_FIXES: Final[Sequence[tuple[str, str]]] = (
    (r"WRONGPASS|NOAUTH|invalid (username|password)|Authentication required|without any password", "see `password`"),
    (r"NOPERM|no permissions", "let that user read these keys"),
    (r"LOADING|loading the dataset", "it answers once its data is loaded"),
    (r"^(Moved|Ask|ClusterDown|ClusterCrossSlot)Error|in cluster mode", "only a single server can be read, no cluster"),
    (r"MASTERDOWN|READONLY|read only replica|Link with MASTER", "name the master in `url`"),
    (r"WRONGTYPE", "is `kind` right for this key?"),
    (r"unknown command|syntax error", "Redis 6.2 or newer is needed"),
    (r"DB index|invalid DB", "the database in `url` does not exist there"),
    (r"CERTIFICATE_VERIFY", "trust its authority, for example by SSL_CERT_FILE"),
)


def check_url(url: str) -> str:
    """Return the URL of one server; raises UsageError with one plain sentence."""
    form = "expected redis://HOST:PORT/DATABASE, or rediss:// for TLS"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(form) from None
    if parts.password is not None:
        raise UsageError("a password is never written into the policy; give password: {env: NAME}")
    if parts.scheme not in ("redis", "rediss"):
        raise UsageError(f"{form}; there is no Sentinel and no Cluster")
    if not parts.hostname or not re.fullmatch("/?[0-9]{0,5}", parts.path) or parts.query or parts.fragment:
        raise UsageError(f"{form}, and nothing after it")
    return url


class RedisLine:
    """A server at `url`, connected to when it is asked."""

    def __init__(self, url: str, password: str | None = None) -> None:
        parts = urlsplit(url)
        self.address = f"{parts.hostname}:{parts.port or 6379}{parts.path.rstrip('/')}"
        self._wire: Connection = (SSLConnection if parts.scheme == "rediss" else Connection)(
            host=unquote(parts.hostname or ""),
            port=parts.port or 6379,
            db=int(parts.path.strip("/") or 0),
            username=unquote(parts.username) if parts.username else None,
            password=password,
            protocol=2,
            socket_timeout=None,  # the caller's limit spans everything
            socket_connect_timeout=None,
        )
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Drop the connection; safe twice."""
        await self._wire.disconnect(nowait=True)

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands as one transaction; what XINFO says of a key that does not exist is None."""
        if not commands:
            return []
        async with self._turn, self._in_step():
            await self._wire.connect()  # type: ignore[no-untyped-call]
            await self._wire.send_packed_command(self._wire.pack_commands([("MULTI",), *commands, ("EXEC",)]))
            for _ in range(len(commands) + 1):
                if await self._wire.read_response() not in (b"OK", b"QUEUED"):
                    raise ValueError
            answers = await self._wire.read_response()
            if not isinstance(answers, list) or len(answers) != len(commands):
                raise ValueError
            return [_checked(command, answer) for command, answer in zip(commands, answers, strict=True)]

    async def found(self, glob: str, kind: str, prefix: str = "", end: str = "") -> list[bytes]:
        """Return the keys of that type which a glob matches, without `prefix` and what follows `end`.

        A plain name is the key itself; nothing is asked about it.
        """
        if not WILD.search(glob):
            return [f"{prefix}{glob}".encode()]
        # Redis reads [!a] otherwise than the policy does, so it is given the beginning alone.
        start = re.sub(r"([*?\[\]\\])", r"\\\1", prefix + WILD.split(glob)[0]) + "*"
        cursor, keys = b"0", set[bytes]()
        for _ in range(SCAN_ROUNDS):
            ((cursor, some),) = await self.ask([("SCAN", cursor, "MATCH", start, "COUNT", SCAN_COUNT, "TYPE", kind)])
            keys.update(some)
            if cursor == b"0":
                names = {key: text(key).removeprefix(prefix) for key in keys}
                return sorted(k for k, n in names.items() if fnmatchcase(n.partition(end)[0] if end else n, glob))
        most = SCAN_COUNT * SCAN_ROUNDS
        raise UnreachableError(f"{glob!r} is a search through more than {most} keys: write it without a wildcard")

    @asynccontextmanager
    async def _in_step(self) -> AsyncIterator[None]:
        whole = False
        try:
            yield
            whole = True
        except (exceptions.InvalidResponse, ValueError, TypeError, LookupError):
            raise UnreachableError("does not answer as a Redis server does; is the address right?") from None
        except (exceptions.RedisError, OSError) as error:
            raise UnreachableError(_why(error)) from None
        finally:
            if not whole:
                await self._wire.disconnect(nowait=True)


def text(key: str | bytes | int) -> str:
    """Return a key, or any value, as text."""
    return key.decode(errors="replace") if isinstance(key, bytes) else str(key)


def _checked(command: Command, answer: Any) -> Any:
    if not isinstance(answer, Exception):
        return answer
    if command[0] == "XINFO" and "no such key" in str(answer):
        return None
    key = command[2] if command[0] == "XINFO" else command[1] if len(command) > 1 else ""
    raise exceptions.ResponseError(f"{text(key)!r}: {answer}")


def _why(error: Exception) -> str:
    line = " ".join(str(error).split())[:200] or type(error).__name__
    kind = type(error).__name__  # the client takes the server's own word for it off the text
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, f"{kind}: {line}")), "")
    return f"{line}; {fix}" if fix else line
