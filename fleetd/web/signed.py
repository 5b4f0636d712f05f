"""Who signed a request of a worker's: its token's scope, held against the node it speaks for and the clock.

Promises: a request counts only with the signature of its token, for nodes that the token is for, and while it lasts; a
token that ends is renewed well before, with the answer to a lease.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from fleetd.codecs.lease import ANSWER_HEADER, LeaseAnswer, sign_answer, verify
from fleetd.codecs.scope import CREDENTIAL_S, Scope, node_token, read_scope
from fleetd.core.model import Seconds
from fleetd.errors import ProtocolError
from fleetd.web.wire import DeniedError


@dataclass(frozen=True, slots=True)
class Signed:
    """A request with a right signature: whom its token is for, and what its answer is signed with."""

    scope: Scope
    key: str
    signature: str

    def answer(self, body: bytes, code: int = 200) -> Response:
        """Return the answer, signed."""
        headers = {ANSWER_HEADER: sign_answer(self.key, self.signature, body), "Content-Type": "application/json"}
        return Response(body, code, headers)


class Signatures:
    """Checks what workers sign, with the fleet's secret and the controller's clock."""

    def __init__(self, secret: str, clock: Callable[[], Seconds]) -> None:
        self._secret, self._clock = secret, clock

    def check(self, request: Request, body: bytes = b"") -> Signed:
        """Return who signed; raises DeniedError. Whether it may speak for its node is for `own` to say."""
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            header = request.headers.get("authorization", "")
            scope, key, signature = verify(self._secret, header, request.method, path, body)
            return Signed(read_scope(scope), key, signature)
        except ProtocolError as error:
            raise DeniedError(str(error)) from None

    def own(self, signed: Signed, node: str, place: str) -> None:
        """Let a token speak for its own node, or for the nodes of its own pool; raises DeniedError."""
        try:
            signed.scope.check(node, self._clock())
        except ProtocolError as error:
            raise DeniedError(f"{place}: {error}") from None

    def current(self, signed: Signed, place: str) -> None:
        """Let a token fetch what any node may have, while it lasts; raises DeniedError."""
        self.own(signed, signed.scope.node or f"{signed.scope.pool}/", place)

    def renewed(self, signed: Signed, answer: LeaseAnswer) -> LeaseAnswer:
        """Return the answer with a new token, where less than half of the one in use is left."""
        now, scope = self._clock(), signed.scope
        left_s = scope.left_s(now)
        if left_s is None or left_s > CREDENTIAL_S / 2:
            return answer
        return replace(answer, token=node_token(self._secret, scope.fleet, scope.node, now + CREDENTIAL_S))
