"""What fleetd may do in an AWS account, in one table: `fleetd iam`, the documents and the tests read it.

Promises: pure. No right is wider than what is asked for: those that change something are for the pool's own instances,
by their tags, its group, its subnets and its region. What only looks cannot be narrowed, as AWS has it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from fleetd.core.model import PoolPolicy
from fleetd.providers.ec2.options import Ec2Options

Json = dict[str, Any]
Mode = Literal["fleet", "asg"]
On = Literal["all", "start", "parts", "made", "marked", "ours", "members", "group", "role"]
Given = Literal["", "spot", "pricing", "role"]
BOTH: Final[tuple[Mode, ...]] = ("fleet", "asg")


@dataclass(frozen=True, slots=True)
class Right:
    """What may be done, and with what. `given`: only with this option; `implied`: AWS asks for it, nobody calls it."""

    action: str
    modes: tuple[Mode, ...]
    on: On
    why: str
    given: Given = ""
    implied: bool = False


RIGHTS: Final = (
    Right("ec2:DescribeInstances", BOTH, "all", "to see the instances"),
    Right("ec2:GetConsoleOutput", ("fleet",), "ours", "`fleetd logs`"),
    Right("ec2:GetConsoleOutput", ("asg",), "members", "`fleetd logs`"),
    Right("ec2:DescribeLaunchTemplateVersions", ("fleet",), "all", "to refuse a template that would not do"),
    Right("ec2:DescribeSubnets", ("fleet",), "all", "to know the zones of the subnets"),
    Right("ec2:DescribeInstanceTypeOfferings", ("fleet",), "all", "to ask no zone for what it never has"),
    Right("ec2:DescribeSpotPriceHistory", ("fleet",), "all", "what spot costs now", given="spot"),
    Right("pricing:GetProducts", ("fleet",), "all", "what on-demand costs", given="pricing"),
    Right("ec2:CreateFleet", ("fleet",), "start", "to start instances"),
    Right("ec2:RunInstances", ("fleet",), "made", "the same: the instances", implied=True),
    Right("ec2:RunInstances", ("fleet",), "parts", "the same: what they are made from", implied=True),
    Right("ec2:CreateTags", ("fleet",), "marked", "the same: their tags", implied=True),
    Right("iam:PassRole", ("fleet",), "role", "the template's instance profile, if it has one", "role", implied=True),
    Right("ec2:TerminateInstances", ("fleet",), "ours", "to end them"),
    Right("ec2:CreateTags", ("asg",), "members", "which order an instance is from"),
    Right("autoscaling:DescribeAutoScalingGroups", ("asg",), "all", "what the group is and has"),
    Right("autoscaling:DescribeScalingActivities", ("asg",), "all", "why the group cannot grow"),
    Right("autoscaling:DescribePolicies", ("asg",), "all", "to refuse a group that has another owner"),
    Right("autoscaling:DescribeScheduledActions", ("asg",), "all", "the same"),
    Right("autoscaling:DescribeInstanceRefreshes", ("asg",), "all", "to leave a group alone that is being renewed"),
    Right("autoscaling:SetDesiredCapacity", ("asg",), "group", "to start instances; lowered by what never came"),
    Right("autoscaling:SetInstanceProtection", ("asg",), "group", "so that the group ends none"),
    Right("autoscaling:TerminateInstanceInAutoScalingGroup", ("asg",), "group", "to end the one that was drained"),
)


@dataclass(frozen=True, slots=True)
class Where:
    """Whose rights: a pool of a fleet. `role`: that of the launch template's instance profile, as an ARN."""

    fleet: str
    pool: str
    options: Ec2Options
    role: str = ""

    def granted(self, right: Right) -> bool:
        """Whether the pool needs it."""
        options = self.options
        given = {"": True, "spot": options.spot > 0, "pricing": options.pricing, "role": bool(self.role)}
        return options.mode in right.modes and given[right.given]


def policy(fleet: str, pool: PoolPolicy, role: str = "") -> Json:
    """Return the pool's IAM policy."""
    where = Where(fleet, pool.name, pool.options, role)
    by_place: dict[On, list[str]] = {}
    for right in RIGHTS:
        if where.granted(right):
            by_place.setdefault(right.on, []).append(right.action)
    statements = [_statement(on, actions, where) for on, actions in by_place.items()]
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(on: On, actions: Sequence[str], where: Where) -> Json:
    condition = _condition(on, where)
    told: Json = {"Sid": _SIDS[on], "Effect": "Allow", "Action": sorted(actions), "Resource": _resources(on, where)}
    return told | ({"Condition": condition} if condition else {})


_SIDS: Final[Mapping[On, str]] = {
    "all": "Look",
    "start": "Start",
    "parts": "StartFromTheseParts",
    "made": "StartWithTheseTags",
    "marked": "TagWhatIsStarted",
    "ours": "OwnInstances",
    "members": "InstancesOfTheGroup",
    "group": "TheGroup",
    "role": "RoleOfTheInstances",
}


def _resources(on: On, where: Where) -> str | list[str]:
    options = where.options
    group = f"autoScalingGroup:*:autoScalingGroupName/{options.group}"
    instances = [_arn(options, "instance/*")]
    found: Mapping[On, str | list[str]] = {
        "all": "*",
        "start": [_arn(options, "fleet/*"), *instances, *_parts(options)],
        "parts": _parts(options),
        "group": [f"arn:{_partition(options)}:autoscaling:{options.region}:*:{group}"],
        "role": [where.role],
    }
    return found.get(on, instances)


def _condition(on: On, where: Where) -> Json:
    """Return what else must be so; empty where nothing.

    Who could tag any instance as the pool's, could end any: tags are for what is just started, or is the group's.
    """
    tags = {"fleetd:fleet": where.fleet, "fleetd:pool": where.pool}
    asked = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
    found: Mapping[On, Json] = {
        "made": {"StringEquals": asked},
        "marked": {"StringEquals": {**asked, "ec2:CreateAction": ["CreateFleet", "RunInstances"]}},
        "ours": {"StringEquals": {f"aws:ResourceTag/{key}": value for key, value in tags.items()}},
        "members": {
            "StringEquals": {"aws:ResourceTag/aws:autoscaling:groupName": where.options.group},
            "ForAllValues:StringLike": {"aws:TagKeys": "fleetd:*"},
        },
        "role": {"StringEquals": {"iam:PassedToService": _service(where.options)}},
    }
    return found.get(on, {})


def _parts(options: Ec2Options) -> list[str]:
    """Return what instances are made from. A template that is named, and not by its id, could be any."""
    name = options.launch_template or ""
    template = name if name.startswith("lt-") else "*"
    parts = [f"launch-template/{template}", *(f"subnet/{subnet}" for subnet in dict.fromkeys(options.subnets))]
    parts += ["security-group/*", "network-interface/*", "volume/*", "key-pair/*"]
    image = f"arn:{_partition(options)}:ec2:{options.region}::image/*"  # images have no account
    return [*(_arn(options, part) for part in parts), image]


def _arn(options: Ec2Options, what: str) -> str:
    return f"arn:{_partition(options)}:ec2:{options.region}:*:{what}"


def _partition(options: Ec2Options) -> str:
    return {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(options.region.rpartition("-")[0].rpartition("-")[0], "aws")


def _service(options: Ec2Options) -> str:
    return "ec2.amazonaws.com.cn" if options.region.startswith("cn-") else "ec2.amazonaws.com"


_PLACES: Final[Mapping[On, str]] = {
    "all": "all",
    "start": "this region; the pool's subnets and template",
    "parts": "the pool's subnets and template",
    "made": "instances, with the pool's tags",
    "marked": "instances, as they are started, with the pool's tags",
    "ours": "instances with the pool's tags",
    "members": "instances of the group",
    "group": "the group",
    "role": "the role, to EC2",
}
_GIVEN: Final[Mapping[Given, str]] = {
    "": "",
    "spot": "with `spot:`",
    "pricing": "with `pricing:`",
    "role": "with `--role`",
}


def table() -> str:
    """Return the table of rights, as docs/ec2-instances.md has it."""
    lines = ["| action | `fleet` | `asg` | on | what for |", "|---|:-:|:-:|---|---|"]
    for right in RIGHTS:
        ticks = " | ".join("✓" if mode in right.modes else "" for mode in BOTH)
        why = "; ".join(filter(None, (right.why, _GIVEN[right.given])))
        lines.append(f"| `{right.action}` | {ticks} | {_PLACES[right.on]} | {why} |")
    return "\n".join(lines) + "\n"
