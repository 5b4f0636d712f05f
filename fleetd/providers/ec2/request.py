"""CreateFleet, spelled and read. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fleetd.providers.ec2 import names
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.seen import Choice, Market, Seen

Json = dict[str, Any]
_STRATEGY: Final = {"spot": "price-capacity-optimized", "on-demand": "lowest-price"}
_OPTIONS: Final = {"spot": "SpotOptions", "on-demand": "OnDemandOptions"}


def create_fleet(
    options: Ec2Options,
    choices: Sequence[Choice],
    zones: Mapping[str, str],
    count: int,
    *,
    token: str,
    limit: float,
    tags: Mapping[str, str],
) -> Json:
    """Return the request for `count` instances of one market, of whichever choices AWS thinks best."""
    market: Market = choices[0].market
    wanted = {(one.type, one.zone) for one in choices}
    bid = {"MaxPrice": f"{limit:g}"} if limit and market == "spot" else {}
    overrides = [
        {"InstanceType": kind, "SubnetId": subnet, **bid}
        for subnet in dict.fromkeys(options.subnets)
        for kind in dict.fromkeys(options.types)
        if (kind, zones.get(subnet)) in wanted
    ]
    strategy: Json = {"AllocationStrategy": _STRATEGY[market]}
    if limit:
        strategy["MaxTotalPrice"] = f"{limit * count:g}"
    return {
        "Type": "instant",
        "ClientToken": token,
        "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": template(options), "Overrides": overrides}],
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": count,
            "SpotTargetCapacity": count if market == "spot" else 0,
            "OnDemandTargetCapacity": count if market == "on-demand" else 0,
            "DefaultTargetCapacityType": market,
        },
        _OPTIONS[market]: strategy,
        "TagSpecifications": [{"ResourceType": "instance", "Tags": names.as_list(tags)}],
    }


def template(options: Ec2Options) -> Json:
    """Spell which launch template is meant."""
    name = options.launch_template or ""
    key = "LaunchTemplateId" if name.startswith("lt-") else "LaunchTemplateName"
    return {key: name, "Version": options.version}


def prefixed(options: Ec2Options) -> Json:
    """Spell the launch template as DescribeLaunchTemplateVersions wants it."""
    spec = template(options)
    version = spec.pop("Version")
    return {**spec, "Versions": [version]}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A choice that gave nothing, and why."""

    choice: Choice
    code: str
    message: str


@dataclass(slots=True)
class Answer:
    """What came of a request."""

    started: list[Seen] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def read_answer(pool: str, raw: Mapping[str, Any], zones: Mapping[str, str], tags: Mapping[str, str]) -> Answer:
    """Read an answer: the instances, as booting, and the errors by choice."""
    answer = Answer()
    for one in raw.get("Instances", ()):
        choice = _choice(one, zones)
        for name in one.get("InstanceIds", ()):
            node = names.node_id(pool, name)
            marks = tags.get(names.APP), tags.get(names.ORDER, ""), tags.get(names.INSTANCE, "")
            answer.started.append(Seen(name, node, "pending", choice, *marks))
    for one in raw.get("Errors", ()):
        said = " ".join(str(one.get("ErrorMessage", "")).split())[:200]
        answer.refusals.append(Refusal(_choice(one, zones), one.get("ErrorCode", "?"), said))
    return answer


def _choice(raw: Mapping[str, Any], zones: Mapping[str, str]) -> Choice:
    override = raw.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
    zone = override.get("AvailabilityZone") or zones.get(override.get("SubnetId", ""), "")
    market: Market = "spot" if raw.get("Lifecycle") == "spot" else "on-demand"
    return Choice(raw.get("InstanceType") or override.get("InstanceType", ""), zone, market)
