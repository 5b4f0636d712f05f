"""The file store behind the API's own server, in a folder or in a bucket, without the rest of a controller."""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect

from fleetd.blobs.line import Line, Stop
from fleetd.blobs.store import Store
from fleetd.codecs.lease import join_token
from fleetd.codecs.ticket import show_ticket, ticket_of
from fleetd.core.model import ControllerPolicy, FilesPolicy, Policy
from fleetd.depot.depot import Depot
from fleetd.depot.records import Records
from fleetd.errors import FleetdError
from fleetd.web.blobs import Blobs
from fleetd.web.calls import Call, routes
from fleetd.web.guard import Guard
from fleetd.web.serve import bind, make_server
from fleetd.web.wire import gone, refuse

SECRET, TOKEN = "s" * 40, "token-of-a-web-page"


@dataclass(slots=True)
class Site:
    """A store at work. `now` moves its clock."""

    folder: Path
    policy: Policy
    port: int = 0
    ahead_s: float = 0.0
    depot: Depot = field(init=False)
    records: Records = field(init=False)
    calls: tuple[Call, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def files(self, **changes: object) -> None:
        """Change the policy, as a reload does."""
        self.policy = replace(self.policy, files=replace(self.policy.files, **changes))  # type: ignore[arg-type]

    def store(self, patience_s: float = 3.0) -> Store:
        """The store as a client has it."""
        return Store(Line(self.url, lambda *_: f"Bearer {TOKEN}", Stop()), patience_s=patience_s)

    def ticketed(self) -> Store:
        """The store as a worker's job has it."""
        ticket = ticket_of(join_token(SECRET, "shop", "local"))
        return Store(Line(self.url, lambda *request: show_ticket(ticket, *request), Stop()), "shop", 3.0)

    @property
    def data(self) -> Path:
        """Where a folder's bytes are."""
        return self.folder / "files" / "data"


@contextlib.contextmanager
def site(folder: Path, files: FilesPolicy) -> Iterator[Site]:
    """Serve a store in a thread."""
    import time  # noqa: PLC0415

    made = Site(folder, Policy("shop", {}, {}, {}, {}, files=files))
    made.depot = Depot(lambda: made.policy, folder, lambda: time.time() + made.ahead_s)
    made.records = Records(made.depot)
    guard = Guard("operator-token-of-it", ControllerPolicy, clients=lambda: made.policy.files.tokens)
    made.calls = Blobs(made.records, SECRET, guard.admit).calls()
    app = Starlette(
        routes=routes(made.calls, guard.admit),
        exception_handlers={FleetdError: refuse, ClientDisconnect: gone},
    )
    app.state.refused, app.state.events = Counter(), SimpleNamespace(let_go=lambda: None)
    listener = bind("127.0.0.1", 0)
    made.port = int(listener.getsockname()[1])
    server = make_server(app)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield made
    finally:
        server.should_exit = True
        thread.join(10)
