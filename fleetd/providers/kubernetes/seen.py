"""What a pod's status says: is it a node of ours, is it up, and if it will never be, why.

Promises: pure; total over whatever a server sends. A pod that will not come up by itself is told apart by kind, so that
the pool's breaker knows how long to leave it alone: `exhausted` (no room, a quota: another pool may have it), `refused`
(an image, a Secret, a command: the owner must mend it), `error` (it crashed, or its machine is gone).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from fleetd.core.model import NodeId, Seconds
from fleetd.providers.kubernetes import names

Kind = Literal["exhausted", "refused", "error"]
# A reason for which a container waits, and what that means. ErrImagePull is not among them: it is tried again at once.
WAITING: Final[Mapping[str, tuple[Kind, str]]] = {
    "ImagePullBackOff": ("refused", "its image cannot be pulled"),
    "InvalidImageName": ("refused", "its image has no valid name"),
    "ErrImageNeverPull": ("refused", "its image is not on the machine, and may not be pulled"),
    "CreateContainerConfigError": ("refused", "its container cannot be made"),
    "CreateContainerError": ("refused", "its container cannot be made"),
    "RunContainerError": ("refused", "its command cannot be started"),
    "CrashLoopBackOff": ("error", "its worker ends again and again"),
}
# Why a pod was taken away, as its condition DisruptionTarget says.
TAKEN: Final[Mapping[str, tuple[Kind, str]]] = {
    "PreemptionByScheduler": ("exhausted", "preempted: something of a higher priority took its place"),
    "DeletionByTaintManager": ("error", "its machine is gone or tainted"),
    "EvictionByEvictionAPI": ("error", "evicted"),
    "DeletionByPodGC": ("error", "its machine is gone"),
    "TerminationByKubelet": ("error", "its machine ended it"),
}
MACHINE: Final = frozenset({"DeletionByTaintManager", "DeletionByPodGC"})
FAILED: Final[Mapping[str, tuple[Kind, str]]] = {
    "Evicted": ("exhausted", "evicted: its machine ran short"),
    "Preempting": ("exhausted", "preempted by its machine"),
    "NodeLost": ("error", "its machine is gone"),
    "UnexpectedAdmissionError": ("exhausted", "its machine would not take it"),
    "OutOfcpu": ("exhausted", "its machine would not take it"),
    "OutOfmemory": ("exhausted", "its machine would not take it"),
    "OutOfpods": ("exhausted", "its machine would not take it"),
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a pod is no node, or will not become one. `machine`: that which it is on is gone, and will tell no end."""

    kind: Kind
    reason: str
    machine: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A pod. `unplaced`: why no machine has room for it, so far. `leaving_s`: it ends, and was given so long."""

    node: NodeId
    name: str
    uid: str
    app: str
    key: str
    index: int
    phase: Literal["coming", "up", "ended"]
    trouble: Trouble | None = None
    unplaced: str = ""
    leaving_s: Seconds | None = None
    ready: bool = False
    busy: bool = False  # marked so, for others
    owner: str = ""


def see(pod: Mapping[str, Any], pool: str) -> Seen:
    """Return what there is to know of a pod, from the whole object."""
    meta, status = pod["metadata"], pod.get("status", {})
    labels, notes = meta.get("labels") or {}, meta.get("annotations") or {}
    name, uid = meta["name"], meta["uid"]
    # A Job's node bears the Job's name: that is known before there is a pod.
    node = names.node_id(pool, labels.get(names.JOB_NAME) or name, labels.get(names.JOB_UID) or uid)
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    phase = status.get("phase", "Pending")
    up = phase == "Running" and any("running" in one.get("state", {}) for one in _containers(status))
    leaves = meta.get("deletionTimestamp") is not None
    return Seen(
        node=node,
        name=name,
        uid=uid,
        app=labels.get(names.APP, ""),
        key=labels.get(names.ORDER) or notes.get(names.ORDER) or "",
        index=_number(labels.get(names.INDEX)),
        phase="ended" if phase in ("Succeeded", "Failed") else "up" if up else "coming",
        trouble=_trouble(status, conditions, phase),
        unplaced=_unplaced(conditions),
        leaving_s=float(meta.get("deletionGracePeriodSeconds") or 0) if leaves else None,
        ready=conditions.get("Ready", {}).get("status") == "True",
        busy=all(notes.get(key) == value for key, value in names.BUSY.items()),
        owner=next((one["uid"] for one in meta.get("ownerReferences") or () if one.get("controller")), ""),
    )


def ordinal(name: str) -> int:
    """Return the number at the end of a StatefulSet's pod's name."""
    number = name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _trouble(status: Mapping[str, Any], conditions: Mapping[str, Any], phase: str) -> Trouble | None:
    taken = conditions.get("DisruptionTarget")
    if taken and taken.get("status") == "True" and taken.get("reason") in TAKEN:
        told = _told(TAKEN[taken["reason"]], taken.get("message"))
        return replace(told, machine=taken["reason"] in MACHINE)
    if phase == "Failed":
        known = FAILED.get(status.get("reason", ""))
        return _told(known, status.get("message")) if known else Trouble("error", _ending(status))
    for one in _containers(status):
        waiting = one.get("state", {}).get("waiting") or {}
        if waiting.get("reason") in WAITING:
            ended = _ending(status) if waiting["reason"] == "CrashLoopBackOff" else waiting.get("message")
            return _told(WAITING[waiting["reason"]], ended)
    return None


def _unplaced(conditions: Mapping[str, Any]) -> str:
    placed = conditions.get("PodScheduled", {})
    if placed.get("status") == "False" and placed.get("reason") == "Unschedulable":
        return _line(placed.get("message")) or "unschedulable"
    return ""


def _ending(status: Mapping[str, Any]) -> str:
    """Return how the last container ended."""
    for one in _containers(status):
        for state in (one.get("state", {}), one.get("lastState", {})):
            ended = state.get("terminated")
            if ended:
                return _line(
                    f"exit code {ended.get('exitCode')} {ended.get('reason') or ''} {ended.get('message') or ''}"
                )
    return _line(f"failed: {status.get('reason') or ''} {status.get('message') or ''}")


def _containers(status: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _told(known: tuple[Kind, str], message: object) -> Trouble:
    kind, words = known
    said = _line(message)
    return Trouble(kind, f"{words}: {said}" if said else words)


def _line(text: object) -> str:
    return " ".join(str(text or "").split())[:300]


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1


def see_job(job: Mapping[str, Any], pool: str) -> Seen:
    """Return a Job as what its pod will be; once there is one, that is right."""
    meta = job["metadata"]
    labels = meta.get("labels") or {}
    conditions = {one["type"]: one for one in job.get("status", {}).get("conditions") or ()}
    failed = conditions.get("Failed", {})
    over = "True" in (failed.get("status"), conditions.get("Complete", {}).get("status"))
    return Seen(
        node=names.node_id(pool, meta["name"], meta["uid"]),
        name=meta["name"],
        uid=meta["uid"],
        app=labels.get(names.APP, ""),
        key=labels.get(names.ORDER, ""),
        index=_number(labels.get(names.INDEX)),
        phase="ended" if over else "coming",
        trouble=Trouble("error", _line(failed.get("message"))) if failed.get("status") == "True" else None,
        unplaced="its Job has no pod yet",
        leaving_s=0.0 if meta.get("deletionTimestamp") else None,
    )
