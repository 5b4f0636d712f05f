"""The provider's common suite on moto, in both modes, and in the weather that AWS may have."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.provider import ProviderConformance, Rig, launched, opened, order, settles
from tests.ec2.cloud import Cloud
from tests.ec2.proxy import Proxy
from tests.ec2.rigs import FleetRig, GroupRig, closing

pytestmark = pytest.mark.slow


class TestFleet(ProviderConformance):
    """Instances of fleetd's own."""

    @pytest.fixture
    async def rig(self, cloud: Cloud, proxy: Proxy, tmp_path: Path) -> AsyncIterator[FleetRig]:
        async with closing(FleetRig(cloud, proxy, tmp_path)) as rig:
            yield rig


class TestFleetInBadWeather(ProviderConformance):
    """The same, where answers are lost, calls fail, and describes lag behind. *Emulated*."""

    @pytest.fixture
    async def rig(self, cloud: Cloud, proxy: Proxy, tmp_path: Path) -> AsyncIterator[FleetRig]:
        async with closing(FleetRig(cloud, proxy, tmp_path)) as rig:
            proxy.seed, proxy.error_share, proxy.stale_share, proxy.hide_s = 7, 0.05, 0.2, 1.0
            yield rig


class TestGroup(ProviderConformance):
    """An Auto Scaling group's."""

    @pytest.fixture
    async def rig(self, cloud: Cloud, proxy: Proxy, tmp_path: Path) -> AsyncIterator[FleetRig]:
        cloud.group("workers")
        async with closing(GroupRig(cloud, proxy, tmp_path)) as rig:
            yield rig

    async def test_what_is_missing_of_an_order_is_started_and_no_more(self, rig: Rig) -> None:
        """Of what was lost the group makes another by itself, which the same order takes for its own."""
        assert isinstance(rig, GroupRig)
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 1))
        assert await launched(provider, order(rig, "1-1", 3)) > names
        lost = next(iter(names))
        rig.cloud.ec2.terminate_instances(InstanceIds=[lost.rpartition("/")[2]])
        await provider.close()
        again = await opened(rig.provider())
        completed = await launched(again, order(rig, "1-1", 3))
        assert lost not in completed
        await settles(again, lambda found: set(found) == completed)
        assert rig.cloud.desired("workers") == 3
        await again.close()
