"""A fleet whose app comes as pushed releases: started, asked, told, and ended with everything that it started.

Builds go by the command line, as an operator's would; what is timed goes by the API that the command line calls, so
that no start of a Python takes the processor from what is measured.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench import processes
from bench.apps.reload.reload_job import LEDGER
from bench.reload import release
from bench.reload.release import Release
from fleetd.cli.remote import call
from fleetd.errors import FleetdError
from tests import servers

Dispatcher = Literal["embedded", "gearmand"]
FLEET: Final = "reload"
APP: Final = "reload"
POLICY: Final = """\
version: 1
fleet: reload
sources: {{main: {{gearman: {source}}}}}
releases: {{keep: 1000}}
apps: {{reload: {{release: pushed, reload: {{canary: {canary_s:g}s}}}}}}
queues: {{record: {{app: reload, source: main, match: record, objective: {{wait: 10s}}, job_limit: 1m}}}}
pools: {{local: {{process: {{}}, apps: [reload], slots: {slots}, min: {least}, max: {nodes}}}}}
limits: {{launches: 600/min}}
"""
LOOK_S: Final = 0.1
END_S: Final = 30.0


class CampaignError(Exception):
    """The campaign cannot go on."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the fleet is."""

    nodes: int = 2
    slots: int = 4
    canary_s: float = 5.0


@dataclass(slots=True)
class Fleet:
    """The campaign's hands on a fleet; `digests` of the releases that were pushed, by number."""

    home: Path
    server: str
    source: str
    shape: Shape
    say: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)
    controller: subprocess.Popen[bytes] | None = None
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def ledger(self) -> Path:
        """What the jobs write."""
        return self.home / "ledger"

    @property
    def environment(self) -> dict[str, str]:
        """What everything of this fleet finds in its environment."""
        return {
            "FLEETD_STATE": str(self.home / "state"),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            LEDGER: str(self.ledger),
        }

    def start(self) -> None:
        """Start the controller and see it answer."""
        words = ["-m", "fleetd", "run", "--policy", str(self.home / "policy.yaml"), "--no-live"]
        self.controller = processes.start(words, self.environment, self.home / "log")
        self.until("the controller answers", lambda: bool(self.status()))

    def write_policy(self, least: int) -> None:
        """Write the policy, with so many nodes at least."""
        shape = self.shape
        text = POLICY.format(
            source=self.source, nodes=shape.nodes, slots=shape.slots, canary_s=shape.canary_s, least=least
        )
        (self.home / "policy.yaml").write_text(text)

    def first(self, number: int = 0) -> None:
        """Push and activate the first release, then have all nodes, and see them run it."""
        self.push([Release(number)])
        self.activate(number)
        self.write_policy(self.shape.nodes)
        assert self.controller is not None
        self.controller.send_signal(signal.SIGHUP)
        took = self.until("all nodes run the first release", lambda: self.all_run(number), 120)
        self.note(f"{self.shape.nodes} nodes run the first release ({took:.1f} s)")

    def all_run(self, number: int) -> bool:
        """Whether every node is ready and runs this release."""
        running, digest = list(self.running().values()), self.digests[number]
        return len(running) == self.shape.nodes and all(found and digest.startswith(found) for found in running)

    def status(self) -> dict[str, Any]:
        """Return the fleet's picture; empty while no controller answers."""
        try:
            return call("GET", "/v1/status?events=1000", FLEET)
        except FleetdError:
            return {}

    def rollout(self) -> dict[str, Any]:
        """Return what the status says of the app's releases."""
        return dict(self.status().get("releases", {}).get(APP, {}))

    def journal(self) -> list[str]:
        """Return the journal's newest lines, oldest first."""
        entries = call("GET", "/v1/journal?last=1000", FLEET)["entries"]
        return [f"{entry['kind']}: {entry['text']}" for entry in entries]

    def running(self) -> dict[str, str]:
        """Return the digest of each ready node."""
        return {node["id"]: node["digest"] for node in self.status().get("nodes", ()) if node["phase"] == "ready"}

    def push(self, releases: list[Release]) -> None:
        """Build and push releases by the command line."""
        for one in releases:
            folder = release.write(one, self.home / "source" / str(one.number))
            file = self.home / f"{one.number}.release"
            self.fleetd("release", "build", str(folder), "--out", str(file))
            self.fleetd("release", "push", str(file))
        known = {row["version"]: row["digest"] for row in call("GET", f"/v1/releases?app={APP}", FLEET)["releases"]}
        self.digests.update({one.number: str(known[f"1.0.{one.number}"]) for one in releases})

    def activate(self, number: int, canary: float | None = None) -> None:
        """Activate a release and say what the controller said."""
        answer = call("POST", "/v1/activate", FLEET, app=APP, digest=self.digests[number], canary=canary)
        self.note("; ".join(map(str, answer["said"])))

    def fleetd(self, *words: str) -> str:
        """Run a command to its end; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "fleetd", *words],
            cwd=processes.ROOT,
            env={**os.environ, "PYTHONPATH": str(processes.ROOT), **self.environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode:
            raise CampaignError(f"fleetd {' '.join(words)}: exit code {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def until(self, what: str, seen: Callable[[], bool], limit_s: float = 60.0) -> float:
        """Wait for a positive event; returns the seconds that it took."""
        begun = time.monotonic()
        while not seen():
            if time.monotonic() - begun > limit_s:
                raise CampaignError(f"not seen within {limit_s:g} s: {what}\n{self.tail()}")
            time.sleep(LOOK_S)
        return time.monotonic() - begun

    def note(self, text: str) -> None:
        """Print a line with the campaign's time."""
        self.say(f"{time.monotonic() - self.begun:7.1f} s  {text}")

    def tail(self) -> str:
        """The controller's last words."""
        return (self.home / "log").read_text("utf-8", "replace")[-3000:]

    def members(self) -> list[int]:
        """Return every process that has this fleet's folder in its environment, the controller aside."""
        found = []
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                inside = entry.name.isdigit() and str(self.home).encode() in Path(entry.path, "environ").read_bytes()
                if inside and (self.controller is None or int(entry.name) != self.controller.pid):
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """End the fleet in good order, then whatever is left of it."""
        if self.controller is None:
            return
        with contextlib.suppress(FleetdError):
            call("POST", "/v1/end", FLEET)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.controller.wait(END_S)
        self.controller.kill()
        self.controller.wait()
        for pid in self.members():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def fleet(dispatcher: Dispatcher, shape: Shape, say: Callable[[str], None], *more: str) -> Iterator[Fleet]:
    """A running fleet without a release, with a dispatcher of its own: the embedded one on disk, or gearmand."""
    with tempfile.TemporaryDirectory(prefix="fleetd-reload-") as folder, contextlib.ExitStack() as stack:
        if dispatcher == "embedded":
            address = f"127.0.0.1:{servers.free_port()}"
            source = f'{{embedded: "{address}"}}'
        else:
            address = stack.enter_context(servers.gearmand(*more)).address
            source = f'{{servers: ["{address}"]}}'
        made = Fleet(Path(folder), address, source, shape, say)
        made.write_policy(0)  # a node cannot start before there is a release
        before = {name: os.environ.get(name) for name in made.environment}
        os.environ.update(made.environment)  # `call` finds the controller by it
        try:
            made.start()
            yield made
        finally:
            made.end()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
