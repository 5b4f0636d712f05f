"""Runs what moto only pretends to: each running instance's worker, as a process of this machine with its own IMDS.

The worker is started as the instance's user data says: its configuration is taken from the cloud-init text that
`fleetd userdata` printed, and it enrols, leases and works as on an instance. Terminated, it is killed at once, with all
that it started: harsher than EC2, which asks first. A worker that ends by itself shuts its instance down, and with the
launch template's InstanceInitiatedShutdownBehavior that terminates it; one that fails is started again, as by systemd.
"""

import base64
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleetd.providers.process import _tree
from tests.ec2.cloud import REGION, Cloud, Json
from tests.ec2.identity import Authority
from tests.ec2.imds import Imds

POLL_S = 0.25
STARTS = 5


@dataclass
class Machine:
    """One instance that runs here."""

    id: str
    imds: Imds
    home: Path
    process: subprocess.Popen[bytes]
    born: float
    starts: int = 1
    dies_at: float | None = None


@dataclass
class Hypervisor:
    """Watches moto past the proxy. `boot_s`: how long an instance boots before its worker starts."""

    cloud: Cloud
    folder: Path
    by: Authority
    environ: dict[str, str]
    boot_s: float = 0.0
    machines: dict[str, Machine] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    seen: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> "Hypervisor":
        """Watch, in a thread."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Kill everything that runs here."""
        self._ending.set()
        self._thread.join(30)
        for machine in list(self.machines.values()):
            self._off(machine)

    def interrupt(self, instance: str, in_s: float = 120.0) -> None:
        """Have AWS take an instance back: the notice now, the end then."""
        with self.lock:
            machine = self.machines[instance]
            machine.imds.interrupt(in_s)
            machine.dies_at = time.time() + in_s
            self.counts["interrupted"] += 1

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._once()
            except Exception as error:  # noqa: BLE001 - a test looks at `errors`
                self.errors.append(f"{type(error).__name__}: {error}")
            self._ending.wait(POLL_S)

    def _once(self) -> None:
        now = time.time()
        alive = {one["InstanceId"]: one for one in self.cloud.instances("running")}
        with self.lock:
            for name, raw in alive.items():
                began = self.seen.setdefault(name, now)
                if name not in self.machines and name not in self.over and now - began >= self.boot_s:
                    self.machines[name] = self._boot(name, raw)
            for machine in list(self.machines.values()):
                if machine.id not in alive:
                    self._off(machine)
                elif machine.dies_at is not None and now >= machine.dies_at:
                    self.counts["taken back"] += 1
                    self._off(machine)
                    self._terminate(machine.id)
                elif machine.process.poll() is not None:
                    self._ended(machine)

    def _boot(self, name: str, raw: Json) -> Machine:
        home = self.folder / name
        home.mkdir()
        (home / "instance.json").write_text(self._config(name))
        imds = Imds(name, self.by, self.cloud.tags(raw), REGION).start()
        self.counts["booted"] += 1
        return Machine(name, imds, home, self._spawn(name, home, imds), time.time())

    def _config(self, name: str) -> str:
        """What the user data has cloud-init write for the worker."""
        answer = self.cloud.ec2.describe_instance_attribute(InstanceId=name, Attribute="userData")
        text = base64.b64decode(answer["UserData"]["Value"]).decode()
        files: list[Any] = yaml.safe_load(text)["write_files"]
        return str(next(file["content"] for file in files if file["path"].endswith("/instance.json")))

    def _spawn(self, name: str, home: Path, imds: Imds) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "fleetd.worker.instance", str(home / "instance.json")]
        command += ["--imds", imds.url, "--home", str(home)]
        with (home / "console").open("ab") as console:
            environ = {**os.environ, **self.environ, "MACHINE": name}
            return subprocess.Popen(command, env=environ, stdout=console, stderr=console, start_new_session=True)

    def _ended(self, machine: Machine) -> None:
        """The worker has ended: done, the instance shuts down; failed, it is started again a few times."""
        code = machine.process.returncode
        self.counts[f"ended {code}"] += 1
        if code and machine.starts < STARTS:
            machine.starts += 1
            machine.process = self._spawn(machine.id, machine.home, machine.imds)
            return
        self.counts["shut down by itself"] += 1
        self._off(machine)
        self._terminate(machine.id)

    def _terminate(self, name: str) -> None:
        self.cloud.ec2.terminate_instances(InstanceIds=[name])

    def _off(self, machine: Machine) -> None:
        if machine.process.poll() is None:
            for pid in reversed(_tree(machine.process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            machine.process.wait(10)
        machine.imds.close()
        self.over.add(machine.id)
        self.machines.pop(machine.id, None)
        self.counts["off"] += 1

    def console(self) -> str:
        """The end of what each worker said."""
        return "\n".join(f"{file.parent.name}: {file.read_text()[-600:]}" for file in self.folder.glob("*/console"))
