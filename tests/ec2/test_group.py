"""Mode `asg` on moto, with what that lacks emulated: bounds, activities, and a group that is not fit for fleetd."""

import asyncio

import pytest

from fleetd.core.model import Phase, PoolPolicy
from fleetd.core.ports import Known
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.ec2 import Ec2Provider
from fleetd.providers.ec2 import group as groups
from tests.conformance.provider import order, present
from tests.ec2.rigs import GroupRig, closing

pytestmark = pytest.mark.slow
NAME = "workers"


@pytest.fixture
async def rig(cloud, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "APPEAR_S", 3.0)
    monkeypatch.setattr(groups, "APPEAR_POLL_S", 0.2)
    monkeypatch.setattr(groups, "BUSY_AGAIN_S", 0.2)
    async with closing(GroupRig(cloud, proxy, tmp_path)) as made:
        yield made


async def opened(rig, **options):
    provider = rig.make(**options)
    await provider.open(lambda: None)
    return provider


def members(rig):
    (found,) = rig.cloud.asg.describe_auto_scaling_groups(AutoScalingGroupNames=[NAME])["AutoScalingGroups"]
    return {one["InstanceId"]: one["ProtectedFromScaleIn"] for one in found["Instances"]}


async def test_the_number_is_clamped_to_the_groups_most(rig):
    rig.cloud.group(NAME, MaxSize=2)
    provider = await opened(rig)
    assert (await provider.list()).offer.headroom == 2
    launched = await provider.launch(order(rig, "1-1", 5))
    assert len(launched.nodes) == 2
    assert rig.cloud.desired(NAME) == 2
    with pytest.raises(ExhaustedError, match=r"^pool burst: group workers is full: its MaxSize is 2; raise it"):
        await provider.launch(order(rig, "1-2", 1))
    offer = (await provider.list()).offer
    assert (offer.headroom, offer.why) == (0, "the group's MaxSize is 2")


@pytest.mark.parametrize("lost", [1, 3])
async def test_an_order_whose_answer_was_lost_raises_the_number_once(rig, lost):
    rig.cloud.group(NAME)
    provider = await opened(rig)
    rig.proxy.lose("SetDesiredCapacity", lost)
    task = asyncio.create_task(provider.launch(order(rig, "1-1", 2)))
    await asyncio.gather(task, return_exceptions=True)
    await provider.close()
    again = await opened(rig)
    launched = await again.launch(order(rig, "1-1", 2))
    assert {node.rpartition("/")[2] for node in launched.nodes} == set(members(rig))
    assert rig.cloud.desired(NAME) == 2


async def test_a_stop_lowers_the_number_by_the_one_that_it_ends_also_where_its_answer_is_lost(rig):
    rig.cloud.group(NAME)
    provider = await opened(rig)
    nodes = (await provider.launch(order(rig, "1-1", 3))).nodes
    rig.proxy.lose("TerminateInstanceInAutoScalingGroup")
    await provider.stop(nodes[:1], 10.0)
    assert rig.cloud.desired(NAME) == 2
    assert set(members(rig)) == {node.rpartition("/")[2] for node in nodes[1:]}
    assert set(present(await provider.list())) == set(nodes[1:])


async def test_nothing_is_ended_below_the_groups_least(rig):
    rig.cloud.group(NAME, MinSize=1, DesiredCapacity=1)
    provider = await opened(rig, least=1)
    nodes = (await provider.launch(order(rig, "1-1", 1))).nodes  # takes the one that is nobody's
    with pytest.raises(ProviderError, match=r"^pool burst: group workers: 1 fewer than 1 .* MinSize 1; lower it"):
        await provider.stop(nodes, 10.0)
    assert len(members(rig)) == 1


async def test_what_the_group_cannot_give_is_read_from_its_activities_and_given_back(rig):
    rig.cloud.group(NAME)
    rig.proxy.group_capacity = 1
    provider = await opened(rig, stockout="60s")
    launched = await provider.launch(order(rig, "1-1", 3))
    assert len(launched.nodes) == 1
    assert NAME not in rig.proxy.asked
    assert rig.cloud.desired(NAME) == 1
    with pytest.raises(ExhaustedError, match=r"^pool burst: group workers: .*InsufficientInstanceCapacity"):
        await provider.launch(order(rig, "1-2", 1))
    assert rig.cloud.desired(NAME) == 1
    offer = (await provider.list()).offer
    assert offer.headroom == 0
    assert "InsufficientInstanceCapacity" in offer.why


async def test_every_instance_is_protected_fifty_a_call_and_never_unprotected(rig, monkeypatch):
    monkeypatch.setattr(groups, "STATE_S", 0.0)
    rig.cloud.group(NAME, MaxSize=70)
    provider = await opened(rig)
    nodes = (await provider.launch(order(rig, "1-1", 60))).nodes
    ids = [node.rpartition("/")[2] for node in nodes]
    for at in range(0, 60, 50):
        rig.cloud.asg.set_instance_protection(
            AutoScalingGroupName=NAME, InstanceIds=ids[at : at + 50], ProtectedFromScaleIn=False
        )
    provider._look_soon()
    await provider.list()
    drained = {nodes[0]: Known(Phase.DRAINING, 0, 1.0, "drained")}
    provider.hear("", {**{node: Known(Phase.READY, 1, 1.0, "working") for node in nodes}, **drained})
    while not provider._protecting.over:
        await asyncio.sleep(0.05)
    assert rig.proxy.counts["SetInstanceProtection"] == 2
    assert members(rig) == {name: name != ids[0] for name in ids}


@pytest.mark.parametrize(
    ("changes", "told", "fix"),
    [
        ({"NewInstancesProtectedFromScaleIn": False}, "protected from scale-in", "set NewInstancesProtected"),
        ({"MinSize": 2, "DesiredCapacity": 2}, "MinSize 2", "lower the one or raise the other"),
    ],
)
async def test_a_group_that_is_not_fit_is_refused(rig, changes, told, fix):
    rig.cloud.group(NAME, **changes)
    with pytest.raises(RefusedError, match=rf"^pool burst: group workers: .*{told}.*{fix}"):
        await rig.make().open(lambda: None)


async def test_a_group_that_is_not_there_is_refused(rig):
    with pytest.raises(RefusedError, match=r"^pool burst: there is no Auto Scaling group workers; change `group:`"):
        await rig.make().open(lambda: None)


async def test_a_group_that_somebody_else_scales_is_refused(rig):
    rig.cloud.group(NAME)
    rig.cloud.asg.put_scaling_policy(
        AutoScalingGroupName=NAME, PolicyName="cpu", AdjustmentType="ChangeInCapacity", ScalingAdjustment=1
    )
    with pytest.raises(RefusedError, match=r"^pool burst: group workers: cpu scales it, too; remove one owner"):
        await rig.make().open(lambda: None)


async def test_a_group_that_is_being_refreshed_is_left_alone(rig):
    rig.cloud.group(NAME)
    rig.proxy.refreshes = ["Successful", "InProgress"]
    with pytest.raises(ProviderError, match=r"^pool burst: group workers: an instance refresh is under way"):
        await rig.make().open(lambda: None)
    rig.proxy.refreshes = ["Successful", "Successful"]


@pytest.mark.parametrize("process", ["Launch", "Terminate"])
async def test_a_suspended_process_is_told_and_nothing_is_tried(rig, process):
    rig.cloud.group(NAME)
    provider = await opened(rig)
    nodes = (await provider.launch(order(rig, "1-1", 1))).nodes
    rig.cloud.asg.suspend_processes(AutoScalingGroupName=NAME, ScalingProcesses=[process])
    with pytest.raises(RefusedError, match=rf"^pool burst: group workers: its process {process} is suspended"):
        await (provider.launch(order(rig, "1-2", 1)) if process == "Launch" else provider.stop(nodes, 10.0))
    assert rig.cloud.desired(NAME) == 1


async def test_a_group_runs_one_app(rig):
    rig.cloud.group(NAME)
    made = rig.make()
    two = PoolPolicy("burst", "ec2", made._options, ("photos", "celery"), 1)
    with pytest.raises(RefusedError, match=r"^pool burst: mode asg runs one app"):
        await Ec2Provider(two, made._options, rig.launch).open(lambda: None)


async def test_an_instance_that_the_group_made_by_itself_is_a_stray_and_the_next_order_takes_it(rig):
    rig.cloud.group(NAME, DesiredCapacity=1)
    provider = await opened(rig)
    (stray,) = present(await provider.list()).values()
    assert (stray.key, stray.app) == (None, "photos")
    launched = await provider.launch(order(rig, "1-1", 1))
    assert launched.nodes == (stray.node,)
    assert rig.cloud.desired(NAME) == 1
