"""What the test kubelet says of its pods: their phase, the state of their container, their conditions."""

import contextlib
import datetime as dt

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from tests.kubernetes.kubelet_pod import HOST, Run


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


KEPT = ("PodScheduled", "DisruptionTarget")  # conditions that are others' word


async def waiting(
    api: Api, run: Run, reason: str, message: str, *, restarts: int = 0, last: Json | None = None
) -> None:
    state = {"waiting": {"reason": reason, "message": message}}
    # A pod whose container crashed is still "Running".
    await status(api, run, "Running" if restarts else "Pending", state, restarts=restarts, last=last)


async def running(api: Api, run: Run, restarts: int = 0, last: Json | None = None, *, ready: bool = True) -> None:
    await status(api, run, "Running", {"running": {"startedAt": now()}}, restarts=restarts, last=last, ready=ready)


async def evict(api: Api, run: Run, reason: str, message: str) -> None:
    with contextlib.suppress(ProviderError):
        whole = {"phase": "Failed", "reason": reason, "message": message}
        await api.merge(f"{run.path}/status", {"status": whole})


async def taken(api: Api, run: Run) -> None:
    """What the scheduler does to make room: a condition, then a deletion."""
    one = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for it"}
    conditions = [*(run.pod["status"].get("conditions") or ()), {**one, "lastTransitionTime": now()}]
    with contextlib.suppress(ProviderError):
        await api.merge(f"{run.path}/status", {"status": {"conditions": conditions}})
        await api.call("DELETE", run.path)


async def status(
    api: Api, run: Run, phase: str, state: Json, *, restarts: int = 0, last: Json | None = None, ready: bool = False
) -> None:
    spec = run.container
    one = {"name": spec["name"], "image": spec["image"], "imageID": "", "state": state, "ready": ready}
    one |= {"restartCount": restarts, "lastState": last or {}, "started": "running" in state}
    known = [c for c in run.pod.get("status", {}).get("conditions") or () if c["type"] in KEPT]
    told = [
        {"type": kind, "status": "True" if ready else "False", "lastTransitionTime": now()}
        for kind in ("Initialized", "ContainersReady", "Ready")
    ]
    whole = {"phase": phase, "containerStatuses": [one], "conditions": known + told, "startTime": now()}
    whole |= {"hostIP": HOST, "podIP": HOST, "podIPs": [{"ip": HOST}]}
    with contextlib.suppress(ProviderError):  # it is gone
        await api.call(
            "PATCH",
            f"{run.path}/status",
            {"metadata": {"uid": run.uid}, "status": whole},
            kind="application/merge-patch+json",
            limit_s=30.0,
            patient=True,
        )


async def forget(api: Api, run: Run) -> None:
    body = {"gracePeriodSeconds": 0, "preconditions": {"uid": run.uid}}
    with contextlib.suppress(ProviderError):
        await api.call("DELETE", run.path, body, limit_s=30.0, patient=True)
