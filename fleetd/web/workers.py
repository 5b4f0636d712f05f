"""What workers call: leases and orders, each signed (web/signed.py)."""

import asyncio
import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from fleetd.codecs.lease import dump, load_lease
from fleetd.control.loop import Controller
from fleetd.depot.records import Records
from fleetd.errors import ProtocolError
from fleetd.web.calls import Asked, Name, Whole
from fleetd.web.signed import Signatures
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

    def __init__(self, controller: Controller, secret: str, records: Records | None = None) -> None:
        """`records`: of jobs whose ends are kept; dead letters tell of some."""
        self._controller, self._signatures, self._records = controller, Signatures(secret, controller.clock), records

    async def lease(self, request: Request) -> Response:
        """Take a lease; its answer says when to come again."""
        body = await read_body(request)
        signed = self._signatures.check(request, body)
        lease, scope = load_lease(body), signed.scope
        if (scope.fleet, scope.pool) != (lease.fleet, lease.pool):
            raise DeniedError(f"lease: the token is for {scope}, not for {lease.fleet}/{lease.pool}")
        self._signatures.own(signed, lease.node, "lease")
        if lease.dead and self._records is not None:
            await asyncio.to_thread(self._records.buried, lease.dead)
        answer = await self._controller.accept(lease)
        return signed.answer(dump(self._signatures.renewed(signed, answer)))

    async def orders(self, request: Request) -> Response:
        """Give the newest order once its number is above `after`; 204 where none came in time. `app` is the node's."""
        signed = self._signatures.check(request)
        asked = request.query_params
        node, after, app = asked.get("node", ""), asked.get("after", "0"), asked.get("app", "")
        if not node or not _WHOLE.fullmatch(after):
            raise ProtocolError("orders: needs node=ID and after=NUMBER")
        self._signatures.own(signed, node, "orders")
        order = await self._controller.leases.wait(node, int(after), POLL_S, app)
        return signed.answer(dump(order)) if order else signed.answer(b"", 204)
