"""The provider's common suite on a real cluster, under accounts that may do no more than the documents say."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conformance.provider import ProviderConformance, Rig, launched, opened, order, settles
from tests.kubernetes.plane import Cluster
from tests.kubernetes.rigs import JobRig, KubeRig, ScaleRig, closing, rules, target_object, template_object

TARGETS = ("worker", "elsewhere1", "elsewhere2")
pytestmark = [pytest.mark.real, pytest.mark.slow]


class TestPods(ProviderConformance):
    """Pods of fleetd's own, from a PodTemplate."""

    @pytest.fixture
    async def rig(self, cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
        cluster.make(template_object(namespace))
        made = KubeRig(cluster, namespace, tmp_path, {"mode": "pods", "template": "worker"})
        made.allow(rules())
        async with closing(made) as rig:
            yield rig


class TestJobs(ProviderConformance):
    """Each pod in a Job of its own."""

    @pytest.fixture
    async def rig(self, cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
        cluster.make(template_object(namespace))
        made = JobRig(cluster, namespace, tmp_path, {"mode": "pods", "template": "worker", "run": "job"})
        made.allow(rules(run="job"))
        async with closing(made) as rig:
            yield rig


class TestScale(ProviderConformance):
    """The replicas of a Deployment."""

    @pytest.fixture
    async def rig(self, cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
        cluster.make(target_object(namespace))
        made = ScaleRig(cluster, namespace, tmp_path, {"mode": "scale", "target": "deployment/worker"})
        made.allow([rule for name in TARGETS for rule in rules("scale", name=name)])
        async with closing(made) as rig:
            yield rig


class TestStatefulSet(ProviderConformance):
    """The replicas of a StatefulSet."""

    @pytest.fixture
    async def rig(self, cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
        cluster.make(target_object(namespace, "StatefulSet"))
        options = {"mode": "scale", "target": "statefulset/worker"}
        made = ScaleRig(cluster, namespace, tmp_path, options, kind="StatefulSet")
        made.allow([rule for name in TARGETS for rule in rules("scale", target="statefulsets", name=name)])
        async with closing(made) as rig:
            yield rig

    async def test_a_lost_node_is_no_longer_listed(self, rig: Rig) -> None:
        """Another pod of its name comes in its place, and is another node."""
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 2))
        lost = min(names)
        await rig.lose(lost)
        found = await settles(provider, lambda found: lost not in found and len(found) == 2)
        assert set(found) > names - {lost}
        assert [sighting.key for node, sighting in found.items() if node not in names] == [None]
        await provider.close()

    async def test_what_is_missing_of_an_order_is_started_and_no_more(self, rig: Rig) -> None:
        """What was lost is made anew by the cluster itself; it is nobody's."""
        provider = await opened(rig.provider())
        names = await launched(provider, order(rig, "1-1", 1))
        assert await launched(provider, order(rig, "1-1", 3)) > names
        await provider.close()
