"""Which kinds of sources, providers and leaders are installed, and the class behind each.

Promises: an adapter is imported when a policy names its kind, and not before: some cost a second and 50 MB. An adapter
that is known but not here is said to be so; what is wrong with one that cannot be imported is told in a sentence.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Final, Literal

from fleetd.config.findings import cut, did_you_mean, quoted
from fleetd.errors import UsageError

Load = Callable[[], Any]
Role = Literal["source", "provider", "leader"]

_ELSEWHERE: Final[Mapping[Role, frozenset[str]]] = {
    "source": frozenset({"gearman", "redis", "rabbitmq", "sqs", "postgres", "prometheus", "http"}),
    "provider": frozenset({"process", "kubernetes", "ec2", "rack"}),
    "leader": frozenset({"kubernetes"}),
}


@dataclass(frozen=True, slots=True)
class Adapters:
    """Kinds of sources, of providers and of leaders, each with what imports its class."""

    sources: Mapping[str, Load] = field(default_factory=dict)
    providers: Mapping[str, Load] = field(default_factory=dict)
    leaders: Mapping[str, Load] = field(default_factory=dict)

    def of(self, role: Role) -> Mapping[str, Load]:
        """Return the kinds of one role."""
        return {"source": self.sources, "provider": self.providers, "leader": self.leaders}[role]


def installed() -> Adapters:
    """Return what the entry points `fleetd.sources`, `.providers` and `.leaders` of this environment name."""
    groups = ("fleetd.sources", "fleetd.providers", "fleetd.leaders")
    return Adapters(*({p.name: p.load for p in entry_points(group=group)} for group in groups))


def names(adapters: Adapters, role: Role) -> frozenset[str]:
    """Return every kind that is installed or known to exist elsewhere."""
    return frozenset(adapters.of(role)) | _ELSEWHERE[role]


def options(adapters: Adapters, role: Role, kind: str) -> Any:
    """Import an adapter and return its `Options`, a pydantic model. Raises UsageError with a sentence."""
    load = adapters.of(role).get(kind)
    if load is None:
        raise UsageError(_absent(adapters, role, kind))
    try:
        return load().Options
    except (ImportError, AttributeError) as error:
        reason = cut(" ".join(str(error).split()) or type(error).__name__, 120)
        raise UsageError(f"the {role} {quoted(kind)} is installed but cannot be imported: {reason}") from None


def acts(adapters: Adapters, kind: str) -> bool:
    """Return what a kind of provider does where the policy is silent: act, unless its class says `acts = False`."""
    return bool(getattr(adapters.providers[kind](), "acts", True))


def conflicts(adapters: Adapters, kind: str, pools: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Return what is wrong between several pools of one kind, by its class: a pool and a sentence each."""
    found: Iterable[tuple[str, str]] = getattr(adapters.providers[kind](), "conflicts", lambda _: ())(pools)
    return found


def _absent(adapters: Adapters, role: Role, kind: str) -> str:
    here = ", ".join(sorted(adapters.of(role))) or "none"
    if kind in _ELSEWHERE[role]:
        return f"the {role} '{kind}' is not installed here: its extra or a newer fleetd brings it; installed: {here}"
    return f"no {role} {quoted(kind)}{did_you_mean(kind, names(adapters, role))}; installed: {here}".replace("?;", "?")
