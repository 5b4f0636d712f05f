"""What keeps slots healthy: several jobs in one process, limits on memory, renewal, against a real gearmand."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.codecs.gearman import Kind
from fleetd.dispatchers.credentials import Credentials
from fleetd.worker.children import make_slots
from fleetd.worker.settings import Settings
from fleetd.worker.wear import too_large, worn
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import APP, Client, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
SETTINGS = Settings((), None, 1, Path("spool"))
LARGE = """
@job
def grow(payload):
    note(f"grow {os.getpid()}")
    held = bytearray(int(payload) << 20)
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(20)

@job
def keep(payload):
    globals().setdefault("KEPT", []).append(bytes(range(256)) * 40960)
    return str(os.getpid())

@job
def pid(payload):
    return str(os.getpid())
"""


def test_one_process_runs_async_jobs_side_by_side(
    start: StartWorker, connect: Connect, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address, "--per-process", "10")
    client = connect()
    began = time.monotonic()
    for at in range(10):
        client.submit("doze", b"1.0", b"u%d" % at)
    for _ in range(10):
        assert client.end().args[1] == b"slept"
    assert time.monotonic() - began < 5.0, "one after the other they would take ten seconds"
    assert len({line.split()[2] for line in worker.notes()}) == 1, "one process"


def test_plain_jobs_share_a_process_in_threads(start: StartWorker, connect: Connect, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--per-process", "4", slots=2)
    client, talker = connect(), connect()
    for at in range(7):
        client.submit("nap", b"1.0", b"u%d" % at)
    worker.wait_note("start", 7)
    talker.submit("talk", b"", b"t")
    kinds = [talker.until(Kind.WORK_STATUS, Kind.WORK_DATA, Kind.WORK_WARNING).kind for _ in range(3)]
    assert sorted(kinds) == sorted([Kind.WORK_STATUS, Kind.WORK_DATA, Kind.WORK_WARNING])
    assert talker.end().args[1].startswith(b"talk H:")
    for _ in range(7):
        assert client.end().args[1] == b"slept"
    assert len({line.split()[2] for line in worker.notes()}) == 2
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0


def test_a_process_that_dies_gives_all_its_jobs_back(
    start: StartWorker, connect: Connect, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address, "--per-process", "3")
    sleeper, crasher = connect(), connect()
    sleeper.submit("nap", b"0.7", b"n1")
    worker.wait_note("start")
    crasher.submit("crash", b"", b"c")
    assert crasher.end().kind is Kind.WORK_FAIL
    assert sleeper.end().args[1] == b"slept"
    assert connect().run("upper", b"x").args[1] == b"X"
    assert [letter["function"] for letter in worker.letters()] == ["crash"]


def test_a_swap_with_several_jobs_in_a_process(
    start: StartWorker, connect: Connect, gearmand: servers.Server, app
) -> None:
    worker = start("--server", gearmand.address, "--per-process", "3", "--overlap", "1", slots=2)
    client = connect()
    for at in range(6):
        client.submit("doze", b"1.0", b"u%d" % at)
    worker.wait_note("start", 6)
    (app / "jobs.py").write_text(APP + "\n@job\ndef version(payload):\n    return b'two'\n")
    worker.signal(signal.SIGHUP)
    assert connect().run("version").args[1] == b"two"
    for _ in range(6):
        assert client.end().args[1] == b"slept"
    worker.wait_log("generation took over")
    until(lambda: len(worker.slots()) == 2)
    assert len(worker.notes()) == 12


def test_a_job_that_uses_too_much_memory_is_ended_and_says_so(
    start: StartWorker, client: Client, gearmand: servers.Server, app
) -> None:
    (app / "jobs.py").write_text(APP + LARGE)
    worker = start("--server", gearmand.address, "--slot-memory", "100MB", "--attempts", "2")
    client.submit("grow", b"300", b"g")
    end = client.end()
    assert end.kind is Kind.WORK_FAIL
    assert b"limit of 100 MB; killed" in end.args[1]
    assert len(worker.wait_note("grow", 2)) == 2
    (letter,) = worker.letters()
    assert "limit of 100 MB" in letter["reason"]
    assert client.run("upper", b"x").args[1] == b"X", "another slot took its place"


def test_a_job_within_its_memory_goes_on(start: StartWorker, client: Client, gearmand: servers.Server, app) -> None:
    (app / "jobs.py").write_text(APP + LARGE.replace("time.sleep(20)", "time.sleep(2.5)"))
    start("--server", gearmand.address, "--slot-memory", "300MB")
    assert client.run("grow", b"100").kind is Kind.WORK_COMPLETE


def test_a_slot_is_renewed_after_its_jobs(start: StartWorker, client: Client, gearmand: servers.Server, app) -> None:
    (app / "jobs.py").write_text(APP + LARGE)
    worker = start("--server", gearmand.address, "--recycle-jobs", "5")
    first = client.run("pid").args[1]
    for _ in range(4):
        client.run("upper", b"x")
    until(lambda: client.run("pid").args[1] != first)
    worker.wait_log("slot is renewed.*[0-9]+ jobs")


def test_a_slot_is_renewed_when_it_has_grown(start: StartWorker, client: Client, gearmand: servers.Server, app) -> None:
    (app / "jobs.py").write_text(APP + LARGE)
    worker = start("--server", gearmand.address, "--recycle-memory", "60MB")
    pids = {client.run("keep").args[1] for _ in range(3)}
    assert len(pids) == 1
    assert {client.run("keep").args[1] for _ in range(4)} <= pids
    (line,) = worker.wait_log("slot is renewed.*MB")[:1]
    assert "MB" in line
    until(lambda: client.run("pid").args[1] not in pids)


def test_a_slot_is_renewed_when_it_is_old(start: StartWorker, client: Client, gearmand: servers.Server, app) -> None:
    (app / "jobs.py").write_text(APP + LARGE)
    worker = start("--server", gearmand.address, "--recycle-after", "1")
    first = client.run("pid").args[1]
    until(lambda: client.run("pid").args[1] != first)
    worker.wait_log("slot is renewed.*s old")


def test_without_control_groups_the_watchdog_weighs_what_a_process_has_by_itself() -> None:
    script = "held = bytearray(80 << 20); held[::4096] = b'x' * len(held[::4096]); print(flush=True); input()"
    (slot,) = make_slots([0], ["grow"], [3], "{}", Credentials(), digest="d" * 64)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        slot.pid = process.pid
        small, large = (replace(SETTINGS, slot_memory=size << 20) for size in (50, 200))
        assert re.fullmatch(r"used (8|9)\d MB, above its limit of 50 MB; killed", too_large(slot, small))
        assert too_large(slot, large) == ""
        assert worn(slot, replace(SETTINGS, recycle_memory=50 << 20)) != ""
        process.communicate(b"\n")
    slot.close()
