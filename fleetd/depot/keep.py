"""What goes on beside the requests: expired files and records are swept, webhooks hear how jobs ended.

Promises: a webhook hears of an end at least once, as long as the record is kept: what it does not take is posted again,
ever more slowly, and a restart forgets nothing. It is signed, so that the receiver can tell ours from others'. One
that is slow or dead holds nobody up. Redirects are not followed: the allow-list is of first addresses.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any, Final

import httpx

from fleetd.depot.faults import AbsentError
from fleetd.depot.records import Record, Records, allowed
from fleetd.errors import FleetdError

SWEEP_S: Final = 30.0
LOOK_S: Final = 0.5
TIMEOUT_S: Final = 5.0
BACKOFF_S: Final = 1.0
BACKOFF_CAP_S: Final = 300.0
AT_ONCE: Final = 8
HEADER: Final = "Fleetd-Signature"
Say = Callable[[str, str], None]


class Keeper:
    """The life of a depot. `say(kind, text)` writes a line of the log."""

    def __init__(self, records: Records, say: Say) -> None:
        self._depot, self._records, self._say = records.depot, records, say
        self._next: dict[str, tuple[float, float]] = {}  # by key: when to post again, and the pause after that
        self._trouble = ""
        logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes whole URLs into the log

    async def run(self) -> None:
        """Sweep and tell until cancelled."""
        swept_at = 0.0
        while True:
            try:
                if time.monotonic() - swept_at >= SWEEP_S:
                    swept_at = time.monotonic()
                    await asyncio.to_thread(self._depot.sweep)
                    await asyncio.to_thread(self._records.sweep)
                await self.tell()
                self._note("")
            except FleetdError as error:
                self._note(str(error))
            await asyncio.sleep(LOOK_S)

    async def tell(self) -> None:
        """Post what is due."""
        now = time.monotonic()
        untold = await asyncio.to_thread(self._records.untold)
        due = [key for key in untold if self._next.get(key, (0.0, 0.0))[0] <= now]
        if not due:
            return
        async with httpx.AsyncClient(follow_redirects=False, timeout=TIMEOUT_S, trust_env=False) as client:
            for at in range(0, len(due), AT_ONCE):
                await asyncio.gather(*(self._one(client, key) for key in due[at : at + AT_ONCE]))

    async def _one(self, client: httpx.AsyncClient, key: str) -> None:
        try:
            record = await asyncio.to_thread(self._records.find, key)
        except AbsentError:
            return
        if not allowed(record.tell, self._depot.files.webhooks):
            trouble = "is no longer in files.webhooks"
            self._say("error", f"files: webhook of {record.function} {record.unique}: {trouble}; it is not told")
            await asyncio.to_thread(self._records.told, key)
            return
        body = json.dumps(news(key, record)).encode()
        try:
            answer = await client.post(record.tell, content=body, headers=signed(self._depot.files.secret or "", body))
            taken = answer.is_success
        except (httpx.HTTPError, OSError, ValueError):
            taken = False
        if taken:
            self._next.pop(key, None)
            await asyncio.to_thread(self._records.told, key)
            return
        _, pause_s = self._next.get(key, (0.0, BACKOFF_S))
        self._next[key] = time.monotonic() + pause_s, min(2 * pause_s, BACKOFF_CAP_S)

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            self._say("error", f"files: {trouble}")
        self._trouble = trouble


def news(key: str, record: Record) -> dict[str, Any]:
    """Return what a webhook hears: how it ended, and not the result."""
    return {
        "id": key,
        "function": record.function,
        "unique": record.unique,
        "state": record.state,
        "reason": record.reason,
        "ended_at": record.ended_at,
    }


def signed(secret: str, body: bytes) -> dict[str, str]:
    """Return the headers of a post: HMAC-SHA256 over its body, with `files.secret`."""
    signature = hmac.new(secret.encode(), body, "sha256").hexdigest()
    return {"Content-Type": "application/json", HEADER: f"sha256={signature}"}
