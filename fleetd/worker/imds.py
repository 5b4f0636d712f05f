"""The metadata service of an EC2 instance, version 2: a session's token first, then what it says of this instance.

Promises: a question ends within its time whatever the service does, slow, silent or garbled, and fails as
UnreachableError alone. The standard library alone; no proxy is asked.
"""

import asyncio
import http.client
import io
import time
from dataclasses import dataclass, field
from email.message import Message
from typing import Final
from urllib.parse import urlsplit

from fleetd.errors import UnreachableError, UsageError

URL: Final = "http://169.254.169.254"
TIMEOUT_S: Final = 2.0
TOKEN_S: Final = 6 * 3600  # the longest there is
TOKEN_HEADER: Final = "X-aws-ec2-metadata-token"  # noqa: S105 - its name, not its value
TTL_HEADER: Final = f"{TOKEN_HEADER}-ttl-seconds"
MOST: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Said:
    """An answer; `date` is the service's own clock, "" where it does not tell."""

    status: int
    body: bytes
    date: str = ""


@dataclass(slots=True)
class Imds:
    """One metadata service, and the token of the session with it."""

    url: str = URL
    timeout_s: float = TIMEOUT_S
    _host: str = field(init=False)
    _port: int = field(init=False)
    _token: str = ""
    _renew_at: float = 0.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            self._host, self._port = parts.hostname or "", parts.port or 80
        except ValueError:
            self._host = ""
        if parts.scheme != "http" or not self._host:
            raise UsageError(f"--watch-instance {self.url!r:.100}: expected http://HOST:PORT, or nothing for {URL}")

    async def get(self, path: str) -> Said:
        """Return what is at a path, be it only a 404; raises UnreachableError. A token that has ended is renewed."""
        for _ in range(2):
            token = await self._session()
            said = await self._ask("GET", path, {TOKEN_HEADER: token})
            if said.status != 401:
                break
            self._token = ""
        if said.status in (200, 404):
            return said
        raise UnreachableError(f"the metadata service answered {said.status} to GET {path}")

    async def text(self, path: str) -> str:
        """Return what is at a path as text, "" where there is nothing; raises UnreachableError."""
        said = await self.get(path)
        return said.body.decode("utf-8", "replace") if said.status == 200 else ""

    async def _session(self) -> str:
        now = time.monotonic()
        if self._token and now < self._renew_at:
            return self._token
        said = await self._ask("PUT", "/latest/api/token", {TTL_HEADER: str(TOKEN_S), "Content-Length": "0"})
        token = said.body.decode("latin-1").strip()
        if said.status != 200 or not (token.isascii() and token.isprintable() and token):
            raise UnreachableError(f"the metadata service gave no token: answered {said.status}")
        self._token, self._renew_at = token, now + TOKEN_S / 2
        return token

    async def _ask(self, method: str, path: str, headers: dict[str, str]) -> Said:
        head = {"Host": urlsplit(self.url).netloc, "Connection": "close", **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", ""]
        try:
            async with asyncio.timeout(self.timeout_s):
                reader, writer = await asyncio.open_connection(self._host, self._port, limit=MOST)
                try:
                    writer.write("\r\n".join(lines).encode())
                    return await _read(reader)
                finally:
                    writer.close()
        except TimeoutError:
            raise UnreachableError(f"the metadata service gave no answer within {self.timeout_s:g} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, http.client.HTTPException) as error:
            raise UnreachableError(f"the metadata service: {type(error).__name__}: {error}") from None


async def _read(reader: asyncio.StreamReader) -> Said:
    head = io.BytesIO(await reader.readuntil(b"\r\n\r\n"))
    status = head.readline().split()
    headers: Message = http.client.parse_headers(head)
    length = headers.get("Content-Length")
    if len(status) < 2 or not status[0].startswith(b"HTTP/1."):
        raise ValueError("no answer in HTTP")
    if length is not None and not 0 <= int(length) <= MOST:
        raise ValueError(f"{length} bytes, more than the {MOST} allowed")
    body = await reader.read(MOST) if length is None else await reader.readexactly(int(length))
    return Said(int(status[1]), body, headers.get("Date", ""))
