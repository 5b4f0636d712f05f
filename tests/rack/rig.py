"""A rack on loopback: machines are processes behind a power daemon that real magic packets reach.

The rig plays the controller's part, too: it hears the workers (a machine that answers has one), tells the provider, and
orders them to switch off before a stop, as `stops_by_order` asks for.
"""

import asyncio
import itertools
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from fleetd.core.model import AppPolicy, NodeId, Order, Phase, PoolPolicy, Seconds, Stopped
from fleetd.core.ports import Known, Nudge, WorkerLaunch
from fleetd.providers.rack.book import Book
from fleetd.providers.rack.inventory import RackOptions
from fleetd.providers.rack.judge import Patience
from fleetd.providers.rack.provider import RackProvider
from tests.conformance.provider import Rig
from tests.rack.powerd import Outlet, PowerDaemon

MACHINE = Path(__file__).with_name("machine.py")
QUICK = Patience(again_s=0.6, quiet_s=0.8, silent_s=0.5, warm_s=1.0, beat_s=0.1, look_s=0.3, idle_look_s=0.5)
BOOT_S = 0.1
_NUMBERS = itertools.count(1)


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


class RackRig(Rig):
    """Racks of a few machines each, by pool and fleet; `power` is every machine's way to be switched."""

    pool = "rack3"

    def __init__(self, folder: Path, power: Any = None, patience: Patience = QUICK) -> None:
        self.folder, self.patience, self.power = folder, patience, power
        self.daemon = PowerDaemon([])
        self.speaking = True  # whether machines that are up have a worker that speaks
        self.machines: dict[str, dict[str, Any]] = {}  # by name, as the inventory has them

    def rack(self, pool: str, fleet: str, count: int = 4, **more: Any) -> RackOptions:
        """Return the options of a rack with machines of its own, made once."""
        path = self.folder / fleet / f"{pool}.yaml"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            machines = dict(self.machine(f"{fleet}-{pool}-{at}") for at in range(1, count + 1))
            path.write_text(json.dumps({"port": self.daemon.port, "machines": machines} | more))
        return RackOptions.model_validate({"inventory": str(path), "boot": 60, "off": 2}, context={"base_dir": "."})

    def machine(self, name: str, secureon: str = "00:11:22:33:44:55") -> tuple[str, dict[str, Any]]:
        """Plug in a machine; return what the inventory says of it."""
        number = next(_NUMBERS)
        mac, ip = f"52:54:00:00:{number // 256:02x}:{number % 256:02x}", f"127.7.{number // 250}.{1 + number % 250}"
        port = free_port(ip)
        command = [sys.executable, "-I", "-S", str(MACHINE), ip, str(port), str(BOOT_S)]
        self.daemon.add(Outlet(mac, command, secureon, log=self.folder / f"{name}.log"))
        power = self.power(self.daemon, mac) if self.power else self.command()
        entry = {"mac": mac, "ip": ip, "probe": port, "secureon": secureon, "broadcast": "127.0.0.1", "power": power}
        self.machines[name] = entry
        return name, entry

    def command(self) -> Any:
        """Woken by a packet, cut by a command: what most racks at home are."""
        return {"command": {"off": self.daemon.control("off"), "timeout": 10}}

    def make(self, pool: str = "rack3", fleet: str = "one", **more: Any) -> "Heard":
        """Make a provider."""
        launch = WorkerLaunch(
            fleet="test",
            instance=fleet,
            controller_url="http://127.0.0.1:1",
            state_dir=str(self.folder / fleet / "state"),
            apps={"photos": AppPolicy("photos", path="app"), "celery": AppPolicy("celery", exec=("celery",))},
            servers={},
            limits={"photos": None},
            token=lambda name: f"token of {name}",
        )
        policy = PoolPolicy(pool, "rack", None, ("photos",), slots=1, max_nodes=9)
        return Heard(self, policy, self.rack(pool, fleet, **more), launch, self.patience)

    def provider(self) -> "Heard":
        return self.make()

    def other_pool(self) -> "Heard":
        return self.make("other")

    def other_fleet(self) -> "Heard":
        return self.make(fleet="two")

    def outlet(self, node: NodeId) -> Outlet:
        """The machine that a node is a life of."""
        return self.daemon.outlets[self.machines[node.rpartition("/")[2].rpartition(".")[0]]["mac"]]

    async def lose(self, node: NodeId) -> None:
        outlet = self.outlet(node)
        await asyncio.to_thread(self._wait_up, node)
        outlet.plugged = False
        await asyncio.to_thread(outlet.cut)

    def _wait_up(self, node: NodeId) -> None:
        """What never came up is not lost, but overdue."""
        deadline = time.monotonic() + 10
        with closing(Book(self.folder / "one" / "state", node.partition("/")[0])) as book:
            while (wake := book.of(node)) is None or wake.up_at is None:
                assert time.monotonic() < deadline, f"{node} does not come up; heard: {self.daemon.heard}"
                time.sleep(0.05)

    def former(self, node: NodeId) -> NodeId | None:
        machine, _, number = node.rpartition(".")
        return f"{machine}.{int(number) - 1}"

    def close(self) -> None:
        self.daemon.close()


class Heard(RackProvider):
    """The provider with a controller's voice beside it."""

    def __init__(self, rig: RackRig, *given: Any) -> None:
        super().__init__(*given)
        self._rig = rig
        self._voice: asyncio.Task[None] | None = None
        self.nudges = 0
        self.spoke: dict[NodeId, float] = {}

    async def open(self, nudge: Nudge) -> None:
        def counted() -> None:
            self.nudges += 1
            nudge()

        await super().open(counted)
        if self._voice is None:
            self._voice = asyncio.create_task(self._speak())

    async def close(self) -> None:
        voice, self._voice = self._voice, None
        if voice is not None:
            voice.cancel()
            await asyncio.gather(voice, return_exceptions=True)
        await super().close()

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        assert self.stops_by_order
        for node in nodes if self._rig.speaking else ():
            wake = self._book.of(node) if self._book else None
            if wake is not None and wake.ended_at is None:  # otherwise no worker of this controller has that name
                self._rig.outlet(node).soft_off()
        return await super().stop(nodes, grace_s, order)

    async def _speak(self) -> None:
        """Say what the workers said: every 0.1 s, of every machine that answers."""
        while True:
            if self._book is not None:
                wakes = await asyncio.to_thread(self._book.wakes)
                for wake in wakes:
                    if self._rig.speaking and await self._answers(wake.node):
                        self.spoke[wake.node] = time.monotonic()
                self.hear("why", self._known(wake.node for wake in wakes))
            await asyncio.sleep(0.1)

    def _known(self, nodes: Any) -> Mapping[NodeId, Known]:
        now = time.monotonic()
        return {
            node: Known(Phase.READY, 0, now - self.spoke[node], "working")
            if node in self.spoke
            else Known(Phase.BOOTING)
            for node in nodes
        }

    async def _answers(self, node: NodeId) -> bool:
        machine = self._rig.machines.get(node.rpartition("/")[2].rpartition(".")[0])
        with suppress(OSError, TimeoutError):
            if machine is not None:
                async with asyncio.timeout(1):
                    _, writer = await asyncio.open_connection(machine["ip"], machine["probe"])
                writer.close()
                return True
        return False
