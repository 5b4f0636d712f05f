"""A fleet that needs no server: the dispatcher of our own, run by the controller as a process of its own."""

import asyncio
import os
import signal

import pytest

from fleetd.config import load
from fleetd.control.embedded import Embedded, wanted
from fleetd.sources.gearman import GearmanOptions, GearmanSource
from tests import servers
from tests.e2e.fleet import Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path) as made:
        made.server.port = servers.free_port()  # the one that the policy names; gearmand itself is not used
        text = made.policy.read_text()
        source = text[text.index("{servers") : text.index("}}\napps")]
        made.policy.write_text(text.replace(source, f'{{embedded: "{made.server.address}"}}'))
        yield made


def dispatcher(naps: Fleet) -> Embedded:
    (one,) = wanted(load(naps.policy), naps.home / "state" / "e2e")
    return one


def test_jobs_run_without_any_server_and_drain_ends_the_dispatcher_too(naps):
    naps.start("--drain")
    naps.submit(0.1, count=3)
    naps.until("3 jobs done", lambda: len(naps.naps()) == 3)
    assert len(dispatcher(naps).pids()) == 1
    assert naps.end(signal.SIGTERM) == 0
    assert dispatcher(naps).pids() == []


def test_the_dispatcher_outlives_the_controller_and_the_next_one_finds_it(naps):
    naps.start()
    (pid,) = dispatcher(naps).pids()
    assert naps.end(signal.SIGKILL) == -signal.SIGKILL
    naps.submit(0.1)
    naps.start()
    assert dispatcher(naps).pids() == [pid]
    naps.until("the job is done", lambda: len(naps.naps()) == 1)


def test_a_killed_dispatcher_is_started_again_with_its_jobs(naps):
    naps.start()
    (pid,) = dispatcher(naps).pids()
    naps.fleetd("drain", "local")
    naps.submit(0.1, count=5)
    os.kill(pid, signal.SIGKILL)
    naps.until("another one answers", lambda: "started again" in naps.log())
    naps.fleetd("wake", "local")
    naps.until("5 jobs done", lambda: len(naps.naps()) == 5)
    assert len(set(naps.naps())) == 5


def test_a_taken_port_is_one_clear_line(naps):
    with servers.gearmand(port=naps.server.port):
        refused = naps.fleetd("run", "--policy", str(naps.policy), "--no-live")
    assert refused.returncode == 1
    place = f"fleetd: embedded dispatcher at {naps.server.address}: "
    assert f"{place}something else listens there; choose another port" in refused.stderr


async def test_the_age_of_the_oldest_job_is_told(naps):
    """By the embedded dispatcher alone: gearmand knows no such thing, and is asked only once."""
    naps.start()
    naps.fleetd("drain", "local")
    naps.submit(0.1)
    source = GearmanSource("main", GearmanOptions(servers=[naps.server.address]), {"nap": "nap"})
    await asyncio.sleep(1.1)
    (reading,) = await source.read()
    assert (reading.waiting, reading.running) == (1, 0)
    assert reading.oldest_wait_s is not None
    assert 1.0 < reading.oldest_wait_s < 30.0
    await source.close()
    with servers.gearmand() as other:
        source = GearmanSource("main", GearmanOptions(servers=[other.address]), {"nap": "nap"})
        for _ in range(2):
            assert [r.oldest_wait_s for r in await source.read()] == [None]
        await source.close()
