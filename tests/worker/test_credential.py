"""A credential that ends, renewed while the worker runs: by the lease's answer, without a missed order."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fleetd.codecs.lease import (
    ANSWER_HEADER,
    Lease,
    LeaseAnswer,
    WorkerOrder,
    dump,
    load_lease,
    sign_answer,
    split_token,
    verify,
)
from fleetd.codecs.scope import node_token
from fleetd.errors import UsageError
from fleetd.worker.credential import FILE_VARIABLE, find_token, write_token
from fleetd.worker.lease import Controller

SECRET, NODE = "s" * 40, "rack3/node07.12"
OLD, NEW = node_token(SECRET, "shop", NODE, 1000), node_token(SECRET, "shop", NODE, 2000)


@dataclass
class Office:
    """A controller that renews at the first lease, and answers a long poll only after that."""

    scopes: list[tuple[str, str]] = field(default_factory=list)
    renewed: threading.Event = field(default_factory=threading.Event)
    token: str = NEW
    url: str = ""


@contextmanager
def office() -> Iterator[Office]:
    made = Office()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def answer(self, body: bytes, made_of: bytes = b"") -> None:
            scope, key, signature = verify(SECRET, self.headers["Authorization"], self.command, self.path, made_of)
            made.scopes.append((self.command, scope))
            self.send_response(200)
            self.send_header(ANSWER_HEADER, sign_answer(key, signature, body))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            load_lease(body)
            self.answer(dump(LeaseAnswer(1.0, 10.0, token=made.token)), body)
            made.renewed.set()

        def do_GET(self) -> None:
            made.renewed.wait(10)
            time.sleep(0.2)
            self.answer(dump(WorkerOrder(7, "drain")))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class Worker:
    order = 0

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def lease(self, boot: str, seq: int, node: str) -> Lease:
        return Lease("shop", "rack3", node, boot, seq, "app", "working", 1, 0)

    def obey(self, order: WorkerOrder) -> None:
        raise AssertionError(order)


async def test_a_poll_under_way_while_the_token_is_renewed_is_believed_and_the_next_uses_the_new_one(
    tmp_path: Path,
) -> None:
    with office() as at:
        kept = tmp_path / "join"
        write_token(kept, OLD)
        controller = Controller(at.url, OLD, NODE, "app", tmp_path, kept)
        poll = asyncio.create_task(controller.poll(0))
        await asyncio.sleep(0.1)
        await controller.say(Worker())
        order = await poll
        assert order == WorkerOrder(7, "drain")
        await controller.say(Worker())
        controller.abort()
        old, new = split_token(OLD)[0], split_token(NEW)[0]
        assert sorted(at.scopes) == sorted([("POST", old), ("GET", old), ("POST", new)])
        assert kept.read_text() == NEW
        assert kept.stat().st_mode & 0o777 == 0o600


async def test_a_renewed_token_that_cannot_be_written_is_used_all_the_same(tmp_path: Path) -> None:
    with office() as at:
        controller = Controller(at.url, OLD, NODE, "app", tmp_path, tmp_path / "gone" / "join")
        await controller.say(Worker())
        assert controller.token == NEW
        controller.abort()


async def test_a_new_token_that_is_none_is_not_taken(tmp_path: Path) -> None:
    with office() as at:
        at.token = "nonsense"
        controller = Controller(at.url, OLD, NODE, "app", tmp_path)
        with pytest.raises(Exception, match="join token: malformed"):
            await controller.say(Worker())
        assert controller.token == OLD
        controller.abort()


def test_the_token_is_found_in_its_file_or_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("FLEETD_JOIN_TOKEN", "from the environment")
    assert find_token() == ("from the environment", None)
    path = tmp_path / "join"
    path.write_text(f"{OLD}\n")
    monkeypatch.setenv(FILE_VARIABLE, str(path))
    assert find_token() == (OLD, path)
    path.unlink()
    with pytest.raises(UsageError, match=f"{FILE_VARIABLE}: {path}: No such file"):
        find_token()
