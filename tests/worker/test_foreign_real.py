"""Real workers of Celery, RQ and Perl under supervision: they say how busy they are, and a drain loses nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetd.codecs.gearman import Kind
from fleetd.codecs.lease import WorkerOrder
from tests import servers
from tests.worker.controller import serving
from tests.worker.foreign import foreign
from tests.worker.harness import Client, until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(120)]
APPS = "tests.worker.foreign_apps"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def redis() -> Iterator[servers.Server]:
    with servers.redis() as server:
        yield server


def environment(folder: Path, server: servers.Server) -> dict[str, str]:
    found = {"BROKER": f"redis://{server.address}/3", "LEDGER": str(folder / "ledger"), "PYTHONPATH": str(ROOT)}
    return {**found, "BEGUN": str(folder / "begun")}


def send(given: dict[str, str], code: str) -> None:
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **given}, check=True, timeout=30)


def lines(path: Path) -> list[str]:
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def test_celery_says_what_it_runs_and_drains_without_loss(tmp_path: Path, redis: servers.Server) -> None:
    pytest.importorskip("celery")
    given = environment(tmp_path, redis)
    command = [sys.executable, "-m", "celery", "-A", APPS, "worker", "-n", "{node}@%h", "-c", "{slots}", "-l", "INFO"]
    probe = ["--probe=celery", f"--probe={given['BROKER']}"]
    with (
        serving() as controller,
        foreign(tmp_path, "--slots", "2", *probe, command=command, controller=controller, **given) as worker,
    ):
        worker.wait_log("program started")
        idle = until(lambda: next((x for x in controller.leases if x.state == "working"), None), 40, lambda: worker.log)
        assert (idle.busy, idle.busy_by) == (0, "measured")
        send(given, f"from {APPS} import *; [celery_nap.delay(str(n), 4) for n in range(3)]")
        until(lambda: len(lines(tmp_path / "begun")) == 2, 20, lambda: worker.log)
        controller.wait(lambda lease: lease.busy == 2)
        controller.order = WorkerOrder(1, "drain")
        controller.wait(lambda lease: (lease.state, lease.busy) == ("draining", 2))
        until(lambda: controller.leases[-1].state == "drained", 20, lambda: worker.log)
        assert sorted(lines(tmp_path / "ledger")) == sorted(lines(tmp_path / "begun"))
        controller.order = WorkerOrder(2, "work")
        until(lambda: sorted(lines(tmp_path / "ledger")) == ["0", "1", "2"], 40, lambda: worker.log)


def test_rq_says_what_it_runs_and_drains_without_loss(tmp_path: Path, redis: servers.Server) -> None:
    pytest.importorskip("rq")
    given = environment(tmp_path, redis)
    command = [sys.executable, "-m", "rq.cli", "worker", "--url", given["BROKER"], "naps"]
    probe = ["--probe=rq", f"--probe={given['BROKER']}"]
    with (
        serving() as controller,
        foreign(tmp_path, "--slots", "1", *probe, command=command, controller=controller, **given) as worker,
    ):
        idle = until(lambda: next((x for x in controller.leases if x.state == "working"), None), 40, lambda: worker.log)
        assert (idle.busy, idle.busy_by) == (0, "measured")
        code = "import os, redis, rq; q = rq.Queue('naps', connection=redis.Redis.from_url(os.environ['BROKER']))\n"
        send(given, f"{code}[q.enqueue('{APPS}.nap', str(n), 3) for n in range(2)]")
        until(lambda: len(lines(tmp_path / "begun")) == 1, 20, lambda: worker.log)
        controller.wait(lambda lease: lease.busy == 1)
        controller.order = WorkerOrder(1, "drain")
        until(lambda: controller.leases[-1].state == "drained", 20, lambda: worker.log)
        assert lines(tmp_path / "ledger") == ["0"]
        controller.order = WorkerOrder(2, "work")
        until(lambda: lines(tmp_path / "ledger") == ["0", "1"], 40, lambda: worker.log)


def test_perl_on_gearmand_is_idle_for_certain_or_unknown_and_drains_without_loss(tmp_path: Path) -> None:
    perl = servers.find("perl")
    if subprocess.run([perl, "-MGearman::Worker", "-e", "1"], capture_output=True, check=False).returncode:
        pytest.fail("run scripts/need gearman-perl") if os.environ.get("CI") else pytest.skip("needs Gearman::Worker")
    with servers.gearmand() as server, serving() as controller:
        given = environment(tmp_path, server)
        command = [perl, str(ROOT / "tests" / "worker" / "nap.pl"), server.address]
        probe = ["--probe=gearman", "--probe=nap", "--server", server.address]
        with foreign(tmp_path, "--slots", "1", *probe, command=command, controller=controller, **given) as worker:
            controller.wait(lambda lease: (lease.state, lease.busy, lease.busy_by) == ("working", 0, "measured"))
            client = Client(server.port)
            for name in (b"one 3", b"two 1"):
                client.submit("nap", name, kind=Kind.SUBMIT_JOB_BG)
            until(lambda: lines(tmp_path / "begun") == ["one"], hint=lambda: worker.log)
            controller.wait(lambda lease: lease.busy == 1)
            controller.order = WorkerOrder(1, "drain")
            until(lambda: controller.leases[-1].state == "drained", hint=lambda: worker.log)
            assert lines(tmp_path / "ledger") == lines(tmp_path / "begun") == ["one"]
            controller.order = WorkerOrder(2, "work")
            until(lambda: lines(tmp_path / "ledger") == ["one", "two"], hint=lambda: worker.log)
            client.close()
