"""The worker runtime beside others: no-op jobs a second, CPU a job, and what an idle slot costs in memory.

python -m bench runtimes [--rounds R] [--jobs N]

Two processes run jobs in every runtime. Jobs are queued first, then the workers start. Completions are counted by the
jobs themselves (`bench.apps.tally`); the first tenth is warm-up, so that imports and forks are not counted. CPU is that
of the worker side alone, all its processes and the children that they reaped; the broker's is told apart. The runtimes
take turns within each round, and each is compared with the Celery of its own round.
"""

import argparse
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Final, NamedTuple

from bench import page, processes
from bench.apps import tally
from tests import servers

WARM_UP: Final = 0.1
LOOK_S: Final = 0.02
RUN_S: Final = 90.0  # a run that takes longer has failed
RUNS_S: Final = 5.0  # what a run is meant to take
TARGET: Final = 5.0
TARGET_OWN_MB: Final = 5.0
BASE: Final = "Celery prefork -c 2"
FLEETD: Final = "fleetd --slots 2"
_MB: Final = 1e6

Server = contextlib.AbstractContextManager[servers.Server]


class RunError(Exception):
    """A run that gave no figure."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime: how it is started, and what it promises. `guess` is how many jobs a first, short run takes."""

    name: str
    app: str
    commands: Callable[[str, Path], list[list[str]]]
    guess: int
    isolation: str
    acknowledged: str
    server: Callable[[], Server] = servers.redis
    url: str = "redis://{}/0"


class Figures(NamedTuple):
    """What one run measured, from the end of the warm-up to the last completion."""

    jobs_s: float
    cpu_ms: float
    broker_ms: float


def _celery(app: str) -> Callable[[str, Path], list[list[str]]]:
    return lambda _, __: [["-m", "celery", "-A", f"bench.apps.{app}", "worker", "-P", "prefork", "-c", "2"]]


def _rq(worker: str) -> Callable[[str, Path], list[list[str]]]:
    command = ["-m", "rq.cli", "worker", "--quiet", "-w", f"rq.worker.{worker}", "-u"]
    return lambda broker, _: [[*command, broker, "noop"]] * 2


def _dramatiq(_: str, __: Path) -> list[list[str]]:
    return [["-m", "dramatiq", "bench.apps.dramatiq_app", "-p", "2", "-t", "1"]]


def _huey(_: str, __: Path) -> list[list[str]]:
    return [["-m", "huey.bin.huey_consumer", "bench.apps.huey_app.huey", "-w", "2", "-k", "process", "-q"]]


def _fleetd(app: str) -> Callable[[str, Path], list[list[str]]]:
    command = ["-m", "fleetd.worker", "--slots", "2", "--app", str(Path(__file__).parent / "apps" / f"{app}.py")]
    return lambda broker, home: [[*command, "--server", broker, "--spool", str(home / "spool")]]


RUNTIMES: Final = (
    Runtime("RQ fork x 2", "rq_app", _rq("Worker"), 60, "a process for each job", "none: marked failed, not run again"),
    Runtime("RQ SimpleWorker x 2", "rq_app", _rq("SimpleWorker"), 500, "none", "none: marked failed, not run again"),
    Runtime("dramatiq -p 2 -t 1", "dramatiq_app", _dramatiq, 800, "process; one that dies ends all", "late"),
    Runtime(BASE, "celery_app", _celery("celery_app"), 1000, "process", "early (its default)"),
    Runtime("Celery with acks_late", "celery_late_app", _celery("celery_late_app"), 1000, "process", "late"),
    Runtime("Huey -k process -w 2", "huey_app", _huey, 5000, "process", "none"),
    Runtime(FLEETD, "fleetd_app", _fleetd("fleetd_app"), 10_000, "process", "late", server=servers.gearmand, url="{}"),
)
PACKAGES: Final = ("celery", "rq", "dramatiq", "huey", "redis", "fleetd")


# ── one run


def measure(runtime: Runtime, jobs: int) -> Figures:
    """Queue the jobs, start the workers, and watch them to the last one."""
    with _home() as home, runtime.server() as server:
        broker = runtime.url.format(server.address)
        records, log = home / "tally", home / "log"
        environment = {tally.VARIABLE: str(records), tally.BROKER: broker}
        client = processes.start(["-m", "bench.apps", runtime.app, str(jobs)], environment, log)
        with processes.ended([client]):
            client.wait(RUN_S)
        if client.returncode:
            raise RunError(f"{runtime.name}: jobs could not be queued: {_tail(log)}")
        workers: list[subprocess.Popen[bytes]] = []
        with processes.ended(workers):
            workers += [processes.start(command, environment, log) for command in runtime.commands(broker, home)]
            give_up_at = time.monotonic() + RUN_S
            first = _wait_for(max(1, int(jobs * WARM_UP)), records, workers, log, give_up_at)
            before = processes.cpu_s(workers), processes.cpu_s([server.process])
            _wait_for(jobs, records, workers, log, give_up_at)
            after = processes.cpu_s(workers), processes.cpu_s([server.process])
        done = list(tally.RECORD.iter_unpack(records.read_bytes()))
        if len({pid for _, pid in done}) < 2:
            raise RunError(f"{runtime.name}: one process ran all jobs")
        counted = jobs - first
        if counted < 1:
            raise RunError(f"{runtime.name}: {jobs} jobs are too few to be measured")
        seconds = done[jobs - 1][0] - done[first - 1][0]
        cpu, broker_cpu = (
            1000 * max(processes.TICK_S, late - early) / counted for early, late in zip(before, after, strict=True)
        )
        return Figures(counted / seconds, cpu, broker_cpu)


def _wait_for(count: int, records: Path, workers: list[subprocess.Popen[bytes]], log: Path, give_up_at: float) -> int:
    """Wait until so many jobs have completed; returns how many have by then."""
    while True:
        done = int(records.stat().st_size // tally.RECORD.size) if records.exists() else 0
        if done >= count:
            return done
        if any(worker.poll() is not None for worker in workers):
            raise RunError(f"a worker ended by itself after {done} jobs: {_tail(log)}")
        if time.monotonic() > give_up_at:
            raise RunError(f"{done} of {count} jobs within {RUN_S:g} s: {_tail(log)}")
        time.sleep(LOOK_S)


def _tail(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fleetd-bench-", dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


# ── all runs


def run_all(rounds: int, jobs: int | None, say: Callable[[str], None]) -> dict[str, list[Figures]]:
    """Measure every runtime once a round. A first, short run of each tells how many jobs fill a run."""
    counts = {}
    for runtime in RUNTIMES:
        counts[runtime.name] = jobs or _calibrated(runtime)
        say(f"{runtime.name}: {counts[runtime.name]} jobs a run")
    found: dict[str, list[Figures]] = {runtime.name: [] for runtime in RUNTIMES}
    for number in range(rounds):
        for runtime in RUNTIMES:
            figures = measure(runtime, counts[runtime.name])
            found[runtime.name].append(figures)
            say(f"round {number + 1}: {runtime.name}: {figures.jobs_s:.0f} jobs/s, {figures.cpu_ms:.3f} ms a job")
    return found


def _calibrated(runtime: Runtime) -> int:
    count = measure(runtime, runtime.guess).jobs_s * RUNS_S
    step = 10 ** max(1, len(str(int(count))) - 2)
    return int(max(step, round(count / step) * step))


# ── memory


class Weights(NamedTuple):
    """Memory of a worker with two slots, in bytes."""

    idle: int
    used: int
    generation: int
    supervisor: int
    whole: int


def weigh(app: str, jobs: int = 2000) -> Weights:
    """Read the memory of a worker whose slots are idle after their fork, and again after some jobs."""
    with _home() as home, servers.gearmand() as server:
        records, log = home / "tally", home / "log"
        environment = {tally.VARIABLE: str(records), tally.BROKER: server.address}
        workers: list[subprocess.Popen[bytes]] = []
        with processes.ended(workers):
            workers += [processes.start(c, environment, log) for c in _fleetd(app)(server.address, home)]
            give_up_at = time.monotonic() + RUN_S
            while _capable(server) < 2:
                if time.monotonic() > give_up_at or workers[0].poll() is not None:
                    raise RunError(f"the slots do not come up: {_tail(log)}")
                time.sleep(LOOK_S)
            time.sleep(1.0)
            found = {process.name: process.pid for process in processes.tree(workers)}
            slots = [pid for name, pid in found.items() if name.startswith("fleetd-slot")]
            idle = [processes.memory(pid) for pid in slots]
            generation = processes.memory(found["fleetd-gen"])
            supervisor = processes.memory(workers[0].pid)
            client = processes.start(["-m", "bench.apps", "fleetd_app", str(jobs)], environment, log)
            with processes.ended([client]):
                client.wait(RUN_S)
            _wait_for(jobs, records, workers, log, give_up_at)
            time.sleep(0.5)
            used = [processes.memory(pid).own for pid in slots]
        return Weights(
            max(memory.own for memory in idle),
            max(used),
            generation.own,
            supervisor.seen,
            sum(memory.share for memory in (*idle, generation, supervisor)),
        )


def _capable(server: servers.Server) -> int:
    """Return how many workers the dispatcher has for the no-op."""
    with socket.create_connection((server.host, server.port), 5) as line:
        line.sendall(b"status\n")
        said = b""
        while not said.endswith(b".\n") and (more := line.recv(4096)):
            said += more
    rows = [row.split(b"\t") for row in said.splitlines()]
    return next((int(row[3]) for row in rows if row[0] == b"noop"), 0)


# ── the report


def report(found: dict[str, list[Figures]], weights: dict[str, Weights]) -> str:
    """Return the block of the page."""
    rounds = len(found[BASE])
    speed, cpu = _ratios(FLEETD, BASE, found)
    late_speed, late_cpu = _ratios(FLEETD, "Celery with acks_late", found)
    own = max(weight.idle for weight in weights.values()) / _MB
    targets = (
        (
            f"at least {TARGET:g} x Celery's jobs/s",
            f"{speed:.1f} x ({late_speed:.1f} x with `acks_late`)",
            _verdict(met=speed >= TARGET),
        ),
        (
            f"at most 1/{TARGET:g} of Celery's CPU a job",
            f"1/{1 / cpu:.1f} (1/{1 / late_cpu:.1f} with `acks_late`)",
            _verdict(met=cpu <= 1 / TARGET),
        ),
        (
            f"an idle slot's own memory under {TARGET_OWN_MB:g} MB",
            ", ".join(f"{weight.idle / _MB:.1f} MB" for weight in weights.values()) + " (heavier app)",
            _verdict(met=own < TARGET_OWN_MB),
        ),
    )
    lines = [
        page.machine(PACKAGES),
        "",
        f"`python -m bench runtimes --rounds {rounds}`: medians of {rounds} rounds; the range of jobs/s in brackets.",
        "",
        "| Runtime | jobs/s | x Celery | worker CPU a job | x Celery | broker CPU a job | isolation | acknowledged |",
        "|---|--:|--:|--:|--:|--:|---|---|",
        *[_row(runtime, found) for runtime in RUNTIMES],
        "",
        _METHOD,
        "",
        "| A worker with two slots | no-op app | heavier app |",
        "|---|--:|--:|",
        *_weight_rows(weights),
        "",
        _HEAVIER,
        "",
        "| Target for fleetd | Measured | |",
        "|---|---|---|",
        *[f"| {' | '.join(row)} |" for row in targets],
    ]
    return "\n".join(lines)


_METHOD: Final = """\
Two processes run the jobs in every runtime. All jobs are queued before the workers start, and each run lasts some five
seconds. A job notes its own completion in a file, one append of 16 bytes, the same for all; the first tenth of the jobs
is warm-up and not counted, and neither are imports and forks of long-lived processes. CPU is user and system time of
all worker processes, the children that they reaped included; the broker's has a column of its own. A kernel that counts
interrupts apart charges the loopback network's to no process, whichever the runtime. Ratios are medians of each round's
ratio to the Celery of the same round. Nobody keeps results, per-job log lines are off, and otherwise each runtime runs
by its defaults: Celery with a prefetch of 4 a process and with `acks_late` off, so that a task is acknowledged before
it runs (and once more with `acks_late` and `task_reject_on_worker_lost` on); fleetd with background jobs, which
gearmand queues again when their worker's connection closes. Both brokers keep their queues in memory."""
_HEAVIER: Final = """\
Own memory is what a process shares with nobody (USS: `Private_Clean` + `Private_Dirty`), the larger of the two slots.
The heavier app imports json, decimal, http.client and sqlite3 and holds a table of 200,000 entries."""


def _row(runtime: Runtime, found: dict[str, list[Figures]]) -> str:
    runs = found[runtime.name]
    rates = [run.jobs_s for run in runs]
    speed, cpu = _ratios(runtime.name, BASE, found)
    cells = (
        runtime.name,
        f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
        f"{speed:.2f}",
        f"{median(run.cpu_ms for run in runs):.3f} ms",
        f"{cpu:.3f}",
        f"{median(run.broker_ms for run in runs):.3f} ms",
        runtime.isolation,
        runtime.acknowledged,
    )
    return f"| {' | '.join(cells)} |"


def _ratios(name: str, base: str, found: dict[str, list[Figures]]) -> tuple[float, float]:
    """Return how a runtime compares with another, in jobs/s and in CPU a job."""
    pairs = list(zip(found[name], found[base], strict=True))
    return median(own.jobs_s / its.jobs_s for own, its in pairs), median(own.cpu_ms / its.cpu_ms for own, its in pairs)


def _weight_rows(weights: dict[str, Weights]) -> list[str]:
    labels = (
        "an idle slot's own memory after the fork",
        "a slot's own memory after 1,000 jobs or so",
        "the generation's own memory (the app, once)",
        "the supervisor's RSS",
        "the whole worker (PSS)",
    )
    columns = zip(*weights.values(), strict=True)
    return [
        f"| {label} | {' | '.join(f'{value / _MB:.1f} MB' for value in values)} |"
        for label, values in zip(labels, columns, strict=True)
    ]


def _verdict(*, met: bool) -> str:
    return "met" if met else "missed"


def main(argv: list[str]) -> int:
    """Measure, print, and renew the page."""
    parser = argparse.ArgumentParser(prog="bench runtimes", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="jobs a run, for every runtime (default: about 5 s full)"
    )
    parser.add_argument("--rounds", type=_positive, default=5, metavar="R")
    parser.add_argument("--no-page", action="store_true", help="print only; leave docs/benchmarks.md alone")
    given = parser.parse_args(argv)
    missing = [name for name in ("gearmand", "redis-server") if shutil.which(name, path=_PATH) is None]
    if missing:
        print(f"missing: run scripts/need {' '.join(missing)}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _end)
    try:
        weights = {app: weigh(app) for app in ("fleetd_app", "heavy_app")}
        found = run_all(given.rounds, given.jobs, lambda line: print(line, flush=True))
    except (RunError, subprocess.TimeoutExpired) as error:
        print(f"bench runtimes: {error}", file=sys.stderr)
        return 1
    text = report(found, weights)
    print(text)
    if not given.no_page:
        page.renew("runtimes", text, "Worker runtime")
    return 0


_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_positive.__name__ = "positive number"  # argparse shows it


def _end(_: int, __: FrameType | None) -> None:
    """Unwind, so that every server and worker is ended."""
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
