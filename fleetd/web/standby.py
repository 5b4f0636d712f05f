"""What a controller answers while another one acts: it lives, it is not ready, and nothing more.

Promises: it needs no store, so that it can stand by beside the one that has it; whoever asks for anything else is told
who acts, with the code (503) on which workers and commands come again.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from prometheus_client.core import GaugeMetricFamily
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from fleetd.control.metrics import spell
from fleetd.control.metrics_names import LEADER
from fleetd.core.model import Policy
from fleetd.errors import FleetdError
from fleetd.web.calls import Asked, Call, routes
from fleetd.web.guard import Guard
from fleetd.web.shapes import Alive
from fleetd.web.wire import BusyError, answer, refuse

PAGE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Nobody:
    """Stands where the streams of a controller that acts are."""

    def let_go(self) -> None:
        """Nothing streams."""


def make_standby(policy: Policy, token: str, who: Callable[[], str]) -> Starlette:
    """Return the ASGI application; `who` says who acts."""
    guard = Guard(token, lambda: policy.controller)

    async def alive(asked: Asked) -> dict[str, Any]:
        del asked
        return {"ok": True}

    async def ready(asked: Asked) -> dict[str, Any]:
        del asked
        raise BusyError("follower")

    async def metrics(request: Request) -> Response:
        del request
        page = GaugeMetricFamily(LEADER.name, LEADER.help, labels=("fleet",))
        page.add_metric((policy.fleet,), 0.0)
        return Response(spell([page]), media_type=PAGE)

    async def elsewhere(request: Request, error: Exception) -> Response:
        del request, error
        return answer({"error": f"follower: {who() or 'another controller'} acts"}, 503)

    calls = (
        Call("GET", "/healthz", "anyone", alive, Alive),
        Call("GET", "/readyz", "anyone", ready, Alive),
        Call("GET", "/metrics", "viewer", metrics, Alive, raw=True),
    )
    app = Starlette(
        routes=routes(calls, guard.admit), exception_handlers={FleetdError: refuse, 404: elsewhere, 405: elsewhere}
    )
    app.state.refused, app.state.events = Counter[int](), _Nobody()
    return app
