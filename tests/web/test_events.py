"""Server-sent events: the state where it changed, each line of the journal once, and no reader that holds the tick."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from fleetd.control import loop
from fleetd.control import status as control
from fleetd.store.sqlite import Entry
from fleetd.web import events
from tests.control.fleet import until
from tests.web.site import TOKEN, Site, refusal, serving, two_pools

pytestmark = pytest.mark.slow


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    monkeypatch.setattr(events, "STATE_S", 0.2)
    async with serving(two_pools(tmp_path)) as site:
        await until(lambda: site.fleet.controller.plan.sentences)
        yield site


@dataclass(frozen=True, slots=True)
class Event:
    kind: str
    id: str
    data: Any


@asynccontextmanager
async def reading(site: Site, last: str = "") -> AsyncIterator[AsyncIterator[Event]]:
    """Read events; a heart-beat is an event of the kind `beat`."""
    headers = {"Authorization": f"Bearer {TOKEN}"} | ({"Last-Event-ID": last} if last else {})
    async with site.http.stream("GET", "/v1/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _parsed(answer)


async def _parsed(answer: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            yield Event("beat", "", None)
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Event(fields["event"], fields.get("id", ""), json.loads(fields["data"]))
            fields = {}


async def first(of: AsyncIterator[Event], kind: str, count: int = 1) -> list[Event]:
    """The first so many events of a kind, within five seconds."""
    found: list[Event] = []
    async with asyncio.timeout(5.0):
        async for event in of:
            found += [event] if event.kind == kind else []
            if len(found) == count:
                return found
    raise AssertionError(f"{len(found)} events of the kind {kind}, then the end")


def write(site: Site, *texts: str) -> None:
    site.fleet.store.commit(site.fleet.controller.memory, [Entry("event", text) for text in texts])


async def test_the_state_comes_at_once_and_then_where_it_changed(site: Site) -> None:
    async with reading(site) as of:
        (state,) = await first(of, "status")
        assert state.id == "", "so that Last-Event-ID stays a number of the journal"
        picture = (await site.operator("GET", "/v1/status?events=0")).json()
        assert set(state.data) == set(picture)
        changes = site.app.state.events.changes
        await asyncio.sleep(1.0)  # ten ticks in which ages grow and nothing changes
        assert site.app.state.events.changes == changes
        await site.operator("POST", "/v1/pause", {"paused": True})
        (state,) = await first(of, "status")
        assert state.data["paused"] is True
        await site.operator("POST", "/v1/hold", {"pool": "local", "for_s": 60})
        (state,) = await first(of, "status")
        assert 50 < state.data["pools"]["local"]["held_s"] <= 60


async def test_the_state_is_made_at_most_once_in_its_time_for_all_readers(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []

    def counted(*values: Any) -> dict[str, Any]:
        made.append(time.monotonic())
        return control.status(*values)

    monkeypatch.setattr(events, "status", counted)
    async with reading(site) as one, reading(site) as other:
        await first(one, "status")
        await first(other, "status")
        for waiting in range(30):
            site.fleet.source.waiting = waiting
            site.fleet.controller.nudge()
            await asyncio.sleep(0.05)
    assert 3 <= len(made) <= 10
    assert min(b - a for a, b in pairwise(made)) > 0.19


async def test_each_line_of_the_journal_comes_once_with_its_number(site: Site) -> None:
    async with reading(site) as of:
        await first(of, "status")
        write(site, "one", "two")
        await site.operator("POST", "/v1/wake", {"pool": "local", "count": 1, "for_s": 60})
        found = await first(of, "journal", 4)
    assert [event.data["text"] for event in found[:2]] == ["one", "two"]
    numbers = [event.data["seq"] for event in found]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert [event.id for event in found] == [str(number) for number in numbers]
    assert {"seq", "at", "epoch", "kind", "text"} == set(found[0].data)


async def test_whoever_comes_back_misses_nothing(site: Site) -> None:
    write(site, "before")
    begin = site.fleet.store.journal(last=1)[0].seq
    write(site, *(str(at) for at in range(2 * events.ROUND)))
    async with reading(site, last=str(begin)) as of:
        found = await first(of, "journal", 2 * events.ROUND)
    assert [event.data["text"] for event in found] == [str(at) for at in range(2 * events.ROUND)]


async def test_without_a_number_or_with_one_of_another_journal_only_news_comes(site: Site) -> None:
    for last in ("", str(10**17)):
        write(site, "old")
        async with reading(site, last=last) as of:
            await first(of, "status")
            write(site, "new")
            assert (await first(of, "journal"))[0].data["text"] == "new"


@pytest.mark.parametrize("last", ["x", "-1", "1" * 19, "1.5"])
async def test_a_wrong_number_is_422(site: Site, last: str) -> None:
    answer = await site.http.get("/v1/events", headers={"Authorization": f"Bearer {TOKEN}", "Last-Event-ID": last})
    assert refusal(answer) == (422, "Last-Event-ID: must be the id of an event of here, a whole number")


async def test_a_quiet_stream_beats(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BEAT_S", 0.3)
    async with reading(site) as of:
        await first(of, "beat", 2)


async def test_one_reader_too_many_is_429_and_may_come_once_another_left(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOST_READERS", 1)
    async with reading(site) as of:
        await first(of, "status")
        answer = await site.http.get("/v1/events", headers={"Authorization": f"Bearer {TOKEN}"})
        assert refusal(answer) == (429, "events: 1 readers are all there may be")
        assert answer.headers["retry-after"] == "5"
        assert site.app.state.events.turned_away == 1
    await until(lambda: site.app.state.events.readers == 0)
    async with reading(site) as of:
        await first(of, "status")


@pytest.fixture
def room() -> Iterator[ExitStack]:
    """What is closed at the end, however that comes."""
    with ExitStack() as stack:
        yield stack


def stalled(site: Site) -> socket.socket:
    """A reader that asks for the whole journal and then takes nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", site.port))
    head = f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nLast-Event-ID: 0\r\n\r\n"
    reader.sendall(head.encode())
    return reader


async def test_a_stalled_reader_never_holds_the_tick_and_is_cut_off(
    site: Site, monkeypatch: pytest.MonkeyPatch, room: ExitStack
) -> None:
    """Seen to fail with a stream that waits for its reader inside the tick, and with one that is never cut off."""
    monkeypatch.setattr(events, "STALL_S", 1.5)
    write(site, *("x" * 8000 for _ in range(2000)))  # more than all buffers on the way hold
    of, controller = site.app.state.events, site.fleet.controller
    readers = [room.enter_context(stalled(site)) for _ in range(8)]
    await until(lambda: of.readers == 8)
    ticks: list[float] = []
    async with asyncio.timeout(15.0), reading(site) as lively:  # others are served meanwhile
        await first(lively, "status")
        while of.dropped < 8:
            await controller.ticked.wait()
            ticks.append(time.monotonic())
    gaps = [b - a for a, b in pairwise(ticks)]
    assert max(gaps) < 0.8, "far from the time that a reader may stall; the machine may be busy"
    assert sum(gaps) / len(gaps) < 0.3, "a tick is due each 0.1 s"
    await until(lambda: of.readers == 0)
    for reader in readers:
        reader.settimeout(5.0)
        with pytest.raises(ConnectionResetError):  # noqa: PT012 - what came before is read first
            while reader.recv(1 << 20):
                pass


async def test_the_end_of_the_server_ends_the_streams_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(two_pools(tmp_path)) as site, reading(site) as of:
        await first(of, "status")
        started = time.monotonic()
        site.app.state.events.let_go()
        async with asyncio.timeout(2.0):
            async for _ in of:
                pass
        assert time.monotonic() - started < 0.5
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_reader_that_leaves_is_forgotten_at_once(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with reading(site) as of:
        await first(of, "status")
        assert site.app.state.events.readers == 1
    await until(lambda: site.app.state.events.readers == 0, 1.0)
    assert site.app.state.events.dropped == 0
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
