"""How busy a foreign worker is, by whoever can tell: its dispatcher, a command, an HTTP address; or nobody.

Promises: an answer is a number of running jobs or an UnreachableError in one line, within LIMIT_S; what cannot be a
probe is a UsageError that names its form. `by` says who tells, and it goes into the lease: "measured" by a dispatcher,
"probed" by the worker's own word, "by signal" where nobody can, and then the worker counts as busy while it lives.
"""

import asyncio
import http.client
import json
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

from fleetd.codecs.admin import CommandRefusedError
from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.errors import ProtocolError, UnreachableError, UsageError
from fleetd.worker.foreign_process import Reaper

LIMIT_S: Final = 5.0
MOST: Final = 65_536
By = Literal["measured", "probed", "by signal"]
KINDS: Final = ("celery", "rq", "gearman", "command", "http")


class Probe(Protocol):
    """Tells how busy the worker is."""

    name: str

    async def busy(self, pids: Sequence[int]) -> int:
        """Return how many jobs the worker with these processes runs; raises UnreachableError."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class Command:
    """A command: {"busy": 3} on its stdout, or exit code 0 for idle, 1 for busy; any other code is no answer."""

    name = "command"

    def __init__(self, words: Sequence[str], slots: int, reaper: Reaper, aside: set[int]) -> None:
        self._words, self._slots, self._reaper, self._aside = words, slots, reaper, aside

    async def busy(self, pids: Sequence[int]) -> int:
        """Run it."""
        environment = {**os.environ, "FLEETD_PIDS": " ".join(map(str, pids)), "FLEETD_SLOTS": str(self._slots)}
        read, write = os.pipe()
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 2)]
        try:
            pid = os.posix_spawnp(  # noqa: ASYNC221 - it does not wait
                self._words[0],
                list(self._words),
                environment,
                file_actions=[*actions, (os.POSIX_SPAWN_DUP2, write, 1)],
                setsid=True,
                setsigdef=(signal.SIGPIPE,),
            )
        except OSError as error:
            os.close(read)
            raise UnreachableError(f"cannot start {self._words[0]}: {error.strerror}") from None
        finally:
            os.close(write)
        self._aside.add(pid)
        try:
            code = await self._reaper.expect(pid)
            os.set_blocking(read, False)
            with suppress(BlockingIOError):
                return self._read(code, os.read(read, MOST))
            return self._read(code, b"")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # also what it left behind, and itself once it takes too long
            os.close(read)
            self._aside.discard(pid)

    def _read(self, code: int, said: bytes) -> int:
        told = _told(said)
        if told is None and code not in (0, 1):
            raise UnreachableError(f"{self._words[0]} ended with {code}: 0 is idle, 1 is busy, or print {{'busy': 3}}")
        return (self._slots if code else 0) if told is None else told

    def close(self) -> None:
        """Nothing is held."""


class Http:
    """An HTTP address: {"busy": 3}; a good answer without one is idle; 503 and everything else is no answer."""

    name = "http"

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"probe {url!r:.100}: expected http://HOST:PORT/PATH")
        self._url = parts

    async def busy(self, pids: Sequence[int]) -> int:
        """Ask it."""
        del pids
        return await asyncio.to_thread(self._ask)

    def close(self) -> None:
        """Nothing is held."""

    def _ask(self) -> int:
        parts = self._url
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=LIMIT_S)
        try:
            connection.request("GET", f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}")
            answer = connection.getresponse()
            said = answer.read(MOST)
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(f"{parts.geturl()}: {error}") from None
        finally:
            connection.close()
        if answer.status not in (200, 204):
            raise UnreachableError(f"{parts.geturl()} answered {answer.status}")
        return _told(said) or 0


class Gearman:
    """Dispatchers of Gearman. They tell what a function runs everywhere, not where: 0 is certain, more is not."""

    name = "gearman"

    def __init__(self, servers: Sequence[str], globs: Sequence[str]) -> None:
        if not servers:
            raise UsageError("--probe gearman: give the dispatchers by --server HOST:PORT")
        self._admins = [AdminConnection(parse_address(server)) for server in servers]
        self._globs = globs

    async def busy(self, pids: Sequence[int]) -> int:
        """Return 0 where none of its functions runs anywhere; raises UnreachableError otherwise."""
        del pids
        try:
            rows = [row for admin in self._admins for row in await admin.status()]
        except (ProtocolError, CommandRefusedError) as error:
            raise UnreachableError(f"{error}") from None
        running = sum(row.running for row in rows if any(fnmatchcase(row.function, glob) for glob in self._globs))
        if running:
            raise UnreachableError(CANNOT_TELL)
        return 0

    def close(self) -> None:
        """The connections end with the process."""


CANNOT_TELL: Final = "its functions run jobs somewhere; a dispatcher of Gearman does not tell where"


def _told(said: bytes) -> int | None:
    """Return the number in {"busy": n}; None where nothing of the kind was said."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        busy = json.loads(said)["busy"]
        if type(busy) is int and 0 <= busy < 1_000_000:
            return busy
    return None


def by(probe: Probe | None) -> By:
    """Return how busy-ness is known."""
    if probe is None:
        return "by signal"
    return "probed" if probe.name in ("command", "http") else "measured"


async def ask(probe: Probe, pids: Sequence[int]) -> int:
    """Ask within LIMIT_S; raises UnreachableError."""
    try:
        async with asyncio.timeout(LIMIT_S):
            return await probe.busy(pids)
    except TimeoutError:
        raise UnreachableError(f"no answer within {LIMIT_S:g} s") from None
