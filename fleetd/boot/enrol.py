"""Where a node that has just booted is enrolled: its single-use token for a join token of its own, which ends soon.

Promises: a token is taken once, from whoever has it first; whatever is refused is in the rack's book, from where it
reaches the journal; whoever tries many is not listened to for a while, so that nobody fills the journal. The answer
goes over TLS alone: this is no handler for the plain listener.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from fleetd.boot.http import Answer, Asked, said
from fleetd.codecs.magic import mac_text
from fleetd.codecs.scope import CREDENTIAL_S, node_token
from fleetd.core.model import Seconds
from fleetd.providers.rack.book import Book, TokenError, Wake
from fleetd.worker.enrolled import PATH

MOST_WRONG: Final = 5  # of one address in WINDOW_S
WINDOW_S: Final = 60.0
MOST_HOSTS: Final = 1024
MOST_CARDS: Final = 32


@dataclass(slots=True)
class Desk:
    """Takes tokens for one rack. `secret` is the fleet's: from it the credentials are made."""

    book: Book
    fleet: str
    secret: str
    clock: Callable[[], Seconds]
    _wrong: dict[str, list[Seconds]] = field(default_factory=dict)

    async def answer(self, asked: Asked) -> Answer:
        """Enrol a node, or say why not."""
        if asked.path != PATH:
            return said(404, f"there is nothing but {PATH} here")
        if asked.method != "POST":
            return Answer(405, b"this must be a POST\n", headers={"Allow": "POST"})
        left_s = self._barred(asked.peer)
        if left_s > 0:
            return _refused(429, "too many wrong tokens: wait", {"Retry-After": f"{left_s + 1:.0f}"})
        given = _given(asked.body)
        if given is None:
            return _refused(422, 'body: must be {"token": "...", "macs": ["52:54:00:12:34:07"]}')
        return await asyncio.to_thread(self._enrol, asked.peer, *given)

    def _enrol(self, peer: str, token: str, macs: list[str]) -> Answer:
        now = self.clock()
        try:
            wake = self.book.redeem(token, now)
        except TokenError as error:
            self._note(peer, now)
            return _refused(403, str(error))
        if macs and wake.mac not in macs:
            # It is used up by now, and the machine that it was for will be refused: that is told, too.
            line = f"{wake.node}: its token came from a machine with other network cards, {_listed(macs)}: refused"
            self.book.report(f"{line} (from {peer})", now)
            self._note(peer, now)
            return _refused(403, line)
        return self._welcome(wake, peer, now)

    def _welcome(self, wake: Wake, peer: str, now: Seconds) -> Answer:
        self.book.see(wake.mac, "enrolled", peer, "", now)
        credential = node_token(self.secret, self.fleet, wake.node, now + CREDENTIAL_S)
        return _json(200, {"credential": credential, "node": wake.node, "for_s": CREDENTIAL_S})

    def _barred(self, peer: str) -> Seconds:
        """Return for how long an address is not listened to."""
        times = self._wrong.get(peer, [])
        return times[0] + WINDOW_S - self.clock() if len(times) >= MOST_WRONG else 0.0

    def _note(self, peer: str, now: Seconds) -> None:
        times = [at for at in self._wrong.pop(peer, []) if now - at < WINDOW_S]
        self._wrong[peer] = [*times, now][-MOST_WRONG:]
        if len(self._wrong) > MOST_HOSTS:
            del self._wrong[next(iter(self._wrong))]


def _given(body: bytes) -> tuple[str, list[str]] | None:
    """Return the token and the addresses of a request; None for what is none."""
    try:
        raw = json.loads(body)
        token, macs = raw["token"], raw.get("macs", [])
        if not isinstance(token, str) or not isinstance(macs, list) or len(macs) > MOST_CARDS or not token.isascii():
            return None
        return token, [mac for mac in map(_mac, macs) if mac]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _mac(text: Any) -> str | None:
    """Return a card's address; None for a device that has none of the usual kind, such as a tunnel."""
    try:
        return mac_text(text)
    except ValueError:
        return None


def _listed(macs: list[str]) -> str:
    return ", ".join(macs[:3]) + (" and more" if len(macs) > 3 else "")


def _refused(code: int, line: str, headers: dict[str, str] | None = None) -> Answer:
    return _json(code, {"error": line}, headers)


def _json(code: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
    return Answer(code, json.dumps(value).encode(), "application/json", headers=headers or {})
