"""Mode `fleet` on moto: what a launch asks for, what comes of it, and what a lost or late answer may not do."""

import asyncio
import json
import time

import pytest

from fleetd.core.model import Order
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.ec2 import fleet as fleets
from fleetd.providers.ec2 import pool as pools
from tests.conformance.provider import order, present, settles
from tests.ec2.cloud import TYPES
from tests.ec2.rigs import FleetRig, closing

pytestmark = pytest.mark.slow


@pytest.fixture
async def rig(cloud, proxy, tmp_path):
    async with closing(FleetRig(cloud, proxy, tmp_path)) as made:
        yield made


async def opened(rig, **options):
    provider = rig.make(**options)
    await provider.open(lambda: None)
    return provider


def out(rig, market, *types, left=0):
    """Have no capacity, or only so much in each zone."""
    for zone in rig.proxy.zones.values():
        for kind in types or TYPES:
            rig.proxy.capacity[kind, zone, market] = left


def markets(rig):
    found = [one.get("InstanceLifecycle") or "on-demand" for one in rig.cloud.alive()]
    return {market: found.count(market) for market in set(found)}


# ── tokens


async def test_an_answer_that_is_lost_is_asked_for_again_under_the_same_token(rig):
    provider = await opened(rig)
    rig.proxy.lose("CreateFleet", 2)
    launched = await provider.launch(order(rig, "1-1", 3))
    assert len(launched.nodes) == len(rig.cloud.alive()) == 3
    assert len(rig.proxy.tokens) == 1
    assert rig.proxy.counts["CreateFleet"] == 3


async def test_the_sdk_does_not_repeat_a_launch_by_itself(rig, monkeypatch):
    monkeypatch.setattr(fleets, "SEND_S", 0.0)
    provider = await opened(rig)
    rig.proxy.fail("CreateFleet", "InternalError", status=500, times=5)
    with pytest.raises(ProviderError, match=r"pool burst: CreateFleet: InternalError"):
        await provider.launch(order(rig, "1-1", 1))
    assert rig.proxy.counts["CreateFleet"] == 1


async def test_an_order_whose_answer_never_came_is_taken_up_by_the_next_controller(rig, monkeypatch):
    monkeypatch.setattr(fleets, "SEND_S", 0.0)
    provider = await opened(rig)
    rig.proxy.lose("CreateFleet")
    with pytest.raises(ProviderError):
        await provider.launch(order(rig, "1-1", 2))
    await provider.close()
    assert len(rig.cloud.alive()) == 2
    again = await opened(rig)
    launched = await again.launch(order(rig, "1-1", 2))
    assert {node.rpartition("/")[2] for node in launched.nodes} == {one["InstanceId"] for one in rig.cloud.alive()}
    assert len(rig.proxy.tokens) == 1


async def test_nothing_is_launched_that_cannot_be_written_down_first(rig):
    provider = await opened(rig)
    (rig.folder / "ec2").write_text("in the way")
    with pytest.raises(ProviderError, match="nothing is launched unwritten"):
        await provider.launch(order(rig, "1-1", 1))
    assert rig.proxy.counts["CreateFleet"] == 0


async def test_the_token_is_on_the_disk_before_it_is_sent(rig):
    provider = await opened(rig)
    rig.proxy.delay_s = 0.5
    task = asyncio.create_task(provider.launch(order(rig, "1-1", 1)))
    while not rig.proxy.counts["CreateFleet"]:
        await asyncio.sleep(0.01)
    (file,) = (rig.folder / "ec2").glob("*/burst/1-1.json")
    written = json.loads(file.read_text())
    assert written["attempts"][0]["answer"] is None
    assert not rig.proxy.tokens
    await task
    assert set(rig.proxy.tokens) == {written["attempts"][0]["token"]}


async def test_a_token_that_aws_takes_for_another_request_starts_nothing_more(rig):
    provider = await opened(rig)
    rig.proxy.fail("CreateFleet", "IdempotentParameterMismatch")
    with pytest.raises(ProviderError, match="IdempotentParameterMismatch"):
        await provider.launch(order(rig, "1-1", 1))
    assert rig.proxy.counts["CreateFleet"] == 1


# ── capacity


async def test_a_fleet_that_comes_in_part_is_a_partial_success_and_the_rest_is_not_asked_for_again(rig):
    out(rig, "spot", left=1)
    provider = await opened(rig, on_demand=False)
    launched = await provider.launch(order(rig, "1-1", 10))
    assert len(launched.nodes) == 4  # two types in two zones
    asked = rig.proxy.counts["CreateFleet"]
    offer = (await provider.list()).offer
    assert offer.headroom == 0
    assert "InsufficientInstanceCapacity" in offer.why
    with pytest.raises(ExhaustedError, match=r"pool burst: nothing to be had: spot m5.large in us-east-1a"):
        await provider.launch(order(rig, "1-2", 1))
    assert rig.proxy.counts["CreateFleet"] == asked


async def test_a_stockout_is_forgotten_after_its_time(rig):
    out(rig, "spot")
    provider = await opened(rig, on_demand=False, stockout="0.3s")
    with pytest.raises(ExhaustedError):
        await provider.launch(order(rig, "1-1", 1))
    rig.proxy.capacity.clear()
    await asyncio.sleep(0.4)
    assert (await provider.list()).offer.headroom is None
    assert len((await provider.launch(order(rig, "1-2", 1))).nodes) == 1


async def test_spot_that_is_out_falls_to_on_demand_in_the_same_launch(rig):
    out(rig, "spot")
    provider = await opened(rig)
    began = time.monotonic()
    launched = await provider.launch(order(rig, "1-1", 3))
    assert time.monotonic() - began < 5.0
    assert len(launched.nodes) == 3
    assert markets(rig) == {"on-demand": 3}


async def test_a_type_that_is_out_in_one_zone_is_had_in_another(rig):
    (first, second) = list(rig.proxy.zones.values())[:2]
    rig.proxy.capacity["m5.large", first, "spot"] = 0
    provider = await opened(rig, types=["m5.large"], on_demand=False)
    await provider.launch(order(rig, "1-1", 2))
    assert {one["Placement"]["AvailabilityZone"] for one in rig.cloud.alive()} == {second}
    asked = rig.proxy.counts["CreateFleet"]
    await provider.launch(order(rig, "1-2", 1))
    assert rig.proxy.counts["CreateFleet"] == asked + 1


async def test_the_share_of_spot_is_that_of_the_pool(rig):
    provider = await opened(rig, spot="75%")
    await provider.launch(order(rig, "1-1", 4))
    assert markets(rig) == {"spot": 3, "on-demand": 1}
    await provider.launch(order(rig, "1-2", 4))
    assert markets(rig) == {"spot": 6, "on-demand": 2}


async def test_a_top_level_stockout_is_one_of_every_choice(rig):
    provider = await opened(rig, on_demand=False)
    rig.proxy.fail("CreateFleet", "InsufficientInstanceCapacity", status=500)
    with pytest.raises(ExhaustedError, match="InsufficientInstanceCapacity"):
        await provider.launch(order(rig, "1-1", 1))
    assert rig.proxy.counts["CreateFleet"] == 1
    assert (await provider.list()).offer.headroom == 0


async def test_a_quota_is_refused_with_the_fix_and_a_full_spot_quota_falls_to_on_demand(rig):
    rig.proxy.refusals["spot"] = "MaxSpotInstanceCountExceeded"
    provider = await opened(rig)
    await provider.launch(order(rig, "1-1", 1))
    assert markets(rig) == {"on-demand": 1}
    rig.proxy.refusals["on-demand"] = "VcpuLimitExceeded"
    with pytest.raises(RefusedError, match=r"pool burst: CreateFleet: VcpuLimitExceeded: .*lower the pool's `max:`"):
        await provider.launch(order(rig, "1-2", 1))


# ── money


async def test_the_pools_price_bounds_each_instance_and_the_whole_fleet(rig):
    provider = await opened(rig, price=0.4, spot="50%")
    await provider.launch(order(rig, "1-1", 4))
    (file,) = (rig.folder / "ec2").glob("*/burst/1-1.json")
    spot, demand = [one["request"] for one in json.loads(file.read_text())["attempts"]]
    assert spot["SpotOptions"] == {"AllocationStrategy": "price-capacity-optimized", "MaxTotalPrice": "0.8"}
    assert {one["MaxPrice"] for one in spot["LaunchTemplateConfigs"][0]["Overrides"]} == {"0.4"}
    assert demand["OnDemandOptions"] == {"AllocationStrategy": "lowest-price", "MaxTotalPrice": "0.8"}


async def test_what_is_known_to_be_dearer_than_the_pools_price_is_not_asked_for(rig):
    provider = await opened(rig, price=0.1, spot=None, prices={"m5.large": "0.12/h", "c5.large": "0.09/h"})
    await provider.launch(order(rig, "1-1", 2))
    assert {one["InstanceType"] for one in rig.cloud.alive()} == {"c5.large"}
    assert (await provider.list()).offer.price_per_h == 0.09


async def test_the_spot_price_in_force_is_what_the_pool_is_offered_at(rig):
    zone = next(iter(rig.proxy.zones.values()))
    rig.proxy.spot = {("m5.large", zone): 0.041, ("c5.large", zone): 0.038, ("c5.large", "us-east-1f"): 0.001}
    provider = await opened(rig)
    assert (await provider.list()).offer.price_per_h == 0.038


async def test_the_price_list_is_asked_for_what_the_policy_does_not_say(rig):
    rig.proxy.listed = {"m5.large": 0.107}
    provider = await opened(rig, spot=None, pricing=True, prices={"c5.large": "0.2/h"})
    assert provider.books.on_demand == {"m5.large": 0.107, "c5.large": 0.2}
    assert rig.proxy.counts["GetProducts"] == 1


# ── the end of consistency


async def test_an_instance_that_no_describe_shows_yet_is_listed_and_can_be_stopped(rig):
    rig.proxy.hide_s = 2.0
    provider = await opened(rig)
    launched = await provider.launch(order(rig, "1-1", 2))
    for _ in range(4):
        assert set(present(await provider.list())) == set(launched.nodes)
        provider._look_soon()
        await asyncio.sleep(0.2)
    assert rig.proxy.injected["hidden"] >= 3
    await provider.stop(launched.nodes, 10.0)
    assert rig.proxy.injected["not found yet"] >= 1
    assert rig.cloud.alive() == []


async def test_old_answers_neither_take_a_node_away_nor_bring_one_back(rig, monkeypatch):
    monkeypatch.setattr(pools, "FAST_S", 0.1)
    provider = await opened(rig)
    rig.proxy.stale_share = 0.5
    launched = await provider.launch(order(rig, "1-1", 4))
    for _ in range(20):
        provider._look_soon()
        assert set(present(await provider.list())) == set(launched.nodes)
    await provider.stop(launched.nodes[:2], 10.0)
    for _ in range(20):
        provider._look_soon()
        assert set(present(await provider.list())) == set(launched.nodes[2:])
    assert rig.proxy.injected["stale"] > 5


async def test_every_page_is_read(rig, monkeypatch):
    monkeypatch.setattr(pools, "PAGE", 5)
    provider = await opened(rig)
    launched = await provider.launch(order(rig, "1-1", 12))
    before = rig.proxy.counts["DescribeInstances"]
    again = await opened(rig)
    assert set(present(await again.list())) == set(launched.nodes)
    assert rig.proxy.counts["DescribeInstances"] - before == 3


async def test_why_an_instance_went_is_told(rig):
    provider = await opened(rig)
    (node,) = (await provider.launch(order(rig, "1-1", 1))).nodes
    await provider.list()
    await rig.lose(node)
    provider._look_soon()
    world = await provider.list()
    assert world.gone == {node: "somebody terminated it"}
    assert await provider.logs(node, 5) == ["gone: somebody terminated it"]


async def test_a_stopped_instance_is_no_node_and_is_ended(rig):
    provider = await opened(rig)
    (node,) = (await provider.launch(order(rig, "1-1", 1))).nodes
    rig.cloud.ec2.stop_instances(InstanceIds=[node.rpartition("/")[2]])
    provider._look_soon()
    assert present(await provider.list()) == {}
    provider.hear("", {})
    deadline = time.monotonic() + 5
    while rig.cloud.instances("stopped") and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert [one["State"]["Name"] for one in rig.cloud.instances()] == ["terminated"]


async def test_the_console_is_the_log(rig):
    provider = await opened(rig)
    (node,) = (await provider.launch(order(rig, "1-1", 1))).nodes
    lines = await provider.logs(node, 3)
    assert len(lines) == 3
    assert lines[-1].startswith("Enabling")
    with pytest.raises(ProviderError, match="is gone"):
        await provider.logs("burst/i-0123456789abcdef0", 3)


# ── silence


async def test_what_is_known_counts_for_a_while_and_then_the_pool_cannot_be_seen(rig, monkeypatch):
    provider = await opened(rig)
    launched = await provider.launch(order(rig, "1-1", 1))
    await provider.list()
    rig.proxy.fail("DescribeInstances", "RequestLimitExceeded", times=1000, status=503)
    provider._look_soon()
    assert set(present(await provider.list())) == set(launched.nodes)
    monkeypatch.setattr(pools, "OLD_S", 0.0)
    with pytest.raises(ProviderError, match=r"pool burst: DescribeInstances: RequestLimitExceeded.*fewer calls"):
        await provider.list()
    asked = rig.proxy.counts["DescribeInstances"]
    for _ in range(10):
        with pytest.raises(ProviderError):
            await provider.list()
    assert rig.proxy.counts["DescribeInstances"] == asked  # it is left in peace


async def test_a_launch_that_is_cancelled_goes_on_and_is_found_by_the_same_order(rig):
    provider = await opened(rig)
    rig.proxy.delay_s = 0.3
    wanted: Order = order(rig, "1-1", 2)
    task = asyncio.create_task(provider.launch(wanted))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    launched = await provider.launch(wanted)
    assert rig.proxy.counts["CreateFleet"] == 1
    await settles(provider, lambda found: set(found) == set(launched.nodes))
