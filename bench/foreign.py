"""Foreign workers through rushes: real Celery, RQ and Perl under a real controller, drained while they run jobs.

python -m bench foreign [--only celery|rq|perl] [--rushes 10] [--jobs 24] [--seed N]

Each rush fills the queue, waits until nodes run jobs, drains one that does, goes on with a trickle of jobs while the
rest is scaled in, and ends when all have run. A job writes down its beginning and its end: one that began and did not
end, or began twice, was killed.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from bench.ledger import Verdict, check
from bench.page import PAGE, machine, renew
from bench.processes import ROOT
from fleetd.codecs.gearman import Kind
from tests import servers
from tests.e2e.fleet import Fleet
from tests.worker.harness import Client

FILE: Final = PAGE.with_name("benchmarks-foreign.md")
TOP: Final = """\
# Benchmarks: foreign workers

Written by `python -m bench foreign` itself: real workers of Celery, RQ and Perl as `exec` apps on a `process` pool,
with a real Redis or gearmand. Each rush drains a node that runs jobs, and the fleet shrinks while
jobs still trickle in.
"""
POLICY: Final = """\
version: 1
fleet: foreign
sources: {{main: {source}}}
apps: {{naps: {{exec: {command}, drain: {{signal: TERM, deadline: 2m}}, probe: {probe}}}}}
queues: {{naps: {{app: naps, source: main, match: nap*, service: 1s, objective: {{wait: 4s}}, job_limit: 1m}}}}
pools: {{local: {{process: {{}}, apps: [naps], slots: {slots}, max: 3}}}}
stability: thrifty
"""
LIMIT_S: Final = 120.0
TRICKLE_S: Final = 0.7
SEND: Final = {
    "celery": "celery_nap.apply_async((n, float(s)), task_id=n, queue='naps')",
    "rq": "q.enqueue('tests.worker.foreign_apps.nap', n, float(s), job_id=n, result_ttl=0)",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one kind's jobs. `cut`: began and did not end, or began twice."""

    kind: str
    rushes: int
    verdict: Verdict
    cut: tuple[str, ...]
    drained_busy: int
    gone: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether nothing was lost, and nothing killed."""
        return self.verdict.good and not self.cut


@dataclass(slots=True)
class Stage(Fleet):
    """A controller with foreign workers, its sender and its books."""

    kind: str = ""
    sender: Callable[[Sequence[tuple[str, float]]], None] = field(default=lambda _: None)
    sent: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    drained: int = 0

    @property
    def env(self) -> dict[str, str]:
        """What the controller hands on to its workers."""
        given = {"BROKER": f"redis://{self.server.address}/0", "PYTHONPATH": str(ROOT)}
        given |= {"LEDGER": str(self.home / "ledger"), "BEGUN": str(self.home / "begun")}
        return {**os.environ, "FLEETD_STATE": str(self.home / "state"), **given}

    def lines(self, name: str) -> list[str]:
        """What the jobs wrote."""
        path = self.home / name
        return path.read_text().splitlines() if path.exists() else []

    def send(self, batch: Sequence[tuple[str, float]]) -> None:
        """Queue jobs."""
        self.sender(batch)
        self.sent += [name for name, _ in batch]

    def busy_nodes(self) -> list[str]:
        """The nodes that are up and run jobs, by their workers' word."""
        nodes = self.status()["nodes"]
        self.seen |= {node["id"] for node in nodes}
        return [node["id"] for node in nodes if node["phase"] == "ready" and node["busy"]]


def main(argv: list[str]) -> int:
    """Run what is asked for, and renew its part of the page."""
    parser = argparse.ArgumentParser(prog="bench foreign", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("celery", "rq", "perl"))
    parser.add_argument("--rushes", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=20261125)
    given = parser.parse_args(argv)
    worst = 0
    for kind in [given.only] if given.only else ["celery", "rq", "perl"]:
        result = run(kind, given.rushes, given.jobs, given.seed)
        print(f"{kind}: {result.verdict}; cut off: {len(result.cut)}; drained while busy: {result.drained_busy}")
        renew(kind, _report(result, given.jobs, given.seed), kind, FILE, TOP)
        worst = max(worst, int(not result.good))
    renew("machine", machine(["celery", "rq", "redis", "fleetd"]), "Where", FILE, TOP)
    return worst


def run(kind: str, rushes: int, jobs: int, seed: int) -> Result:
    """Run one kind through its rushes."""
    dice, begun = random.Random(seed), time.monotonic()
    with _stage(kind) as made:
        made.start()
        for number in range(rushes):
            _rush(made, number, jobs, dice)
        made.until("every node is gone", lambda: made.nodes() == [], LIMIT_S)
        starts = Counter(line.split()[0] for line in made.lines("begun"))
        ends = Counter(line.split()[0] for line in made.lines("ledger"))
        cut = tuple(name for name, count in starts.items() if count > ends[name] or count > 1)
        verdict = check(made.sent, made.lines("ledger"), [])
        return Result(kind, rushes, verdict, cut, made.drained, len(made.seen), time.monotonic() - begun)


def _rush(made: Stage, number: int, jobs: int, dice: random.Random) -> None:
    made.send([(f"r{number}-{at}", round(dice.uniform(0.3, 1.5), 2)) for at in range(jobs)])
    made.until("nodes run jobs", lambda: len(made.busy_nodes()) >= 2 or _done(made), LIMIT_S)
    busy = made.busy_nodes()
    if busy:
        made.drained += made.fleetd("drain", dice.choice(busy)).returncode == 0
    at = 0
    while not _done(made) or at < 8:
        made.send([(f"t{number}-{at}", round(dice.uniform(0.3, 1.5), 2))])
        at += 1
        made.busy_nodes()
        time.sleep(TRICKLE_S)
        if at > 60:
            break
    made.until("all jobs have run", lambda: _done(made), LIMIT_S)


def _done(made: Stage) -> bool:
    return {line.split()[0] for line in made.lines("ledger")} >= set(made.sent[: -4 or None])


@contextlib.contextmanager
def _stage(kind: str) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetd-foreign-")))
        server = stack.enter_context(servers.gearmand() if kind == "perl" else servers.redis())
        made = Stage(home, server, kind=kind)
        made.policy.write_text(_policy(kind, server))
        if kind == "perl":
            client = Client(server.port)
            stack.callback(client.close)
            made.sender = partial(_submit, client)
        else:
            program = stack.enter_context(_sender(kind, made.env))
            made.sender = partial(_ask, program)
        stack.callback(_end, made)
        yield made


def _policy(kind: str, server: servers.Server) -> str:
    python, url = sys.executable, f"redis://{server.address}/0"
    if kind == "perl":
        command = [servers.find("perl"), str(ROOT / "tests" / "worker" / "nap.pl"), server.address]
        source = f'{{gearman: {{servers: ["{server.address}"]}}}}'
        return POLICY.format(source=source, command=command, probe="{gearman: [nap]}", slots=1)
    source = f"{{redis: {{url: '{url}', kind: {kind}}}}}"
    if kind == "rq":
        command = [python, "-m", "rq.cli", "worker", "--url", url, "naps"]
    else:
        app = ["-A", "tests.worker.foreign_apps", "worker", "-Q", "naps", "-n", "{node}@%h", "-c", "{slots}"]
        command = [python, "-m", "celery", *app]
    slots = 1 if kind == "rq" else 2
    text = POLICY.format(source=source, command=command, probe=f"{{{kind}: '{url}'}}", slots=slots)
    return text.replace("match: nap*", "match: naps")


@contextlib.contextmanager
def _sender(kind: str, environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process that queues `NAME SECONDS` by the line, since importing Celery takes as long as a job."""
    code = "import os, sys, redis, rq\nfrom tests.worker.foreign_apps import celery_nap\n"
    code += "q = rq.Queue('naps', connection=redis.Redis.from_url(os.environ['BROKER']))\n"
    code += f"for line in sys.stdin:\n    n, s = line.split()\n    {SEND[kind]}\n    print(n, flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        yield program
        assert program.stdin is not None
        program.stdin.close()


def _submit(client: Client, batch: Sequence[tuple[str, float]]) -> None:
    for name, seconds in batch:
        client.submit("nap", f"{name} {seconds}".encode(), name.encode(), Kind.SUBMIT_JOB_BG)


def _ask(program: "subprocess.Popen[str]", batch: Sequence[tuple[str, float]]) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    for name, seconds in batch:
        program.stdin.write(f"{name} {seconds}\n")
        program.stdin.flush()
        assert program.stdout.readline().strip() == name, "it was queued"


def _end(made: Stage) -> None:
    """End what a failed run left: the controller, its workers and their programs, all told by this run's folder."""
    if made.process is not None and made.process.poll() is None:
        made.process.terminate()
        made.process.wait(20)
    mark = f"LEDGER={made.home}/".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


def _report(result: Result, jobs: int, seed: int) -> str:
    verdict = result.verdict
    return "\n".join(
        [
            f"`python -m bench foreign --only {result.kind} --rushes {result.rushes} --jobs {jobs} --seed {seed}`",
            "",
            "| | |",
            "|---|---|",
            f"| Rushes | {result.rushes}, {verdict.submitted} jobs, {result.seconds:.0f} s |",
            f"| Nodes seen | {result.gone} |",
            f"| Drained by order, busy by their last lease | {result.drained_busy} |",
            f"| Jobs lost | {len(verdict.lost)} |",
            f"| Jobs run twice | {len(verdict.doubled) + len(verdict.excused)} |",
            f"| Jobs cut off | {len(result.cut)} |",
        ]
    )
