"""The controller's HTTP API: one table of its calls, from which the routes and the OpenAPI document are made.

GET is for viewers, POST for operators; workers sign what they ask.
"""

from collections import Counter
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect

from fleetd.control.code import Code
from fleetd.control.loop import Controller
from fleetd.depot.records import Records
from fleetd.errors import FleetdError
from fleetd.web import operators as told
from fleetd.web import shapes, viewers
from fleetd.web.blobs import Blobs
from fleetd.web.calls import Asked, Bytes, Call, routes
from fleetd.web.enrol import EnrolAsked, Enrolled, Instances
from fleetd.web.events import MEDIA, Events
from fleetd.web.guard import Guard
from fleetd.web.health import Health
from fleetd.web.metrics import Metrics
from fleetd.web.openapi import document
from fleetd.web.pages import Page
from fleetd.web.releases import DigestAsked, Keep, Releases, ReleasesAsked
from fleetd.web.wire import JSON, broken, gone, refuse, unknown
from fleetd.web.workers import OrdersAsked, Workers

LATE: Final = {503: "No tick took it in time; it stays to be done."}
SICK: Final = {503: "In a word, what is amiss."}
NONE: Final = {404: "There is no such thing."}
UNPROVEN: Final = {403: "The proof is none, or not of a node to come.", 503: "The node is not known yet."}
OCTETS: Final = "application/octet-stream"
PAGE: Final = Bytes("text/plain", "What Prometheus reads (docs/metrics.md).")
STREAM: Final = Bytes(MEDIA, "Events `status` (the picture of the fleet) and `journal` (one line, its number as id).")
BUNDLE: Final = Bytes(OCTETS, "The bundle's bytes.")
DOCUMENT: Final = Bytes(JSON, "This document.")
LEASE: Final = Bytes(JSON, "What is (docs/worker.md); fleetd.codecs.lease defines it.")
LEASED: Final = Bytes(JSON, "When to come again, signed.")
ORDER: Final = Bytes(JSON, "What should be, signed.")


def make_app(
    controller: Controller,
    join_secret: str,
    operator_token: str,
    code: Code | None = None,
    records: Records | None = None,
) -> Starlette:
    """Return the ASGI application of one controller; with `code`, releases come and go, with `records` files."""
    guard = Guard(operator_token, lambda: controller.policy.controller, clients=lambda: controller.policy.files.tokens)
    events = Events(controller)
    calls = table(controller, join_secret, guard, events, code, records=records)
    app = Starlette(
        routes=routes(calls, guard.admit),
        exception_handlers={
            FleetdError: refuse,
            ClientDisconnect: gone,
            404: unknown,
            405: unknown,
            Exception: broken,
        },
    )
    app.state.refused = Counter[int]()  # refusals by code
    app.state.guard, app.state.events, app.state.calls = guard, events, calls
    return app


def table(
    controller: Controller,
    join_secret: str,
    guard: Guard,
    events: Events,
    code: Code | None = None,
    *,
    records: Records | None = None,
) -> tuple[Call, ...]:
    """Return every call there is."""
    health, look, act = Health(controller), viewers.Viewers(controller), told.Operators(controller, code)
    workers, instances = Workers(controller, join_secret, records), Instances(controller, join_secret)

    async def openapi(asked: Asked) -> dict[str, Any]:
        """Give this document."""
        del asked
        return document(calls)

    calls: tuple[Call, ...] = (
        Call("GET", "/healthz", "anyone", health.alive, shapes.Alive, refused=SICK),
        Call("GET", "/readyz", "anyone", health.ready, shapes.Alive, refused=SICK),
        Call("GET", "/metrics", "viewer", Metrics(controller).page, PAGE, raw=True),
        Call("GET", "/v1/openapi.json", "viewer", openapi, DOCUMENT),
        Call("GET", "/v1/status", "viewer", look.status, shapes.Status, viewers.StatusAsked),
        Call("GET", "/v1/nodes", "viewer", look.nodes, shapes.Nodes, viewers.NodesAsked),
        Call("GET", "/v1/journal", "viewer", look.journal, shapes.Journal, viewers.JournalAsked),
        Call("GET", "/v1/events", "viewer", events.stream, STREAM, raw=True, refused={422: "A wrong Last-Event-ID."}),
        Call("GET", "/v1/explain", "viewer", look.explain, shapes.Why, viewers.WhyAsked),
        Call("GET", "/v1/explain/deep", "viewer", look.terms, shapes.Terms),
        Call("GET", "/v1/glimpse", "viewer", look.glimpse, shapes.Glimpse, raw=True),
        Call("GET", "/v1/logs", "viewer", look.logs, shapes.Logs, viewers.LogsAsked, refused={503: "No answer."}),
        Call("GET", "/v1/dead", "viewer", look.letters, shapes.Letters, Page),
        Call("GET", "/v1/dead/{id}", "viewer", look.letter, shapes.Letter, viewers.LetterAsked, refused=NONE),
        Call("POST", "/v1/dead", "operator", act.bury, shapes.Done, told.Bury, refused=NONE),
        Call("POST", "/v1/wake", "operator", act.wake, shapes.Done, told.Wake, refused=LATE),
        Call("POST", "/v1/drain", "operator", act.drain, shapes.Done, told.Drain, refused=LATE),
        Call("POST", "/v1/hold", "operator", act.hold, shapes.Done, told.Hold, refused=LATE),
        Call("POST", "/v1/pause", "operator", act.pause, shapes.Done, told.Pause, refused=LATE),
        Call("POST", "/v1/quarantine", "operator", act.quarantine, shapes.Done, told.Quarantine, refused=LATE),
        Call("POST", "/v1/end", "operator", act.end, shapes.Done, refused=LATE),
        Call("POST", "/v1/activate", "operator", act.activate, shapes.Said, told.Activate, refused=LATE | NONE),
        Call("POST", "/v1/rollback", "operator", act.rollback, shapes.Said, told.OfApp, refused=LATE),
        Call("POST", "/v1/release/pardon", "operator", act.pardon, shapes.Said, told.Pardon, refused=LATE),
        Call("POST", "/v1/lease", "worker", workers.lease, LEASED, body=LEASE, raw=True),
        Call("GET", "/v1/orders", "worker", workers.orders, ORDER, OrdersAsked, raw=True),
        Call("POST", "/v1/enrol", "instance", instances.enrol, Enrolled, EnrolAsked, refused=UNPROVEN),
        *(_releases(Releases(controller, code, join_secret, guard.admit)) if code else ()),
        *(Blobs(records, join_secret, guard.admit).calls() if records else ()),
    )
    return calls


def _releases(of: Releases) -> tuple[Call, ...]:
    wrong = {422: "It is broken, or no key vouches for it."}
    digest = {404: "There is no such release.", **wrong}
    return (
        Call("GET", "/v1/releases", "viewer", of.list, shapes.Releases, ReleasesAsked),
        Call("POST", "/v1/releases", "operator", of.push, shapes.Pushed, body=BUNDLE, raw=True, refused=wrong),
        Call("POST", "/v1/releases/gc", "operator", of.gc, shapes.Deleted, Keep),
        Call("GET", "/v1/releases/{digest}", "fetcher", of.fetch, BUNDLE, DigestAsked, raw=True, refused=digest),
    )
