"""What fleetd may do in a cluster, in one table: the documents, `fleetd manifests`, the chart and its tests read it.

Promises: pure. No right reaches beyond a pool's namespace, and none is wider than what is asked for: where an object's
name is known beforehand, the right is to that name. (`create` by name holds for objects that are applied, since the
server knows their name when it decides; a POST bears none.)
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.options import KubernetesOptions

Json = dict[str, Any]
Way = Literal["pods", "job", "scale", "leader"]
ALL: Final[tuple[Way, ...]] = ("pods", "job", "scale")
HEADS: Final[Mapping[Way, str]] = {
    "pods": "`pods`",
    "job": "`pods`, Jobs",
    "scale": "`scale`",
    "leader": "Lease",
}
RBAC: Final = "rbac.authorization.k8s.io"


@dataclass(frozen=True, slots=True)
class Right:
    """What may be done with a resource. `{kept}`, `{source}` and the like stand for what the policy says."""

    resource: str
    verbs: tuple[str, ...]
    ways: tuple[Way, ...]
    why: str
    group: str = ""
    names: tuple[str, ...] = ()  # none: objects of any name
    unless: str = ""  # an option of the pool, with which it is not needed
    called: str = ""  # in the documents, where the resource is one of several


RIGHTS: Final = (
    Right("pods", ("list", "watch", "patch", "delete"), ALL, "to see them, mark busy ones, end them"),
    Right("pods", ("create",), ("pods",), "to make them"),
    Right("pods/log", ("get",), ALL, "`fleetd logs`"),
    Right("jobs", ("list", "watch", "create", "patch", "delete"), ("job",), "to make and end them", group="batch"),
    Right(
        "{plural}",
        ("get",),
        ALL,
        "what pods are made from, or what is scaled",
        group="{group}",
        names=("{source}",),
        called="the template or the target",
    ),
    Right(
        "{plural}/scale",
        ("get", "update"),
        ("scale",),
        "the number of replicas",
        group="{group}",
        names=("{source}",),
        called="the target's `/scale`",
    ),
    Right(
        "horizontalpodautoscalers",
        ("list",),
        ("scale",),
        "to refuse a target that has another owner",
        group="autoscaling",
    ),
    Right("scaledobjects", ("list",), ("scale",), "the same", group="keda.sh"),
    Right(
        "secrets",
        ("create", "patch"),
        ALL,
        "the join token; not with `join_secret`",
        names=("{kept}",),
        unless="join_secret",
    ),
    Right("configmaps", ("create", "patch"), ALL, "what fleetd says of the pool", names=("{kept}",)),
    Right(
        "configmaps",
        ("get", "create", "patch"),
        ("scale",),
        "what the number is being raised to, for a restart at that moment",
        names=("{kept}-orders",),
    ),
    Right("events", ("create",), ALL, "what `kubectl describe` shows"),
    Right(
        "leases",
        ("get", "update"),
        ("leader",),
        "who of several controllers acts",
        group="coordination.k8s.io",
        names=("{lease}",),
    ),
    Right(
        "leases",
        ("create",),
        ("leader",),
        "the first time, or after somebody has deleted it",
        group="coordination.k8s.io",
    ),
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks: a pool's way, or the leader's; and what its placeholders stand for."""

    way: Way
    words: Mapping[str, str]
    given: frozenset[str] = field(default_factory=frozenset)  # options that are set


def of_pool(name: str, options: KubernetesOptions) -> Asked:
    """Return what a pool asks for."""
    way: Way = "scale" if options.mode == "scale" else "job" if options.run == "job" else "pods"
    source = options.source
    words = {"plural": source.kind.plural, "group": source.kind.group, "source": source.name}
    given = frozenset({"join_secret"} if options.join_secret else ())
    return Asked(way, {**words, "kept": names.kept_name(name)}, given)


def of_leader(lease: str) -> Asked:
    """Return what the holder of a Lease asks for."""
    return Asked("leader", {"lease": lease})


def rules(asked: Iterable[Asked]) -> list[Json]:
    """Return the rules of a Role for all who ask in one namespace; what two ask for stands there once."""
    found: list[Json] = []
    for one in asked:
        for right in RIGHTS:
            rule = _rule(right, one)
            if one.way in right.ways and right.unless not in one.given and rule not in found:
                found.append(rule)
    return found


def _rule(right: Right, asked: Asked) -> Json:
    rule: Json = {
        "apiGroups": [_said(right.group, asked)],
        "resources": [_said(right.resource, asked)],
        "verbs": list(right.verbs),
    }
    return rule | ({"resourceNames": [_said(name, asked) for name in right.names]} if right.names else {})


def _said(text: str, asked: Asked) -> str:
    for word, value in asked.words.items():
        text = text.replace(f"{{{word}}}", value)
    return text


def table() -> str:
    """Return the table of rights, as docs/kubernetes.md has it."""
    lines = [
        f"| resource | verbs | {' | '.join(HEADS.values())} | what for |",
        f"|---|---|{':-:|' * len(HEADS)}---|",
    ]
    for right in RIGHTS:
        group = f" ({right.group})" if right.group and not right.called else ""
        what = right.called or f"`{right.resource}`{group}"
        ticks = " | ".join("✓" if way in right.ways else "" for way in HEADS)
        only = ", ".join(f"`{name}`" for name in map(_shown, right.names) if name)
        why = f"{right.why}; by name" + (f": {only}" if only else "") if right.names else right.why
        lines.append(f"| {what} | {', '.join(right.verbs)} | {ticks} | {why} |")
    return "\n".join(lines) + "\n"


def _shown(name: str) -> str:
    return name.replace("{kept}", "fleetd-POOL").replace("{lease}", "fleetd-FLEET").replace("{source}", "")


def data() -> Sequence[Json]:
    """Return the table as plain data, for templates that are not Python."""
    return [
        {
            "ways": list(right.ways),
            "group": right.group,
            "resource": right.resource,
            "verbs": list(right.verbs),
            **({"names": list(right.names)} if right.names else {}),
            **({"unless": right.unless} if right.unless else {}),
        }
        for right in RIGHTS
    ]
