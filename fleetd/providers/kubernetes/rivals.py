"""Who else writes the number of a target's replicas: a HorizontalPodAutoscaler, or KEDA's ScaledObject.

Promises: where there is one, it is named; two owners of one number would fight over it, and jobs would die of that.
"""

from typing import Final

from fleetd.errors import RefusedError
from fleetd.providers.kubernetes.api import Api
from fleetd.providers.kubernetes.faults import AnswerError
from fleetd.providers.kubernetes.options import Reference

_RIVALS: Final = (
    ("HorizontalPodAutoscaler", "/apis/autoscaling/v2", "horizontalpodautoscalers"),
    ("ScaledObject", "/apis/keda.sh/v1alpha1", "scaledobjects"),
)


async def refuse_rivals(api: Api, place: str, target: Reference) -> None:
    """Raise RefusedError where somebody else scales the target."""
    for kind, root, plural in _RIVALS:
        try:
            found = await api.get(f"{root}/namespaces/{api.namespace}/{plural}")
        except AnswerError as error:
            # Without KEDA there is no such kind; and what it scales, it scales by an autoscaler, seen above.
            if kind == "ScaledObject" and error.status in (403, 404):
                continue
            raise
        for one in found["items"]:
            aim = one["spec"].get("scaleTargetRef", {})
            if aim.get("name") == target.name and aim.get("kind", "Deployment") in (target.kind.name, ""):
                name = one["metadata"]["name"]
                raise RefusedError(
                    f"{place}: {target} is scaled by {kind} {name} too; delete that, or name another target"
                )
