"""How nodes, tags and tokens are spelled. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleetd.core.model import NodeId, Order, PoolPolicy
from fleetd.core.ports import WorkerLaunch

FLEET: Final = "fleetd:fleet"
INSTANCE: Final = "fleetd:instance"  # of the controller
POOL: Final = "fleetd:pool"
APP: Final = "fleetd:app"
ORDER: Final = "fleetd:order"
EPOCH: Final = "fleetd:epoch"
GROUP: Final = "aws:autoscaling:groupName"


def node_id(pool: str, instance: str) -> NodeId:
    """Return the node that an instance is. Instance ids are never used again."""
    return f"{pool}/{instance}"


def instance_id(node: NodeId) -> str:
    """Return the instance that a node is."""
    return node.rpartition("/")[2]


def tags_for(pool: PoolPolicy, launch: WorkerLaunch, order: Order) -> dict[str, str]:
    """Return what an instance of an order is marked with: all that is needed to adopt it."""
    return {
        FLEET: launch.fleet,
        INSTANCE: launch.instance,
        POOL: pool.name,
        APP: order.app,
        ORDER: order.key,
        EPOCH: str(order.epoch),
    }


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Spell tags as AWS does."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def as_map(tags: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """Read tags as AWS spells them."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}


def filters(**values: str | Sequence[str]) -> list[dict[str, Any]]:
    """Spell filters; an underscore in a name stands for a dash."""
    return [
        {"Name": name.replace("_", "-"), "Values": [value] if isinstance(value, str) else list(value)}
        for name, value in values.items()
    ]


def token(launch: WorkerLaunch, pool: str, key: str, attempt: int) -> str:
    """Return the ClientToken of an order's attempt: the same again after a restart, another for every attempt."""
    told = f"{launch.instance}/{pool}/{key}/{attempt}"
    return f"fleetd-{hashlib.sha256(told.encode()).hexdigest()[:48]}"  # at most 64 characters
