"""A running controller behind its API, as tests call it; every answer is checked against the OpenAPI document."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from fleetd.codecs.lease import ANSWER_HEADER, authorization, join_token, sign_answer, split_token
from fleetd.control.code import Code
from fleetd.web.api import make_app
from fleetd.web.serve import bind, make_server
from tests.control.fleet import FakeSource, Fleet, policy, pool, until
from tests.web.contract import Contract

SECRET, TOKEN = "join-secret", "operator-token"


@dataclass(slots=True)
class Site:
    """A running controller behind its API; `port` where that is a real server."""

    fleet: Fleet
    http: httpx.AsyncClient
    app: Starlette
    port: int = 0

    async def signed(
        self, method: str, path: str, body: bytes = b"", *, pool: str = "local", secret: str = SECRET
    ) -> httpx.Response:
        """Call as a worker of this pool does, and check the answer's signature where it is no refusal."""
        token = join_token(secret, "test", pool)
        header = authorization(token, method, path, body)
        answer = await self.http.request(method, path, content=body, headers={"Authorization": header})
        if answer.is_success:
            expected = sign_answer(split_token(token)[1], header.rpartition(" ")[2], answer.content)
            assert answer.headers[ANSWER_HEADER] == expected
        else:
            assert ANSWER_HEADER not in answer.headers
        return answer

    async def operator(self, method: str, path: str, body: object = None, token: str = TOKEN) -> httpx.Response:
        """Call as an operator's command does."""
        content = json.dumps(body) if body is not None else None
        return await self.http.request(
            method, path, content=content, headers={"Authorization": f"Bearer {token}".strip()}
        )


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """(code, line) of a refusal in the one form that they have."""
    raw = answer.json()
    assert set(raw) - {"place"} == {"error"}
    assert "\n" not in raw["error"]
    return answer.status_code, raw["error"]


@asynccontextmanager
async def serving(fleet: Fleet, code: Code | None = None, **server_options: Any) -> AsyncIterator[Site]:
    """The API behind its real server on loopback."""
    listener = bind("127.0.0.1", 0)
    port = int(listener.getsockname()[1])
    app = make_app(fleet.controller, SECRET, TOKEN, code)
    server = make_server(app, **server_options)
    async with fleet.running() as controller:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await until(lambda: server.started)
            hooks: dict[str, list[Any]] = {"response": [Contract(app.state.calls)]}
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, event_hooks=hooks) as http:
                yield Site(fleet, http, app, port)
        finally:
            server.should_exit = True
            controller.leases.let_go()
            await asyncio.wait_for(task, 5.0)


@asynccontextmanager
async def called(fleet: Fleet) -> AsyncIterator[Site]:
    """The application called directly: for what no socket has a part in."""
    app = make_app(fleet.controller, SECRET, TOKEN)
    transport = httpx.ASGITransport(app)
    hooks: dict[str, list[Any]] = {"response": [Contract(app.state.calls)]}
    async with (
        fleet.running(),
        httpx.AsyncClient(transport=transport, base_url="http://fleetd", event_hooks=hooks) as http,
    ):
        yield Site(fleet, http, app)


def two_pools(folder: Path, **changes: Any) -> Fleet:
    """A fleet of the pools `local` and `burst`."""
    return Fleet(folder, policy(pool(), pool("burst"), **changes), FakeSource())
