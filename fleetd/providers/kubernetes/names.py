"""The names that fleetd writes on objects, and what they are for. Labels are for adoption; annotations for others.

Promises: pure. What is made of a policy's names is valid for the server, and as unlike as the names were.
"""

import hashlib
import re
from typing import Final

from fleetd.core.model import NodeId

DOMAIN: Final = "fleetd.dev"
INSTANCE: Final = f"{DOMAIN}/instance"
POOL: Final = f"{DOMAIN}/pool"
APP: Final = f"{DOMAIN}/app"
ORDER: Final = f"{DOMAIN}/order"
INDEX: Final = f"{DOMAIN}/index"
MANAGED: Final = "app.kubernetes.io/managed-by"
COST: Final = "controller.kubernetes.io/pod-deletion-cost"
JOB_UID: Final = "batch.kubernetes.io/controller-uid"
JOB_NAME: Final = "batch.kubernetes.io/job-name"
# While a pod is busy, neither Karpenter nor the cluster's autoscaler is to move it for the sake of tidiness.
BUSY: Final = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
TOKEN_VARIABLE: Final = "FLEETD_JOIN_TOKEN"  # noqa: S105 - a name
TOKEN_KEY: Final = "token"  # noqa: S105
_UNSAFE: Final = re.compile(r"[^a-z0-9]+")
_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def label(text: str) -> str:
    """Return the text as a label's value: itself where it is one, else its start and a digest."""
    return text if _LABEL.fullmatch(text) else f"{_safe(text, 40)}-{_digest(text)}"


def pod_name(instance: str, pool: str, key: str, index: int) -> str:
    """Return the name of an order's pod: the same order has the same names, so that asking twice makes one."""
    return f"{_safe(pool, 30)}-{_safe(key, 20)}-{index}-{_digest(f'{instance}/{pool}/{key}')}"


def kept_name(pool: str) -> str:
    """Return the name of the Secret and the ConfigMap that fleetd keeps for a pool."""
    safe = _safe(pool, 40)
    return f"fleetd-{safe}" if safe == pool else f"fleetd-{safe}-{_digest(pool)}"


def lease_name(fleet: str) -> str:
    """Return the name of the Lease that says which of a fleet's controllers acts."""
    return f"fleetd-{fleet.lower().replace('_', '-')}"


def node_id(pool: str, name: str, uid: str) -> NodeId:
    """Return a node's name: its pool's, its pod's and the uid, for names of pods are used again."""
    return f"{pool}/{name}.{uid}"


def split_node(node: NodeId) -> tuple[str, str]:
    """Return a node's pod and its uid; two empty texts for what is no such name."""
    name, dot, uid = node.partition("/")[2].rpartition(".")
    return (name, uid) if dot else ("", "")


def _safe(text: str, most: int) -> str:
    return _UNSAFE.sub("-", text.lower())[:most].strip("-") or "x"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
