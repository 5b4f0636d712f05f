"""A seat that is a Lease of Kubernetes (coordination.k8s.io/v1), the record that controllers of Kubernetes use.

Promises: a write is refused where another was quicker (the version goes with it); what others have put on the Lease,
labels above all, stays. `leaseTransitions` is the epoch: it only ever rises. The fleet's name among the nodes of
fleets of the same name is in an annotation, so that the next holder knows them for its own.
"""

import datetime as dt
from collections.abc import Sequence
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from fleetd.core.election import LASTS_S, Term
from fleetd.errors import FleetdError, SeatTakenError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.kubernetes.faults import ROLE, AnswerError
from fleetd.providers.kubernetes.names import lease_name

NAME: Final = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
GROUP: Final = "coordination.k8s.io"
INSTANCE: Final = "fleetd/instance"
CALL_S: Final = 4.0  # so that within the time that a holder has there is always a second try
VERBS: Final = ("get", "create", "update")


class LeaseOptions(BaseModel):
    """What stands under `kubernetes:` in `controller.leader`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: str | None = Field(default=None, pattern=NAME, description="default: that of the credentials in use")
    name: str | None = Field(default=None, pattern=NAME, description="the Lease's name (default: fleetd-FLEET)")
    kubeconfig: str | None = Field(default=None, description="a kubeconfig file (default: the pod's own account)")
    context: str | None = Field(default=None, description="a context of the kubeconfig (default: its current one)")


class KubernetesSeat:
    """The Lease of one fleet."""

    Options: ClassVar[type[LeaseOptions]] = LeaseOptions

    def __init__(self, fleet: str, options: LeaseOptions) -> None:
        """Nothing is asked yet."""
        self._name = options.name or lease_name(fleet)
        self.place = f"lease {self._name}"
        self._api = Api("", options, "controller.leader")
        self._found: Json = {}

    async def read(self) -> Term | None:
        """Return what the Lease says; None where there is none."""
        await self._api.open()
        try:
            self._found = await self._api.call("GET", f"{self._root}/{self._name}", limit_s=CALL_S)
        except AnswerError as error:
            if error.status != 404:
                raise
            self._found = {}
            return None
        return _term(self._found)

    async def write(self, term: Term) -> Term:
        """Write the Lease over the one of that version, or make it."""
        await self._api.open()
        body = _lease(self._found if term.version else {}, self._name, term)
        method, path = ("PUT", f"{self._root}/{self._name}") if term.version else ("POST", self._root)
        try:
            self._found = await self._api.call(method, path, body, limit_s=CALL_S)
        except AnswerError as error:
            gone = error.status == 404 and term.version
            if error.status == 409 or gone:
                raise SeatTakenError(f"controller.leader: {self.place}: another controller was quicker") from None
            raise
        return _term(self._found)

    async def check(self) -> Sequence[str]:
        """Ask the server whether the rights are there."""
        await self._api.open()
        lacking = []
        for verb in VERBS:
            asked: Json = {"namespace": self._api.namespace, "verb": verb, "group": GROUP, "resource": "leases"}
            if verb != "create":  # a right to create cannot be one by name
                asked["name"] = self._name
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": asked},
            }
            answer = await self._api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
            if not answer.get("status", {}).get("allowed"):
                lacking.append(
                    f"controller.leader: not permitted: {verb} {self.place} in namespace {self._api.namespace}; {ROLE}"
                )
        return lacking

    async def close(self) -> None:
        """Let go of the connection."""
        await self._api.close()

    @property
    def _root(self) -> str:
        return f"/apis/{GROUP}/v1/namespaces/{self._api.namespace}/leases"


def _term(lease: Json) -> Term:
    """Read a Lease. Whoever made it: an empty one, and one that another program holds, can be read as well."""
    meta, spec = lease["metadata"], lease.get("spec") or {}
    try:
        return Term(
            holder=str(spec.get("holderIdentity") or ""),
            lasts_s=float(spec.get("leaseDurationSeconds") or LASTS_S),
            epoch=int(spec.get("leaseTransitions") or 0),
            instance=str((meta.get("annotations") or {}).get(INSTANCE, "")),
            renewed=str(spec.get("renewTime") or ""),
            version=str(meta["resourceVersion"]),
        )
    except (KeyError, TypeError, ValueError):
        raise FleetdError(f"controller.leader: lease {meta.get('name')}: cannot be read; delete it") from None


def _lease(before: Json, name: str, term: Term) -> Json:
    """Return the Lease that says so, with whatever else was on it."""
    meta, spec = before.get("metadata") or {"name": name}, before.get("spec") or {}
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    notes = {**(meta.get("annotations") or {}), **({INSTANCE: term.instance} if term.instance else {})}
    own = {
        "holderIdentity": term.holder,
        "leaseDurationSeconds": round(term.lasts_s),
        "leaseTransitions": term.epoch,
        "renewTime": now,
        "acquireTime": spec.get("acquireTime", now) if spec.get("holderIdentity") == term.holder else now,
    }
    return {
        "apiVersion": f"{GROUP}/v1",
        "kind": "Lease",
        "metadata": {**meta, "annotations": notes, **({"resourceVersion": term.version} if term.version else {})},
        "spec": {**spec, **own},
    }
