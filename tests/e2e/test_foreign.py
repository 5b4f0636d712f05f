"""Foreign workers under a real controller: the short form of `make bench-foreign`."""

import os
import subprocess

import pytest

from bench import foreign
from tests import servers

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("kind", ["celery", "rq", "perl"])
def test_a_rush_and_drains_of_busy_nodes_cut_no_job_off(kind: str) -> None:
    if kind == "perl":
        found = subprocess.run([servers.find("perl"), "-MGearman::Worker", "-e", "1"], capture_output=True, check=False)
        if found.returncode and not os.environ.get("CI"):
            pytest.skip("Gearman::Worker is missing; run scripts/need gearman-perl")
    else:
        pytest.importorskip(kind)
    result = foreign.run(kind, 1, 16, seed=5)
    assert result.verdict.good, str(result.verdict)
    assert result.cut == ()
    assert result.drained_busy >= 1, "a node was drained while it ran jobs"
