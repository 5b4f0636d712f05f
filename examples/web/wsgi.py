"""A WSGI page that hands work away, returns at once, shows how far it is, and then the result.

python -m examples.web.wsgi --server 127.0.0.1:4730

FLEETD_URL and FLEETD_TOKEN say where ends of jobs are kept. Any WSGI server does: `make(client)` is the application.
The browser asks for the state again and again, since a thread that waits for a job is one that serves nobody.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import make_server

from examples.web.page import FORM, FUNCTION, KEEP_S, POLL, job_of, path_of, waiting
from fleetd.client import Client, Files, FleetdError, JobError, JobHandle

MOST_TEXT = 1_000_000
Start = Callable[[str, list[tuple[str, str]]], object]
App = Callable[[dict[str, Any], Start], Iterable[bytes]]


def make(client: Client) -> App:
    """Return the application."""

    def app(environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        try:
            status, headers, body = answer(client, environ)
        except FleetdError as error:
            status, headers, body = "503 Service Unavailable", [text("plain")], f"{error}\n".encode()
        start(status, [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [body]

    return app


def answer(client: Client, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    """Answer one request."""
    path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
    if path == "/" and method == "POST":
        size = min(int(environ.get("CONTENT_LENGTH") or 0), MOST_TEXT)
        form = parse_qs(environ["wsgi.input"].read(size).decode())
        handle = client.submit(FUNCTION, form.get("text", [""])[0].encode(), keep_result_s=KEEP_S)
        return "303 See Other", [("Location", path_of(handle))], b""
    if path == "/":
        return "200 OK", [text("html")], FORM.encode()
    found = job_of(path)
    if found is None:
        return "404 Not Found", [text("plain")], b"no such page\n"
    return of_job(client, *found)


def of_job(client: Client, job: JobHandle, path: str, asked: str) -> tuple[str, list[tuple[str, str]], bytes]:
    """Answer what is asked of a job; none of it waits."""
    match asked:
        case "":
            return "200 OK", [text("html")], waiting(path, job, POLL)
        case "state":
            state = client.state(job)
            body = json.dumps(asdict(state) | {"over": state.over}).encode()
            return "200 OK", [("Content-Type", "application/json")], body
        case "result":
            try:
                return "200 OK", [text("plain")], client.result(job)
            except JobError as error:
                return "404 Not Found", [text("plain")], f"{error}\n".encode()
        case "cancel":
            return "200 OK", [text("plain")], client.cancel(job).encode()
    return "404 Not Found", [text("plain")], b"no such page\n"


def text(kind: str) -> tuple[str, str]:
    """Return the header of a text."""
    return "Content-Type", f"text/{kind}; charset=utf-8"


def main() -> int:
    """Serve the page with the standard library's server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="127.0.0.1:4730", help="the dispatcher")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    with (
        Client([given.server], files=Files.from_environment()) as client,
        make_server("127.0.0.1", given.port, make(client)) as server,
    ):
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
