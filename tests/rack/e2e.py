"""A rack of machines that are qemu, behind real magic packets, with a real `fleetd run` beside them.

The mains are tests/rack/powerd.py's; firmware, boot service, node image, enrolment, worker and dispatcher are what a
rack has. `User` is the network of a machine without privileges; on a LAN of its own each has a tap (bench/rack.py).
The image is built by `fleetd image build`, once for all that it is made of, into the cache of this user.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fleetd.boot.dnsmasq import SCRIPT
from fleetd.boot.manifest import load_image
from scripts import wheels
from tests import servers
from tests.image import containers
from tests.rack.powerd import Outlet, PowerDaemon

ROOT = Path(__file__).resolve().parents[2]
# What an image is made of: its recipe, what builds it, and the rooms whose code a node runs.
BUILDERS = ("image", "debian", "initramfs", "kernel", "layers", "manifest", "program", "recipe")
ROOMS = ("worker", "releases", "dispatchers", "client", "codecs", "errors.py")
MADE_OF = (
    "pxe",
    "requirements.lock",
    *(f"fleetd/boot/{name}.py" for name in BUILDERS),
    *(f"fleetd/{one}" for one in ROOMS),
)
SLOW_S = 240.0  # many times of what it takes on an idle machine
QEMU = "-accel tcg,thread=multi -smp 1 -nodefaults -no-user-config -no-reboot -display none"
OVMF = Path("/usr/share/OVMF")
JOIN = "j" * 64
APP = """\
import pathlib, socket, time
from fleetd.worker import job

def say(to, text):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(text.encode(), to)

@job
def nap(payload):
    name, seconds, host, port = payload.decode().split()
    where = next(p.read_text().strip() for p in pathlib.Path("/sys/class/net").glob("e*/address"))
    say((host, int(port)), f"begin {name} {where}")
    time.sleep(float(seconds))
    say((host, int(port)), f"end {name} {where}")
"""
POLICY = """\
version: 1
fleet: e2e
controller: {{listen: "{host}:{port}", join: {{env: TEST_JOIN}}, token: {{env: TEST_JOIN}}}}
sources: {{main: {{gearman: {{embedded: "{server}"}}}}}}
apps: {{naps: {{release: {{path: app}}}}}}
queues: {{nap: {{app: naps, source: main, match: nap, objective: {{wait: {wait}}}, service: 5s, job_limit: 1m}}}}
pools:
  rack3:
    rack: {{inventory: rack3.yaml, controller: "http://{seen}:{port}", boot: {boot}, off: 20s}}
    apps: [naps]
    slots: 1
    max: {most}
    price: 0.03/h
stability: bounded
"""


def node_image() -> Path:
    """Return the folder of an image of what is in the tree now; built where the cache has none.

    NODE_IMAGE names one that is taken as it is, where others change the tree.
    """
    if given := os.environ.get("NODE_IMAGE"):
        return Path(given)
    files = [path for name in MADE_OF for path in _files(ROOT / name)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fleetd"
    folder = cache / f"node-image-{digest.hexdigest()[:16]}"
    if (folder / "image.json").exists():
        return folder
    for program in ("mmdebstrap", "mksquashfs", "dpkg-deb"):
        servers.find(program)
    containers.need_root()
    room = cache / f"building-{os.getpid()}"
    try:
        sources = containers.copy_sources(room / "sources")
        wheels.main([str(room / "wheels")])
        words = ["image", "build", "--relock", "--out", str(room / "image"), "--wheels", str(room / "wheels")]
        command = [sys.executable, "-m", "fleetd", *words, "--recipe", str(sources / "pxe")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with contextlib.suppress(OSError):  # somebody else's came first, and is the same
            (room / "image").rename(folder)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return folder


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return [one for one in found if "__pycache__" not in one.parts]


class Net(Protocol):
    """How machines and this one see each other."""

    host: str  # where the controller, the boot service and the dispatcher listen
    seen: str  # and where machines find the first two
    shared: str  # an address that both sides have for this machine

    def boot(self) -> dict[str, Any]:
        """Return what the inventory says of booting, beyond its addresses."""
        ...

    def card(self, box: "Box", url: str) -> list[str]:
        """Return qemu's options for a machine's network and firmware."""
        ...

    def machine(self, number: int) -> dict[str, Any]:
        """Return what the inventory says of a machine, beyond its MAC."""
        ...


@dataclass
class User:
    """qemu's own network: no privileges, no DHCP server, no knocking."""

    host: str = "127.0.0.1"
    seen: str = "10.0.2.2"
    shared: str = ""

    def __post_init__(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("192.0.2.1", 9))  # sends nothing; tells which address would
            self.shared = sock.getsockname()[0]

    def boot(self) -> dict[str, Any]:
        return {"dhcp": "none"}

    def machine(self, number: int) -> dict[str, Any]:
        del number
        return {"broadcast": "127.0.0.1"}

    def card(self, box: "Box", url: str) -> list[str]:
        net = f"user,id=n0,tftp={box.room},bootfile={url}{SCRIPT}"
        return ["-netdev", net, "-device", f"virtio-net-pci,netdev=n0,mac={box.mac}", "-boot", "n"]


@dataclass
class Box(Outlet):
    """A machine that is qemu. `lines`: what came over its serial line since it was last switched on, with when."""

    room: Path = Path()
    began_at: float = 0.0
    ended_at: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)

    def switch_on(self) -> None:
        """Start it, and listen to it."""
        with contextlib.suppress(ValueError):
            self.room.mkdir(parents=True, exist_ok=True)
        starts = self.starts
        at = time.monotonic()
        serial = self.room / f"serial-{starts + 1}"
        if not self.on and self.plugged:
            self.command = [*self.command[: self._fixed()], "-serial", f"file:{serial}"]
        super().switch_on()
        if self.starts > starts:
            self.began_at, self.ended_at, self.lines = at, 0.0, []
            threading.Thread(target=self._listen, args=(serial, self.lines), daemon=True).start()

    def _fixed(self) -> int:
        return self.command.index("-serial") if "-serial" in self.command else len(self.command)

    def _listen(self, serial: Path, lines: list[tuple[float, str]]) -> None:
        process, rest = self.process, b""
        assert process is not None
        while not serial.exists() and process.poll() is None:
            time.sleep(0.02)
        with serial.open("rb") as file:
            over = False
            while not over:
                over = process.poll() is not None
                *whole, rest = (rest + file.read()).split(b"\n")
                now = time.monotonic()
                lines += [(now, line.decode("utf-8", "replace").rstrip("\r")) for line in whole]
                time.sleep(0.02)
        if process is self.process:
            self.ended_at = time.monotonic()

    @property
    def said(self) -> str:
        """All of this life."""
        return "\n".join(line for _, line in self.lines)

    def when(self, text: str) -> float | None:
        """When it said so, in seconds after it was switched on."""
        return next((at - self.began_at for at, line in list(self.lines) if text in line), None)

    def monitor(self, command: str) -> None:
        """Have qemu do something to it."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.room / "monitor"))
            sock.settimeout(20)
            for words in (b"", command.encode() + b"\n"):
                sock.sendall(words)
                said = b""
                while not said.endswith(b"(qemu) "):
                    said += sock.recv(4096)


@dataclass
class Rack:
    """The test's hands on a rack and its controller."""

    home: Path
    net: Net
    daemon: PowerDaemon
    boxes: dict[str, Box] = field(default_factory=dict)
    inventory: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    ports: tuple[int, ...] = ()
    process: "subprocess.Popen[bytes] | None" = None
    notes: list[tuple[float, str]] = field(default_factory=list)
    marks: list[tuple[str, float]] = field(default_factory=list)
    ear: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    @property
    def url(self) -> str:
        """Where machines boot from."""
        return f"http://{self.net.seen}:{self.ports[1]}"

    @property
    def server(self) -> str:
        """The dispatcher."""
        return f"{self.net.shared}:{self.ports[2]}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of everything that this rack runs."""
        return {**os.environ, "FLEETD_STATE": str(self.home / "state"), "TEST_JOIN": JOIN} | {
            "FLEETD_DISPATCHER_TOKEN_FILE": str(self.home / "dispatcher.token")
        }

    def plug(self, number: int, *, memory: int = 192, **more: Any) -> Box:
        """Add a machine: to the mains, and to the inventory."""
        name, mac = f"node{number:02}", f"52:54:00:12:34:{number:02x}"
        room = self.home / name
        box = Box(mac, [], room=room, log=self.home / f"{name}.qemu", secureon=more.pop("card_secureon", ""))
        words = [servers.find("qemu-system-x86_64"), *QEMU.split(), "-m", str(memory)]
        words += ["-monitor", f"unix:{room / 'monitor'},server=on,wait=off"]
        room.mkdir()
        box.command = [*words, *self.net.card(box, self.url)]
        self.boxes[name] = box
        self.daemon.add(box)
        self.inventory["machines"][name] = {"mac": mac, **self.net.machine(number), **more}
        return box

    def write(self) -> None:
        """Write the policy and the inventory."""
        (self.home / "rack3.yaml").write_text(json.dumps(self.inventory, indent=1))
        given = {"most": max(1, len(self.boxes)), "boot": "5m", "wait": "1m", **self.options}
        text = POLICY.format(host=self.net.host, port=self.ports[0], seen=self.net.seen, server=self.server, **given)
        (self.home / "policy.yaml").write_text(text)

    def start(self) -> None:
        """Write all down, start the controller and wait until machines could boot."""
        self.write()
        command = [sys.executable, "-m", "fleetd", "run", "--policy", str(self.home / "policy.yaml"), "--no-live"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.until_said("boots machines at", 60)

    def fleetd(self, *words: str) -> str:
        """Run a command to its end, which must be a good one."""
        command = [sys.executable, "-m", "fleetd", *words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self) -> str:
        """What the controller said."""
        return (self.home / "log").read_text()

    def submit(self, name: str, seconds: float) -> None:
        """Hand in a job, in the background; what becomes of it comes by `notes`."""
        payload = f"{name} {seconds} {self.net.shared} {self.ear.getsockname()[1]}"
        self.fleetd("submit", "nap", "--background", "--payload", payload, "--server", self.server)

    def noted(self, start: str) -> list[tuple[float, str]]:
        """What jobs told of themselves, with when."""
        return [(at, text) for at, text in list(self.notes) if text.startswith(start)]

    def until(self, what: str, seen: Callable[[], Any], limit_s: float = SLOW_S) -> Any:
        """Wait for something that happens, and note when it did; fails with all that was said where it does not."""
        began = time.monotonic()
        while not (found := seen()):
            if time.monotonic() > began + limit_s or (self.process and self.process.poll() is not None):
                serial = "".join(f"\n--- {name}\n{box.said[-2000:]}" for name, box in self.boxes.items())
                raise AssertionError(f"not seen: {what}; heard {self.daemon.heard}\n{self.log()[-6000:]}{serial}")
            time.sleep(0.02)
        self.marks.append((what, time.monotonic()))
        return found

    def until_noted(self, start: str, count: int = 1) -> list[tuple[float, str]]:
        """Wait until so many jobs told that, and return what they told."""
        self.until(f"{count} times {start!r}", lambda: len(self.noted(start)) >= count)
        return self.noted(start)

    def until_off(self, name: str) -> None:
        """Wait until a machine has no power any longer, whoever saw to it."""
        box = self.boxes[name]
        self.until(f"{name} is off", lambda: not box.on and box.ended_at)

    def until_working(self, name: str) -> None:
        """Wait until a machine is on and its worker has begun."""
        box = self.boxes[name]
        self.until(f"{name} works", lambda: box.on and box.when("worker started"))

    def until_said(self, text: str, limit_s: float = SLOW_S, count: int = 1) -> str:
        """Wait until the controller says so, and return the line."""
        self.until(f"fleetd says {text!r}", lambda: self.log().count(text) >= count, limit_s)
        return [line for line in self.log().splitlines() if text in line][-1]

    def listen(self) -> None:
        """Take what jobs tell, until closed."""
        while True:
            try:
                text = self.ear.recv(1024).decode()
            except OSError:
                return
            self.notes.append((time.monotonic(), text))

    def close(self) -> None:
        """End all that this rack runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        _end(self.home)
        self.ear.close()


def _end(home: Path) -> None:
    """End what was started and lives on (the dispatcher), found by the folder on its command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(home).encode() + b"/" in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def rack(home: Path, net: Net, *, image: Path | None = None, interface: str = "", **more: Any) -> Iterator[Rack]:
    """A rack without machines yet; `more` is the inventory's."""
    folder = image or node_image()
    load_image(folder)
    with PowerDaemon([], interface=interface) as daemon:
        made = Rack(home, net, daemon, ports=tuple(servers.free_port() for _ in range(4)))
        port, enrol = made.ports[1], made.ports[3]
        boot = {"listen": f"{net.host}:{port}", "url": made.url, "enrol": f"{net.host}:{enrol}", "image": str(folder)}
        made.inventory = {"boot": {**boot, **net.boot()}, "port": daemon.port, "machines": {}, **more}
        made.ear.bind((net.shared, 0))
        (home / "dispatcher.token").write_text("d" * 64)
        (home / "app").mkdir()
        (home / "app" / "jobs.py").write_text(APP)
        threading.Thread(target=made.listen, daemon=True).start()
        try:
            yield made
        finally:
            made.close()


def switches(daemon: PowerDaemon, *verbs: str) -> dict[str, Any]:
    """Return what an inventory says of a machine that is woken by a packet, and otherwise switched by commands."""
    return {"command": {verb: daemon.control(verb) for verb in verbs}}


def table(rows: Sequence[tuple[str, float]]) -> str:
    """Return times as lines."""
    return "\n".join(f"  {at:7.1f} s  {what}" for what, at in rows)
