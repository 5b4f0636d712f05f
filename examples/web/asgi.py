"""An ASGI page that hands work away, returns at once, is told how far it is by server-sent events, and then the result.

python -m examples.web.asgi --server 127.0.0.1:4730

FLEETD_URL and FLEETD_TOKEN say where ends of jobs are kept. Any ASGI server does: `make(client)` is the application.
"""

import argparse
import asyncio
import socket
import sys
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.web.page import FORM, FUNCTION, KEEP_S, LISTEN, job_of, path_of, waiting
from fleetd.client import AsyncClient, Files, FleetdError, JobError, JobHandle, asse
from fleetd.client.sse import MEDIA

NONE = "no such page\n"


def make(client: AsyncClient) -> Starlette:
    """Return the application."""

    async def home(request: Request) -> Response:
        if request.method == "GET":
            return HTMLResponse(FORM)
        text = parse_qs((await request.body()).decode()).get("text", [""])[0]
        handle = await client.submit(FUNCTION, text.encode(), keep_result_s=KEEP_S)
        return RedirectResponse(path_of(handle), 303)

    async def job(request: Request) -> Response:
        found = job_of(request.url.path)
        return await of_job(client, *found) if found else PlainTextResponse(NONE, 404)

    async def sorry(_: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", 404 if isinstance(error, JobError) else 503)

    return Starlette(
        routes=[Route("/", home, methods=["GET", "POST"]), Route("/jobs/{rest:path}", job, methods=["GET", "POST"])],
        exception_handlers={FleetdError: sorry},
    )


async def of_job(client: AsyncClient, job: JobHandle, path: str, asked: str) -> Response:
    """Answer what is asked of a job."""
    match asked:
        case "":
            return HTMLResponse(waiting(path, job, LISTEN))
        case "events":
            return StreamingResponse(asse(client.follow(job, every_s=0.1)), media_type=MEDIA)
        case "result":
            return PlainTextResponse(await client.result(job))
        case "cancel":
            return PlainTextResponse(await client.cancel(job))
    return PlainTextResponse(NONE, 404)


async def serve(server: str, port: int) -> None:
    """Serve the page."""
    listener = socket.create_server(("127.0.0.1", port))
    async with AsyncClient([server], files=Files.from_environment()) as client:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        config = uvicorn.Config(make(client), log_level="warning", lifespan="off")
        await uvicorn.Server(config).serve([listener])


def main() -> int:
    """Serve the page with uvicorn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:4730", help="the dispatcher")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    asyncio.run(serve(given.server, given.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
