"""What stands under `kubernetes:` in a pool.

Promises: what two options say together is checked here; whether the objects that they name exist, is checked when the
provider opens, for the cluster may come up later than the controller.
"""

import re
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fleetd.core.units import seconds

_NAME: Final = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(ge=0, le=86400)]


class Kind(NamedTuple):
    """A kind of object, as the server's paths spell it."""

    group: str
    version: str
    plural: str
    name: str  # as HorizontalPodAutoscalers and owner references spell it

    @property
    def api(self) -> str:
        """The value of `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Where its paths begin."""
        return f"/apis/{self.api}" if self.group else f"/api/{self.api}"


KINDS: Final = {
    "deployment": Kind("apps", "v1", "deployments", "Deployment"),
    "statefulset": Kind("apps", "v1", "statefulsets", "StatefulSet"),
    "replicaset": Kind("apps", "v1", "replicasets", "ReplicaSet"),
    "podtemplate": Kind("", "v1", "podtemplates", "PodTemplate"),
}
_SCALED: Final = ("deployment", "statefulset", "replicaset")
_CUSTOM: Final = re.compile(rf"([a-z0-9.-]+)/(v[a-z0-9]+)/([a-z0-9]+)/({_NAME})")
_TARGET: Final = rf"^([a-z]+|[a-z0-9.-]+/v[a-z0-9]+/[a-z0-9]+)/{_NAME}$"


class Reference(NamedTuple):
    """A named object of the pool's namespace."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.name or self.kind.plural} {self.name}"

    def path(self, namespace: str) -> str:
        """Where it is on the server."""
        return f"{self.kind.root}/namespaces/{namespace}/{self.kind.plural}/{self.name}"


class KubernetesOptions(BaseModel):
    """What stands under `kubernetes:` in a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["pods", "scale"] = Field(
        description="`pods`: pods that fleetd makes and deletes by name; `scale`: the replicas of an object of yours"
    )
    namespace: str | None = Field(
        default=None, pattern=f"^{_NAME}$", description="default: that of the credentials in use"
    )
    template: str | None = Field(
        default=None,
        pattern=rf"^((podtemplate|deployment)/)?{_NAME}$",
        description="in mode `pods`: what pods are made from: a PodTemplate's name, or `deployment/NAME`",
    )
    target: str | None = Field(
        default=None,
        pattern=_TARGET,
        description="in mode `scale`: deployment/NAME, statefulset/NAME, replicaset/NAME or GROUP/VERSION/PLURAL/NAME",
    )
    run: Literal["pod", "job"] = Field(default="pod", description="in mode `pods`: bare pods, or each one in a Job")
    container: str | None = Field(default=None, description="which container is the worker (default: the first)")
    room: Duration = Field(default=30.0, description="how long a pod may wait for a place; longer where nodes are made")
    controller: str | None = Field(
        default=None, pattern=r"^https?://", description="where pods reach the controller (default: where it listens)"
    )
    join_secret: str | None = Field(
        default=None,
        pattern=f"^{_NAME}$",
        description="a Secret of yours whose key `token` is the pool's join token (default: fleetd keeps one)",
    )
    kubeconfig: str | None = Field(default=None, description="a kubeconfig file (default: the pod's own account)")
    context: str | None = Field(default=None, description="a context of the kubeconfig (default: its current one)")

    @model_validator(mode="after")
    def _fits_the_mode(self) -> "KubernetesOptions":
        needed, other = ("template", "target") if self.mode == "pods" else ("target", "template")
        if getattr(self, needed) is None:
            raise ValueError(f"mode {self.mode} needs `{needed}:`")
        if getattr(self, other) is not None:
            raise ValueError(f"`{other}:` is of the other mode; mode {self.mode} takes `{needed}:`")
        if self.mode == "scale" and self.run == "job":
            raise ValueError("`run: job` is of mode pods")
        kind = (self.target or "").split("/", 1)[0]
        if self.target and self.target.count("/") == 1 and kind not in _SCALED:
            raise ValueError(f"target: a {kind} is not scaled; it is one of {', '.join(_SCALED)}, or GROUP/VERSION/…")
        return self

    @property
    def source(self) -> Reference:
        """The object that the pool's pods come from."""
        text = self.target or self.template or ""
        custom = _CUSTOM.fullmatch(text)
        if custom:
            group, version, plural, name = custom.group(1, 2, 3, 4)
            return Reference(Kind(group, version, plural, ""), name)
        kind, _, name = text.rpartition("/")
        return Reference(KINDS[kind or "podtemplate"], name)
