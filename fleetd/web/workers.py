"""What workers call: leases and orders. A request counts only with its token's signature, for nodes of its own pool."""

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from fleetd.codecs.lease import ANSWER_HEADER, dump, load_lease, sign_answer, verify
from fleetd.control.loop import Controller
from fleetd.errors import ProtocolError
from fleetd.web.calls import Asked, Name, Whole
from fleetd.web.wire import DeniedError, read_body

POLL_S: Final = 20.0
_WHOLE: Final = re.compile("-?[0-9]{1,18}")


class OrdersAsked(Asked):
    """Whose order, and which is known."""

    node: Name
    after: Whole = 0
    app: Name | None = None


class Workers:
    """What workers call."""

    def __init__(self, controller: Controller, secret: str) -> None:
        self._controller, self._secret = controller, secret

    async def lease(self, request: Request) -> Response:
        """Take a lease; its answer says when to come again."""
        body = await read_body(request)
        scope, key, signature = self._verify(request, body)
        lease = load_lease(body)
        if scope != f"{lease.fleet}/{lease.pool}":
            raise DeniedError(f"lease: the token is for {scope}, not for {lease.fleet}/{lease.pool}")
        _own(scope, lease.node, "lease")
        return _signed(key, signature, dump(await self._controller.accept(lease)))

    async def orders(self, request: Request) -> Response:
        """Give the newest order once its number is above `after`; 204 where none came in time. `app` is the node's."""
        scope, key, signature = self._verify(request, b"")
        asked = request.query_params
        node, after, app = asked.get("node", ""), asked.get("after", "0"), asked.get("app", "")
        if not node or not _WHOLE.fullmatch(after):
            raise ProtocolError("orders: needs node=ID and after=NUMBER")
        _own(scope, node, "orders")
        order = await self._controller.leases.wait(node, int(after), POLL_S, app)
        return _signed(key, signature, dump(order)) if order else _signed(key, signature, b"", 204)

    def _verify(self, request: Request, body: bytes) -> tuple[str, str, str]:
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            return verify(self._secret, request.headers.get("authorization", ""), request.method, path, body)
        except ProtocolError as error:
            raise DeniedError(str(error)) from None


def _own(scope: str, node: str, place: str) -> None:
    """Let a token speak for nodes of its own pool alone: their names begin with it."""
    if scope.partition("/")[2] != node.partition("/")[0]:
        raise DeniedError(f"{place}: the token is for {scope}, not for node {node}")


def _signed(key: str, signature: str, body: bytes, code: int = 200) -> Response:
    headers = {ANSWER_HEADER: sign_answer(key, signature, body), "Content-Type": "application/json"}
    return Response(body, code, headers)
