"""Measures the runtime: `python -m tests.worker.measure [JOBS]` prints jobs/s, CPU per job and memory of each process.

The queue is filled before the slots may take, so that submitting costs nothing while it is measured.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fleetd.codecs.gearman import Kind, encode
from tests import servers

APP = "from fleetd.worker import job\n\n\n@job\ndef noop(payload):\n    return payload\n"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def submit(port: int, count: int, function: bytes = b"noop") -> None:
    """Queue background jobs and wait until the dispatcher has taken them all."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        due = 0
        for start in range(0, count, 100):
            batch = range(start, min(start + 100, count))
            jobs = [encode(Kind.SUBMIT_JOB_BG, function, b"%d" % at, b"x" * 16) for at in batch]
            sock.sendall(b"".join(jobs))
            due += len(batch)
            got = 0
            while got < len(batch):
                got += sock.recv(65536).count(b"\0RES")


def waiting(port: int) -> int:
    """Jobs that the dispatcher holds, running ones included."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"status\n")
        text = b""
        while not text.endswith(b".\n"):
            text += sock.recv(65536)
    return sum(int(line.split(b"\t")[1]) for line in text.splitlines() if b"\t" in line)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def memory_mb(pid: int) -> tuple[float, float]:
    """USS and RSS of a process."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        found[name] = int(value.split()[0]) / 1024
    return found["Private_Clean"] + found["Private_Dirty"], found["Rss"]


def children(pid: int) -> dict[int, str]:
    """The process's children and their names."""
    pids = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {child: Path(f"/proc/{child}/comm").read_text().strip() for child in pids}


def main(jobs: int = 40_000, slots: int = 2) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder, servers.gearmand() as dispatcher:
        Path(folder, "jobs.py").write_text(APP)
        command = [sys.executable, "-m", "fleetd.worker", "--server", dispatcher.address, "--app", folder]
        worker = subprocess.Popen([*command, "--slots", str(slots), "--spool", f"{folder}/spool"])
        try:
            while sum(name.startswith("fleetd-slot") for name in children(worker.pid).values()) < slots:
                time.sleep(0.05)
            time.sleep(0.5)
            pids = [pid for pid, name in children(worker.pid).items() if name.startswith("fleetd-slot")]
            idle = [memory_mb(pid)[0] for pid in pids]
            worker.send_signal(signal.SIGTSTP)
            time.sleep(0.3)
            submit(dispatcher.port, jobs)
            before, before_dispatcher = sum(map(cpu_s, pids)), cpu_s(dispatcher.process.pid)
            began = time.monotonic()
            worker.send_signal(signal.SIGCONT)
            while waiting(dispatcher.port):
                time.sleep(0.05)
            took_s = time.monotonic() - began
            used_s = sum(map(cpu_s, pids)) - before
            print(f"jobs/s, {slots} slots         {jobs / took_s:10.0f}")
            print(f"CPU per job in the slots  {used_s / jobs * 1e6:10.1f} us")
            print(
                f"CPU per job in gearmand   {(cpu_s(dispatcher.process.pid) - before_dispatcher) / jobs * 1e6:10.1f} us"
            )
            for pid, name in {worker.pid: "supervisor", **children(worker.pid)}.items():
                uss, rss = memory_mb(pid)
                print(f"{name:16} USS {uss:6.2f} MB  RSS {rss:6.2f} MB")
            print(f"idle slot USS {max(idle):.2f} MB")
        finally:
            worker.terminate()
            worker.wait(10)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
