"""A fleet on the cluster: real controller, real workers in pods, real jobs. The long forms are in bench/kube.py."""

import random
import time

import pytest

from tests.kubernetes.fleets import KubeFleet, kube_fleet

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mode", ["pods", "scale"])
def test_a_burst_grows_pods_from_none_and_back_to_none_and_no_job_is_lost(cluster, tmp_path, mode):
    with kube_fleet(tmp_path / "home", cluster, mode, 4) as fleet:
        fleet.start()
        assert fleet.pods() == []
        began = fleet.burst(40, 0.5)
        fleet.until("four pods run", lambda: len(fleet.nodes("ready")) == 4, 60)
        assert fleet.writes(began)[0] < 3.0  # two seconds where the machine is idle: see the benchmark
        fleet.until("all jobs are done", lambda: len(fleet.done()) == 40, 60)
        fleet.until("no pod is left", lambda: not fleet.pods(), 60)
        assert fleet.killed() == 0
        assert fleet.done() == set(fleet.submitted)


@pytest.mark.parametrize("mode", ["pods", "scale"])
def test_random_scale_ins_under_load_lose_no_job(cluster, tmp_path, mode):
    chance = random.Random(7)
    with kube_fleet(tmp_path / "home", cluster, mode, 4) as fleet:
        fleet.start()
        fleet.burst(150, [chance.uniform(0.1, 1.5) for _ in range(150)])
        fleet.until("pods run", lambda: len(fleet.nodes("ready")) >= 3, 60)
        gone = drain_at_random(fleet, chance, 8)
        fleet.until("all jobs are done", lambda: len(fleet.done()) == 150, 120)
        assert len(gone) == 8
        assert fleet.done() == set(fleet.submitted)
        assert fleet.killed() == 0


def drain_at_random(fleet: KubeFleet, chance: random.Random, times: int) -> list[str]:
    """Have nodes drained under load, whichever; return those that are gone."""
    drained: list[str] = []
    while len(drained) < times:
        ready = [node for node in fleet.nodes("ready") if node not in drained]
        if ready:
            drained.append(chance.choice(ready))
            answer = fleet.fleetd("drain", drained[-1])
            assert answer.returncode == 0, answer.stderr
        time.sleep(chance.uniform(0.1, 0.5))
    fleet.until("the drained are gone", lambda: not set(fleet.nodes()) & set(drained), 60)
    return drained
