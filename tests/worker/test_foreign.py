"""Any other program under supervision: its start, its drain by signals, its renewal, what the lease says of it."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from fleetd.codecs.lease import WorkerOrder
from fleetd.worker.main import main
from tests.worker.controller import serving
from tests.worker.foreign import foreign, program
from tests.worker.harness import until

pytestmark = pytest.mark.slow


def starts(notes: list[str]) -> list[str]:
    return [line.split()[1] for line in notes if line.startswith("start")]


def test_a_term_lets_the_program_finish_and_then_ends_the_worker_with_0(tmp_path: Path) -> None:
    with foreign(tmp_path, command=program(tmp_path, seconds=0.7)) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        assert [line.split()[0] for line in worker.notes()] == ["start", "told", "end"]
        assert re.search(r"told to finish +by=SIGTERM", worker.log)
        assert re.search(r"INFO +end +stream=output", worker.log), "what it prints are events"


def test_a_deaf_program_is_waited_for_and_said_so_in_one_line(tmp_path: Path) -> None:
    with foreign(tmp_path, "--drain-deadline", "0.3", command=program(tmp_path, "deaf")) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGTERM)
        worker.wait_log("did not end by SIGTERM: waiting on: `drain.then` allows nothing harder +busy=unknown")
        time.sleep(0.5)
        assert worker.process.poll() is None
        assert worker.log.count("did not end") == 1


def test_the_ladder_is_climbed_to_kill_only_where_it_is_allowed(tmp_path: Path) -> None:
    ladder = ["--drain-signal", "TERM", "--drain-signal", "KILL", "--drain-deadline", "0.3"]
    with foreign(tmp_path, *ladder, command=program(tmp_path, "deaf")) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0
        worker.wait_log("did not end by SIGTERM: sent SIGKILL +busy=unknown")
        worker.wait_log("SIGKILL may cut jobs off: those run again if their dispatcher sees to it")


def test_a_second_term_is_the_deadline(tmp_path: Path) -> None:
    ladder = ["--drain-signal", "TERM", "--drain-signal", "KILL", "--drain-deadline", "600"]
    with foreign(tmp_path, *ladder, command=program(tmp_path, "deaf")) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGTERM)
        worker.wait_log("told to finish")
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0


def test_one_that_crashes_is_started_anew_later_each_time(tmp_path: Path) -> None:
    with foreign(tmp_path, command=program(tmp_path, "crash")) as worker:
        waits = [float(wait) for wait in worker.wait_log(r"started anew +code=3 wait_s=([\d.]+)", 3)]
        assert waits[0] < 0.81
        assert waits[2] > waits[0]
        worker.signal(signal.SIGTERM)
        assert worker.wait_exit() == 0


def test_a_hang_up_renews_it_and_two_never_run_at_a_time(tmp_path: Path) -> None:
    with foreign(tmp_path, command=program(tmp_path, seconds=0.5)) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGHUP)
        worker.wait_note("start", 2)
        assert [line.split()[0] for line in worker.notes()] == ["start", "told", "end", "start"]


def test_it_is_renewed_when_the_content_of_a_watched_path_changes_and_not_for_a_touch(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code").write_text("same")
    link = tmp_path / "current"
    link.symlink_to("1")
    with foreign(tmp_path, "--watch", str(link), command=program(tmp_path)) as worker:
        worker.wait_note("start")
        time.sleep(1.5)
        os.utime(tmp_path / "1" / "code")
        time.sleep(3.5)
        assert len(starts(worker.notes())) == 1
        (tmp_path / "2" / "code").write_text("new")
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").rename(link)
        worker.wait_note("start", 2)
        worker.wait_log('it is to finish what it runs +why="its code has changed: it is started anew"')


def test_what_outlives_the_first_process_is_waited_for(tmp_path: Path) -> None:
    command = ["sh", "-c", "(trap '' TERM; sleep 1.5; echo late >> notes) & echo start >> notes; wait"]
    with foreign(tmp_path, command=command) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGTERM)
        worker.wait_log("its first process has ended, others live on: they are waited for +left=")
        assert worker.wait_exit() == 0
        assert worker.notes()[-1] == "late"


def test_the_programs_own_signals_reach_it(tmp_path: Path) -> None:
    with foreign(tmp_path, command=program(tmp_path)) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGUSR1)
        worker.wait_note("usr1")


def test_it_is_told_to_finish_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    with foreign(tmp_path, command=program(tmp_path, seconds=0.3)) as worker:
        worker.wait_note("start")
        worker.signal(signal.SIGKILL)
        worker.wait_note("told")


def test_node_and_slots_are_filled_in_and_secrets_stay_out(tmp_path: Path) -> None:
    command = [
        "sh",
        "-c",
        'echo "$0 $1 $FLEETD_SLOTS ${FLEETD_JOIN_TOKEN:-none}" >> notes; sleep 60',
        "{node}@h",
        "{slots}",
    ]
    with foreign(tmp_path, "--slots", "3", "--node", "p/7.1", command=command, FLEETD_JOIN_TOKEN="x") as worker:
        assert worker.wait_note("p-7.1") == ["p-7.1@h 3 3 none"]


def test_drain_work_and_drain_again_by_orders(tmp_path: Path) -> None:
    with (
        serving() as controller,
        foreign(tmp_path, "--slots", "2", command=program(tmp_path, seconds=0.8), controller=controller) as worker,
    ):
        up = controller.wait(lambda lease: lease.state == "working")
        assert (up.busy, up.busy_by, up.slots) == (2, "by signal", 2), "what nobody can tell counts as busy"
        worker.wait_note("start")
        controller.order = WorkerOrder(1, "drain")
        controller.wait(lambda lease: (lease.state, lease.order) == ("draining", 1))
        controller.wait(lambda lease: (lease.state, lease.busy, lease.order) == ("drained", 0, 1))
        assert worker.notes()[-1].startswith("end")
        assert worker.process.poll() is None, "it waits for what comes next"
        controller.order = WorkerOrder(2, "work")
        worker.wait_note("start", 2)
        controller.wait(lambda lease: (lease.state, lease.order) == ("working", 2))
        controller.order = WorkerOrder(3, "drain")
        worker.wait_note("told", 2)
        controller.order = WorkerOrder(4, "work")
        worker.wait_log("fence lifted: it has been told to end, and is started anew after that")
        worker.wait_note("start", 3)
        controller.order = WorkerOrder(5, "stop")
        assert worker.wait_exit() == 0
        assert controller.leases[-1].state == "drained"
        assert controller.errors == []


def test_a_program_that_can_is_taken_back_by_a_signal(tmp_path: Path) -> None:
    ladder = ["--drain-signal", "USR2", "--undo-signal", "CONT"]
    with (
        serving() as controller,
        foreign(tmp_path, *ladder, command=program(tmp_path), controller=controller) as worker,
    ):
        worker.wait_note("start")
        controller.order = WorkerOrder(1, "drain")
        worker.wait_note("quiet")
        controller.order = WorkerOrder(2, "work")
        worker.wait_note("back")
        controller.wait(lambda lease: (lease.state, lease.order) == ("working", 2))
        assert len(starts(worker.notes())) == 1


def test_one_that_is_quiet_and_idle_is_told_to_end_at_once(tmp_path: Path) -> None:
    ladder = ["--drain-signal", "USR2", "--drain-signal", "TERM", "--drain-deadline", "600"]
    probe = ["--probe=command", "--probe=sh", "--probe=-c", "--probe=cat busy"]
    (tmp_path / "busy").write_text('{"busy": 1}')
    with (
        serving() as controller,
        foreign(tmp_path, *ladder, *probe, command=program(tmp_path), controller=controller) as worker,
    ):
        controller.wait(lambda lease: (lease.state, lease.busy, lease.busy_by) == ("working", 1, "probed"))
        controller.order = WorkerOrder(1, "drain")
        worker.wait_note("quiet")
        time.sleep(2.5)
        assert not [line for line in worker.notes() if line.startswith("told")], "it runs a job"
        (tmp_path / "busy").write_text('{"busy": 0}')
        worker.wait_note("told")
        controller.wait(lambda lease: lease.state == "drained")


def test_it_is_ready_when_its_probe_says_so(tmp_path: Path) -> None:
    # `test` alone would end with 1, which says busy.
    probe = ["--probe=command", "--probe=sh", "--probe=-c", "--probe=test -e up || exit 9"]
    with serving() as controller, foreign(tmp_path, *probe, command=program(tmp_path), controller=controller) as worker:
        worker.wait_note("start")
        controller.wait(lambda lease: lease.state == "starting")
        time.sleep(2.0)
        assert {lease.state for lease in controller.leases} == {"starting"}
        (tmp_path / "up").touch()
        controller.wait(lambda lease: (lease.state, lease.busy) == ("working", 0))
        (tmp_path / "up").unlink()
        worker.wait_log("probe: cannot tell how busy it is +error=.*ended with 9")
        controller.wait(lambda lease: (lease.state, lease.busy > 0) == ("working", True))


def test_it_is_renewed_at_its_age(tmp_path: Path) -> None:
    with foreign(tmp_path, "--recycle-after", "1", command=program(tmp_path)) as worker:
        worker.wait_note("start", 2)


def test_process_1_buries_orphans(tmp_path: Path) -> None:
    """The subreaper is what process 1 is in a container: the orphan comes to it."""
    script = "import os,time\nif os.fork(): os._exit(0)\ntime.sleep(.3)"
    command = ["sh", "-c", f"{sys.executable} -c '{script}'; echo start >> notes; exec sleep 60"]
    with foreign(tmp_path, command=command) as worker:
        worker.wait_note("start")
        time.sleep(0.6)
        states = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            for pid in worker.pids()
            if Path(f"/proc/{pid}/stat").exists()
        ]
        assert "Z" not in states
        until(lambda: len(worker.pids()) == 2)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--exec"], "--exec: nothing follows; give the program and its words"),
        (["--exec", "no-such-program"], "--exec: no-such-program: no such program here; install it, or correct `exec`"),
        (["--probe=celery", "--exec", "ls"], "--probe celery: expected celery URL, rq URL"),
        (["--probe=rq", "--probe=http://x", "--exec", "ls"], "probe 'http://x': expected redis://HOST:PORT/DATABASE"),
        (["--probe=http", "--probe=x", "--exec", "ls"], "probe 'x': expected http://HOST:PORT/PATH"),
        (["--probe=gearman", "--probe=x", "--exec", "ls"], "give the dispatchers by --server HOST:PORT"),
        (["--probe=rq", "--probe=redis://:s3cret@x", "--exec", "ls"], "no password belongs into the URL"),
        (["--drain-signal", "KILL", "--drain-signal", "TERM", "--exec", "ls"], "KILL: nothing can follow it"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(
    args: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--spool", str(tmp_path), *args]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "s3cret" not in said
    assert len(said.splitlines()) <= 2
