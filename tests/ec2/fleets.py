"""A controller as a process of its own that drives instances on moto, and a ledger of what jobs did there.

A job writes a line when it begins and one when it ends: one that began and never ended was killed.
"""

import base64
import contextlib
import datetime as dt
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleetd.client import Client, Submission
from tests import servers
from tests.e2e.fleet import Fleet
from tests.ec2 import cloud as clouds
from tests.ec2 import proxy as proxies
from tests.ec2.cloud import ENVIRON, REGION, TYPES, Cloud, Json
from tests.ec2.hypervisor import Hypervisor
from tests.ec2.identity import authority
from tests.ec2.proxy import Proxy

APP = """\
import os, time
from fleetd.worker import Context, job

def note(what, context):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(f"{what} {context.unique} {os.environ['MACHINE']} {time.time()}\\n")

@job
def nap(payload, context: Context):
    note("begin", context)
    time.sleep(float(payload))
    note("end", context)
"""
JOIN = "a secret of these tests and of nobody else"
GROUP = "workers"


@dataclass(slots=True)
class Ec2Fleet(Fleet):
    """The test's hands on a fleet of instances."""

    cloud: Cloud = field(kw_only=True)
    proxy: Proxy = field(kw_only=True)
    mode: str = field(kw_only=True)
    most: int = field(kw_only=True)
    machines: Hypervisor = field(kw_only=True)
    port: int = field(default_factory=servers.free_port, kw_only=True)
    submitted: list[str] = field(default_factory=list, kw_only=True)

    @property
    def options(self) -> Json:
        """The pool's options."""
        given: Json = {
            "mode": self.mode,
            "region": REGION,
            "endpoint": self.proxy.url,
            "controller": f"http://127.0.0.1:{self.port}",
            "identity": authority().certificate,
            "worker": "image",
        }
        if self.mode == "asg":
            return given | {"group": GROUP}
        subnets = list(self.cloud.subnets)[:2]
        return given | {"launch_template": "worker", "types": list(TYPES), "subnets": subnets, "spot": "50%"}

    @property
    def env(self) -> dict[str, str]:
        """The environment of the controller and the commands."""
        ledger = {"LEDGER": str(self.home / "ledger"), "MACHINE": "here"}  # for workers that are processes
        return {**Fleet.env.fget(self), **ENVIRON, **ledger}  # type: ignore[attr-defined]

    def write(self, **changes: Any) -> None:
        """Write the policy."""
        pool = {"ec2": self.options, "apps": ["naps"], "slots": 1, "max": self.most}
        queue = {"app": "naps", "source": "main", "match": "nap", "objective": {"wait": "2s"}, "job_limit": "1m"}
        whole = {
            "version": 1,
            "fleet": "cloud",
            "controller": {"listen": f"127.0.0.1:{self.port}", "join": {"file": str(self.home / "join")}},
            "sources": {"main": {"gearman": {"servers": [self.server.address]}}},
            "apps": {"naps": {"release": {"path": "app"}}},
            "queues": {"nap": queue},
            "pools": {"burst": pool | changes.pop("pool", {}), **changes.pop("others", {})},
            "stability": "thrifty",
            **changes,
        }
        (self.home / "join").write_text(JOIN)
        self.policy.write_text(yaml.safe_dump(whole))

    def prepare(self) -> None:
        """Make the template with the user data that the command prints, and the group."""
        said = self.fleetd("userdata", "burst", "-p", str(self.policy))
        assert said.returncode == 0, said.stderr
        self.cloud.ec2.delete_launch_template(LaunchTemplateName="worker")
        self.cloud.template("worker", UserData=base64.b64encode(said.stdout.encode()).decode())
        if self.mode == "asg":
            self.cloud.group(GROUP, MaxSize=self.most)

    # ── what is seen

    def burst(self, count: int, seconds: float | Sequence[float]) -> float:
        """Submit jobs in the background; return when that began."""
        began = time.time()
        with Client([self.server.address]) as client:
            lengths = [seconds] * count if isinstance(seconds, (int, float)) else list(seconds)
            jobs = [Submission("nap", str(length).encode()) for length in lengths]
            self.submitted += [handle.unique for handle in client.submit_many(jobs)]
        return began

    def alive(self) -> list[str]:
        """Instances that cost."""
        return [one["InstanceId"] for one in self.cloud.alive()]

    def launched(self) -> Counter[str]:
        """How many instances were ever started, by order."""
        return Counter(self.cloud.tags(one).get("fleetd:order", "") for one in self.cloud.instances())

    def lines(self) -> list[list[str]]:
        """The ledger."""
        path = self.home / "ledger"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def done(self) -> set[str]:
        """The jobs that ended."""
        return {line[1] for line in self.lines() if line[0] == "end"}

    def killed(self) -> int:
        """How many runs of a job began and never ended, once all is quiet."""
        counts = Counter(line[0] for line in self.lines())
        return counts["begin"] - counts["end"]

    def replaced_s(self) -> list[float | None]:
        """How long after each worker saw its notice an order was given in the tick that took its word; None: none was.

        By what the worker and the controller said. None where the pool held more than it is to hold anyway.
        """
        log = self.log()
        ordered = [_moment(at) for at in re.findall(r"^(\S+)Z burst: \d+ for naps \(order", log, re.MULTILINE)]
        found: list[float | None] = []
        for at, name in re.findall(r"^(\S+)Z node burst/(\S+): \w+ -> draining: its machine goes", log, re.MULTILINE):
            console = (self.machines.folder / name / "console").read_text()
            notice = re.search(r"^(\S+ \S+) WARNING notice: this machine goes", console, re.MULTILINE)
            told = _moment(at)
            after = [one for one in ordered if -0.1 <= one - told <= 0.2]
            found.append(after[0] - _moment(notice[1].replace(",", ".")) if notice and after else None)
        return found

    def tail(self) -> str:
        """What to look at when something is wrong."""
        return f"{self.log()[-3000:]}\n{self.machines.console()[-3000:]}\n{self.machines.errors[-3:]}"


def _moment(text: str) -> float:
    return dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()


@contextlib.contextmanager
def ec2_fleet(home: Path, cloud: Cloud, mode: str, most: int, **changes: Any) -> Iterator[Ec2Fleet]:
    """A fleet with a gearmand and a proxy of its own, not yet started."""
    (home / "app").mkdir(parents=True)
    (home / "app" / "jobs.py").write_text(APP)
    proxy = proxies.start(cloud.port)
    proxy.zones = dict(cloud.subnets)
    machines = Hypervisor(cloud, home / "machines", authority(), {"LEDGER": str(home / "ledger"), "TZ": "UTC"})
    with servers.gearmand() as server:
        fleet = Ec2Fleet(home, server, cloud=cloud, proxy=proxy, mode=mode, most=most, machines=machines)
        fleet.write(**changes)
        fleet.prepare()
        machines.start()
        try:
            yield fleet
        finally:
            if fleet.process and fleet.process.poll() is None:
                fleet.process.kill()
                fleet.process.wait()
            machines.close()
            proxy.close()


__all__ = ["Ec2Fleet", "clouds", "ec2_fleet"]
