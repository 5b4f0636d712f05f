"""Lease protocol 1 as it was written when it was frozen. These bytes are read for ever: never edit, only add.

A fleet is never of one version: nodes come up from old images, controllers are updated first or last. What may change,
and how, is in docs/compatibility.md.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fleetd.codecs import lease as codec
from fleetd.codecs.lease import DeadLetter, JobCounts, Lease, LeaseAnswer, WorkerOrder
from fleetd.errors import ProtocolError
from fleetd.worker.lease import Controller

SECRET = "fixed-secret"
TOKEN = "shop/rack3.1f0f0f1809da13c8b656c4680ef15b318597da6d26214026fcff28e5046c7001"
LEASE = (
    b'{"fleet":"shop","pool":"rack3","node":"rack3/52:54:00:12:34:56",'
    b'"boot":"b1","seq":7,"app":"photos","state":"draining",'
    b'"slots":4,"busy":2,"idle_s":1.5,"pid":42,'
    b'"key":"k-1","digest":"dddddddddddd","crashes":1,"order":16777219,'
    b'"jobs":{"resize":{"started":5,"done":3,"failed":1,"service_s":12.5,'
    b'"buckets":{"40":3,"-4":1},"running_s":[0.5,2.0]}},'
    b'"dead":[{"id":"i1","function":"resize","unique":"u1","handle":"H:a:1","attempts":3,'
    b'"reason":"raised","traceback":"Traceback","payload":"eA=="}],'
    b'"protocol":1}'
)
LEASE_SIGNATURE = "32c037f22d2c75a3333cc619c01bc491cdd9abe032515b539b5afe1f609d8720"
ANSWER = b'{"next_s":2.0,"ttl_s":10.0,"dead":["i1"],"protocol":1}'
ANSWER_SIGNATURE = "ffe55cace9c86838d4315d3a96fa7ccc2ab9162278198e7ca867d030d8b48f73"
ORDERS_PATH = "/v1/orders?node=rack3%2F52%3A54%3A00%3A12%3A34%3A56&boot=b1&after=16777219"
ORDERS_SIGNATURE = "295e0bdf1a43527f6ec9f9e25d14b18fbe53874f8f33bea8db077e9f6d0a2a90"
ORDER = b'{"number":16777220,"state":"drain","deadline_s":30.0,"epoch":1,"protocol":1}'
ORDER_SIGNATURE = "799d523ae96ecfd323df983d92e6326164bc3b9e061a5a774d75a1fe639f0552"

SAID = Lease(
    fleet="shop",
    pool="rack3",
    node="rack3/52:54:00:12:34:56",
    boot="b1",
    seq=7,
    app="photos",
    state="draining",
    slots=4,
    busy=2,
    idle_s=1.5,
    pid=42,
    key="k-1",
    digest="dddddddddddd",
    crashes=1,
    order=16777219,
    jobs={"resize": JobCounts(5, 3, 1, 12.5, {"40": 3, "-4": 1}, [0.5, 2.0])},
    dead=[DeadLetter("i1", "resize", "u1", "H:a:1", 3, "raised", "Traceback", "eA==")],
)
NEWER: dict[str, Any] = {"colour": "red", "nested": {"a": [1, None]}, "number": 1e300, "state2": True}


# ── what was written is read


def test_the_frozen_lease_is_read() -> None:
    assert codec.load_lease(LEASE) == SAID


def test_the_frozen_answer_and_order_are_read() -> None:
    assert codec.load_answer(ANSWER) == LeaseAnswer(next_s=2.0, ttl_s=10.0, dead=["i1"])
    assert codec.load_order(ORDER) == WorkerOrder(16777220, "drain", deadline_s=30.0, epoch=1)


@pytest.mark.parametrize("state", ["work", "drain", "stop"])
def test_every_frozen_order_has_its_meaning(state: str) -> None:
    body = b'{"number":3,"state":"%s","deadline_s":null,"epoch":0,"protocol":1}' % state.encode()
    order = codec.load_order(body)
    assert (order.number, order.state, order.deadline_s) == (3, state, None)


@pytest.mark.parametrize("state", ["working", "draining", "drained"])
def test_every_frozen_state_of_a_worker_has_its_meaning(state: str) -> None:
    assert codec.load_lease(LEASE.replace(b'"draining"', b'"%s"' % state.encode())).state == state


# ── what is written now is read by those who read the frozen bytes


@pytest.mark.parametrize(
    ("frozen", "now"),
    [
        (LEASE, SAID),
        (ANSWER, LeaseAnswer(next_s=2.0, ttl_s=10.0, dead=["i1"])),
        (ORDER, WorkerOrder(16777220, "drain", deadline_s=30.0, epoch=1)),
    ],
)
def test_every_frozen_field_is_still_written_with_the_same_value(
    frozen: bytes, now: Lease | LeaseAnswer | WorkerOrder
) -> None:
    def within(old: Any, new: Any) -> bool:
        match old:
            case dict():
                return all(key in new and within(value, new[key]) for key, value in old.items())
            case list():
                return len(old) == len(new) and all(map(within, old, new))
        return type(old) is type(new) and old == new

    assert within(json.loads(frozen), json.loads(codec.dump(now)))


# ── signatures


def test_the_frozen_token_and_signatures_are_made_and_taken() -> None:
    assert codec.join_token(SECRET, "shop", "rack3") == TOKEN
    header = f"Fleetd-HMAC-SHA256 shop/rack3 {LEASE_SIGNATURE}"
    assert codec.authorization(TOKEN, "POST", "/v1/lease", LEASE) == header
    scope, key, signature = codec.verify(SECRET, header, "POST", "/v1/lease", LEASE)
    assert (scope, signature) == ("shop/rack3", LEASE_SIGNATURE)
    assert codec.sign_answer(key, signature, ANSWER) == ANSWER_SIGNATURE


def test_the_frozen_poll_and_its_answer_are_signed_as_they_were() -> None:
    header = f"Fleetd-HMAC-SHA256 shop/rack3 {ORDERS_SIGNATURE}"
    _, key, signature = codec.verify(SECRET, header, "GET", ORDERS_PATH)
    assert codec.sign_answer(key, signature, ORDER) == ORDER_SIGNATURE


def test_the_names_that_travel_in_headers_stay() -> None:
    assert (codec.SCHEME, codec.ANSWER_HEADER, codec.PROTOCOL) == ("Fleetd-HMAC-SHA256", "X-Fleetd-Signature", 1)


# ── older and newer peers

OPTIONAL = ("idle_s", "pid", "key", "digest", "crashes", "order", "jobs", "dead")


@pytest.mark.parametrize("absent", [("order", "crashes", "digest"), OPTIONAL])
def test_a_lease_of_an_older_worker_is_taken(absent: tuple[str, ...]) -> None:
    raw = {name: value for name, value in json.loads(LEASE).items() if name not in absent}
    lease = codec.load_lease(json.dumps(raw).encode())
    assert (lease.order, lease.crashes, lease.digest) == (0, 0, "")
    assert (lease.node, lease.seq, lease.busy) == ("rack3/52:54:00:12:34:56", 7, 2)


def test_a_lease_of_a_newer_worker_is_taken_at_every_depth() -> None:
    raw = json.loads(LEASE)
    raw = {
        **NEWER,
        **raw,
        "jobs": {"resize": {**raw["jobs"]["resize"], **NEWER}},
        "dead": [{**raw["dead"][0], **NEWER}],
    }
    assert codec.load_lease(json.dumps(raw).encode()) == SAID


def test_a_message_of_another_protocol_is_refused_by_its_number() -> None:
    for load, body in ((codec.load_lease, LEASE), (codec.load_answer, ANSWER), (codec.load_order, ORDER)):
        with pytest.raises(ProtocolError, match="protocol 2 is not spoken here, only 1"):
            load(body.replace(b'"protocol":1', b'"protocol":2'))


class Newer(BaseHTTPRequestHandler):
    """A controller of a later version: it says more than this worker knows."""

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, body: bytes, message: bytes) -> None:
        _, key, signature = codec.verify(SECRET, self.headers["Authorization"], self.command, self.path, body)
        content = json.dumps({**NEWER, **json.loads(message)}).encode()
        self.send_response(200)
        self.send_header(codec.ANSWER_HEADER, codec.sign_answer(key, signature, content))
        self.send_header("X-Later", "what nobody knows yet")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])), ANSWER)

    def do_GET(self) -> None:
        self.answer(b"", ORDER)


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Newer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Worker:
    """As much of a worker as a lease needs."""

    order = 16777219

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def lease(self, boot: str, seq: int, node: str) -> Lease:
        return Lease(**{**asdict(SAID), "boot": boot, "seq": seq, "node": node, "jobs": {}, "dead": []})

    def obey(self, order: WorkerOrder) -> None:
        raise AssertionError(order)


async def test_a_worker_takes_the_answer_and_the_order_of_a_newer_controller(url: str, tmp_path: Path) -> None:
    controller = Controller(url, TOKEN, SAID.node, SAID.app, tmp_path)
    answer = await controller.say(Worker())
    order = await controller.poll(16777219)
    controller.abort()
    assert answer == LeaseAnswer(next_s=2.0, ttl_s=10.0, dead=["i1"])
    assert order == WorkerOrder(16777220, "drain", deadline_s=30.0, epoch=1)
