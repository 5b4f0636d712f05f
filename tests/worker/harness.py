"""A worker as a process, a client as a socket, and the app that most tests serve."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from fleetd.codecs.gearman import Decoder, Kind, Packet, encode

MARK = "FLEETD_TEST_WORKER"
Found = TypeVar("Found")

APP = """
import asyncio, ctypes, os, signal, threading, time
from pathlib import Path
from fleetd.worker import Context, Retry, job

HERE = Path(__file__).parent

def note(text):
    with open(HERE / "notes", "a") as file:
        file.write(text + "\\n")

@job
def upper(payload):
    return payload.upper()

@job
def talk(payload, ctx: Context):
    ctx.progress(1, 2)
    ctx.data(b"part")
    ctx.warning(b"careful")
    return f"{ctx.function} {ctx.handle} {ctx.unique} {ctx.remaining_s}"

@job
async def later(payload, ctx):
    await asyncio.sleep(0.01)
    return b"later " + payload

@job
def fail(payload):
    raise ValueError("no good: " + payload.decode())

@job
def leave(payload):
    raise SystemExit(3)

@job
def number(payload):
    return 42

@job
def nap(payload):
    note(f"start {payload.decode()} {os.getpid()}")
    time.sleep(float(payload.split()[0]))
    note(f"end {payload.decode()} {os.getpid()}")
    return b"slept"

@job
async def doze(payload):
    note(f"start {payload.decode()} {os.getpid()}")
    await asyncio.sleep(float(payload.split()[0]))
    note(f"end {payload.decode()} {os.getpid()}")
    return b"slept"

@job
def crash(payload):
    note(f"crash {os.getpid()}")
    ctypes.string_at(0)

@job
def retry(payload):
    note("try")
    raise Retry("not yet")

@job(timeout_s=0.4)
def slow(payload):
    note("slow")
    time.sleep(30)

@job(timeout_s=0.4)
async def slow_async(payload):
    note("slow_async")
    await asyncio.sleep(30)

@job(timeout_s=0.3)
def stuck(payload):
    note("stuck")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    while True:
        pass
"""


def until(what: Callable[[], Found | None], limit_s: float = 15.0, hint: Callable[[], str] = str) -> Found:
    """Return the first true value of `what`; fails after `limit_s`."""
    give_up_at = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < give_up_at, f"waited {limit_s} s in vain\n{hint()}"
        time.sleep(0.01)
    return found


class Worker:
    """`python -m fleetd.worker` and everything that it has started; `close` leaves nothing of it behind."""

    def __init__(self, folder: Path, *args: str, env: dict[str, str] | None = None, app: bool = True) -> None:
        """Without `app` it runs what its controller names."""
        self.folder = folder
        self.spool = folder / "spool"
        self.mark = secrets.token_hex(8)
        self.log_path = folder / f"log-{self.mark}"
        command = [sys.executable, "-m", "fleetd.worker", "--spool", str(self.spool)]
        command += ["--app", str(folder / "app")] if app else ["--app-name", "app", "--cache", str(folder / "cache")]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *args], stderr=log, env={**os.environ, **(env or {}), MARK: self.mark}
            )

    @property
    def log(self) -> str:
        """Everything it logged."""
        return self.log_path.read_text("utf-8", "replace")

    def wait_log(self, pattern: str, count: int = 1, limit_s: float = 15.0) -> list[str]:
        """Wait until `count` lines match."""
        return until(
            lambda: found if len(found := re.findall(pattern, self.log)) >= count else None,
            limit_s,
            lambda: f"wanted {count} of {pattern!r} in:\n{self.log}",
        )

    def notes(self) -> list[str]:
        """What the jobs wrote down."""
        path = self.folder / "app" / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def wait_note(self, start: str, count: int = 1) -> list[str]:
        """Wait until the jobs wrote `count` lines that begin so."""

        def look() -> list[str] | None:
            found = [line for line in self.notes() if line.startswith(start)]
            return found if len(found) >= count else None

        return until(look, hint=lambda: self.log)

    def letters(self) -> list[dict[str, Any]]:
        """The dead letters in the spool."""
        return [json.loads(file.read_text()) for file in self.spool.glob("*.json")] if self.spool.exists() else []

    def pids(self) -> dict[int, str]:
        """Every process of this worker that is alive, by pid."""
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):
                if folder.name.isdigit() and f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
        return found

    def slots(self) -> list[int]:
        """The pids of the slots."""
        return sorted(pid for pid, name in self.pids().items() if name.startswith("fleetd-slot"))

    def wait_slots(self, count: int) -> list[int]:
        """Wait until so many slots are connected and named."""
        return until(lambda: found if len(found := self.slots()) == count else None, hint=lambda: self.log)

    def signal(self, number: int) -> None:
        """Send the supervisor a signal."""
        self.process.send_signal(number)

    def wait_exit(self, limit_s: float = 15.0) -> int:
        """Return the exit code, and prove that nothing is left."""
        code = self.process.wait(limit_s)
        until(lambda: not self.pids(), 5, lambda: f"left: {self.pids()}\n{self.log}")
        return code

    def close(self) -> None:
        """Kill all that is left of it."""
        for _ in range(200):
            left = self.pids()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            if not left:
                break
            time.sleep(0.02)
        self.process.wait(5)


class Client:
    """A connection that submits one foreground job and collects what comes back."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), 5)
        self.decoder = Decoder()
        self.packets: list[Packet] = []
        self.sock.sendall(encode(Kind.OPTION_REQ, b"exceptions"))
        self.until(Kind.OPTION_RES)
        self.packets.clear()

    def submit(self, function: str, payload: bytes = b"", unique: bytes = b"", kind: Kind = Kind.SUBMIT_JOB) -> bytes:
        """Queue a job and return its handle."""
        self.sock.sendall(encode(kind, function.encode(), unique, payload))
        return self.until(Kind.JOB_CREATED).args[0]

    def until(self, *kinds: Kind, limit_s: float = 20.0) -> Packet:
        """Return the next packet of these kinds."""
        self.sock.settimeout(limit_s)
        while True:
            for packet in self.packets:
                if packet.kind in kinds:
                    self.packets.remove(packet)
                    return packet
            data = self.sock.recv(65536)
            assert data, "the dispatcher hung up"
            self.packets += self.decoder.feed(data)

    def end(self, limit_s: float = 20.0) -> Packet:
        """Return the packet that ends the job; a WORK_FAIL with the reason, which came as a warning before it."""
        end = self.until(Kind.WORK_COMPLETE, Kind.WORK_EXCEPTION, Kind.WORK_FAIL, limit_s=limit_s)
        if end.kind is not Kind.WORK_FAIL:
            return end
        reason = [p for p in self.packets if p.kind is Kind.WORK_WARNING and p.args[0] == end.args[0]][-1]
        self.packets.remove(reason)
        return Packet(Kind.WORK_FAIL, reason.args)

    def run(self, function: str, payload: bytes = b"") -> Packet:
        """Submit and wait for the end."""
        self.submit(function, payload)
        return self.end()

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def status(port: int) -> dict[str, tuple[int, int, int]]:
    """The dispatcher's functions: jobs, running ones, workers."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"status\n")
        text = b""
        while not text.endswith(b".\n"):
            text += sock.recv(65536)
    rows = (line.split("\t") for line in text.decode().splitlines() if "\t" in line)
    return {name: (int(total), int(running), int(workers)) for name, total, running, workers in rows}
