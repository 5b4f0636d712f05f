"""The short forms of the long campaigns; `make bench` runs them whole."""

import re
import subprocess
import sys

import pytest

from bench import burst

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("embedded", [False, True])
def test_burst_under_kills_drains_and_a_dying_controller_loses_nothing(monkeypatch, embedded):
    """600 jobs; the seed is printed. See docs/benchmarks.md for 5,000. The embedded dispatcher dies, too."""
    monkeypatch.setenv("FLEETD_STATE", "")
    monkeypatch.setenv("FLEETD_LEDGER", "")
    campaign, verdict, first = burst.run(600, 120, seed=7, nodes=6, embedded=embedded)
    assert verdict.good, str(verdict)
    assert campaign.unseen == []
    assert campaign.workers_killed + campaign.slots_killed >= 3
    assert campaign.controllers_killed >= 1
    assert (campaign.dispatchers_killed >= 1) is embedded
    assert first <= 2.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dispatcher", ["embedded", "gearmand"])
def test_the_rush_hour_example_runs_to_its_closing_line(dispatcher):
    command = [sys.executable, "-m", "examples.rush", "--jobs", "80", "--dispatcher", dispatcher]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    closing = re.search(
        r"^80 jobs run, 0 lost, 0 run twice, p95 wait \d+\.\d s; the fleet grew to (\d+) ", done.stdout, re.MULTILINE
    )
    assert closing, done.stdout
    assert int(closing[1]) >= 2
