"""A fleet on moto: real controller, real workers in what stands for instances, real jobs. bench/ec2.py: long forms."""

import pytest

from tests.ec2 import campaigns
from tests.ec2.fleets import ec2_fleet

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("mode", ["fleet", "asg"])
def test_a_burst_grows_instances_from_none_and_back_to_none_and_no_job_is_lost(cloud, tmp_path, mode):
    with ec2_fleet(tmp_path / "home", cloud, mode, 3) as fleet:
        fleet.start()
        assert fleet.alive() == []
        fleet.burst(30, 0.5)
        fleet.until("three are ready", lambda: len(fleet.nodes("ready")) == 3, 60)
        fleet.until("all jobs are done", lambda: len(fleet.done()) == 30, 60)
        fleet.until("no instance is left", lambda: not fleet.alive(), 90)
        assert fleet.killed() == 0
        assert fleet.done() == set(fleet.submitted)
        assert fleet.machines.errors == []
        assert fleet.proxy.bad == []


@pytest.mark.parametrize("mode", ["fleet", "asg"])
def test_launches_and_drains_in_bad_weather_with_a_dying_controller_leak_double_and_lose_nothing(cloud, tmp_path, mode):
    """*Emulated*: the failing, late and lost answers. 200 launches: `python -m bench ec2`."""
    with ec2_fleet(tmp_path / "home", cloud, mode, 4) as fleet:
        verdict = campaigns.churn(fleet, 16, seed=11, kill_every_s=8.0)
        assert verdict.good, f"{verdict}\n{fleet.tail()}"
        assert verdict.launched >= 16
        assert verdict.kills >= 1
        assert sum(verdict.injected.values()) >= 5


def test_busy_spot_instances_taken_back_lose_no_job_and_are_replaced(cloud, tmp_path):
    """The notice comes by each instance's own IMDS; its end comes for sure. 100 of them: `python -m bench ec2`."""
    with ec2_fleet(tmp_path / "home", cloud, "fleet", 6, pool={"min": 3}) as fleet:
        verdict = campaigns.interruptions(fleet, 4, seed=3)
        assert (verdict.interrupted, verdict.lost, verdict.leaked, verdict.errors) == (4, 0, 0, [])
        assert verdict.ordered_s
        assert max(verdict.ordered_s) < 3.0  # two seconds where the machine is idle: see the benchmark


def test_never_more_than_the_budget_is_committed(cloud, tmp_path):
    pool = {"price": "0.40/h", "billing": {"minimum": "60s"}}
    with ec2_fleet(tmp_path / "home", cloud, "fleet", 6, pool=pool, budget={"hour": 0.05}) as fleet:
        worst, most, _ = campaigns.committed(fleet, 0.40, 0.05, 15.0)
        assert 0.0 < worst <= 0.05
        assert 1 <= most < 6


def test_what_ec2_does_not_have_the_next_pool_gives_within_seconds(cloud, tmp_path):
    with ec2_fleet(tmp_path / "home", cloud, "fleet", 3, pool={"price": "0.40/h"}) as fleet:
        took_s, why = campaigns.fall_over(fleet)
        assert took_s < 30.0
        assert "InsufficientInstanceCapacity" in why
        assert {one["InstanceType"] for one in fleet.cloud.instances()} == {"r5.large"}
