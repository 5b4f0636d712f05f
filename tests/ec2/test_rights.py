"""`fleetd iam`: the rights are those of the calls that the provider makes, both ways, and no wider than need be."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from fleetd.cli.entry import run
from fleetd.core.model import NodeId, Phase, PoolPolicy
from fleetd.core.ports import Known
from fleetd.errors import RefusedError
from fleetd.providers.ec2 import rights
from fleetd.providers.ec2.options import Ec2Options
from tests.conformance.provider import launched, opened, order, settles
from tests.ec2.cloud import TYPES, Cloud
from tests.ec2.proxy import CALLS, Proxy
from tests.ec2.rigs import FleetRig, GroupRig, closing

DOC = Path(__file__).parents[2] / "docs" / "ec2-instances.md"
ROLE = "arn:aws:iam::123456789012:role/worker"


def a_pool(**more: Any) -> PoolPolicy:
    """A pool with every option that asks for a right."""
    given: dict[str, Any] = {
        "mode": "fleet",
        "region": "eu-central-1",
        "launch_template": "lt-0123456789abcdef0",
        "types": ["c7a.large"],
        "subnets": ["subnet-0a", "subnet-0b"],
        "spot": "80%",
        "pricing": True,
        **more,
    }
    return PoolPolicy("burst", "ec2", Ec2Options(**given), ("photos",), slots=4)


def a_group() -> PoolPolicy:
    options = Ec2Options(mode="asg", region="eu-central-1", group="workers")
    return PoolPolicy("burst", "ec2", options, ("photos",), slots=4)


def statements(policy: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["Sid"]: one for one in policy["Statement"]}


def actions(policy: dict[str, Any]) -> set[str]:
    return {action for one in policy["Statement"] for action in one["Action"]}


# ── what is granted


def test_what_changes_anything_is_for_named_things_alone() -> None:
    for pool in (a_pool(), a_group()):
        for one in rights.policy("shop", pool, ROLE)["Statement"]:
            assert all("*" not in action for action in one["Action"])
            looks = all(action.partition(":")[2].startswith(("Describe", "GetProducts")) for action in one["Action"])
            assert (one["Resource"] == "*") == looks, one["Sid"]


def test_only_instances_with_the_pools_tags_are_ended() -> None:
    found = statements(rights.policy("shop", a_pool()))
    assert found["OwnInstances"] == {
        "Sid": "OwnInstances",
        "Effect": "Allow",
        "Action": ["ec2:GetConsoleOutput", "ec2:TerminateInstances"],
        "Resource": ["arn:aws:ec2:eu-central-1:*:instance/*"],
        "Condition": {"StringEquals": {"aws:ResourceTag/fleetd:fleet": "shop", "aws:ResourceTag/fleetd:pool": "burst"}},
    }


def test_nobody_gives_the_pools_tags_to_an_instance_that_is_there() -> None:
    """Who could, could then end it."""
    tagging = [one for one in rights.policy("shop", a_pool())["Statement"] if "ec2:CreateTags" in one["Action"]]
    (only,) = tagging
    assert only["Condition"]["StringEquals"]["ec2:CreateAction"] == ["CreateFleet", "RunInstances"]
    (only,) = [one for one in rights.policy("shop", a_group())["Statement"] if "ec2:CreateTags" in one["Action"]]
    assert only["Condition"] == {
        "StringEquals": {"aws:ResourceTag/aws:autoscaling:groupName": "workers"},
        "ForAllValues:StringLike": {"aws:TagKeys": "fleetd:*"},
    }


def test_instances_start_from_the_pools_template_in_its_subnets() -> None:
    resources = statements(rights.policy("shop", a_pool()))["StartFromTheseParts"]["Resource"]
    named = [one.rpartition(":")[2] for one in resources]
    assert named[:3] == ["launch-template/lt-0123456789abcdef0", "subnet/subnet-0a", "subnet/subnet-0b"]
    by_name = statements(rights.policy("shop", a_pool(launch_template="worker")))
    assert by_name["StartFromTheseParts"]["Resource"][0] == "arn:aws:ec2:eu-central-1:*:launch-template/*"


@pytest.mark.parametrize(
    ("more", "role", "lacking"),
    [
        ({"spot": 0}, ROLE, "ec2:DescribeSpotPriceHistory"),
        ({"pricing": False}, ROLE, "pricing:GetProducts"),
        ({}, "", "iam:PassRole"),
    ],
)
def test_what_an_option_alone_needs_is_not_granted_without_it(more: dict[str, Any], role: str, lacking: str) -> None:
    whole = actions(rights.policy("shop", a_pool(), ROLE))
    assert whole - actions(rights.policy("shop", a_pool(**more), role)) == {lacking}


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("ap-southeast-2", "aws")]
)
def test_other_partitions_are_spelled_so(region: str, partition: str) -> None:
    found = json.dumps(rights.policy("shop", a_pool(region=region)))
    assert found.count("arn:") == found.count(f"arn:{partition}:") > 5


def test_every_action_is_one_that_aws_has() -> None:
    session = boto3.Session("a", "b", region_name="us-east-1")
    for right in rights.RIGHTS:
        service, _, name = right.action.partition(":")
        operations = session.client(service).meta.service_model.operation_names
        assert (name in operations) or right.action == "iam:PassRole"


def test_the_documented_table_is_the_table_there_is() -> None:
    assert rights.table() in DOC.read_text()


def test_fleetd_iam_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    with pytest.raises(SystemExit) as ended:
        run(["iam", "group", "-p", str(path)])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == rights.policy("shop", replace(a_group(), name="group"))
    assert run(["iam", "group", "-p", str(path), "--role", ROLE]) == 2
    assert "the group hands its role to instances" in capsys.readouterr().err
    assert run(["iam", "group", "-p", str(path), "--role", "worker"]) == 2
    assert "--role: 'worker' is no ARN" in capsys.readouterr().err


POLICY = """
version: 1
fleet: shop
controller: {listen: "10.0.0.2:7117", join: {env: NOT_AT_HAND}}
sources: {main: {gearman: {servers: ["10.0.0.5:4730"]}}}
apps: {photos: {release: {path: photos}}}
queues: {resize: {app: photos, source: main, match: "resize_*", objective: {wait: 30s}, job_limit: 2m}}
pools:
  group:
    ec2: {mode: asg, region: eu-central-1, group: workers}
    apps: [photos]
    slots: 4
    max: 10
    price: 0.40/h
"""

# ── what is called


@pytest.fixture
async def fleet(cloud: Cloud, proxy: Proxy, tmp_path: Path) -> AsyncIterator[FleetRig]:
    proxy.listed = dict.fromkeys(TYPES, 0.1)
    async with closing(FleetRig(cloud, proxy, tmp_path)) as rig:
        yield rig


@pytest.fixture
async def group(cloud: Cloud, proxy: Proxy, tmp_path: Path) -> AsyncIterator[FleetRig]:
    cloud.group("workers")
    async with closing(GroupRig(cloud, proxy, tmp_path)) as rig:
        yield rig


def called(mode: rights.Mode) -> set[str]:
    """The calls that a mode's rights are for."""
    return {right.action.partition(":")[2] for right in rights.RIGHTS if mode in right.modes and not right.implied}


async def live(rig: FleetRig, provider: Any) -> None:
    """A pool's whole life."""
    await opened(provider)
    nodes = await launched(provider, order(rig, "1-1", 2))
    await settles(provider, lambda found: set(found) == nodes)
    node = min(nodes)
    await provider.logs(node, 5)
    if isinstance(rig, GroupRig):
        await expose(rig, provider, node)
    await provider.stop(sorted(nodes), 0.0)
    await settles(provider, lambda found: not found)
    await provider.close()


async def expose(rig: GroupRig, provider: Any, node: NodeId) -> None:
    """Take an instance's protection away, and see that it is given back."""
    bare = {"InstanceIds": [node.rpartition("/")[2]], "ProtectedFromScaleIn": False}
    rig.cloud.asg.set_instance_protection(AutoScalingGroupName="workers", **bare)
    before = rig.proxy.counts["SetInstanceProtection"]
    async with asyncio.timeout(20):
        while rig.proxy.counts["SetInstanceProtection"] == before:
            provider._look_at = 0.0
            provider._state = None
            await provider.list()
            provider.hear("", {node: Known(Phase.READY, busy=1)})
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_the_calls_of_mode_fleet_are_those_that_it_has_rights_for(fleet: FleetRig, proxy: Proxy) -> None:
    await live(fleet, fleet.make(spot="50%", pricing=True))
    assert set(proxy.counts) == called("fleet")


@pytest.mark.slow
async def test_the_calls_of_mode_asg_are_those_that_it_has_rights_for(group: FleetRig, proxy: Proxy) -> None:
    await live(group, group.make())
    assert set(proxy.counts) == called("asg")


# ── under moto's IAM, which looks at actions and not at resources and conditions


@pytest.fixture
def plain(cloud: Cloud) -> Iterator[Proxy]:
    """Before moto, only what moto has not at all: what an emulation asks moto besides, nobody has signed."""
    made = Proxy(cloud.port, {name: CALLS[name] for name in ("DescribeInstanceRefreshes",)}).start()
    yield made
    made.close()


@pytest.fixture
def rig_parts(cloud: Cloud, plain: Proxy, tmp_path: Path) -> tuple[Cloud, Proxy, Path]:
    """What a rig is made of."""
    return cloud, plain, tmp_path


def _auth_after(cloud: Cloud, calls: int) -> None:
    plain = {"Content-Type": "text/plain"}
    ask = urllib.request.Request(f"{cloud.url}/moto-api/reset-auth", str(calls).encode(), plain, method="POST")
    urllib.request.urlopen(ask, timeout=20).close()


@contextmanager
def enforced(cloud: Cloud) -> Iterator[None]:
    """Have every call need a right."""
    _auth_after(cloud, 0)
    try:
        yield
    finally:
        _auth_after(cloud, 1_000_000_000)


def grant(cloud: Cloud, policy: dict[str, Any]) -> None:
    """Give the user this policy, as far as moto reads any: to it, an action is for all resources or for none."""
    told = {**policy, "Statement": [one | {"Resource": "*", "Condition": {}} for one in policy["Statement"]]}
    cloud.client("iam").put_user_policy(UserName="fleetd", PolicyName="fleetd", PolicyDocument=json.dumps(told))


@contextmanager
def only(cloud: Cloud, policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have nothing but this policy."""
    iam = cloud.client("iam")
    iam.create_user(UserName="fleetd")
    grant(cloud, policy)
    key = iam.create_access_key(UserName="fleetd")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    with enforced(cloud):
        yield


async def alone(rig: FleetRig, provider: Any) -> None:
    """A life without the test's own calls, which would need rights of their own."""
    await opened(provider)
    nodes = await launched(provider, order(rig, "1-1", 1))
    await settles(provider, lambda found: set(found) == nodes)
    await provider.stop(sorted(nodes), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lacking"), [(FleetRig, "ec2:CreateFleet"), (GroupRig, "autoscaling:SetDesiredCapacity")]
)
async def test_a_pool_lives_with_the_printed_policy_and_not_without_a_part_of_it(
    rig_parts: tuple[Cloud, Proxy, Path], monkeypatch: pytest.MonkeyPatch, kind: type[FleetRig], lacking: str
) -> None:
    cloud = rig_parts[0]
    cloud.group("workers")
    async with closing(kind(*rig_parts)) as rig:
        provider = rig.make()
        policy = rights.policy("test", provider._pool, ROLE if kind is FleetRig else "")
        with only(cloud, policy, monkeypatch):
            await alone(rig, provider)
        for one in policy["Statement"]:
            one["Action"] = [action for action in one["Action"] if action != lacking] or ["ec2:DescribeTags"]
        grant(cloud, policy)
        with enforced(cloud), pytest.raises(RefusedError, match=f"{lacking.partition(':')[2]}: .*fleetd iam"):
            await launched(provider, order(rig, "1-2", 1))
