"""What every Provider must do. Tests of an adapter subclass `ProviderConformance` and give it a `Rig` as fixture `rig`.

The rig is the real system behind the adapter: the suite starts, stops and loses nodes in it, and makes the adapter anew
as a restarted controller does. Values, not calls, are checked, so any adapter that passes can be trusted with money.
"""

import abc
import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from fleetd.core.model import NodeId, Order, Sighting, World
from fleetd.core.ports import Provider
from fleetd.errors import ProviderError

LIMIT_S = 30.0  # no call of the suite may take longer
SETTLE_S = 10.0  # a system may show a change a little later
GRACE_S = 10.0


class Rig(abc.ABC):
    """A real system that nodes run in. It holds what `close` must end whatever happened."""

    pool: str = "local"
    app: str = "photos"

    @abc.abstractmethod
    def provider(self) -> Provider:
        """Make an adapter of the pool; a second one sees the same nodes, as after a restart."""

    @abc.abstractmethod
    def other_pool(self) -> Provider:
        """Make an adapter of another pool of the same fleet."""

    @abc.abstractmethod
    def other_fleet(self) -> Provider:
        """Make an adapter of the same pool in another fleet of the same name."""

    @abc.abstractmethod
    async def lose(self, node: NodeId) -> None:
        """End a node behind the adapter's back, as a crash would."""

    @abc.abstractmethod
    def former(self, node: NodeId) -> NodeId | None:
        """Return the name of a former node whose place this one has (a recycled pid, a reused name); None: no such."""


def ignore() -> None:
    """A nudge that nobody waits for."""


def order(rig: Rig, key: str, count: int, app: str | None = None) -> Order:
    """An order for nodes of the rig's app."""
    return Order(key, rig.pool, app or rig.app, count, count, 1)


def present(world: World) -> dict[NodeId, Sighting]:
    """Sightings of nodes that are there or coming, by node."""
    found = {sighting.node: sighting for sighting in world.sightings if sighting.state in ("booting", "up")}
    assert len({sighting.node for sighting in world.sightings}) == len(world.sightings), "a node is listed twice"
    return found


async def within(call: Awaitable[object]) -> object:
    """The call's result, in time."""
    async with asyncio.timeout(LIMIT_S):
        return await call


async def settles(provider: Provider, check: Callable[[dict[NodeId, Sighting]], bool]) -> dict[NodeId, Sighting]:
    """List until it holds; fail with the last list."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        async with asyncio.timeout(LIMIT_S):
            found = present(await provider.list())
        if check(found) or time.monotonic() > deadline:
            assert check(found), found
            return found
        await asyncio.sleep(0.1)


async def launched(provider: Provider, wanted: Order) -> set[NodeId]:
    """Launch and return the nodes, which are as many as ordered."""
    async with asyncio.timeout(LIMIT_S):
        answer = await provider.launch(wanted)
    assert answer.key == wanted.key
    assert len(answer.nodes) == len(set(answer.nodes)) == wanted.count
    return set(answer.nodes)


async def opened(provider: Provider) -> Provider:
    """The provider, open."""
    await within(provider.open(ignore))
    return provider


class ProviderConformance:
    """Subclass it as Test…, with a fixture `rig`."""

    async def test_a_pool_is_empty_at_first(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        assert present(await provider.list()) == {}
        await provider.close()

    async def test_a_launch_of_n_is_n_sightings_with_the_orders_key_and_app(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 2))
        found = await settles(provider, lambda found: set(found) == names)
        assert {(s.key, s.app) for s in found.values()} == {("1-1", rig.app)}
        more = await launched(provider, order(rig, "1-2", 1))
        found = await settles(provider, lambda found: set(found) == names | more)
        assert Counter(s.key for s in found.values()) == {"1-1": 2, "1-2": 1}
        await provider.close()

    async def test_the_same_key_again_starts_nothing_more_after_a_restart_neither(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 2))
        assert await launched(provider, order(rig, "1-1", 2)) == names
        await provider.close()
        again = await opened(rig.provider())
        assert await launched(again, order(rig, "1-1", 2)) == names
        await settles(again, lambda found: set(found) == names)
        await again.close()

    async def test_the_same_order_twice_at_the_same_time_is_one(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        first, second = await asyncio.gather(
            launched(provider, order(rig, "1-1", 2)), launched(provider, order(rig, "1-1", 2))
        )
        assert first == second
        await settles(provider, lambda found: set(found) == first)
        await provider.close()

    async def test_what_is_missing_of_an_order_is_started_and_no_more(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 1))
        assert await launched(provider, order(rig, "1-1", 3)) > names
        lost = next(iter(names))
        await rig.lose(lost)
        await settles(provider, lambda found: len(found) == 2 and lost not in found)
        await provider.close()
        again = await opened(rig.provider())
        completed = await launched(again, order(rig, "1-1", 3))
        assert lost not in completed
        await settles(again, lambda found: set(found) == completed)
        await again.close()

    async def test_a_lost_node_is_no_longer_listed(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 2))
        lost = min(names)
        await rig.lose(lost)
        await settles(provider, lambda found: set(found) == names - {lost})
        await provider.close()

    async def test_a_stop_hits_the_named_and_nobody_else(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        if provider.victims != "exact":
            pytest.skip("this provider cannot choose")
        names = sorted(await launched(provider, order(rig, "1-1", 3)))
        async with asyncio.timeout(LIMIT_S):
            stopped = await provider.stop(names[:2], GRACE_S)
        assert set(stopped.nodes) == set(names[:2])
        await settles(provider, lambda found: set(found) == set(names[2:]))
        await provider.close()

    async def test_what_is_gone_already_is_stopped(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        (name,) = await launched(provider, order(rig, "1-1", 1))
        for _ in range(2):
            async with asyncio.timeout(LIMIT_S):
                assert (await provider.stop([name], GRACE_S)).nodes == (name,)
        async with asyncio.timeout(LIMIT_S):
            assert (await provider.stop([f"{rig.pool}/never-was"], GRACE_S)).nodes == (f"{rig.pool}/never-was",)
        await provider.close()

    async def test_without_grace_a_stop_is_soon_done(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        (name,) = await launched(provider, order(rig, "1-1", 1))
        await within(provider.stop([name], 0.0))
        await settles(provider, lambda found: found == {})
        await provider.close()

    async def test_nodes_live_on_and_a_new_adapter_finds_them_as_strays(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 2))
        await provider.close()
        await provider.close()
        again = await opened(rig.provider())
        found = await settles(again, lambda found: set(found) == names)
        assert {(s.key, s.app) for s in found.values()} == {("1-1", rig.app)}
        await within(again.stop(sorted(names), GRACE_S))
        await settles(again, lambda found: found == {})
        await again.close()

    async def test_nodes_of_other_pools_and_fleets_are_neither_listed_nor_counted_nor_stopped(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 1))
        for stranger in (await opened(rig.other_pool()), await opened(rig.other_fleet())):
            assert present(await stranger.list()) == {}
            await within(stranger.stop(sorted(names), 0.0))
            theirs = await launched(stranger, order(rig, "1-1", 1))
            await settles(provider, lambda found: set(found) == names)
            assert theirs.isdisjoint(names)
            await within(stranger.stop(sorted(theirs), GRACE_S))
            await stranger.close()
        await settles(provider, lambda found: set(found) == names)
        await provider.close()

    async def test_a_node_is_not_taken_for_a_former_one_in_its_place(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 1))
        former = rig.former(next(iter(names)))
        if former is None:
            pytest.skip("its names are never used again")
        async with asyncio.timeout(LIMIT_S):
            assert (await provider.stop([former], 0.0)).nodes == (former,)
        await settles(provider, lambda found: set(found) == names)
        await provider.close()

    async def test_an_app_that_cannot_run_here_is_refused_in_one_line_with_the_pools_name(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        for _ in range(2):
            with pytest.raises(ProviderError) as caught:
                await within(provider.launch(order(rig, "1-1", 1, app="no-such-app")))
            assert rig.pool in str(caught.value)
            assert "no-such-app" in str(caught.value)
            assert "\n" not in str(caught.value)
        assert present(await provider.list()) == {}
        await provider.close()

    async def test_a_cancelled_call_breaks_nothing(self, rig: Rig) -> None:
        provider = await opened(rig.provider())
        wanted = order(rig, "1-1", 2)
        for delay_s in (0.0, 0.001, 0.005, 0.02):
            for call in (provider.launch(wanted), provider.list()):
                task = asyncio.ensure_future(call)
                await asyncio.sleep(delay_s)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        names = await launched(provider, wanted)
        await settles(provider, lambda found: set(found) == names)
        task = asyncio.ensure_future(provider.stop(sorted(names), GRACE_S))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await within(provider.stop(sorted(names), GRACE_S))
        await settles(provider, lambda found: found == {})
        await provider.close()

    async def test_closing_is_safe_before_opening(self, rig: Rig) -> None:
        provider = rig.provider()
        await within(provider.close())
        await within(provider.close())

    async def test_wrong_options_are_refused(self, rig: Rig) -> None:
        options = type(rig.provider()).Options
        with pytest.raises(ValueError, match="surely_not_an_option"):
            options.model_validate({"surely_not_an_option": 1})
