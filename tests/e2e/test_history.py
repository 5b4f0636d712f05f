"""What a fleet recorded is what `simulate --from-journal` and `replay` take: the same jobs, across a restart."""

import json
import signal
from typing import Any

import pytest

from fleetd.codecs.history import HistoryRow
from fleetd.store.sqlite import Store
from tests.e2e.fleet import Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path) as made:
        yield made


def history(naps: Fleet) -> list[HistoryRow]:
    """The rows recorded so far."""
    if not (naps.home / "state" / "e2e").exists():
        return []
    store = Store(naps.home / "state" / "e2e", read_only=True)
    try:
        return list(store.history())
    finally:
        store.close()


def recorded(naps: Fleet, what: str) -> int:
    """The sum of a count over all rows."""
    return sum(getattr(row.queues["nap"], what) for row in history(naps) if "nap" in row.queues)


def begin(naps: Fleet) -> None:
    """Start the controller; return once it has read the queue and has heard every worker that outlived another one.

    What workers did before a restarted controller first heard them is not news to it, and stays uncounted.
    """
    written = len(history(naps))
    naps.start()
    naps.until("a row is written", lambda: len(history(naps)) > written)
    naps.until("all workers are heard", lambda: heard(naps.status()))


def heard(status: dict[str, Any]) -> bool:
    """Whether each node has leased since the controller's start."""
    ages = [node["lease_s"] for node in status["nodes"] if node["phase"] != "gone"]
    return all(age is not None and age < status["uptime_s"] for age in ages)


def rows(naps: Fleet, *argv: str) -> list[dict[str, Any]]:
    done = naps.fleetd(*argv, "--policy", str(naps.policy), "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_recorded_jobs_are_simulated_and_replayed(naps):
    begin(naps)
    naps.submit(0.5, count=6)
    naps.until("six naps are recorded", lambda: recorded(naps, "done") == 6, limit_s=40)
    assert naps.end(signal.SIGKILL) == -signal.SIGKILL
    begin(naps)
    naps.submit(0.5, count=4)
    naps.until("ten naps are recorded", lambda: recorded(naps, "done") == 10, limit_s=40)
    assert (recorded(naps, "arrived"), recorded(naps, "started")) == (10, 10)
    ours, real = rows(naps, "simulate", "--from-journal", "--against", "none", "--since", "1h")
    assert (ours["policy"], ours["jobs"], ours["lost"]) == ("fleetd", 10, 0)
    assert (real["policy"], real["jobs"]) == ("recorded", 10)
    assert real["cost_worker_s"] > 0
    assert real["launches"] >= 1
    naps.policy.rename(naps.home / "other.yaml")
    naps.write(most=1)
    names = [row["policy"] for row in rows(naps, "replay", "--against", str(naps.home / "other.yaml"))]
    assert names == ["policy", "other", "recorded"]
