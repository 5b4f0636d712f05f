"""`fleetd userdata` and `fleetd iam`: what an owner gives AWS beforehand.

Promises: nothing is asked of AWS; what is printed holds no secret, and none need be at hand.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from fleetd.cli.asking import PolicyFile, nearest
from fleetd.cli.manifests import NOWHERE, _Unknown
from fleetd.errors import UsageError

app = typer.Typer()
PoolName = Annotated[str, typer.Argument(metavar="POOL", help="a pool of the kind ec2")]


@app.command()
def userdata(pool: PoolName, policy: PolicyFile) -> None:
    """Print the user data (cloud-init) by which a pool's instances install, start and end their worker."""
    from fleetd.config.scalars import is_loopback
    from fleetd.control.enrol import certificates_of
    from fleetd.control.wiring import Home, worker_launch
    from fleetd.providers.ec2.userdata import user_data

    loaded, found = _pool(policy, pool)
    of = loaded.controller
    if found.options.controller is None and (is_loopback(of.host) or of.host in NOWHERE or not of.port):
        raise UsageError(f"pool {pool}: ec2: needs `controller:`, the URL by which instances reach fleetd")
    certificates_of(found)
    launch = worker_launch(loaded, Home(Path(), "", f"http://{of.host}:{of.port}", ""))
    print(user_data(found, launch), end="")


@app.command()
def iam(
    pool: PoolName,
    policy: PolicyFile,
    role: Annotated[str, typer.Option("--role", help="the ARN of the role in the template's instance profile")] = "",
) -> None:
    """Print the IAM policy with what fleetd may do for a pool, and no more."""
    from fleetd.providers.ec2 import rights

    if role and not role.startswith("arn:"):
        raise UsageError(f"--role: {role!r:.100} is no ARN; it looks like arn:aws:iam::123456789012:role/worker")
    loaded, found = _pool(policy, pool)
    if role and found.options.mode == "asg":
        raise UsageError(f"--role: pool {pool} is of mode asg: the group hands its role to instances, not fleetd")
    print(json.dumps(rights.policy(loaded.fleet, found, role), indent=2))


def _pool(path: Path, name: str) -> tuple[Any, Any]:
    """Return the policy and one of its pools, of the kind ec2."""
    from fleetd.config import load

    policy = load(path, environ=_Unknown(os.environ), code=False)
    of_kind = {one: pool for one, pool in policy.pools.items() if pool.kind == "ec2"}
    if name in of_kind:
        return policy, of_kind[name]
    if name in policy.pools:
        raise UsageError(f"pool {name} is of the kind {policy.pools[name].kind}, not ec2")
    raise UsageError(f"no pool {name!r}{nearest(name, list(of_kind))}")
