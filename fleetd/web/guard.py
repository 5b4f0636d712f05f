"""Who may call: operators and viewers by their bearer tokens.

Promises: comparing takes as long for a wrong token as for a right one, and every known token is compared; whoever tries
many different tokens is not listened to for a while. One wrong token, however often it comes (a dashboard that was not
told of the new one), bars nobody.
"""

import hmac
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from starlette.requests import Request

from fleetd.core.model import ControllerPolicy
from fleetd.web.calls import Role
from fleetd.web.wire import DeniedError, ForbiddenError, TooManyError

MOST_WRONG: Final = 20  # different tokens of one address in WINDOW_S
WINDOW_S: Final = 60.0
MOST_HOSTS: Final = 1024
PREFIX: Final = b"bearer "


class Guard:
    """Knows the tokens; `policy` is asked at every call, so that a reload gives and takes them at once."""

    def __init__(
        self,
        token: str,
        policy: Callable[[], ControllerPolicy],
        clock: Callable[[], float] = time.monotonic,
        *,
        clients: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`clients` gives the tokens that are good for the file store alone."""
        self._clients = clients
        self._token, self._policy, self._clock = token, policy, clock
        self._wrong: dict[str, tuple[float, set[bytes]]] = {}  # by address: since when, and what was tried
        self.most_wrong = MOST_WRONG

    def admit(self, request: Request, role: Role) -> None:
        """Let a request through, or raise. Signatures and proofs are seen to where the request is read."""
        if role in ("anyone", "worker", "fetcher", "instance", "files"):
            return
        host = request.client.host if request.client else ""
        self._refuse_guessing(host)
        given = request.headers.get("authorization", "").encode("latin-1", "replace")
        scheme, token = given[: len(PREFIX)].lower(), given[len(PREFIX) :]
        known = self._role(token) if scheme == PREFIX and token else None
        if known == "client" and role != "client":
            raise DeniedError("authorization: this token is for files and results alone (files.tokens)")
        if known is None:
            if token:
                self._note(host, token)
            raise DeniedError("authorization: needs a bearer token of this controller (FLEETD_TOKEN)")
        if role == "client" and known == "viewer":
            raise ForbiddenError("authorization: this is a viewer's token; files need one of files.tokens")
        if role == "operator" and known != "operator":
            raise ForbiddenError("authorization: this is a viewer's token: it may look, an operator's may act")

    def _role(self, token: bytes) -> Role | None:
        policy = self._policy()
        operator = [_same(token, one) for one in (self._token, *policy.operators)]
        viewer = [_same(token, one) for one in policy.viewers]
        client = [_same(token, one) for one in self._clients()]
        return "operator" if any(operator) else "viewer" if any(viewer) else "client" if any(client) else None

    def _refuse_guessing(self, host: str) -> None:
        since, tried = self._wrong.get(host, (0.0, set()))
        left = since + WINDOW_S - self._clock()
        if len(tried) >= self.most_wrong and left > 0:
            raise TooManyError(f"authorization: too many different tokens from {host}: wait {left:.0f} s", left)

    def _note(self, host: str, token: bytes) -> None:
        now = self._clock()
        since, tried = self._wrong.pop(host, (now, set()))
        if now - since >= WINDOW_S:
            since, tried = now, set()
        self._wrong[host] = since, tried | {sha256(token).digest()}
        if len(self._wrong) > MOST_HOSTS:
            del self._wrong[next(iter(self._wrong))]  # whoever was not heard of for the longest


def _same(given: bytes, token: str) -> bool:
    return hmac.compare_digest(sha256(given).digest(), sha256(token.encode()).digest())
