"""Local processes as a provider: the common suite over real workers and a real dispatcher, and what is its own."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.codecs.lease import join_token
from fleetd.core.model import AppPolicy, NodeId, Order, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import ProviderError, RefusedError
from fleetd.providers import process
from fleetd.providers.process import ProcessOptions, ProcessProvider
from tests import servers
from tests.conformance.provider import ProviderConformance, Rig, launched, order, present, settles
from tests.worker.controller import SECRET, serving

JOBS = """
import time
from pathlib import Path

from fleetd.worker import job


@job
def nap(payload: bytes) -> bytes:
    Path(payload.decode()).write_text("started")
    time.sleep(60)
    return b""
"""


class ProcessRig(Rig):
    """Workers of this machine under a mark of their own, so that nothing else is ever touched."""

    def __init__(self, folder: Path, server: str) -> None:
        self.instance = secrets.token_hex(8)
        app = folder / "app"
        app.mkdir()
        (app / "jobs.py").write_text(JOBS)
        self.launch = WorkerLaunch(
            fleet="test",
            instance=self.instance,
            controller_url=f"http://127.0.0.1:{servers.free_port()}",
            state_dir=str(folder / "state"),
            apps={
                "photos": AppPolicy("photos", path=str(app)),
                "celery": AppPolicy("celery", exec=("no-such-celery",)),
            },
            servers={"photos": (server,)},
            limits={"photos": None},
            token=lambda pool: join_token(SECRET, "test", pool),
        )

    def make(self, pool: str = "local", instance: str = "", **options: int) -> ProcessProvider:
        """Make a provider."""
        launch = replace(self.launch, instance=instance or self.instance)
        policy = PoolPolicy(pool, "process", None, ("photos",), slots=1, max_nodes=9)
        return ProcessProvider(policy, ProcessOptions(**options), launch)

    def provider(self) -> ProcessProvider:
        return self.make()

    def other_pool(self) -> ProcessProvider:
        return self.make("other")

    def other_fleet(self) -> ProcessProvider:
        return self.make(instance=f"{self.instance}-2")

    async def lose(self, node: NodeId) -> None:
        for pid in process._tree(pid_of(node)):
            os.kill(pid, signal.SIGKILL)

    def former(self, node: NodeId) -> NodeId | None:
        pid, _, start = node.rpartition(".")
        return f"{pid}.{int(start) - 1}"

    def left(self) -> list[int]:
        """Every process of ours that still lives: workers by their mark."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if self.instance.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def close(self) -> None:
        """End whatever is left, with all that it started."""
        for top in self.left():
            for pid in process._tree(top):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while self.left() and time.monotonic() < deadline:
            process._reap()
            time.sleep(0.02)
        process._reap()


def pid_of(node: NodeId) -> int:
    return int(node.partition("/")[2].partition(".")[0])


@pytest.fixture
def rig(tmp_path: Path, gearmand: servers.Server) -> Iterator[ProcessRig]:
    rig = ProcessRig(tmp_path, gearmand.address)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
async def dry(tmp_path: Path) -> AsyncIterator[ProcessRig]:
    """A rig whose workers find no dispatcher: enough where none is to work."""
    rig = ProcessRig(tmp_path, f"127.0.0.1:{servers.free_port()}")
    try:
        yield rig
    finally:
        rig.close()


@pytest.mark.real
@pytest.mark.slow
class TestProcess(ProviderConformance):
    """The common suite."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("grace_s", [0.0, 0.5])
async def test_a_forced_stop_leaves_no_slot_running(
    rig: ProcessRig, gearmand: servers.Server, tmp_path: Path, grace_s: float
) -> None:
    with serving() as controller:
        controller.give(tmp_path / "app", tmp_path)
        rig.launch = replace(rig.launch, controller_url=controller.url)
        provider = rig.provider()
        (node,) = await launched(provider, order(rig, "1-1", 1))
        await asyncio.to_thread(controller.wait, lambda lease: lease.state == "working")
    mark = tmp_path / "mark"
    with subprocess.Popen(
        ["gearman", "-h", gearmand.host, "-p", str(gearmand.port), "-f", "nap", "-b", str(mark)],
        stdout=subprocess.DEVNULL,
    ) as client:
        client.wait(10)
    deadline = time.monotonic() + 20
    while not mark.exists():
        assert time.monotonic() < deadline, "the job did not start"
        await asyncio.sleep(0.05)
    tree = process._tree(pid_of(node))
    assert len(tree) >= 3, "supervisor, generation, slot"
    await provider.stop([node], grace_s)
    await asyncio.sleep(0.1)
    assert [pid for pid in tree if process._start_time(pid) is not None] == []


async def test_a_foreign_app_is_refused(dry: ProcessRig) -> None:
    with pytest.raises(RefusedError, match="pool local: app celery: no program no-such-celery on this machine"):
        await dry.provider().launch(order(dry, "1-1", 1, app="celery"))


async def test_a_state_folder_that_cannot_be_written_is_the_pools_error(dry: ProcessRig, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ProviderError, match=r"pool local: .*state/logs: Not a directory"):
        await dry.provider().launch(order(dry, "1-1", 1))


async def test_a_worker_is_a_session_leader_with_its_log_and_no_token_on_its_command_line(dry: ProcessRig) -> None:
    provider = dry.make(nice=7)
    (node,) = await launched(provider, order(dry, "1-1", 1))
    pid = pid_of(node)
    assert os.getsid(pid) == pid
    line = b""
    while not line:  # a fresh child has no command line to be seen for a moment
        await asyncio.sleep(0.01)
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"-m\0fleetd.worker" in line
    assert os.getpriority(os.PRIO_PROCESS, pid) == 7
    assert b"0" * 64 not in line
    assert (Path(dry.launch.state_dir) / "logs" / f"{node.replace('/', '-')}.log").stat().st_mode & 0o777 == 0o600
    await settles(provider, lambda found: set(found) == {node})
    await provider.stop([node], 0.0)


async def test_workers_that_ended_are_no_zombies_even_of_a_provider_that_is_gone(dry: ProcessRig) -> None:
    (node,) = await launched(dry.provider(), order(dry, "1-1", 1))
    os.kill(pid_of(node), signal.SIGKILL)
    again = dry.provider()
    await settles(again, lambda found: found == {})
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid_of(node)}").exists():
        assert time.monotonic() < deadline, "a zombie is left"
        await again.list()


@pytest.mark.parametrize(
    "tail", ["photos/1-1/x", "photos/1-1", "", "photos/1-1/0/0\xff", "///", "photos/1-1/99999999999"]
)
async def test_a_strange_command_line_with_our_mark_blinds_nobody(dry: ProcessRig, tail: str) -> None:
    argument = f"{dry.instance}/local/{tail}".encode("latin-1")
    command = [sys.executable.encode(), b"-c", b"import time; time.sleep(60)", b"--order-key", argument]
    with subprocess.Popen(command) as stranger:
        try:
            await asyncio.sleep(0.05)
            assert present(await dry.provider().list()) == {}
        finally:
            stranger.kill()


async def test_what_a_worker_starts_is_no_node_before_it_is_its_own_program(dry: ProcessRig) -> None:
    fork = "import os, time; child = os.fork(); child or os.setsid(); print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", fork, "--order-key", f"{dry.instance}/local/photos/1-1/0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as worker:
        assert worker.stdout
        for _ in range(2):
            worker.stdout.readline()
        assert len(dry.left()) == 2, "the same command line twice"
        found = present(await dry.provider().list())
        assert [pid_of(name) for name in found] == [worker.pid]
        dry.close()


async def test_another_users_process_with_our_mark_is_no_node(dry: ProcessRig) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    mark = f"{dry.instance}/local/photos/1-1/0"
    with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait", "--order-key", mark], user=65534) as stranger:
        try:
            await asyncio.sleep(0.05)
            provider = dry.provider()
            assert present(await provider.list()) == {}
            await provider.stop([f"local/{stranger.pid}.{process._start_time(stranger.pid)}"], 0.0)
            assert stranger.poll() is None
        finally:
            os.killpg(stranger.pid, signal.SIGKILL) if os.getpgid(stranger.pid) == stranger.pid else stranger.kill()


@pytest.mark.parametrize("name", ["local/1.2", "local/x.y", "local", "", "local/9999999.1", "../1.1"])
async def test_a_name_that_is_no_node_is_gone_already(dry: ProcessRig, name: str) -> None:
    assert (await dry.provider().stop([name], 0.0)).nodes == (name,)


async def test_only_the_newest_logs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LOGS_KEPT", 3)
    for at in range(6):
        path = tmp_path / f"{at}.log"
        path.write_text("x")
        os.utime(path, (at, at))
    (tmp_path / "other.txt").write_text("x")
    process._forget_old(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3.log", "4.log", "5.log", "other.txt"]


async def test_a_restart_knows_its_order_only_by_the_key(dry: ProcessRig) -> None:
    order_a, order_b = Order("7-1", "local", "photos", 1, 1, 7), Order("7-11", "local", "photos", 1, 2, 7)
    second = await launched(dry.provider(), order_b)
    first = await launched(dry.provider(), order_a)
    assert first.isdisjoint(second), "7-1 begins as 7-11 does"
    await dry.provider().stop(sorted(first | second), 0.0)
