"""Alive: the tick goes on. Ready: it leads, writes its journal, and has read every source and pool once. In a word."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetd.control import loop, watch
from fleetd.core.model import QueuePolicy
from fleetd.errors import FleetdError, ProviderError, SourceError
from tests.control.fleet import until
from tests.web.site import Site, called, two_pools


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    monkeypatch.setattr(watch, "TIMEOUT_S", 0.2)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with called(two_pools(tmp_path)) as site:
        yield site


async def asked(site: Site, path: str) -> tuple[int, dict[str, Any]]:
    answer = await site.http.get(path)
    return answer.status_code, answer.json()


async def ready(site: Site, word: str = "", limit_s: float = 5.0) -> None:
    """Wait until it is ready, or is not for this reason."""
    wanted = (503, {"error": word}) if word else (200, {"ok": True})
    async with asyncio.timeout(limit_s):
        while await asked(site, "/readyz") != wanted:
            await asyncio.sleep(0.02)


async def test_a_fleet_that_is_seen_is_alive_and_ready(site: Site) -> None:
    await ready(site)
    assert await asked(site, "/healthz") == (200, {"ok": True})


async def test_alive_means_that_the_tick_goes_on(site: Site) -> None:
    """Seen to fail with a health that always says ok."""
    controller = site.fleet.controller
    async with controller._turn:  # no tick comes while this is held
        controller.observation = replace(controller.observation, now=controller.clock() - 16.0)
        controller.started_at -= 16.0
        assert await asked(site, "/healthz") == (503, {"error": "stuck"})
        assert (await asked(site, "/readyz"))[0] == 503
    await ready(site)


async def test_a_journal_that_cannot_be_written_is_not_ready_but_alive(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(site)

    def commit(*_: object, **__: object) -> None:
        raise FleetdError("fleet.db: cannot write: disk full")

    with monkeypatch.context() as broken:
        broken.setattr(site.fleet.store, "commit", commit)
        controller = site.fleet.controller
        controller.memory = replace(controller.memory, now=controller.clock() - 16.0)
        assert await asked(site, "/readyz") == (503, {"error": "journal"})
        assert await asked(site, "/healthz") == (200, {"ok": True})
    await ready(site)


async def test_a_source_that_was_never_read_is_not_ready_and_one_that_was_is(tmp_path: Path) -> None:
    fleet = two_pools(tmp_path)
    fleet.source.error = SourceError("main: nobody there")
    async with called(fleet) as site:
        await until(lambda: fleet.controller.memory.queues)
        await ready(site, "starting")
        assert await asked(site, "/healthz") == (200, {"ok": True})
        fleet.source.error = None
        await ready(site)
        fleet.source.error = SourceError("main: nobody there")
        await until(lambda: fleet.controller.memory.queues["resize"].blind_at)
        await ready(site)


async def test_a_restart_is_not_ready_by_what_was_read_before_it(tmp_path: Path) -> None:
    fleet = two_pools(tmp_path)
    async with called(fleet) as site:
        await ready(site)
    fleet.source.error = SourceError("main: nobody there")
    fleet.start()
    async with called(fleet) as site:
        await until(lambda: fleet.controller.plan.sentences)
        await ready(site, "starting")


async def test_a_pool_that_was_never_listed_is_not_ready(tmp_path: Path) -> None:
    fleet = two_pools(tmp_path)
    fleet.providers["burst"].open_error = ProviderError("burst: no permission")
    async with called(fleet) as site:
        await until(lambda: fleet.controller.plan.sentences)
        await ready(site, "starting")
        fleet.providers["burst"].open_error = None
        await ready(site)


async def test_a_queue_that_a_reload_brought_is_waited_for(site: Site) -> None:
    await ready(site)
    policy = site.fleet.controller.policy
    more = QueuePolicy("mail", "photos", "main", "mail_*", policy.queues["resize"].objective)
    await site.fleet.controller.reload(replace(policy, queues={**policy.queues, "mail": more}))
    await ready(site, "starting")  # the source says nothing of it


async def test_without_the_lock_it_is_a_follower(site: Site) -> None:
    site.fleet.store.close()
    assert await asked(site, "/readyz") == (503, {"error": "follower"})
