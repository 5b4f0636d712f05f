"""The HTTP API as workers and operators meet it: signatures, scopes, refusals in one line, long polls, commands."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetd.codecs.lease import (
    MAX_BODY,
    DeadLetter,
    authorization,
    dump,
    join_token,
    load_answer,
    load_order,
)
from fleetd.control import loop
from fleetd.core.model import Phase
from fleetd.errors import FleetdError
from fleetd.web import operators, viewers, workers
from fleetd.web.api import make_app
from fleetd.web.serve import bind
from tests.control.fleet import Fleet, lease, policy, until
from tests.web.site import SECRET, TOKEN, Site, called, refusal, serving, two_pools


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """The application called directly."""
    async with called(two_pools(tmp_path)) as site:
        yield site


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Site]:
    """The same behind its real server on loopback."""
    async with serving(two_pools(tmp_path)) as site:
        yield site


# ── workers


async def test_a_lease_with_the_right_signature_counts(served: Site) -> None:
    answer = await served.signed("POST", "/v1/lease", dump(lease(busy=1)))
    assert answer.status_code == 200
    assert load_answer(answer.content).ttl_s == 10.0
    assert served.fleet.controller.leases.views()["local/1.1"].busy == 1


async def test_a_wrong_or_missing_signature_is_401_and_leaves_no_trace(site: Site) -> None:
    body = dump(lease())
    code, line = refusal(await site.signed("POST", "/v1/lease", body, secret="another fleet's"))
    assert (code, "is wrong" in line) == (401, True)
    code, line = refusal(await site.http.post("/v1/lease", content=body))
    assert (code, "must be" in line) == (401, True)
    header = authorization(join_token(SECRET, "test", "local"), "POST", "/v1/lease", body)
    for path, content in (("/v1/lease", dump(lease(busy=1))), ("/v1/lease?x=1", body)):
        answer = await site.http.post(path, content=content, headers={"Authorization": header})
        assert refusal(answer)[0] == 401
    for path in ("/v1/orders?node=local/1.1&after=0", "/v1/orders"):
        assert refusal(await site.http.get(path))[0] == 401
    assert site.fleet.controller.leases.entries == {}


async def test_a_token_speaks_for_its_own_pool_alone(site: Site) -> None:
    code, line = refusal(await site.signed("POST", "/v1/lease", dump(lease("local/1.1")), pool="burst"))
    assert (code, line) == (401, "lease: the token is for test/burst, not for test/local")
    forged = dump(lease("local/1.1", pool="burst", state="drained"))
    code, line = refusal(await site.signed("POST", "/v1/lease", forged, pool="burst"))
    assert (code, line) == (401, "lease: the token is for test/burst, not for node local/1.1")
    code, line = refusal(await site.signed("GET", "/v1/orders?node=local/1.1&after=0", pool="burst"))
    assert (code, line) == (401, "orders: the token is for test/burst, not for node local/1.1")
    assert site.fleet.controller.leases.entries == {}


async def test_a_replayed_lease_is_refused(site: Site) -> None:
    await site.signed("POST", "/v1/lease", dump(lease(seq=4)))
    code, line = refusal(await site.signed("POST", "/v1/lease", dump(lease(seq=4))))
    assert (code, line) == (400, "lease: seq 4 of local/1.1 was here before (4 is the newest)")


@pytest.mark.parametrize("told", [True, False])
async def test_a_body_beyond_the_limit_is_413_and_the_server_lives_on(served: Site, *, told: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 1):
            yield b"x" * 65536

    content: Any = b"x" * (MAX_BODY + 1) if told else parts()
    answer = await served.http.post("/v1/lease", content=content)
    assert refusal(answer) == (413, f"body: more than the {MAX_BODY} bytes allowed")
    assert (await served.http.get("/healthz")).json()["ok"] is True


async def test_a_body_that_is_said_to_be_too_large_is_refused_unread(served: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(f"POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode())
    async with asyncio.timeout(2.0):
        assert b" 413 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"protocol": 2}', b'{"protocol":1}'])
async def test_a_garbled_lease_is_one_line(site: Site, body: bytes) -> None:
    code, line = refusal(await site.signed("POST", "/v1/lease", body))
    assert (code, line.startswith("lease")) == (400, True)


async def test_unknown_paths_and_methods_are_one_line(site: Site) -> None:
    assert refusal(await site.http.get("/v2/x")) == (404, "GET /v2/x: there is no such thing here")
    assert refusal(await site.http.get("/v1/lease")) == (405, "GET /v1/lease: there is no such thing here")


async def test_a_fault_of_ours_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, policy())
    app = make_app(fleet.controller, SECRET, TOKEN)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug with secrets in it")

    monkeypatch.setattr(viewers, "status", broken)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://fleetd") as http:
        answer = await http.get("/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
    assert refusal(answer) == (500, "GET /v1/status: RuntimeError: see the log")
    fleet.store.close()


async def test_dead_letters_are_confirmed_once_they_are_kept(site: Site) -> None:
    letter = DeadLetter("id1", "resize_a", "u", "H:1", 3, "boom", "", "")
    for seq in (1, 2):
        answer = await site.signed("POST", "/v1/lease", dump(lease(seq=seq, dead=[letter])))
        assert load_answer(answer.content).dead == ["id1"]
    assert (await site.operator("GET", "/v1/status")).json()["dead"] == 1


async def test_the_long_poll_brings_the_newest_order_at_once(served: Site) -> None:
    leases = served.fleet.controller.leases
    await served.signed("POST", "/v1/lease", dump(lease()))
    number = leases.entries["local/1.1"].order.number
    poll = asyncio.create_task(served.signed("GET", f"/v1/orders?node=local/1.1&after={number}"))
    await asyncio.sleep(0.1)
    assert not poll.done()
    started = time.monotonic()
    leases.order("local/1.1", "drain", 9.0)
    order = load_order((await poll).content)
    assert (order.number, order.state, order.deadline_s) == (number + 1, "drain", 9.0)
    assert time.monotonic() - started < 0.5
    leases.order("local/1.1", "work")
    order = load_order((await served.signed("GET", f"/v1/orders?node=local/1.1&after={number}")).content)
    assert (order.number, order.state) == (number + 2, "work")


async def test_a_long_poll_without_news_is_a_signed_204(served: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "POLL_S", 0.05)
    answer = await served.signed("GET", f"/v1/orders?node=local/1.1&after={1 << 40}")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("query", ["", "?node=local/1.1&after=x", "?node=&after=1", "?node=local/1.1&after=--1"])
async def test_a_poll_without_a_node_or_with_no_number_is_refused(site: Site, query: str) -> None:
    answer = await site.signed("GET", f"/v1/orders{query}")
    assert refusal(answer) == (400, "orders: needs node=ID and after=NUMBER")


async def test_the_server_ends_at_once_with_polls_open(tmp_path: Path) -> None:
    async with serving(Fleet(tmp_path, policy())) as site:
        polls = [
            asyncio.create_task(site.signed("GET", f"/v1/orders?node=local/{at}.1&after={1 << 40}")) for at in range(5)
        ]
        await until(lambda: len(site.fleet.controller.leases.entries) == 5)
        started = time.monotonic()
        site.fleet.controller.leases.let_go()
        assert [(await poll).status_code for poll in polls] == [204] * 5
    assert time.monotonic() - started < 2.0


# ── operators


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/status"), ("POST", "/v1/wake"), ("POST", "/v1/drain"), ("POST", "/v1/end")]
)
async def test_operators_need_their_token(site: Site, method: str, path: str) -> None:
    line = "authorization: needs a bearer token of this controller (FLEETD_TOKEN)"
    assert refusal(await site.http.request(method, path)) == (401, line)
    for wrong in ("", "x", TOKEN + "x", TOKEN[:-1], SECRET):
        assert refusal(await site.operator(method, path, {}, token=wrong)) == (401, line)
    worker = await site.signed(method, path, b"{}")
    assert refusal(worker) == (401, line), "a worker is no operator"
    assert not site.fleet.controller.memory.ending


async def test_the_status_has_what_is_documented(site: Site) -> None:
    await site.operator("POST", "/v1/wake", {"pool": "local", "count": 1, "for_s": 60})
    await until(lambda: site.fleet.controller.memory.nodes)
    raw = (await site.operator("GET", "/v1/status?events=2")).json()
    assert set(raw) == {
        *("version", "uptime_s", "fleet", "epoch", "ending", "paused", "currency", "spent"),
        *("queues", "pools", "nodes", "releases", "why", "dead", "events"),
    }
    assert (raw["fleet"], raw["epoch"], raw["ending"], raw["currency"]) == ("test", 1, False, "EUR")
    assert raw["spent"] == {"hour": 0, "month": 0.0}
    assert len(raw["events"]) == 2
    assert set(raw["events"][0]) == {"at", "kind", "text"}
    assert set(raw["pools"]) == {"local", "burst"}
    assert {"ready", "coming", "draining", "lost", "busy", "min", "max", "breaker_s", "drained"} <= set(
        raw["pools"]["local"]
    )
    queue = raw["queues"]["resize"]
    assert (queue["app"], queue["waiting"], queue["running"], queue["blind"]) == ("photos", 0, 0, "")
    (node,) = raw["nodes"]
    assert (node["id"], node["pool"], node["app"], node["slots"]) == ("local/1.1", "local", "photos", 1)
    assert node["phase"] in {"requested", "booting"}
    assert {"app photos", "pool local", "pool burst"} == set(raw["why"])


async def test_deep_explains_the_last_tick_by_the_memory_of_before_it(site: Site) -> None:
    site.fleet.source.waiting = 40
    await until(lambda: site.fleet.controller.memory.nodes)
    _, _, before = site.fleet.controller.basis
    assert before.now < site.fleet.controller.memory.now
    lines = (await site.operator("GET", "/v1/explain/deep")).json()["deep"]
    names = {line.partition(": ")[0] for line in lines}
    assert names == {
        *("queue resize of photos", "app photos", "app photos in local", "app photos in burst"),
        *("pool local", "pool burst"),
    }
    assert any(line.startswith("queue resize of photos: 40 waiting") for line in lines)


@pytest.mark.parametrize("events", ["x", "-1", "1.5", "", "²"])
async def test_a_wrong_number_of_events_is_422(site: Site, events: str) -> None:
    answer = await site.operator("GET", f"/v1/status?events={events}")
    assert refusal(answer) == (422, "events: must be a whole number")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"pool": "locl"}, "pool: no pool 'locl'; did you mean 'local'?; there are local, burst"),
        ({}, "pool: is missing"),
        ({"pol": "local"}, "pol: no such key; did you mean 'pool'?; there are pool, count, for_s"),
        ({"pool": ["local"]}, "pool: must be text"),
        ({"pool": "lo\ncal"}, "pool: must have printable characters alone"),
        ({"pool": "local", "count": 0}, "count: must be greater than or equal to 1"),
        ({"pool": "local", "count": 11}, "count: local has at most 10 nodes"),
        ({"pool": "local", "count": 10**30}, "count: local has at most 10 nodes"),
        ({"pool": "local", "count": 1.5}, "count: must be a whole number"),
        ({"pool": "local", "count": True}, "count: must be a whole number"),
        ({"pool": "local", "count": float("nan")}, "count: must be a whole number"),
        ({"pool": "local", "for_s": float("nan")}, "for_s: must be a finite number"),
        ({"pool": "local", "for_s": float("inf")}, "for_s: must be a finite number"),
        ({"pool": "local", "for_s": "5m"}, "for_s: must be a number"),
        ([], "body: must be a JSON object"),
    ],
)
async def test_a_wrong_wake_is_422_with_what_would_be_right(site: Site, body: object, line: str) -> None:
    assert refusal(await site.operator("POST", "/v1/wake", body)) == (422, line)
    assert site.fleet.controller._commands == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b'{"pool": "\\ud800"}', b'{"pool": NaN1}'])
async def test_garbage_from_an_operator_is_422(site: Site, body: bytes) -> None:
    answer = await site.http.post("/v1/wake", content=body, headers={"Authorization": f"Bearer {TOKEN}"})
    assert refusal(answer) == (422, "body: must be JSON")


async def test_a_wake_is_answered_once_it_is_in_memory(served: Site) -> None:
    answer = await served.operator("POST", "/v1/wake", {"pool": "local", "count": 2, "for_s": 60})
    assert answer.json() == {"done": "local holds at least 2 nodes for 60 s"}
    (wake,) = served.fleet.controller.memory.pools["local"].wakes
    assert wake.count == 2
    await until(lambda: len(served.fleet.providers["local"].machines.nodes) == 2)


async def test_a_command_that_no_tick_takes_is_told_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "TAKEN_S", 0.1)

    def commit(*_: object, **__: object) -> None:
        raise FleetdError("fleet.db: cannot write: disk full")

    with monkeypatch.context() as broken:
        broken.setattr(site.fleet.store, "commit", commit)
        code, line = refusal(await site.operator("POST", "/v1/wake", {"pool": "local"}))
        assert (code, line.startswith("not taken within 0 s")) == (503, True)
    await until(lambda: [pool for pool in site.fleet.controller.memory.pools.values() if pool.wakes])


async def woken(site: Site, count: int) -> list[str]:
    """Nodes of the local pool, all ready."""
    await site.operator("POST", "/v1/wake", {"pool": "local", "count": count, "for_s": 600})
    memory = lambda: site.fleet.controller.memory  # noqa: E731
    await until(lambda: len(memory().nodes) == count)
    await site.fleet.all_speak()
    await until(lambda: {n.phase for n in memory().nodes.values()} == {Phase.READY})
    return sorted(memory().nodes)


async def test_a_machine_is_woken_by_its_name(site: Site) -> None:
    await woken(site, 1)
    answer = await site.operator("POST", "/v1/wake", {"pool": "local/1", "for_s": 7200})
    assert answer.json() == {"done": "local/1 is held up for 7200 s"}
    assert [(w.count, w.machine) for w in site.fleet.controller.memory.pools["local"].wakes] == [(1, ""), (0, "1")]
    for body, line in [
        ({"pool": "local/11"}, "pool: local knows no machine '11'; did you mean '1'?"),
        ({"pool": "burst/1"}, "pool: burst knows no machine '1'"),
        ({"pool": "elsewhere/1"}, "pool: no pool 'elsewhere'; there are local, burst"),
        ({"pool": "local/1", "count": 2}, "count: local/1 is one machine"),
    ]:
        assert refusal(await site.operator("POST", "/v1/wake", body)) == (422, line)


async def test_a_drain_by_node_finds_it_whole_or_by_its_process(site: Site) -> None:
    await woken(site, 1)
    site.fleet.providers["local"].machines.count = 9  # the next is 10
    names = await woken(site, 2)
    assert names == ["local/1.1", "local/10.1"]
    answer = await site.operator("POST", "/v1/drain", {"target": "local/1"})
    assert answer.json() == {"done": "draining node local/1.1"}, "its process, not a beginning of another's"
    answer = await site.operator("POST", "/v1/drain", {"target": "local/10.1"})
    assert answer.json() == {"done": "draining node local/10.1"}
    nodes = site.fleet.controller.memory.nodes
    assert {name: nodes[name].phase for name in names} == dict.fromkeys(names, Phase.DRAINING)


@pytest.mark.parametrize("body", [{}, {"target": ""}, {"target": "", "force": True}, {"target": None}])
async def test_a_drain_of_nothing_drains_nothing(site: Site, body: object) -> None:
    await woken(site, 1)
    code, line = refusal(await site.operator("POST", "/v1/drain", body))
    assert code == 422
    assert line.startswith("target: ")
    assert {n.phase for n in site.fleet.controller.memory.nodes.values()} == {Phase.READY}


async def test_a_drain_by_a_wrong_name_suggests_and_by_an_ambiguous_one_refuses(site: Site) -> None:
    await woken(site, 2)
    assert refusal(await site.operator("POST", "/v1/drain", {"target": "brst"})) == (
        422,
        "target: 'brst' is no pool and no node; did you mean 'burst'?; see `fleetd status`",
    )
    assert refusal(await site.operator("POST", "/v1/drain", {"target": "local/"})) == (
        422,
        "target: 'local/' names more than one node; see `fleetd status`",
    )


async def test_a_drain_of_a_pool_drains_it_for_its_time(site: Site) -> None:
    await woken(site, 2)
    answer = await site.operator("POST", "/v1/drain", {"target": "local", "for_s": 60})
    assert answer.json() == {"done": "draining pool local: 2 nodes"}
    controller = site.fleet.controller
    assert {n.phase for n in controller.memory.nodes.values()} == {Phase.DRAINING}
    assert 55 < controller.memory.pools["local"].drained_until - controller.clock() <= 60
    assert controller.memory.pools["burst"].drained_until == 0.0


async def test_force_stops_a_busy_node_and_nothing_less_does(site: Site) -> None:
    (node,) = await woken(site, 1)
    await site.fleet.speak(node, busy=1)
    await site.operator("POST", "/v1/drain", {"target": node})
    await site.fleet.speak(node, busy=1, state="draining")
    await asyncio.sleep(0.3)
    assert site.fleet.providers["local"].machines.stopped == []
    answer = await site.operator("POST", "/v1/drain", {"target": node, "force": True})
    assert answer.json() == {"done": f"stopping node {node}"}
    await until(lambda: site.fleet.providers["local"].machines.stopped == [node])


async def test_ending_an_empty_fleet_ends_it(site: Site) -> None:
    answer = await site.operator("POST", "/v1/end")
    assert answer.json() == {"done": "the fleet ends: every node drains"}
    assert site.fleet.controller.memory.ending


# ── the server


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    first = bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with pytest.raises(FleetdError, match=rf"127.0.0.1:{port}: Address already in use; is another controller there"):
        bind("127.0.0.1", port)
    first.close()
    bind("127.0.0.1", port).close()


def test_an_address_that_is_not_ours_is_one_line() -> None:
    with pytest.raises(FleetdError, match=r"controller\.listen: 192\.0\.2\.1:0: Cannot assign"):
        bind("192.0.2.1", 0)


async def test_a_client_that_leaves_in_mid_request_harms_nothing(
    served: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as rude:
        rude.sendall(b"POST /v1/lease HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    assert (await served.http.get("/healthz")).status_code == 200
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
