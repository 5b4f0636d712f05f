"""A controller as a process of its own, on a policy of the test; ended with all its workers, whatever happens."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import servers

APP = """\
import os, time
from fleetd.worker import Context, job

@job
def nap(payload, context: Context):
    time.sleep(float(payload))
    with open(os.environ["NAPS"], "a") as naps:
        naps.write(f"{context.unique}\\n")
    return b"rested"
"""
POLICY = """\
version: 1
fleet: e2e
sources: {{main: {{gearman: {{servers: ["{server}"]}}}}}}
apps: {{naps: {{release: {{path: app}}}}}}
queues: {{nap: {{app: naps, source: main, match: nap, objective: {{wait: 5s}}, job_limit: 1m}}}}
pools: {{local: {{process: {{}}, apps: [naps], slots: 1, max: {most}}}}}
stability: thrifty
"""


@dataclass(slots=True)
class Fleet:
    """The test's hands on a fleet."""

    home: Path
    server: servers.Server
    process: subprocess.Popen[bytes] | None = None

    @property
    def policy(self) -> Path:
        """The policy file."""
        return self.home / "policy.yaml"

    def write(self, **changes: Any) -> None:
        """Write the policy."""
        self.policy.write_text(POLICY.format(server=self.server.address, **{"most": 4, **changes}))

    def start(self, *flags: str) -> None:
        """Start the controller and wait until it answers."""
        command = [sys.executable, "-m", "fleetd", "run", "--policy", str(self.policy), "--no-live", *flags]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.until("the controller answers", lambda: self.fleetd("status", "--json").returncode == 0)

    def end(self, number: signal.Signals = signal.SIGINT, limit_s: float = 20.0) -> int:
        """Signal the controller, wait for its end and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(limit_s)

    @property
    def env(self) -> dict[str, str]:
        """The environment of everything this fleet runs."""
        return {**os.environ, "FLEETD_STATE": str(self.home / "state"), "NAPS": str(self.home / "naps")}

    def fleetd(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = [sys.executable, "-m", "fleetd", *argv]
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=30, check=False)

    def status(self) -> dict[str, Any]:
        """The picture of the fleet."""
        return dict(json.loads(self.fleetd("status", "--json").stdout))

    def nodes(self, *phases: str) -> list[str]:
        """The nodes, all or those in the given phases."""
        return [node["id"] for node in self.status()["nodes"] if not phases or node["phase"] in phases]

    def submit(self, seconds: float, count: int = 1) -> None:
        """Hand in background naps."""
        for _ in range(count):
            argv = ("submit", "nap", "--background", "--payload", str(seconds), "--server", self.server.address)
            assert self.fleetd(*argv).returncode == 0

    def naps(self) -> list[str]:
        """The uniques of the naps that were taken to their end."""
        path = self.home / "naps"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, what: str, seen: Callable[[], bool], limit_s: float = 30.0) -> None:
        """Wait for a positive event; fail with the log where it does not come."""
        deadline = time.monotonic() + limit_s
        while not seen():
            assert time.monotonic() < deadline, f"not seen: {what}\n{(self.home / 'log').read_text()[-3000:]}"
            time.sleep(0.1)

    def log(self) -> str:
        """What the controller logged."""
        return (self.home / "log").read_text()


@contextlib.contextmanager
def fleet(home: Path, **changes: Any) -> Iterator[Fleet]:
    """A fleet of naps with a gearmand of its own, not yet started."""
    (home / "app").mkdir()
    (home / "app" / "jobs.py").write_text(APP)
    with servers.gearmand() as server:
        made = Fleet(home, server)
        made.write(**changes)
        try:
            yield made
        finally:
            if made.process and made.process.poll() is None:
                made.process.kill()
                made.process.wait()
            _end_workers(home)


def _end_workers(home: Path) -> None:
    """End the workers of this test's fleet, found by its folder on their command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(home).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
