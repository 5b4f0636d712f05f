"""An Auto Scaling group as it says it is, and what its activities mean. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleetd.core.model import Seconds
from fleetd.errors import ProviderError, RefusedError

_OVER: Final = ("Terminating", "Terminated", "Detaching", "Detached")
_OUT: Final = re.compile(
    r"InsufficientInstanceCapacity|UnfulfillableCapacity|sufficient \S+ capacity|SpotMaxPriceTooLow|"
    r"VcpuLimitExceeded|InstanceLimitExceeded|MaxSpotInstanceCountExceeded|vCPU capacity|no Spot capacity|not launch",
    re.IGNORECASE,
)


@dataclass(slots=True)
class State:
    """A group. `members`: instances that are not going; `bare`: those of them that are not protected."""

    name: str
    desired: int
    least: int
    most: int
    members: set[str]
    bare: set[str]
    suspended: frozenset[str]
    protects: bool
    at: Seconds


def read_state(raw: Mapping[str, Any], now: Seconds) -> State:
    """Read one group of DescribeAutoScalingGroups."""
    there = [one for one in raw.get("Instances", ()) if not one["LifecycleState"].startswith(_OVER)]
    return State(
        name=raw["AutoScalingGroupName"],
        desired=raw["DesiredCapacity"],
        least=raw["MinSize"],
        most=raw["MaxSize"],
        members={one["InstanceId"] for one in there},
        bare={one["InstanceId"] for one in there if not one.get("ProtectedFromScaleIn")},
        suspended=frozenset(one["ProcessName"] for one in raw.get("SuspendedProcesses", ())),
        protects=bool(raw.get("NewInstancesProtectedFromScaleIn")),
        at=now,
    )


def mind(place: str, state: State, ending: int) -> None:
    """Refuse what the group would not do: `ending` instances fewer, or, where it is 0, more of them."""
    needed = "Terminate" if ending else "Launch"
    if needed in state.suspended:
        raise RefusedError(f"{place}: group {state.name}: its process {needed} is suspended; resume it")
    if ending and state.desired - ending < state.least:
        told = f"{ending} fewer than {state.desired} would be less than its MinSize {state.least}"
        raise ProviderError(f"{place}: group {state.name}: {told}; lower it")


def lacking_for(activities: Sequence[Mapping[str, Any]]) -> str:
    """Return why a group cannot give more, if one of these activities says so."""
    for one in activities:
        said = " ".join(str(one.get("StatusMessage", "")).split())
        if one.get("StatusCode") in ("Failed", "Cancelled") and _OUT.search(said):
            return said[:250]
    return ""
