"""The embedded dispatcher beside gearmand, and fleetd's worker beside C's: everything in turn, in one run.

python -m bench dispatcher [--rounds R] [--jobs N] [--waiting N]

Clients and workers here are plain sockets, the same for both dispatchers: what is measured is the dispatcher.
"""

import argparse
import contextlib
import multiprocessing
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import page, processes
from fleetd.codecs.gearman import Decoder, Kind, encode
from tests import servers
from tests.dispatchers.embedded.serving import embedded
from tests.servers import Server

WINDOW: Final = 64
PAYLOAD: Final = b"x" * 32
WORKERS: Final = 1000
RUN_S: Final = 120.0
Serve = Callable[[Path], contextlib.AbstractContextManager[Server]]
_RES: Final = b"\0RES"


class BenchError(Exception):
    """A run that gave no figure."""


# ── the dispatchers


def _gearmand(_: Path) -> contextlib.AbstractContextManager[Server]:
    return servers.gearmand()


def _gearmand_sqlite(home: Path) -> contextlib.AbstractContextManager[Server]:
    return servers.gearmand("-q", "libsqlite3", f"--libsqlite3-db={home / 'gearmand.sqlite'}")


def _embedded(_: Path) -> contextlib.AbstractContextManager[Server]:
    return embedded("--max-queue", "0")


def _embedded_durable(home: Path) -> contextlib.AbstractContextManager[Server]:
    return embedded("--max-queue", "0", data=home / "journal")


MEMORY: Final[dict[str, Serve]] = {"gearmand": _gearmand, "embedded": _embedded}
DURABLE: Final[dict[str, Serve]] = {"gearmand": _gearmand_sqlite, "embedded": _embedded_durable}


@contextlib.contextmanager
def _running(serve: Serve) -> Iterator[Server]:
    """On a real disk: what a commit costs is to be measured, and a disk in memory would hide it."""
    with tempfile.TemporaryDirectory(prefix="fleetd-bench-", dir="/var/tmp") as folder, serve(Path(folder)) as server:
        yield server


def _connect(server: Server) -> socket.socket:
    sock = socket.create_connection((server.host, server.port), RUN_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


# ── submissions


def _packets(count: int, start: int = 0) -> list[bytes]:
    """Return windows of submissions, made before the clock runs."""
    made = []
    for at in range(start, start + count, WINDOW):
        uniques = range(at, min(at + WINDOW, start + count))
        made.append(b"".join(encode(Kind.SUBMIT_JOB_BG, b"noop", b"%032x" % unique, PAYLOAD) for unique in uniques))
    return made


def _submit(socks: list[socket.socket], windows: list[bytes]) -> float:
    """Send a window on every connection, wait for all its answers, go on; return the jobs per second."""
    selector = selectors.DefaultSelector()
    todo = iter(windows)
    due: dict[socket.socket, int] = {}
    began = time.monotonic()
    for sock in socks:
        if (window := next(todo, None)) is not None:
            due[sock] = window.count(b"\0REQ")
            sock.sendall(window)
            selector.register(sock, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select(RUN_S) or _stuck("no answer to submissions"):
            sock = _socket(key)
            data = sock.recv(65536)
            if not data or b"QUEUE_ERROR" in data:
                raise BenchError(f"submissions were refused: {data[:80]!r}")
            due[sock] -= data.count(_RES)
            if due[sock] <= 0:
                window = next(todo, None)
                if window is None:
                    selector.unregister(sock)
                else:
                    due[sock] = window.count(b"\0REQ")
                    sock.sendall(window)
    return sum(window.count(b"\0REQ") for window in windows) / (time.monotonic() - began)


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def _stuck(what: str) -> list[tuple[selectors.SelectorKey, int]]:
    raise BenchError(what)


def submits(serve: Serve, jobs: int, connections: int = 1) -> float:
    """Return background submissions per second."""
    windows = _packets(jobs)
    with _running(serve) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(_connect(server)) for _ in range(connections)]
        return _submit(socks, windows)


# ── round trips


def _echo(port: int, connections: int) -> None:
    """Be many workers in one process: ask, answer, ask again, sleep."""
    selector = selectors.DefaultSelector()
    grab, sleep = encode(Kind.GRAB_JOB_UNIQ), encode(Kind.PRE_SLEEP)
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port), RUN_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(encode(Kind.CAN_DO, b"noop") + grab)
        selector.register(sock, selectors.EVENT_READ, Decoder())
    while True:
        for key, _ in selector.select():
            sock = _socket(key)
            data = sock.recv(65536)
            if not data:
                return
            out = b""
            for packet in key.data.feed(data):
                if packet.kind is Kind.JOB_ASSIGN_UNIQ:
                    out += encode(Kind.WORK_COMPLETE, packet.args[0], packet.args[3]) + grab
                elif packet.kind is Kind.NO_JOB:
                    out += sleep
                elif packet.kind is Kind.NOOP:
                    out += grab
            if out:
                sock.sendall(out)


@contextlib.contextmanager
def _workers(server: Server, connections: int) -> Iterator[None]:
    worker = multiprocessing.get_context("spawn").Process(target=_echo, args=(server.port, connections), daemon=True)
    worker.start()
    try:
        _until(lambda: _status(server)[2] >= connections, "the workers do not come up")
        time.sleep(0.5)
        yield
    finally:
        worker.kill()
        worker.join(5)


def _status(server: Server) -> tuple[int, int, int]:
    """Return the no-op's jobs, running jobs and workers."""
    with _connect(server) as sock:
        sock.sendall(b"status\n")
        text = b""
        while not text.endswith(b".\n"):
            text += sock.recv(65536)
    rows = [line.split(b"\t") for line in text.splitlines()]
    return next(((int(r[1]), int(r[2]), int(r[3])) for r in rows if r[0] == b"noop"), (0, 0, 0))


def _until(seen: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + RUN_S
    while not seen():
        if time.monotonic() > give_up_at:
            raise BenchError(what)
        time.sleep(0.005)


def round_trips(serve: Serve, jobs: int, window: int) -> float:
    """Return foreground jobs per second, `window` of them under way at a time, one worker."""
    job = [encode(Kind.SUBMIT_JOB, b"noop", b"%032x" % at, PAYLOAD) for at in range(jobs)]
    with _running(serve) as server, _workers(server, 1), _connect(server) as sock:
        began = time.monotonic()
        sock.sendall(b"".join(job[:window]))
        sent, done, decoder = window, 0, Decoder()
        while done < jobs:
            finished = sum(packet.kind is Kind.WORK_COMPLETE for packet in decoder.feed(sock.recv(65536)))
            done += finished
            if finished and sent < jobs:
                sock.sendall(b"".join(job[sent : sent + finished]))
                sent += finished
        return jobs / (time.monotonic() - began)


def wave(serve: Serve, jobs: int) -> float:
    """Return the seconds from the first of so many jobs to the last end, with a thousand workers asleep."""
    windows = _packets(jobs)
    with _running(serve) as server, _workers(server, WORKERS), _connect(server) as sock:
        time.sleep(1.0)
        began = time.monotonic()
        _submit([sock], windows)
        _until(lambda: _status(server)[0] == 0, "the wave is not served")
        return time.monotonic() - began


# ── memory


def bytes_a_job(serve: Serve, jobs: int) -> float:
    """Return by how much the dispatcher grows for each waiting job."""
    with _running(serve) as server, _connect(server) as sock:
        _submit([sock], _packets(1000))
        before = processes.memory(server.process.pid).own
        for start in range(1000, jobs + 1000, 50_000):
            _submit([sock], _packets(50_000, start))
        return (processes.memory(server.process.pid).own - before) / jobs


# ── workers


def _c_worker(server: Server, _: Path, log: Path) -> list[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        command = [servers.find("gearman"), "-w", "-f", "noop", "-p", str(server.port)]
        return [
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=out,
                preexec_fn=servers._die_with_parent,  # noqa: PLW1509, SLF001
            )
        ]  # fmt: skip


def _own_worker(server: Server, home: Path, log: Path) -> list[subprocess.Popen[bytes]]:
    app = home / "jobs.py"
    app.write_text("from fleetd.worker import job\n\n\n@job\ndef noop(payload):\n    return payload\n")
    command = ["-m", "fleetd.worker", "--slots", "1", "--app", str(app), "--server", server.address]
    return [processes.start([*command, "--spool", str(home / "spool")], {}, log)]


StartWorker = Callable[[Server, Path, Path], list[subprocess.Popen[bytes]]]
RUNTIMES: Final[dict[str, StartWorker]] = {"gearman -w": _c_worker, "fleetd worker": _own_worker}


def worker_jobs(serve: Serve, start: StartWorker, jobs: int) -> float:
    """Return jobs per second of one slot: queued first, then the worker starts; the first tenth is warm-up."""
    with _running(serve) as server, tempfile.TemporaryDirectory(prefix="fleetd-bench-") as folder:
        home = Path(folder)
        with _connect(server) as sock:
            _submit([sock], _packets(jobs))
        started: list[subprocess.Popen[bytes]] = []
        with processes.ended(started):
            started += start(server, home, home / "log")
            left = [jobs]

            def under(count: int) -> bool:
                left[0] = _status(server)[0]
                return left[0] <= count

            _until(lambda: under(jobs * 9 // 10), "the worker does not work")
            began, first = time.monotonic(), left[0]
            _until(lambda: under(jobs // 20), "the worker does not come to an end")
            return (first - left[0]) / (time.monotonic() - began)


# ── the report


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `target`: at least so much of a ratio; 0: none is set."""

    label: str
    form: str
    theirs: list[float]
    ours: list[float]
    target: float = 0.0

    @property
    def ratio(self) -> float:
        """Ours by theirs, of the same round; the median."""
        return median(own / its for own, its in zip(self.ours, self.theirs, strict=True))

    def __str__(self) -> str:
        theirs, ours = (self.form.format(median(found)) for found in (self.theirs, self.ours))
        verdict = f"at least {self.target:g}: {'met' if self.ratio >= self.target else 'missed'}"
        return f"| {self.label} | {theirs} | {ours} | {self.ratio:.2f} | {verdict if self.target else ''} |"


def measure(rounds: int, jobs: int, waiting: int, say: Callable[[str], None]) -> tuple[list[Row], list[Row]]:
    """Run everything, the two sides in turn within each round."""

    def both(label: str, form: str, side: dict[str, Serve], run: Callable[[Serve], float], target: float = 0.0) -> Row:
        found: dict[str, list[float]] = {name: [] for name in side}
        for _ in range(1 if label.startswith("bytes") else rounds):
            for name, serve in side.items():
                found[name].append(run(serve))
                say(f"{label}: {name}: {form.format(found[name][-1])}")
        theirs, ours = found.values()
        return Row(label, form, theirs, ours, target)

    many = "{:,.0f}/s"
    dispatchers = [
        both("background submissions, in memory", many, MEMORY, lambda s: submits(s, jobs), target=0.3),
        both("the same, 8 connections", many, MEMORY, lambda s: submits(s, jobs, 8)),
        both("background submissions, durable", many, DURABLE, lambda s: submits(s, max(2000, jobs // 8)), target=5.0),
        both("the same, 8 connections", many, DURABLE, lambda s: submits(s, max(2000, jobs // 8), 8), target=5.0),
        both("foreground round trips, one at a time", many, MEMORY, lambda s: round_trips(s, jobs // 10, 1)),
        both(f"foreground round trips, {WINDOW} under way", many, MEMORY, lambda s: round_trips(s, jobs // 3, WINDOW)),
        both(f"{WORKERS:,} workers asleep: a wave of 1,000 jobs", "{:.2f} s", MEMORY, lambda s: wave(s, 1000)),
        both("the same, 10,000 jobs", "{:.2f} s", MEMORY, lambda s: wave(s, 10_000)),
        both(f"bytes a job, {waiting:,} waiting", "{:,.0f}", MEMORY, lambda s: bytes_a_job(s, waiting)),
    ]
    workers = []
    for name, serve in MEMORY.items():
        found: dict[str, list[float]] = {runtime: [] for runtime in RUNTIMES}
        for _ in range(rounds):
            for runtime, start in RUNTIMES.items():
                found[runtime].append(worker_jobs(serve, start, jobs))
                say(f"worker on {name}: {runtime}: {many.format(found[runtime][-1])}")
        theirs, ours = found.values()
        workers.append(Row(f"jobs a second, one slot, on {name}", many, theirs, ours, 0.9))
    return dispatchers, workers


METHOD: Final = """\
Medians; ratios are medians of each round's ratio, fleetd's by the other's; of seconds and bytes less is better. A
client sends 64 submissions (32 bytes of payload, a unique of 32) and waits for the 64 answers, then sends the next.
Durable: gearmand with `-q libsqlite3`, fleetd with `--data`, both on the machine's disk; each waits for the disk
before it answers. Round trips: one worker, plain sockets. The wave: a thousand connections of one process sleep, and
are woken for background jobs; the time is that from the first submission to the last end. Memory: the growth of the
process's own memory. The worker: jobs are queued, then one worker starts, `gearman -w` or one slot of fleetd's; the
first tenth is warm-up. Client, workers and dispatcher share the two cores."""


def report(dispatchers: list[Row], workers: list[Row], command: str) -> str:
    """Return the block of the page."""
    rule = "|---|--:|--:|--:|---|"
    return "\n".join(
        [
            page.machine(["fleetd"]),
            "",
            command,
            "",
            "| Dispatcher | gearmand | fleetd's | ratio | target |",
            rule,
            *map(str, dispatchers),
            "",
            "| Worker | gearman -w | fleetd's | ratio | target |",
            rule,
            *map(str, workers),
            "",
            METHOD,
        ]
    )


def main(argv: list[str]) -> int:
    """Measure, print, and renew the page."""
    parser = argparse.ArgumentParser(prog="bench dispatcher", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=60_000, help="of a run, or a part of it where runs are slow")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="jobs in the memory run")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    missing = [
        name for name in ("gearmand", "gearman") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    ]
    if missing:
        print(f"missing: run scripts/need {' '.join(missing)}", file=sys.stderr)
        return 2
    try:
        found = measure(given.rounds, given.jobs, given.waiting, lambda line: print(line, flush=True))
    except (BenchError, OSError, subprocess.TimeoutExpired) as error:
        print(f"bench dispatcher: {error}", file=sys.stderr)
        return 1
    text = report(*found, f"`python -m bench dispatcher --rounds {given.rounds} --jobs {given.jobs}`")
    print(text)
    if given.page:
        page.renew("dispatcher", text, "Embedded dispatcher")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
