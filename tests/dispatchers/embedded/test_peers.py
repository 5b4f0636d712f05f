"""Other people's clients and workers, and our own, against the embedded dispatcher."""

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.ledger import check_files
from fleetd.client import Client, Submission
from fleetd.codecs import admin
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.errors import FleetdError, JobError, ProtocolError
from fleetd.sources.gearman import GearmanOptions, GearmanSource
from tests import servers
from tests.conformance.gearman_peer import Peer, ask
from tests.dispatchers.embedded.serving import embedded
from tests.servers import Server
from tests.worker.harness import APP, Worker, until

pytestmark = pytest.mark.real
LEDGER_APP = Path(__file__).parents[3] / "bench" / "apps" / "ledger"


@pytest.fixture
def server() -> Iterator[Server]:
    with embedded() as server:
        yield server


def gearman(server: Server, *args: str, said: bytes = b"") -> bytes:
    command = [servers.find("gearman"), "-p", str(server.port), *args]
    return subprocess.run(command, input=said, capture_output=True, timeout=20, check=True).stdout


def gearadmin(server: Server, *args: str) -> str:
    command = [servers.find("gearadmin"), "-p", str(server.port), *args]
    return subprocess.run(command, capture_output=True, timeout=20, check=True, text=True).stdout


@contextlib.contextmanager
def c_worker(server: Server, *args: str) -> Iterator[None]:
    command = [servers.find("gearman"), "-w", "-p", str(server.port), *args]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=servers._die_with_parent)  # noqa: PLW1509
    try:
        until(lambda: "\t1\n" in ask(server, "status") or None)
        yield
    finally:
        process.kill()
        process.wait(5)


def test_cs_client_and_cs_worker(server: Server) -> None:
    with c_worker(server, "-f", "rev", "rev"):
        assert gearman(server, "-f", "rev", said=b"abc\n") == b"cba\n"
        assert gearman(server, "-f", "rev", "-n", said=b"abc\ndef\n").split() == [b"cba", b"fed"]
        gearman(server, "-f", "rev", "-b", "-I", "-u", "unique", said=b"in the background")
        until(lambda: ask(server, "status") == "rev\t0\t0\t1\n.\n" or None)


def test_gearadmin(server: Server) -> None:
    gearman(server, "-f", "f", "-b", "-u", "the-unique", said=b"x")
    assert gearadmin(server, "--status") == "f\t1\t0\t0\n.\n"
    assert gearadmin(server, "--priority-status") == "f\t0\t1\t0\t0\n.\n"
    assert " 127.0.0.1 - :" in gearadmin(server, "--workers")
    assert gearadmin(server, "--server-version") == "1.1.20+fleetd\n"
    assert gearadmin(server, "--getpid").strip() == str(server.process.pid)
    assert "the-unique" in gearadmin(server, "--show-unique-jobs")
    handle = gearadmin(server, "--show-jobs").split("\t")[0]
    gearadmin(server, "--cancel-job", handle)
    assert gearadmin(server, "--status") == "f\t0\t0\t0\n.\n"


def test_our_worker_and_our_client(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "jobs.py").write_text(APP)
    worker = Worker(tmp_path, "--server", server.address, "--slots", "2")
    try:
        with Client([server.address]) as client:
            assert client.run("upper", b"x", wait_s=20) == b"X"
            with pytest.raises(JobError, match="no good: y"):
                client.run("fail", b"y", wait_s=20)
            client.submit("nap", b"0.1 once")
            worker.wait_note("end 0.1 once")
            assert len(client.submit_many(Submission("upper", b"z") for _ in range(500))) == 500
        until(lambda: not any(int(row.split("\t")[1]) for row in ask(server, "status").splitlines()[:-1]) or None)
    finally:
        worker.close()


async def test_our_source_and_our_admin_connection(server: Server) -> None:
    with Peer(server) as client:
        client.submit(name=b"resize_a")
        client.submit(name=b"resize_b")
    with Peer(server) as client, Peer(server, b"mail") as worker:
        client.submit(name=b"resize_a")
        client.submit(name=b"mail")
        client.submit(name=b"mail")
        worker.grab()
        source = GearmanSource("main", GearmanOptions(servers=[server.address]), {"r": "resize_*", "m": "mail"})
        await source.open(lambda: None)
        found = {reading.queue: (reading.waiting, reading.running) for reading in await source.read()}
        await source.close()
        assert found == {"r": (1, 0), "m": (1, 1)}
        connection = AdminConnection(Address(server.host, server.port))
        ages = admin.parse_oldest(await connection.ask(admin.OLDEST))
        assert sorted(age.function for age in ages) == ["mail", "resize_a"]
        await connection.close()


async def test_gearmand_does_not_know_oldest(gearmand: Server) -> None:
    connection = AdminConnection(Address(gearmand.host, gearmand.port))
    with pytest.raises(admin.CommandRefusedError):
        await connection.ask(admin.OLDEST)
    assert await connection.status() == (), "and the connection stays in step"
    await connection.close()


@pytest.mark.parametrize("line", ["f", "f\tx", "f\t-1", "f\t1.2.3", "f\t" + "1" * 30])
def test_a_malformed_age_is_refused(line: str) -> None:
    with pytest.raises(ProtocolError, match="oldest: line 1: expected"):
        admin.parse_oldest([line])


@pytest.mark.slow
def test_no_job_is_lost_while_the_dispatcher_is_killed_under_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submissions go on through every kill; what was confirmed must be in the ledger in the end."""
    monkeypatch.setenv("FLEETD_LEDGER", str(tmp_path / "ledger"))
    (tmp_path / "ledger").touch()
    port = servers.free_port()
    over = threading.Event()
    confirmed: list[str] = []
    thread = threading.Thread(target=_submit_until, args=(over, f"127.0.0.1:{port}", confirmed))
    worker = subprocess.Popen(
        [sys.executable, "-m", "fleetd.worker", "--server", f"127.0.0.1:{port}", "--app", str(LEDGER_APP), "--slots=2"],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
        preexec_fn=servers._die_with_parent,  # noqa: PLW1509
    )
    try:
        thread.start()
        for _ in range(5):
            with embedded(data=tmp_path / "data", port=port) as server:
                until(partial(_more_than, len(confirmed), confirmed), 20)
                time.sleep(random.uniform(0.3, 1.0))
                server.kill()
        with embedded(data=tmp_path / "data", port=port) as server:
            over.set()
            thread.join(20)
            until(lambda: "record\t0\t0\t" in ask(server, "status") or None, 40)
    finally:
        over.set()
        worker.terminate()
        worker.wait(15)
    (tmp_path / "submitted").write_text("".join(f"{unique}\n" for unique in confirmed))
    (tmp_path / "kills").touch()
    verdict = check_files(*(tmp_path / name for name in ("submitted", "ledger", "kills")))
    assert len(confirmed) > 500
    assert verdict.lost == (), verdict


def _more_than(count: int, found: list[str]) -> bool | None:
    return len(found) > count or None


def _submit_until(over: threading.Event, address: str, confirmed: list[str]) -> None:
    with Client([address]) as client:
        while not over.is_set():
            batch = [Submission("record", b"0", uuid.uuid4().hex) for _ in range(20)]
            try:
                client.submit_many(batch, wait_s=2.0)
            except FleetdError:
                time.sleep(0.02)
            else:
                confirmed += [one.unique for one in batch]
