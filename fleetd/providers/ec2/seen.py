"""What EC2 says of an instance, in our words. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from fleetd.core.model import NodeId
from fleetd.providers.ec2 import names

Market = Literal["spot", "on-demand"]
ALIVE: Final = ("pending", "running")
LISTED: Final = (*ALIVE, "shutting-down", "stopping", "stopped")
_WHY: Final = {
    "Server.SpotInstanceTermination": "spot interruption: AWS took it back",
    "Server.SpotInstanceShutdown": "spot interruption: AWS took it back",
    "Client.InstanceInitiatedShutdown": "it shut itself down",
    "Client.UserInitiatedShutdown": "somebody terminated it",
    "Server.InsufficientInstanceCapacity": "no capacity for it (Server.InsufficientInstanceCapacity)",
    "Server.InternalError": "AWS could not start it (Server.InternalError)",
    "Client.InternalError": "it could not be started (Client.InternalError): is its image's disk encrypted by a key "
    "that it may not use?",
    "Client.VolumeLimitExceeded": "the volume quota is used up (Client.VolumeLimitExceeded)",
}


class Choice(NamedTuple):
    """Where an instance could come from."""

    type: str
    zone: str
    market: Market

    def __str__(self) -> str:
        return f"{self.market} {self.type} in {self.zone}"


@dataclass(frozen=True, slots=True)
class Seen:
    """An instance. `code` and `why`: what ended it, as far as EC2 says; `owner`: which controller.s mark it bears."""

    id: str
    node: NodeId
    state: str
    choice: Choice
    app: str | None = None
    key: str = ""
    owner: str = ""
    code: str = ""
    why: str = ""

    @property
    def alive(self) -> bool:
        """Whether it is there or coming."""
        return self.state in ALIVE


def see(pool: str, raw: Mapping[str, Any]) -> Seen:
    """Read one instance of DescribeInstances."""
    tags = names.as_map(raw.get("Tags"))
    reason = raw.get("StateReason") or {}
    code, said = reason.get("Code", ""), " ".join(reason.get("Message", "").split())
    market: Market = "spot" if raw.get("InstanceLifecycle") == "spot" else "on-demand"
    return Seen(
        id=raw["InstanceId"],
        node=names.node_id(pool, raw["InstanceId"]),
        state=raw["State"]["Name"],
        choice=Choice(raw.get("InstanceType", ""), raw.get("Placement", {}).get("AvailabilityZone", ""), market),
        app=tags.get(names.APP),
        key=tags.get(names.ORDER, ""),
        owner=tags.get(names.INSTANCE, ""),
        code=code,
        why=_WHY.get(code, said),
    )
