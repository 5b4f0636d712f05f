"""Several controllers of one fleet on the cluster, each a process with a state folder and an account of its own.

Workers reach whichever is ready by one address, as through a Service: `Way` sends each connection on to it.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

from tests import servers
from tests.kubernetes.fleets import KubeFleet, _moment, kube_fleet
from tests.kubernetes.plane import Cluster, Json
from tests.kubernetes.rigs import right, rules

LEASE = "fleetd-kube"
TOKEN = "a token of these tests alone"
GROUP = "coordination.k8s.io"
LEASE_RIGHTS = (right("leases", "get", "update", group=GROUP, names=[LEASE]), right("leases", "create", group=GROUP))
READS = ("get", "list", "watch")


@dataclass(slots=True)
class One:
    """One controller."""

    fleet: KubeFleet
    name: str
    port: int = field(default_factory=servers.free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def policy(self) -> Path:
        return self.fleet.home / f"{self.name}.yaml"

    @property
    def state(self) -> Path:
        return self.fleet.home / f"state-{self.name}"

    @property
    def account(self) -> str:
        return f"fleetd-{self.name}"

    def write(self, way: int, config: Path) -> None:
        """Write its policy: the fleet's, with an address and a kubeconfig of its own."""
        self.fleet.write()
        whole = yaml.safe_load(self.fleet.policy.read_text())
        leader = {"kubernetes": {"namespace": self.fleet.namespace, "kubeconfig": str(config)}}
        whole["controller"] |= {"listen": f"127.0.0.1:{self.port}", "leader": leader}
        whole["controller"]["token"] = {"file": str(self.fleet.home / "token")}
        pool = whole["pools"]["pods"]["kubernetes"]
        pool |= {"kubeconfig": str(config), "controller": f"http://127.0.0.1:{way}"}
        self.policy.write_text(yaml.safe_dump(whole))

    def start(self, *flags: str) -> None:
        command = [sys.executable, "-m", "fleetd", "run", "--policy", str(self.policy), "--no-live", *flags]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "FLEETD_STATE": str(self.state)}

    @property
    def _log(self) -> Path:
        return self.fleet.home / f"log-{self.name}"

    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def code(self, limit_s: float = 20.0) -> int:
        """Wait for its end and return its exit code."""
        assert self.process is not None
        return self.process.wait(limit_s)

    def ask(self, path: str) -> tuple[int, str]:
        """The code and the text of an answer; (0, "") where there is none."""
        url, headers = f"http://127.0.0.1:{self.port}{path}", {"Authorization": f"Bearer {TOKEN}"}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        return self.ask("/readyz")[0] == 200

    def leader(self) -> float:
        """What its metric says."""
        (line,) = [line for line in self.ask("/metrics")[1].splitlines() if line.startswith("fleetd_leader{")]
        return float(line.split()[-1])

    def events(self) -> list[str]:
        return [entry["text"] for entry in json.loads(self.ask("/v1/journal")[1])["entries"]]

    def requests(self, since: float = 0.0) -> list[Json]:
        """What its account asked the API server, by the audit log."""
        lines = self.fleet.cluster.audit(f"{self.fleet.namespace}:{self.account}")
        return [line for line in lines if _moment(line["requestReceivedTimestamp"]) >= since]

    def writes(self, since: float = 0.0) -> list[str]:
        """What it changed in the cluster, the Lease apart."""
        return [
            f"{line['verb']} {line['objectRef']['resource']}"
            for line in self.requests(since)
            if line["verb"] not in READS and line.get("objectRef", {}).get("resource") not in ("leases", None)
        ]


class Way:
    """Sends connections on to the controller that is ready; there is none while none is."""

    def __init__(self, controllers: list[One]) -> None:
        self.controllers = controllers
        self.port = servers.free_port()
        self._target: int | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    async def _serve(self) -> None:
        async with await asyncio.start_server(self._take, "127.0.0.1", self.port):
            while not self._ended.is_set():
                self._target = await asyncio.to_thread(self._ready)
                await asyncio.sleep(0.2)

    def _ready(self) -> int | None:
        return next((one.port for one in self.controllers if one.ready()), None)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            if self._target is not None:
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        finally:
            writer.close()


@dataclass(slots=True)
class Several:
    """The controllers `a`, `b`, … of one fleet."""

    fleet: KubeFleet
    controllers: list[One]

    def lease(self) -> Json:
        path = f"/apis/{GROUP}/v1/namespaces/{self.fleet.namespace}/leases/{LEASE}"
        return dict(self.fleet.cluster.call("GET", path))

    def change(self, patch: Json) -> None:
        path = f"/apis/{GROUP}/v1/namespaces/{self.fleet.namespace}/leases/{LEASE}"
        self.fleet.cluster.call("PATCH", path, patch)

    def holder(self) -> str:
        return str(self.lease()["spec"].get("holderIdentity") or "")

    def until(self, what, seen, limit_s: float = 30.0) -> None:
        """Wait for a positive event; fail with the logs where it does not come."""
        deadline = time.monotonic() + limit_s
        while not seen():
            logs = "\n".join(f"── {one.name}\n{one.log()[-2500:]}" for one in self.controllers if one.process)
            assert time.monotonic() < deadline, f"not seen: {what}\n{logs}"
            time.sleep(0.05)

    def finish(self, limit_s: float = 90.0) -> None:
        """Wait until every job is done and every pod gone, and see that none was killed or done by two."""
        fleet = self.fleet
        self.until("all jobs are done", lambda: fleet.done() == set(fleet.submitted), limit_s)
        self.until("no pod is left", lambda: not fleet.pods(), limit_s)
        assert fleet.killed() == 0
        ends = [line[1] for line in fleet.lines() if line[0] == "end"]
        assert len(ends) == len(set(ends))


@contextlib.contextmanager
def several(home: Path, cluster: Cluster, names: str = "ab", most: int = 3) -> Iterator[Several]:
    """A fleet of pods with these controllers, none of them started."""
    with kube_fleet(home, cluster, "pods", most) as fleet:
        (home / "token").write_text(TOKEN)
        made = Several(fleet, [One(fleet, name) for name in names])
        with Way(made.controllers) as way:
            for one in made.controllers:
                given = [*rules("pods"), *LEASE_RIGHTS]
                one.write(way.port, cluster.account(fleet.namespace, one.account, given))
            try:
                yield made
            finally:
                for one in made.controllers:
                    if one.process and one.process.poll() is None:
                        one.process.kill()
                        one.process.wait()
