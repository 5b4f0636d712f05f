"""A thousand nodes: the picture of all of them in a moment, pages in less, and a tick that goes on at its pace."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from fleetd.core.model import Phase
from tests.control.fleet import FakeSource, Fleet, policy, pool
from tests.web.site import TOKEN, Site, serving

pytestmark = pytest.mark.slow
NODES = 1000


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=NODES, max_nodes=NODES)), FakeSource())
    async with serving(fleet) as site:
        async with asyncio.timeout(60.0):
            while sum(n.phase is Phase.READY for n in fleet.controller.memory.nodes.values()) < NODES:
                await fleet.all_speak()
                await asyncio.sleep(0.2)
        yield site


async def median_s(site: Site, path: str) -> float:
    """The time of a call, without the check against the document."""
    times: list[float] = []
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}", trust_env=False, headers=headers) as http:
        for _ in range(15):
            started = time.perf_counter()
            answer = await http.get(path)
            times.append(time.perf_counter() - started)
            assert answer.status_code == 200
    return statistics.median(times)


async def test_the_status_of_a_thousand_nodes_and_a_page_of_them(site: Site) -> None:
    """`-s` prints what docs/decisions/0010-api.md holds."""
    raw = (await site.operator("GET", "/v1/status")).json()
    assert len(raw["nodes"]) == NODES
    status_s, page_s = await median_s(site, "/v1/status"), await median_s(site, "/v1/nodes?limit=100")
    print(f"\nGET /v1/status {status_s * 1000:.0f} ms, a page of 100 nodes {page_s * 1000:.0f} ms")
    assert status_s < 0.5


async def test_readers_of_events_leave_the_tick_its_pace(site: Site) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    controller = site.fleet.controller

    async def read() -> int:
        size = 0
        async with site.http.stream("GET", "/v1/events", headers=headers) as answer:
            async for part in answer.aiter_bytes():
                size += len(part)
        return size

    readers = [asyncio.create_task(read()) for _ in range(8)]
    while site.app.state.events.readers < 8:
        await asyncio.sleep(0.05)
    ticks: list[float] = []
    for at in range(6):
        controller.policy = replace(controller.policy, currency=f"X{at}")  # a change of state in every tick
        await controller.ticked.wait()
        ticks.append(time.monotonic())
    print(f"\nticks after {[f'{b - a:.2f}' for a, b in pairwise(ticks)]} s, {site.app.state.events.changes} states")
    assert max(b - a for a, b in pairwise(ticks)) < 2.0
    site.app.state.events.let_go()
    assert min(await asyncio.gather(*readers)) > 5e5, "each got the picture of all nodes, more than once"
