"""The controller's HTTP API: leases and orders for workers, status and commands for operators, releases for both."""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.errors import FleetdError
from fleetd.web.operators import Operators
from fleetd.web.releases import Releases
from fleetd.web.wire import broken, gone, refuse, unknown
from fleetd.web.workers import Workers


def make_app(controller: Controller, join_secret: str, operator_token: str, code: Code | None = None) -> Starlette:
    """Return the ASGI application of one controller; with `code`, releases come and go, too."""
    workers = Workers(controller, join_secret)
    operators = Operators(controller, operator_token, code)
    releases = Releases(controller, code, join_secret, operators.guard).routes() if code else []
    asked: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "status": operators.status,
        "explain": operators.explain,
        "glimpse": operators.glimpse,
        "journal": operators.journal,
        "logs": operators.logs,
        "dead": operators.dead,
    }
    told: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "wake": operators.wake,
        "drain": operators.drain,
        "hold": operators.hold,
        "pause": operators.pause,
        "quarantine": operators.quarantine,
        "dead": operators.bury,
        "end": operators.end,
        "activate": operators.activate,
        "rollback": operators.rollback,
        "release/pardon": operators.pardon,
    }
    return Starlette(
        routes=[
            Route("/healthz", operators.health, methods=["GET"]),
            Route("/v1/lease", workers.lease, methods=["POST"]),
            Route("/v1/orders", workers.orders, methods=["GET"]),
            *(Route(f"/v1/{name}", operators.guard(handler), methods=["GET"]) for name, handler in asked.items()),
            *(Route(f"/v1/{name}", operators.guard(handler), methods=["POST"]) for name, handler in told.items()),
            *releases,
        ],
        exception_handlers={
            FleetdError: refuse,
            ClientDisconnect: gone,
            404: unknown,
            405: unknown,
            Exception: broken,
        },
    )
