"""Alerts against a real little web server: what is posted, when, how often, and what a bad webhook may not do."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fleetd.codecs.lease import DeadLetter
from fleetd.control import alerts
from fleetd.control.alerts import Alerts, conditions
from fleetd.control.status import picture_of, status
from fleetd.core.decide import decide
from fleetd.core.memory import Memory
from fleetd.core.model import AlertsPolicy, Blind, Observation, Plan
from fleetd.errors import FleetdError
from tests.control.fleet import Fleet, lease, policy, until
from tests.servers import free_port

SECRET = "s3cret-hook"


@dataclass(slots=True)
class Hook:
    """A webhook: answers with `codes` in turn and then with 200; `hold` answers nothing at all."""

    port: int = 0
    codes: list[int] = field(default_factory=list)
    hold: bool = False
    got: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{SECRET}"

    def told(self) -> list[tuple[str, str]]:
        return [(body["alert"], body["state"]) for body in self.got]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length")
        )
        body = json.loads(await reader.readexactly(length))
        self.paths.append(head.split(" ")[1])
        if not self.hold:
            code = self.codes.pop(0) if self.codes else 200
            if code == 200:
                self.got.append(body)
            extra = f"Location: http://127.0.0.1:{self.port}/elsewhere\r\n" if 300 <= code < 400 else ""
            writer.write(f"HTTP/1.1 {code} X\r\n{extra}Content-Length: 0\r\n\r\n".encode())
            writer.close()
        else:
            await reader.read()
            writer.close()


@pytest.fixture
async def hook(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hook]:
    """A running webhook; tries follow each other fast."""
    monkeypatch.setattr(alerts, "BACKOFF_S", 0.02)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Hook()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made


@dataclass(slots=True)
class Told:
    """Alerts with their log and a clock that a test moves; `policy` may be exchanged, as a reload does."""

    policy: AlertsPolicy
    now: float = 0.0
    said: list[tuple[str, str]] = field(default_factory=list)
    alerts: Alerts = field(init=False)

    def __post_init__(self) -> None:
        self.alerts = Alerts(lambda: self.policy, lambda *line: self.said.append(line), clock=lambda: self.now)

    async def see(self, at: float, **parts: Any) -> None:
        """Show a picture at a time."""
        self.now = at
        await self.alerts.update({"fleet": "shop", "dead": 0, **parts})


@asynccontextmanager
async def telling(url: str | None, *on: Any) -> AsyncIterator[Told]:
    told = Told(AlertsPolicy(url, on) if on else AlertsPolicy(url))
    try:
        yield told
    finally:
        await told.alerts.close()


BLIND = {"queues": {"resize": {"blind": "connection refused", "blind_s": 12.0}}}
BREAKER = {"pools": {"burst": {"breaker_s": 8.0, "breaker_why": "no capacity"}}}
BUDGET = {"why": {"budget": "spent 4.10 of 5 EUR this hour"}}


# ── the conditions


def test_a_picture_says_what_must_be_heard_of() -> None:
    assert conditions({**BLIND, **BREAKER, **BUDGET, "dead": 3}) == {
        "blind queue resize": "queue resize is blind: connection refused",
        "breaker pool burst": "pool burst is not asked for nodes, its breaker is open: no capacity",
        "budget": "budget: spent 4.10 of 5 EUR this hour",
        "dead letters": "3 dead letters kept",
    }


def test_a_quiet_fleet_has_none() -> None:
    quiet = {"queues": {"resize": {"blind": "", "blind_s": 0.0}}, "pools": {"burst": {"breaker_s": 0.0}}}
    assert conditions({**quiet, "why": {"pool burst": "0 of 4 nodes"}, "dead": 0}) == {}
    assert conditions({}) == {}


@pytest.mark.parametrize(("blind_s", "known"), [(0.0, False), (9.9, False), (10.0, True)])
def test_blindness_counts_after_ten_seconds(blind_s: float, known: bool) -> None:  # noqa: FBT001
    found = conditions({"queues": {"resize": {"blind": "x", "blind_s": blind_s}}})
    assert list(found) == ["blind queue resize"] * known


def test_a_queue_that_was_not_read_yet_is_no_condition() -> None:
    assert conditions({"queues": {"resize": {"app": "photos", "blind": "not read yet", "waiting": None}}}) == {}


def test_the_picture_of_a_real_decision_holds_them() -> None:
    rules = policy()
    memory, plan = Memory(epoch=1), Plan()
    for now in (0.0, 1.0, 12.0):
        plan, memory = decide(Observation(now=now, readings={"resize": Blind("refused")}), rules, memory)
    opened = replace(memory.pools["local"], open_until=20.0, why_open="no capacity")
    memory = replace(memory, pools={"local": opened})
    plan = replace(plan, sentences={**plan.sentences, "budget": "spent 4.10 of 5 EUR this hour"})
    found = conditions(picture_of(rules, memory, plan, 12.0))
    assert found == {
        "blind queue resize": "queue resize is blind: refused",
        "breaker pool local": "pool local is not asked for nodes, its breaker is open: no capacity",
        "budget": "budget: spent 4.10 of 5 EUR this hour",
    }


async def test_the_status_of_a_running_controller_counts_dead_letters(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    async with fleet.running() as controller:
        letter = DeadLetter("i", "resize", "u", "H:1", 3, "raised", "Traceback", "eA==")
        await controller.accept(lease(dead=[letter]))
        assert conditions(status(controller))["dead letters"] == "1 dead letter kept"


# ── what is posted


async def test_a_condition_is_posted_when_it_comes_and_when_it_is_over(hook: Hook) -> None:
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND)
        await until(lambda: hook.got)
        await told.see(20.0, **BLIND)
        await told.see(22.0)
        await told.see(49.0)
        assert hook.told() == [("blind queue resize", "firing")]
        await told.see(50.0)
        await until(lambda: len(hook.got) == 2)
    first, last = hook.got
    stamp = datetime.fromisoformat(first.pop("at"))
    assert abs((datetime.now(UTC) - stamp).total_seconds()) < 10
    assert first == {
        "fleet": "shop",
        "alert": "blind queue resize",
        "state": "firing",
        "text": "fleet shop: queue resize is blind: connection refused",
    }
    assert last["state"] == "resolved"
    assert last["text"] == "fleet shop: resolved after 20 s: queue resize is blind: connection refused"
    assert hook.paths == [f"/{SECRET}"] * 2
    assert told.said == []


async def test_a_condition_that_lasts_or_comes_back_soon_is_told_once(hook: Hook) -> None:
    async with telling(hook.url) as told:
        for at in range(0, 200, 2):
            open_now = {"pools": {"burst": {"breaker_s": 1.0, "breaker_why": f"try {at}"}}}
            await told.see(at, **(open_now if at % 30 < 20 else {}))
            await asyncio.sleep(0)
        await until(lambda: hook.got)
        await asyncio.sleep(0.1)
    assert hook.told() == [("breaker pool burst", "firing")]


async def test_every_condition_is_an_alert_of_its_own_in_order(hook: Hook) -> None:
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND, **BREAKER, **BUDGET)
        await until(lambda: len(hook.got) == 3)
    assert [name for name, _ in hook.told()] == ["blind queue resize", "breaker pool burst", "budget"]


async def test_what_the_policy_leaves_out_is_not_told(hook: Hook) -> None:
    async with telling(hook.url, "budget", "dead") as told:
        await told.see(0.0, **BLIND, **BREAKER, **BUDGET)
        await until(lambda: hook.got)
        await asyncio.sleep(0.1)
    assert hook.told() == [("budget", "firing")]


async def test_dead_letters_are_told_by_each_rise_of_their_number(hook: Hook) -> None:
    async with telling(hook.url) as told:
        await told.see(0.0, dead=5)  # of before the start
        for at, dead in ((2.0, 6), (4.0, 9), (6.0, 9), (8.0, 4), (10.0, 5)):
            await told.see(at, dead=dead)
            await until(lambda: not told.alerts._waiting)
        await told.see(12.0, dead=0)
        await until(lambda: len(hook.got) == 4)
    assert [body["text"].removeprefix("fleet shop: ") for body in hook.got] == [
        "1 dead letter more, 6 dead letters kept",
        "3 dead letters more, 9 dead letters kept",
        "1 dead letter more, 5 dead letters kept",
        "resolved: no dead letter is kept any more",
    ]
    assert [state for _, state in hook.told()] == ["firing", "firing", "firing", "resolved"]


async def test_letters_of_before_the_start_are_not_told_again_and_not_resolved(hook: Hook) -> None:
    async with telling(hook.url) as told:
        for at, dead in ((0.0, 5), (2.0, 5), (4.0, 0)):
            await told.see(at, dead=dead)
        await asyncio.sleep(0.1)
    assert hook.got == []


async def test_a_flood_of_dead_letters_is_one_waiting_alert(hook: Hook) -> None:
    hook.codes = [500] * 4
    async with telling(hook.url) as told:
        for dead in range(50):
            await told.see(dead, dead=dead)
        assert len(told.alerts._waiting) == 1
        await until(lambda: hook.got)
        await until(lambda: not told.alerts._waiting)
        await told.see(50.0, dead=50)
        await until(lambda: len(hook.got) == 2)
    assert [body["text"] for body in hook.got] == [
        "fleet shop: 1 dead letter more, 1 dead letter kept",
        "fleet shop: 49 dead letters more, 50 dead letters kept",
    ]


async def test_without_a_webhook_nothing_is_sent_and_nothing_kept() -> None:
    async with telling(None) as told:
        await told.see(0.0, **BLIND, **BUDGET, dead=9)
        assert (told.alerts._waiting, told.alerts._sender, told.said) == ([], None, [])


async def test_a_reload_that_names_a_webhook_has_what_lasts_told_to_it(hook: Hook) -> None:
    async with telling(None) as told:
        await told.see(0.0, **BLIND, dead=3)
        told.policy = AlertsPolicy(hook.url)
        await told.see(2.0, **BLIND, dead=3)
        await until(lambda: hook.got)
        await asyncio.sleep(0.1)
    assert hook.told() == [("blind queue resize", "firing")]


# ── bad webhooks


async def test_an_answer_of_500_is_tried_again_until_it_is_taken_and_said_once(hook: Hook) -> None:
    hook.codes = [500, 503, 429]
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND)
        await until(lambda: hook.got)
        await until(lambda: not told.alerts._waiting)
    assert hook.told() == [("blind queue resize", "firing")]
    assert len(hook.paths) == 4
    again = "it is tried again"
    assert told.said == [
        ("error", f"alerts: http://127.0.0.1: answered 500; {again}"),
        ("error", f"alerts: http://127.0.0.1: answered 503; {again}"),
        ("error", f"alerts: http://127.0.0.1: answered 429; {again}"),
        ("event", "alerts: the webhook takes them again"),
    ]


async def test_a_refusal_for_good_costs_that_alert_alone(hook: Hook) -> None:
    hook.codes = [404]
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND, **BUDGET)
        await until(lambda: hook.got)
    assert hook.told() == [("budget", "firing")]
    assert told.said[0] == ("error", "alerts: http://127.0.0.1: answered 404; dropped: blind queue resize firing")


@pytest.mark.parametrize("code", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(hook: Hook, code: int) -> None:
    hook.codes = [code]
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND)
        await until(lambda: told.said)
        await asyncio.sleep(0.05)
    assert hook.paths == [f"/{SECRET}"]
    why = f"answered {code}; redirects are not followed; dropped: blind queue resize firing"
    assert told.said == [("error", f"alerts: http://127.0.0.1: {why}")]


async def test_a_dead_server_is_said_once_and_gets_the_alerts_when_it_is_back(hook: Hook) -> None:
    port = free_port()
    async with telling(f"http://127.0.0.1:{port}/{SECRET}") as told:
        await told.see(0.0, **BLIND)
        await until(lambda: told.said)
        await asyncio.sleep(0.3)  # several tries
        assert len(told.said) == 1
        hook.port = port
        async with await asyncio.start_server(hook.serve, "127.0.0.1", port):
            await until(lambda: hook.got)
            await until(lambda: len(told.said) == 2)
    assert told.said[0][1].startswith("alerts: http://127.0.0.1: ConnectError")
    assert told.said[0][1].endswith("; it is tried again")
    assert told.said[1] == ("event", "alerts: the webhook takes them again")


async def test_a_server_that_never_answers_delays_no_tick(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "TIMEOUT_S", 0.2)
    hook.hold = True
    async with telling(hook.url) as told:
        started = time.monotonic()
        await told.see(0.0, **BLIND)
        await told.see(2.0, **BLIND)
        assert time.monotonic() - started < 0.1
        await until(lambda: told.said)
        hook.hold = False
        await until(lambda: hook.got)
    assert told.said[0] == ("error", "alerts: http://127.0.0.1: no answer within 0 s; it is tried again")


async def test_an_alert_that_nobody_took_for_an_hour_is_dropped(hook: Hook) -> None:
    hook.codes = [500] * 1000
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND)
        await until(lambda: told.said)
        told.now = 3601.0
        await until(lambda: not told.alerts._waiting)
    assert told.said[-1][1] == "alerts: http://127.0.0.1: answered 500; dropped: blind queue resize firing"


async def test_what_waits_is_bounded_and_the_oldest_gives_way(hook: Hook) -> None:
    hook.codes = [500] * 1000
    async with telling(hook.url) as told:
        pools = {f"p{n}": {"breaker_s": 1.0, "breaker_why": "x"} for n in range(130)}
        await told.see(0.0, pools=pools)
        assert len(told.alerts._waiting) == 100
        assert told.alerts._waiting[0].alert == "breaker pool p30"
    lost = "alerts: 100 wait for the webhook; dropped: breaker pool p0 firing"
    assert told.said[0] == ("error", lost)


@pytest.mark.parametrize(
    "url", ["http://a\u00e4..b/s3cret-hook", "https://127.0.0.1:1/s3cret-hook", "http://x y/s3cret-hook"]
)
async def test_no_log_line_shows_more_than_scheme_and_host(
    hook: Hook, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    caplog.set_level(logging.DEBUG)
    for one in (hook.url, url):
        async with telling(one) as told:
            await told.see(0.0, **BLIND)
            await until(lambda: told.said or hook.got)
        assert all(SECRET not in line for _, line in told.said)
    assert hook.got
    assert all(SECRET not in record.getMessage() for record in caplog.records if record.name == "httpx")


# ── its life


async def test_it_looks_by_itself_and_outlives_a_store_that_cannot_be_read(
    hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "EVERY_S", 0.01)
    looks = 0

    def picture() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        if looks < 5:
            raise FleetdError("store: the disk is full")
        return {"fleet": "shop", **BLIND}

    async with telling(hook.url) as told:
        life = asyncio.create_task(told.alerts.run(picture))
        await until(lambda: hook.got)
        life.cancel()
        await asyncio.wait([life])
        assert told.alerts._sender is None
    assert life.cancelled()
    assert told.said == [("error", "alerts: store: the disk is full")]


async def test_closing_ends_a_post_under_way_at_once(hook: Hook) -> None:
    hook.hold = True
    async with telling(hook.url) as told:
        await told.see(0.0, **BLIND)
        await until(lambda: hook.paths)
        started = time.monotonic()
        await told.alerts.close()
        await told.alerts.close()
        assert time.monotonic() - started < 0.5
