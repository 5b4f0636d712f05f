"""Hundreds of pods whose status the test kubelet makes up; a thousand are in bench/kube.py."""

import asyncio
from pathlib import Path

import pytest

from bench.kube import many
from tests.kubernetes.plane import Cluster
from tests.kubernetes.rigs import KubeRig, rules, template_object

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_tick_over_many_pods_is_short_and_asks_the_server_for_nothing(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    rig = KubeRig(cluster, namespace, tmp_path, {"mode": "pods", "template": "worker"})
    cluster.make(template_object(namespace, image="fake/worker"))
    rig.allow(rules())
    figures = asyncio.run(many(rig, 250, quiet_s=10.0))
    assert figures["pods"] == 250
    assert figures["tick_ms"] < 200.0
    assert figures["lists"] == 1
    assert figures["per_pod"] < 1.5
    assert figures["quiet"] <= 6  # a watch that is renewed, a ConfigMap
