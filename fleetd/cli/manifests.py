"""`fleetd manifests`: what the cluster needs beforehand, as YAML for kubectl.

Promises: nothing is asked of any cluster; secrets are printed only when told to, and need not be at hand otherwise.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fleetd import __version__
from fleetd.cli.asking import PolicyFile, nearest
from fleetd.errors import UsageError

app = typer.Typer()
ACCOUNT: Final = "fleetd"
UNKNOWN: Final = "https://unknown.invalid/and-not-needed"  # will do for a token and for the URL of a webhook
NOWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - addresses to listen on, not to be reached by


@app.command()
def manifests(
    policy: PolicyFile,
    pool: Annotated[str | None, typer.Option("--pool", help="of one pool; the Role is the pool's own")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="where fleetd runs; default: that of all its pools")
    ] = None,
    account: Annotated[str, typer.Option("--account", help="whom it runs as, there")] = ACCOUNT,
    image: Annotated[str | None, typer.Option("--image", help="of the workers; default: fleetd-worker:VERSION")] = None,
    with_secret: Annotated[bool, typer.Option("--with-secret", help="the join tokens, too")] = False,
) -> None:
    """Print what a policy's Kubernetes pools need in the cluster: workers, Secrets, and what fleetd may do there."""
    asked = Asked(pool, namespace, account, image or f"fleetd-worker:{__version__}", with_secret)
    print(text(needed(policy, asked)), end="")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    pool: str | None = None
    namespace: str | None = None
    account: str = ACCOUNT
    image: str = f"fleetd-worker:{__version__}"
    with_secret: bool = False


def needed(path: Path, asked: Asked) -> Sequence[Any]:
    """Return the objects, each with what is to be said of it. Raises PolicyError or UsageError."""
    from fleetd.config import load
    from fleetd.providers.kubernetes import names, needs, rights

    policy = load(path, environ=os.environ if asked.with_secret else _Unknown(os.environ), code=False)
    pools = _pools(policy, asked)
    home = _home(policy, pools, asked)
    makers = [_maker(policy, one, home, asked) for one in pools]
    found = [needs.account(home, asked.account)] if asked.pool is None else []
    access: dict[str, list[rights.Asked]] = {}
    for maker in makers:
        access.setdefault(maker.namespace, []).append(rights.of_pool(maker.pool.name, maker.options))
    lease = _lease(policy, home) if asked.pool is None else None
    if lease:
        access.setdefault(lease[0], []).append(rights.of_leader(lease[1]))
        found.append(needs.lease(*lease))
    role = asked.account if asked.pool is None else names.kept_name(asked.pool)
    found += needs.access(access, (home, asked.account), role)
    for maker in makers:
        found += [needs.workers(maker, asked.image), *needs.kept(maker, with_secret=asked.with_secret)]
    return found


def text(found: Sequence[Any]) -> str:
    """Return the objects as YAML."""
    import yaml

    parts = []
    for need in found:
        said = "".join(f"# {line}\n" for line in need.why.splitlines())
        # By way of JSON nothing is shared any more: anchors are nothing for people.
        parts.append(
            said + ("" if need.thing is None else yaml.safe_dump(json.loads(json.dumps(need.thing)), sort_keys=False))
        )
    return "---\n".join(parts)


class _Unknown(Mapping[str, str]):
    """An environment in which every variable is set: what it holds is not printed."""

    def __init__(self, real: Mapping[str, str]) -> None:
        self._real = real

    def __getitem__(self, name: str) -> str:
        return self._real.get(name) or UNKNOWN

    def __iter__(self) -> Iterator[str]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)


def _pools(policy: Any, asked: Asked) -> Sequence[Any]:
    of_kind = {name: pool for name, pool in policy.pools.items() if pool.kind == "kubernetes"}
    if asked.pool is not None and asked.pool not in of_kind:
        if asked.pool in policy.pools:
            raise UsageError(f"--pool: {asked.pool} is of the kind {policy.pools[asked.pool].kind}, not kubernetes")
        raise UsageError(f"--pool: no pool {asked.pool!r}{nearest(asked.pool, list(of_kind))}")
    if not of_kind:
        raise UsageError("the policy has no pool of the kind kubernetes, so there is nothing to make")
    return list(of_kind.values()) if asked.pool is None else [of_kind[asked.pool]]


def _home(policy: Any, pools: Sequence[Any], asked: Asked) -> str:
    """Return the namespace that fleetd runs in."""
    if asked.namespace is not None:
        return asked.namespace
    known = {pool.options.namespace for pool in pools}
    if len(known) > 1 or known == {None}:
        told = ", ".join(sorted(one or "none" for one in known))
        raise UsageError(f"--namespace: say where {policy.fleet} runs: its pools' `namespace:` is {told}")
    return str(known.pop())


def _maker(policy: Any, pool: Any, home: str, asked: Asked) -> Any:
    from fleetd.config.scalars import is_loopback
    from fleetd.control.wiring import Home, worker_launch
    from fleetd.providers.kubernetes.manifest import Maker

    of = policy.controller
    if asked.with_secret and of.join is None:
        raise UsageError("--with-secret: controller.join is not set, so every controller makes tokens of its own")
    if pool.options.controller is None and (is_loopback(of.host) or of.host in NOWHERE or not of.port):
        raise UsageError(f"pool {pool.name}: kubernetes: needs `controller:`, the URL by which pods reach fleetd")
    launch = worker_launch(policy, Home(Path(), "", f"http://{of.host}:{of.port}", of.join or ""))
    return Maker(pool, pool.options, launch, pool.options.namespace or home)


def _lease(policy: Any, home: str) -> tuple[str, str] | None:
    """Return namespace and name of the Lease, where the policy has one."""
    from fleetd.providers.kubernetes.names import lease_name

    leader = policy.controller.leader
    if leader is None or leader.kind != "kubernetes":
        return None
    return leader.options.namespace or home, leader.options.name or lease_name(policy.fleet)
