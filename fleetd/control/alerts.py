"""Tells an operator, by a webhook, what must be heard of: a blind queue, an open breaker, the budget, dead letters.

Promises: a webhook that is slow, dead or hostile delays nothing and holds a bounded number of alerts; each condition is
told once when it comes and once when it is over; the URL is shown nowhere beyond its scheme and host. May not decide or
change anything: it reads the picture that every view gets.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx

from fleetd.control.watch import one_line
from fleetd.core.model import AlertsPolicy, Seconds
from fleetd.errors import FleetdError

EVERY_S: Final = 2.0
BLIND_S: Final = 10.0  # a glitch is nobody's business
CLEAR_S: Final = 30.0  # a breaker that opens again after one more try was never over
TIMEOUT_S: Final = 5.0
BACKOFF_S: Final = 1.0
BACKOFF_CAP_S: Final = 60.0
KEEP_S: Final = 3600.0  # older than this, an alert is history
QUEUE: Final = 100
DEAD: Final = "dead letters"
AGAIN: Final = (408, 425, 429)  # beside the 5xx, the refusals that a later try may not meet

Say = Callable[[str, str], None]
State = Literal["firing", "resolved"]


def conditions(picture: Mapping[str, Any]) -> dict[str, str]:
    """Return what an operator must hear of now, each with its sentence. The first word of a key is its kind."""
    found: dict[str, str] = {}
    for name, queue in picture.get("queues", {}).items():
        if queue.get("blind") and queue.get("blind_s", 0.0) >= BLIND_S:
            found[f"blind queue {name}"] = f"queue {name} is blind: {queue['blind']}"
    for name, pool in picture.get("pools", {}).items():
        if pool.get("blind") and pool.get("blind_s", 0.0) >= BLIND_S:
            found[f"blind pool {name}"] = f"pool {name} cannot be seen: {pool['blind']}"
        if pool.get("breaker_s", 0.0) > 0:
            why = pool.get("breaker_why") or "failures in a row"
            found[f"breaker pool {name}"] = f"pool {name} is not asked for nodes, its breaker is open: {why}"
    if warning := picture.get("why", {}).get("budget"):
        found["budget"] = f"budget: {warning}"
    if count := picture.get("dead", 0):
        found[DEAD] = f"{_letters(count)} kept"
    return found


@dataclass(slots=True)
class _Active:
    """A condition that was told: since when, and when it was last seen."""

    text: str
    since: Seconds
    seen: Seconds


@dataclass(slots=True)
class _Post:
    """One message to the webhook. `at` is on the steady clock, `stamp` what people read."""

    fleet: str
    alert: str
    state: State
    text: str
    at: Seconds
    stamp: str

    def body(self) -> dict[str, str]:
        text = f"fleet {self.fleet}: {self.text}"
        return {"fleet": self.fleet, "alert": self.alert, "state": self.state, "text": text, "at": self.stamp}


class _PostError(FleetdError):
    """A post that the webhook did not take; `again`: a later try may fare better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Alerts:
    """The alerts of one fleet. `run` is its life; `policy` is asked each time, so that a reload needs no word here."""

    def __init__(
        self, policy: Callable[[], AlertsPolicy], say: Say, *, clock: Callable[[], Seconds] = time.monotonic
    ) -> None:
        """`say(kind, text)` writes a line of the log."""
        self._policy, self._say, self._clock = policy, say, clock
        self._active: dict[str, _Active] = {}
        self._told: int | None = None  # dead letters that need no telling; None: none were counted yet
        self._waiting: list[_Post] = []
        self._trouble = ""
        self._sender: asyncio.Task[None] | None = None
        # At INFO httpx writes the whole URL into the log.
        logging.getLogger("httpx").setLevel(logging.WARNING)

    async def run(self, picture: Callable[[], dict[str, Any]]) -> None:
        """Look every two seconds until cancelled."""
        trouble = ""
        try:
            while True:
                try:
                    await self.update(picture())
                    trouble = ""
                except FleetdError as error:  # the store cannot be read now
                    if trouble != (trouble := one_line(error)):
                        self._say("error", f"alerts: {trouble}")
                await asyncio.sleep(EVERY_S)
        finally:
            await self.close()

    async def update(self, picture: Mapping[str, Any]) -> None:
        """Queue what is new in the picture and what is over; waits for no webhook."""
        policy, count = self._policy(), picture.get("dead", 0)
        if policy.webhook is None or "dead" not in policy.on:
            self._told = count
        if policy.webhook is None:
            self._active.clear()
            self._waiting.clear()
            return
        found = {key: text for key, text in conditions(picture).items() if key.partition(" ")[0] in policy.on}
        fleet, now = str(picture.get("fleet", "")), self._clock()
        risen = self._risen(count)
        for key, text in found.items():
            known = self._active.get(key)
            if risen if key == DEAD else known is None:
                self._add(fleet, key, "firing", f"{_letters(risen)} more, {text}" if key == DEAD else text)
            elif known is None:  # letters of before the start were told before it
                continue
            self._active[key] = _Active(text, known.since if known else now, now)
        self._end(fleet, found, now)
        if self._waiting and (self._sender is None or self._sender.done()):
            self._sender = asyncio.create_task(self._send_all())

    async def close(self) -> None:
        """Stop sending; what waits is dropped. Safe twice."""
        sender, self._sender = self._sender, None
        if sender is not None:
            sender.cancel()
            await asyncio.wait([sender], timeout=1.0)

    def _risen(self, count: int) -> int:
        """Return by how much the dead letters rose since they were told; while that waits to be sent, rises add up."""
        if any((post.alert, post.state) == (DEAD, "firing") for post in self._waiting):
            return 0
        before, self._told = self._told, count
        return 0 if before is None else max(0, count - before)

    def _end(self, fleet: str, found: Mapping[str, str], now: Seconds) -> None:
        """Queue the end of what is no longer found."""
        for key, known in list(self._active.items()):
            if key in found or (key != DEAD and now - known.seen < CLEAR_S):
                continue
            del self._active[key]
            lasted = f"resolved after {known.seen - known.since:.0f} s: {known.text}"
            self._add(fleet, key, "resolved", "resolved: no dead letter is kept any more" if key == DEAD else lasted)

    def _add(self, fleet: str, key: str, state: State, text: str) -> None:
        """Queue a post; in a full queue the oldest gives way."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        self._waiting.append(_Post(fleet, key, state, text, self._clock(), stamp))
        if len(self._waiting) > QUEUE:
            lost = self._waiting.pop(0)
            self._say("error", f"alerts: {QUEUE} wait for the webhook; dropped: {lost.alert} {lost.state}")

    # ── sending

    async def _send_all(self) -> None:
        """Post what waits, in order, each until it is taken, refused for good, or too old."""
        backoff_s = BACKOFF_S
        while self._waiting and (url := self._policy().webhook):
            post = self._waiting[0]
            try:
                await _send(url, post)
            except _PostError as error:
                gone = not error.again or self._clock() - post.at > KEEP_S
                self._note(f"{error}{f'; dropped: {post.alert} {post.state}' if gone else '; it is tried again'}")
                if not gone:
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(backoff_s * 2, BACKOFF_CAP_S)
                    continue
            else:
                backoff_s = BACKOFF_S
                self._note("")
            with suppress(ValueError):  # a full queue may have dropped it meanwhile
                self._waiting.remove(post)

    def _note(self, trouble: str) -> None:
        """Log trouble with the webhook when it comes or changes, and once when it is over."""
        if trouble != self._trouble:
            self._say("error" if trouble else "event", f"alerts: {trouble or 'the webhook takes them again'}")
        self._trouble = trouble


async def _send(url: str, post: _Post) -> None:
    """Post once; raises _PostError. The answer's body is not read, and a redirect not followed: the URL is a secret."""
    where = _where(url)
    try:
        async with (
            asyncio.timeout(TIMEOUT_S),
            await asyncio.to_thread(_client) as client,  # reading the certificates takes some 30 ms
            client.stream("POST", url, json=post.body()) as answer,
        ):
            code = answer.status_code
    except (TimeoutError, httpx.TimeoutException):
        raise _PostError(f"{where}: no answer within {TIMEOUT_S:.0f} s", again=True) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        reason = f"{type(error).__name__} {one_line(error).replace(url, where)}".strip()
        raise _PostError(f"{where}: {reason}", again=not isinstance(error, httpx.InvalidURL)) from None
    if not 200 <= code < 300:
        what = "; redirects are not followed" if 300 <= code < 400 else ""
        raise _PostError(f"{where}: answered {code}{what}", again=code >= 500 or code in AGAIN)


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(follow_redirects=False, timeout=TIMEOUT_S)


def _where(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}"


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"
