"""Pools on the proxy, for the conformance suite and all other tests."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fleetd.codecs.lease import join_token
from fleetd.core.model import AppPolicy, NodeId, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.ec2 import Ec2Provider
from fleetd.providers.ec2.options import Ec2Options
from tests.conformance.provider import Rig
from tests.ec2.cloud import REGION, TYPES, Cloud, Json
from tests.ec2.proxy import Proxy
from tests.worker.controller import SECRET


@dataclass
class FleetRig(Rig):
    """A pool in mode `fleet`."""

    cloud: Cloud
    proxy: Proxy
    folder: Path
    pool: str = "burst"
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    made: list[Any] = field(default_factory=list)
    others: int = 0

    @property
    def launch(self) -> WorkerLaunch:
        return WorkerLaunch(
            fleet="test",
            instance=self.instance,
            controller_url="http://127.0.0.1:1",
            state_dir=str(self.folder),
            apps={"photos": AppPolicy("photos"), "celery": AppPolicy("celery", exec=("celery",))},
            servers={"photos": ("127.0.0.1:1",)},
            limits={"photos": 60.0},
            token=lambda pool: join_token(SECRET, "test", pool),
        )

    def options(self) -> Json:
        """What stands under `ec2:`."""
        return {
            "mode": "fleet",
            "launch_template": "worker",
            "types": TYPES,
            "subnets": list(self.cloud.subnets)[:2],
            "spot": "100%",
        }

    def make(self, pool: str = "", instance: str = "", *, price: float = 0.4, least: int = 0, **options: Any) -> Any:
        """A provider; options that are None are left out."""
        given = {"region": REGION, "endpoint": self.proxy.url, **self.options(), **options}
        chosen = Ec2Options(**{key: value for key, value in given.items() if value is not None})
        name = pool or self.pool
        policy = PoolPolicy(name, "ec2", chosen, ("photos",), 1, min_nodes=least, max_nodes=99, price_per_h=price)
        provider = Ec2Provider(policy, chosen, replace(self.launch, instance=instance or self.instance))
        self.made.append(provider)
        return provider

    def provider(self) -> Any:
        return self.make()

    def other_pool(self) -> Any:
        return self.make("other", **self.elsewhere())

    def other_fleet(self) -> Any:
        return self.make(instance=f"{self.instance}2", **self.elsewhere())

    def elsewhere(self) -> Json:
        """Other options for a pool that must not share this one's objects."""
        return {}

    async def lose(self, node: NodeId) -> None:
        """Terminate it past the adapter."""
        name = node.rpartition("/")[2]
        await asyncio.to_thread(self.cloud.ec2.terminate_instances, InstanceIds=[name])

    def former(self, node: NodeId) -> NodeId | None:
        del node
        return None

    async def close(self) -> None:
        """Close every provider of the test."""
        for provider in self.made:
            await provider.close()


@dataclass
class GroupRig(FleetRig):
    """A pool in mode `asg`: what is lost there is made anew, unless the number is lowered by it."""

    def options(self) -> Json:
        return {"mode": "asg", "group": "workers"}

    def elsewhere(self) -> Json:
        self.others += 1
        self.cloud.group(f"elsewhere{self.others}")
        return {"group": f"elsewhere{self.others}"}

    async def lose(self, node: NodeId) -> None:
        how = {"InstanceId": node.rpartition("/")[2], "ShouldDecrementDesiredCapacity": True}
        await asyncio.to_thread(lambda: self.cloud.asg.terminate_instance_in_auto_scaling_group(**how))


@contextlib.asynccontextmanager
async def closing(rig: FleetRig) -> AsyncIterator[FleetRig]:
    """The rig, whose providers are closed in the end."""
    try:
        yield rig
    finally:
        await rig.close()
