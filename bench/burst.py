"""The burst under fire: thousands of background jobs, while workers are killed, nodes drain and the controller dies.

python -m bench burst [--jobs 5000] [--seed N]

Every kill and every drain prints the positive event that proves it. The ledger is written by the jobs themselves and
judged by `bench.ledger`, which knows nothing of fleetd.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ledger import Verdict, check_files
from fleetd.cli.remote import call
from fleetd.client import Client, Submission
from fleetd.errors import FleetdError
from tests import servers

APP = Path(__file__).parent / "apps" / "ledger"
POLICY = """\
version: 1
fleet: burst
sources: {{main: {{gearman: {{servers: ["{server}"]}}}}}}
apps: {{ledger: {{release: {{path: "{app}"}}}}}}
queues: {{record: {{app: ledger, source: main, match: record, objective: {{wait: 10s}}, job_limit: 1m}}}}
pools: {{local: {{process: {{}}, apps: [ledger], slots: 2, max: {nodes}}}}}
stability: thrifty
"""
SEEN_S = 20.0  # how long an event may take to be seen
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
    unseen: list[str] = field(default_factory=list)
    burst_at: float = 0.0

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
        self.controller.kill()
        self.controller.wait(10)
        self.controllers_killed += 1
        self.say(f"controller {pid}: ended by signal {-self.controller.returncode}")
        self.start()
        self.see(f"controller {self.controller.pid}: epoch after {epoch}", lambda: self._epoch() > epoch)

    def _epoch(self) -> int:
        picture = self.status()
        return int(picture["epoch"]) if picture else -1

    # ── workers

    def kill_worker(self) -> None:
        """SIGKILL a worker: now the whole tree, as when its host dies, now one slot, as when a job crashes it."""
        ready = self.nodes("ready")
        if not ready:
            return
        node = self.chance.choice(ready)
        supervisor = int(node.rpartition("/")[2].partition(".")[0])
        slots = slots_of(supervisor)
        if slots and self.chance.random() < 0.5:
            self._kill(slots[:1])
            self.slots_killed += 1
            self.see(f"slot {slots[0]} of {node}: killed", lambda: not Path(f"/proc/{slots[0]}").exists())
            return
        self._kill([supervisor, *slots, *others_of(supervisor)])
        self.workers_killed += 1
        self.see(f"worker {node}: killed, gone from the fleet", lambda: self._gone(node))

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

    def drain_node(self) -> None:
        """Drain a ready node by name and see it leave by itself."""
        ready = self.nodes("ready")
        if not ready:
            return
        node = self.chance.choice(ready)
        try:
            call("POST", "/v1/drain", "burst", target=node)
        except FleetdError:
            return  # killed meanwhile, or the controller was
        self.drained += 1
        self.see(f"node {node}: drained and gone", lambda: self._gone(node))

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
    jobs: int, milliseconds: int, seed: int, nodes: int = 8, say: Callable[[str], None] = print
) -> tuple[Campaign, Verdict, float]:
    """Run the campaign and return it with the checker's verdict and the seconds to the first launch order."""
    say(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="fleetd-burst-") as folder, servers.gearmand() as server:
        campaign = Campaign(Path(folder), server.address, random.Random(seed), say)
        (campaign.home / "policy.yaml").write_text(POLICY.format(server=server.address, app=APP, nodes=nodes))
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
    deaths = threading.Thread(target=_every, args=(8.0, over, campaign.kill_controller))
    for thread in (drains, kills, deaths):
        thread.start()
    deadline = time.monotonic() + END_S
    while campaign.done() < jobs and time.monotonic() < deadline:
        time.sleep(0.5)
    over.set()
    for thread in (drains, kills, deaths):
        thread.join()
    time.sleep(2.0)  # a job run once more would show now
    return first


def _every(seconds: float, over: threading.Event, act: Callable[[], None]) -> None:
    due = time.monotonic() + seconds
    while not over.wait(max(0.0, due - time.monotonic())):
        due = max(due, time.monotonic()) + seconds
        act()


def slots_of(supervisor: int) -> list[int]:
    """Return the slot processes of a worker: the children of its generation's process."""
    return [slot for generation in others_of(supervisor) for slot in children(generation)]


def others_of(supervisor: int) -> list[int]:
    """Return the generation's process of a worker."""
    return children(supervisor)


def children(pid: int) -> list[int]:
    """Return the child processes of a process."""
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
    given = parser.parse_args(argv)
    begun = time.monotonic()
    campaign, verdict, first = run(given.jobs, given.ms, given.seed)
    print(
        f"{verdict}\nfirst launch order {first:.2f} s after the burst; killed: controller {campaign.controllers_killed} "
        f"times, {campaign.workers_killed} workers, {campaign.slots_killed} slots; {campaign.drained} nodes drained; "
        f"{len(campaign.unseen)} events not seen; {time.monotonic() - begun:.0f} s"
    )
    return 0 if verdict.good and not campaign.unseen and first <= 2.0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
