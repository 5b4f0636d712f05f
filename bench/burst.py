"""The burst under fire: thousands of background jobs, while workers are killed, nodes drain and the controller dies.

python -m bench burst [--jobs 5000] [--seed N]

Every kill and every drain prints the positive event that proves it. The ledger is written by the jobs themselves and
judged by `bench.ledger`, which knows nothing of fleetd.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ledger import Verdict, check_files
from bench.page import machine, renew
from fleetd.cli.remote import call
from fleetd.client import Client, Submission
from fleetd.config import load
from fleetd.control.embedded import wanted
from fleetd.errors import FleetdError
from tests import servers

APP = Path(__file__).parent / "apps" / "ledger"
POLICY = """\
version: 1
fleet: burst
sources: {{main: {{gearman: {source}}}}}
apps: {{ledger: {{release: {{path: "{app}"}}}}}}
queues: {{record: {{app: ledger, source: main, match: record, objective: {{wait: 10s}}, job_limit: 1m}}}}
pools: {{local: {{process: {{}}, apps: [ledger], slots: 1, max: {nodes}}}}}
stability: thrifty
"""
METHOD = """\
Background jobs, on gearmand's builtin queue or on the embedded dispatcher's disk. Each appends its unique to a file
outside of fleetd, and `bench.ledger`, which knows nothing of fleetd, compares that with the client's list and the list
of killed processes. Every second a whole worker is killed by SIGKILL, every 1.7 s a single slot; every 2.5 s a node is
drained by name; every 8 s the controller is killed and started anew. Each kill and each drain must be seen to have
happened: the node gone from the fleet, another slot in the place of the killed one, the next epoch. Run twice with a
recorded kill is what a dispatcher without transactions allows: the job had written its line and was killed before its
answer was sent. The embedded dispatcher itself is killed every 6 s; what ran at that moment runs again, and counts as
run twice with a recorded kill. A job whose workers were killed three times is a dead letter there; as an operator
would, the campaign sees it in the list and lets it run again. The fire ends after 120 s, however slow the machine is.
"""
SEEN_S = 20.0  # how long an event may take to be seen
FIRE_S = 120.0
END_S = 240.0


@dataclass(slots=True)
class Campaign:
    """One run: what it needs, and its books."""

    home: Path
    server: str
    chance: random.Random
    say: Callable[[str], None]
    controller: subprocess.Popen[bytes] | None = None
    controllers_killed: int = 0
    workers_killed: int = 0
    slots_killed: int = 0
    drained: int = 0
    dispatchers_killed: int = 0
    revived: int = 0  # dead letters that were let run again
    embedded: bool = False
    unseen: list[str] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)  # nodes that were killed or drained already
    watchers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(16))
    burst_at: float = 0.0
    resident_mb: float = 0.0  # the most that any controller held

    # ── the controller

    def start(self) -> None:
        """Start a controller on this campaign's policy."""
        log = (self.home / "controller.log").open("ab")
        command = [sys.executable, "-m", "fleetd", "run", "--policy", str(self.home / "policy.yaml"), "--no-live"]
        self.controller = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()

    def status(self) -> dict[str, Any] | None:
        """Return the fleet's picture, or None while no controller answers."""
        try:
            return call("GET", "/v1/status?events=1000", "burst")
        except FleetdError:
            return None

    def nodes(self, phase: str) -> list[str]:
        """Return the nodes in a phase."""
        picture = self.status()
        return [node["id"] for node in picture["nodes"] if node["phase"] == phase] if picture else []

    def see(self, what: str, seen: Callable[[], bool]) -> bool:
        """Wait for a positive event and print it; an event that does not come is a fault of the campaign."""
        begun = time.monotonic()
        while time.monotonic() - begun < SEEN_S:
            if seen():
                self.say(f"{what} (seen after {time.monotonic() - begun:.2f} s)")
                return True
            time.sleep(0.05)
        self.unseen.append(what)
        self.say(f"NOT SEEN: {what}")
        return False

    def kill_controller(self) -> None:
        """SIGKILL the controller, start it anew, and see it count every node again."""
        assert self.controller is not None
        epoch = (self.status() or {}).get("epoch", 0)
        pid = self.controller.pid
        self.weigh()
        self.controller.kill()
        self.controller.wait(10)
        self.controllers_killed += 1
        self.say(f"controller {pid}: ended by signal {-self.controller.returncode}")
        self.start()
        self.see(f"controller {self.controller.pid}: epoch after {epoch}", lambda: self._epoch() > epoch)

    def weigh(self) -> None:
        """Note the most memory that the running controller ever held."""
        assert self.controller is not None
        status = Path(f"/proc/{self.controller.pid}/status").read_text()
        held = status.partition("VmHWM:")[2].split()
        assert held, f"controller {self.controller.pid} has ended by itself"
        self.resident_mb = max(self.resident_mb, int(held[0]) / 1024)

    def _epoch(self) -> int:
        picture = self.status()
        return int(picture["epoch"]) if picture else -1

    # ── workers

    def pick(self) -> str | None:
        """Choose a ready node that nothing was done to yet."""
        ready = [node for node in self.nodes("ready") if node not in self.targets]
        return self.chance.choice(ready) if ready else None

    def kill_worker(self) -> None:
        """SIGKILL a whole worker, as when its host dies; see it gone from the fleet. The controller may be dead too."""
        alive = sorted(self._processes(b"-m\0fleetd.worker\0"))
        serving = [pid for pid in alive if len(children(pid)) > 1 and node_of(pid) not in self.targets]
        if not serving:
            return
        supervisor = self.chance.choice(serving)
        node = node_of(supervisor)
        self.targets.add(node)
        self._kill([supervisor, *children(supervisor)])
        self.workers_killed += 1
        self.watch(f"worker {node}: killed, gone from the fleet", lambda: self._gone(node))

    def kill_slot(self) -> None:
        """SIGKILL one slot, as when its job crashes it or memory runs out; see another in its place."""
        node = self.pick()
        generation, *slots = children(pid_of(node)) if node else [0]
        if node is None or not slots:
            return
        self._kill(slots[:1])
        self.slots_killed += 1
        self.watch(
            f"slot {slots[0]} of {node}: killed, another took its place",
            lambda: node in self.targets or self._replaced(pid_of(node), slots, generation),
        )

    def _replaced(self, supervisor: int, slots: list[int], generation: int) -> bool:
        left = children(supervisor)
        return slots[0] not in left and generation in left and len(left) > len(slots)

    def watch(self, what: str, seen: Callable[[], bool]) -> None:
        """See to an event while the campaign goes on."""
        self.watchers.submit(self.see, what, seen)

    def _kill(self, pids: list[int]) -> None:
        with (self.home / "kills").open("a") as kills:
            for pid in pids:
                kills.write(f"{pid}\n")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _gone(self, node: str) -> bool:
        picture = self.status()
        return picture is not None and node not in {known["id"] for known in picture["nodes"]}

    def kill_dispatcher(self) -> None:
        """SIGKILL the embedded dispatcher; see another answer, with the jobs from disk.

        What ran at that moment runs again: its slot cannot tell a dead dispatcher that it is done. So the slots of
        all workers are noted as well: a second run is excused for jobs that they had.
        """
        (one,) = wanted(load(self.home / "policy.yaml"), self.home / "state" / "burst")
        pids = one.pids()
        if not pids:
            return
        slots = self._slots()
        self._kill(pids)
        with (self.home / "kills").open("a") as kills:
            kills.writelines(f"{pid}\n" for pid in slots | self._slots())
        self.dispatchers_killed += 1
        self.watch(
            f"dispatcher {pids[0]}: killed, another answers", lambda: pids[0] not in (now := one.pids()) and bool(now)
        )

    def revive(self) -> None:
        """Let the embedded dispatcher's dead letters run again; it may be dead itself."""
        host, _, port = self.server.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2.0) as line:
            line.sendall(b"dead\n")
            with line.makefile("rb") as answers:
                letters = list(itertools.takewhile(lambda said: said not in (b".\r\n", b".\n", b""), answers))
                line.sendall(b"dead retry all\n")
                if letters and answers.readline().startswith(b"OK"):
                    self.revived += len(letters)
                    self.say(f"dead letters: {len(letters)} let run again")

    def _slots(self) -> set[int]:
        """Return every process that may be running a job: whatever was forked from a generation."""
        return self._processes(b"fleetd.worker.generation")

    def _processes(self, mark: bytes) -> set[int]:
        """Return the processes of this campaign whose command line holds the mark."""
        found = set()
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                marked = entry.name.isdigit() and mark in Path(entry.path, "cmdline").read_bytes()
                if marked and str(self.home).encode() in Path(entry.path, "environ").read_bytes():
                    found.add(int(entry.name))
        return found

    def drain_node(self) -> None:
        """Drain a ready node by name and see it leave by itself."""
        node = self.pick()
        if node is None:
            return
        self.targets.add(node)
        try:
            call("POST", "/v1/drain", "burst", target=node)
        except FleetdError:
            return  # the controller was killed meanwhile, or the node
        self.drained += 1
        self.watch(f"node {node}: drained and gone", lambda: self._gone(node))

    # ── jobs

    def burst(self, jobs: int, milliseconds: int) -> None:
        """Submit the burst; the list holds what the dispatcher confirmed."""
        self.burst_at = time.time()
        uniques = [uuid.UUID(int=self.chance.getrandbits(128)).hex for _ in range(jobs)]
        payload = str(milliseconds).encode()
        with Client([self.server]) as client:
            handles = client.submit_many(Submission("record", payload, unique) for unique in uniques)
        (self.home / "submitted").write_text("".join(f"{handle.unique}\n" for handle in handles))

    def done(self) -> int:
        """Return how many different jobs are in the ledger."""
        ledger = self.home / "ledger"
        return len({line.split()[0] for line in ledger.read_text().splitlines()}) if ledger.exists() else 0

    def first_order_s(self) -> float:
        """Return the seconds from the burst to the first launch order in the journal."""
        picture = self.status()
        at = [e["at"] for e in (picture or {}).get("events", ()) if e["text"].startswith("order ")]
        return min(at, default=float("inf")) - self.burst_at


def run(
    jobs: int,
    milliseconds: int,
    seed: int,
    nodes: int = 18,
    say: Callable[[str], None] = print,
    *,
    embedded: bool = False,
) -> tuple[Campaign, Verdict, float]:
    """Run the campaign and return it with the checker's verdict and the seconds to the first launch order."""
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="fleetd-burst-") as folder, contextlib.ExitStack() as stack:
        if embedded:
            address = f"127.0.0.1:{servers.free_port()}"
            source = f'{{embedded: "{address}"}}'
        else:
            address = stack.enter_context(servers.gearmand()).address
            source = f'{{servers: ["{address}"]}}'
        campaign = Campaign(Path(folder), address, random.Random(seed), say, embedded=embedded)
        (campaign.home / "policy.yaml").write_text(POLICY.format(source=source, app=APP, nodes=nodes))
        (campaign.home / "kills").touch()
        os.environ.update(FLEETD_STATE=str(campaign.home / "state"), FLEETD_LEDGER=str(campaign.home / "ledger"))
        with _fleet(campaign):
            first = _under_fire(campaign, jobs, milliseconds)
        verdict = check_files(*(campaign.home / name for name in ("submitted", "ledger", "kills")))
        return campaign, verdict, first


@contextlib.contextmanager
def _fleet(campaign: Campaign) -> Iterator[None]:
    campaign.start()
    try:
        campaign.see("controller: answers", lambda: campaign.status() is not None)
        yield
    finally:
        with contextlib.suppress(FleetdError):
            call("POST", "/v1/end", "burst")
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert campaign.controller is not None
            campaign.controller.wait(30)
        if campaign.controller and campaign.controller.poll() is None:
            campaign.controller.kill()
            campaign.controller.wait()


def _under_fire(campaign: Campaign, jobs: int, milliseconds: int) -> float:
    campaign.burst(jobs, milliseconds)
    campaign.see("burst: first launch order", lambda: campaign.first_order_s() < SEEN_S)
    first = campaign.first_order_s()
    campaign.see("fleet: two nodes ready", lambda: len(campaign.nodes("ready")) >= 2)
    over = threading.Event()
    drains = threading.Thread(target=_every, args=(2.5, over, campaign.drain_node))
    kills = threading.Thread(target=_every, args=(1.0, over, campaign.kill_worker))
    crashes = threading.Thread(target=_every, args=(1.7, over, campaign.kill_slot))
    deaths = threading.Thread(target=_every, args=(8.0, over, campaign.kill_controller))
    threads = [drains, kills, crashes, deaths]
    if campaign.embedded:
        threads.append(threading.Thread(target=_every, args=(6.0, over, campaign.kill_dispatcher)))
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    while campaign.done() < jobs and (burning := time.monotonic() - begun) < END_S:
        if burning >= FIRE_S:
            over.set()
        if campaign.embedded:
            campaign.revive()
        time.sleep(0.5)
    over.set()
    for thread in threads:
        thread.join()
    campaign.watchers.shutdown()
    campaign.weigh()
    time.sleep(2.0)  # a job run once more would show now
    return first


def _every(seconds: float, over: threading.Event, act: Callable[[], None]) -> None:
    due = time.monotonic() + seconds
    while not over.wait(max(0.0, due - time.monotonic())):
        due += seconds  # not later for what the act took: every second is every second
        act()


def _say(line: str) -> None:
    print(f"{line}\n", end="", flush=True)  # in one write: many threads say something


def pid_of(node: str) -> int:
    """Return the process id in a node's name, POOL/PID.STARTTIME."""
    return int(node.rpartition("/")[2].partition(".")[0])


def node_of(pid: int) -> str:
    """Return the name that a worker's node has."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return f"local/{pid}.{stat.rpartition(b')')[2].split()[19].decode()}"


def children(pid: int) -> list[int]:
    """Return the child processes of a process: of a worker its generation first, then its slots."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def main(argv: list[str]) -> int:
    """Run and print; 0 only where the verdict is good and every event was seen."""
    parser = argparse.ArgumentParser(prog="bench burst", description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--ms", type=int, default=120, help="milliseconds that a job takes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument("--dispatcher", choices=("gearmand", "embedded"), default="gearmand")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    begun = time.monotonic()
    campaign, verdict, first = run(given.jobs, given.ms, given.seed, say=_say, embedded=given.dispatcher == "embedded")
    lines = [
        str(verdict),
        f"first launch order {first:.2f} s after the burst",
        (
            f"killed: the controller {campaign.controllers_killed} times, {campaign.workers_killed} workers, "
            f"{campaign.slots_killed} slots, the dispatcher {campaign.dispatchers_killed} times; "
            f"{campaign.drained} nodes drained; {campaign.revived} dead letters run again; "
            f"{len(campaign.unseen)} events not seen"
        ),
        f"the controller held at most {campaign.resident_mb:.0f} MB; the whole took {time.monotonic() - begun:.0f} s",
    ]
    print("\n".join(lines))
    if given.page:
        command = f"`python -m bench burst --jobs {given.jobs} --ms {given.ms} --seed {given.seed}"
        command += f" --dispatcher {given.dispatcher}`"
        facts = "\n".join(f"- {line}" for line in lines)
        block = "burst" if given.dispatcher == "gearmand" else "burst-embedded"
        text = f"{machine(['fleetd'])}\n\n{command}\n\n{facts}\n\n{METHOD}"
        renew(block, text, f"Burst under fire ({given.dispatcher})")
    return 0 if verdict.good and not campaign.unseen and first <= 2.0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
