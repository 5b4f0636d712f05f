"""What goes wrong on a rack, and what fleetd does and says about it: part of bench/rack.py, on the rack's LAN.

Each fault is made on a machine that is qemu, by what makes it in a rack: a cable, a reset, a hang, a wrong password.
"""

import http.client
import json
import re
import shutil
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench import page
from bench.rack import PAGE, OnLan, on_lan
from fleetd.boot.manifest import load_image
from tests import certificates
from tests.boot.lan import Lan, ip
from tests.rack import bmcs, e2e

REBOOTS: Final = " -no-reboot"
Fault = Callable[["Scene"], None]


class Scene:
    """A rack of a few machines on the LAN, with what fleetd said since a moment."""

    def __init__(self, rack: e2e.Rack, image: Path) -> None:
        self.rack, self.image, self.at = rack, image, 0

    def begin(self) -> None:
        """Count what is said from now on."""
        self.at = len(self.rack.log())

    def lines(self, *about: str) -> list[str]:
        """What fleetd said since, about these, without times and kinds."""
        found = [line.partition(" ")[2].rpartition(" kind=")[0] for line in self.rack.log()[self.at :].splitlines()]
        return [line for line in found if any(word in line for word in about)]

    def wait(self, text: str, limit_s: float = e2e.SLOW_S) -> None:
        """Wait until fleetd has said so since."""
        self.rack.until(f"fleetd says {text!r}", lambda: text in self.rack.log()[self.at :], limit_s)

    def node(self, name: str) -> str:
        """Return the name of a machine's last life."""
        numbers = re.findall(rf"rack3/{name}\.(\d+)", self.rack.log())
        return f"rack3/{name}.{max(map(int, numbers), default=0)}"

    def wake(self, name: str) -> None:
        """Have an operator want one machine."""
        self.rack.fleetd("wake", f"rack3/{name}", "--for", "90s")

    def off(self, *names: str) -> None:
        """Wait until machines are off, whoever saw to it."""
        for name in names:
            self.rack.until_off(name)


def rush(scene: Scene) -> None:
    """Two rushes for three machines."""
    for number in (1, 2):
        began = time.monotonic()
        for job in range(18):
            scene.rack.submit(f"r{number}-{job}", 6.0)
        scene.rack.until_noted(f"end r{number}-", 18)
        took_s = time.monotonic() - began
        wheres = {text.split()[-1] for _, text in scene.rack.noted(f"end r{number}-")}
        scene.off("node01", "node02", "node03")
        exits = [box.process.returncode for box in scene.rack.boxes.values() if box.process]
        begun = len(scene.rack.noted(f"begin r{number}-"))
        print(
            f"rush {number}: 18 jobs on {len(wheres)} machines in {took_s:.0f} s, begun {begun} times; exits {exits}; "
        )
        print(f"  all off {time.monotonic() - began:.0f} s after it began", flush=True)


def cable(scene: Scene) -> None:
    """A cable cut while a job runs."""
    rack = scene.rack
    for job in range(3):
        rack.submit(f"cut{job}", 40.0)
    _, text = rack.until("a job runs", lambda: rack.noted("begin cut"))[0]
    name, mac = text.split()[1:]
    box = next(box for box in rack.boxes.values() if box.mac == mac)
    time.sleep(2)
    ip("link", "set", box.env["TAP"], "down")
    box.plugged = False
    rack.until("it is begun elsewhere", lambda: len(rack.noted(f"begin {name} ")) >= 2)
    rack.until("it is done", lambda: rack.noted(f"end {name} "))
    ends = [text.split()[-1] for _, text in rack.noted(f"end {name} ")]
    begins = [
        (round(at - rack.noted(f"begin {name} ")[0][0]), text.split()[-1]) for at, text in rack.noted(f"begin {name} ")
    ]
    scene.wait("fell silent")
    print(f"cable: {name} begun {begins}, ended on {ends}", flush=True)
    box.cut()
    ip("link", "set", box.env["TAP"], "up")
    box.plugged = True
    rack.fleetd("rack", "free", box.room.name)


def reboot(scene: Scene) -> None:
    """A machine that resets itself in a job."""
    rack = scene.rack
    rack.submit("reset0", 20.0)
    _, text = rack.until("a job runs", lambda: rack.noted("begin reset0"))[0]
    box = next(box for box in rack.boxes.values() if box.mac == text.split()[-1])
    box.monitor("system_reset")
    scene.wait("rebooted by itself")
    rack.until("the job is done", lambda: rack.noted("end reset0"))
    print("reboot: begun on", [text.split()[-1] for _, text in rack.noted("begin reset0")], flush=True)
    box.cut()


def silent(scene: Scene) -> None:
    """A machine that never answers; and one whose card wants another password."""
    scene.wake("node04")
    scene.wake("node05")
    scene.wait("node04 did not answer")
    scene.wait("node05 did not answer")
    heard = [became for mac, _, became in scene.rack.daemon.heard if mac == scene.rack.boxes["node05"].mac]
    print("wrong SecureOn: its card heard", heard, flush=True)


def hangs(scene: Scene) -> None:
    """A machine that boots, and whose worker never registers."""
    box = scene.rack.boxes["node06"]
    scene.wake("node06")
    scene.rack.until("it has an address", lambda: box.on and "eth0 has" in box.said)
    box.monitor("stop")
    scene.wait("came as far as")
    box.cut()


def unknown(scene: Scene) -> None:
    """A machine that nobody told fleetd about."""
    box = scene.rack.boxes["stranger"]
    box.switch_on()
    found = scene.rack.until("it is listed", lambda: box.mac in (text := scene.rack.fleetd("rack", "scan")) and text)
    print("unknown MAC: fleetd rack scan:", found.strip(), flush=True)
    time.sleep(15)
    assert "Linux" not in box.said
    box.cut()


def replay(scene: Scene) -> None:
    """A token that is used twice: fetched from a machine's own address after a wake, as a thief on its cable would."""
    rack, box = scene.rack, scene.rack.boxes["node04"]
    rack.fleetd("rack", "free", "node04")
    own = rack.inventory["machines"]["node04"]["ip"]
    ip("address", "add", f"{own}/32", "dev", "rack0")
    try:
        scene.wake("node04")
        scene.wait("requested")
        link = http.client.HTTPConnection(rack.net.host, rack.ports[1], timeout=10, source_address=(own, 0))
        rack.until("it may boot", lambda: _asks(link, f"/boot/{box.mac.replace(':', '-')}/seed")[0] == 200, 60)
        seed = _asks(link, f"/boot/{box.mac.replace(':', '-')}/seed")[1]
        token = _file_of(seed, b"fleetd/token")
        answers = [_enrol(rack, token, box.mac) for _ in range(2)]
        print("replayed token:", [(code, text if code != 200 else "enrolled") for code, text in answers], flush=True)
        scene.wait("a second time")
    finally:
        ip("address", "del", f"{own}/32", "dev", "rack0")


def _asks(link: http.client.HTTPConnection, path: str) -> tuple[int, bytes]:
    link.request("GET", path)
    answer = link.getresponse()
    return answer.status, answer.read()


def _file_of(archive: bytes, name: bytes) -> str:
    """Find a short file in an archive of cpio: its header ends with its name."""
    at = archive.index(name + b"\0")
    head = archive.rindex(b"070701", 0, at)
    size = int(archive[head + 54 : head + 62], 16)
    start = (at + len(name) + 1 + 3) & ~3
    return archive[start : start + size].decode()


def _enrol(rack: e2e.Rack, token: str, mac: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(rack.home / "state" / "e2e" / "rack" / "rack3.pem"))
    link = http.client.HTTPSConnection(rack.net.host, rack.ports[3], timeout=10, context=context)
    link.request("POST", "/v1/enrol", json.dumps({"token": token, "macs": [mac]}))
    answer = link.getresponse()
    return answer.status, answer.read().decode()


def spoiled(scene: Scene) -> None:
    """A layer that changed on the disk of the boot service."""
    name = load_image(scene.image).parts["app"].name
    path = scene.image / name
    good = path.read_bytes()
    try:
        path.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])
        scene.wake("node01")
        scene.wait("cannot boot")
        scene.rack.until("it says so", lambda: scene.rack.boxes["node01"].on)
    finally:
        path.write_bytes(good)
    scene.rack.until("it boots", lambda: scene.rack.boxes["node01"].when("worker started"))
    scene.rack.fleetd("drain", scene.node("node01"))
    scene.off("node01")


def bmc(scene: Scene) -> None:
    """Redfish and IPMI start the same machines, and cut their power where they hang."""
    rack = scene.rack
    for name in ("node07", "node08"):
        box = rack.boxes[name]
        scene.wake(name)
        rack.until_working(name)
        box.monitor("stop")
        rack.fleetd("drain", "--force", scene.node(name))
        scene.off(name)
        print(f"{name}: started and cut off by its BMC", flush=True)
    scene.wait(f"{scene.node('node08')}: ")


FAULTS: Final[dict[str, tuple[Fault, Sequence[str]]]] = {
    "a rush for three machines, and a second one": (rush, ("launch", "stopped as asked", "requested ->")),
    "unknown MAC": (unknown, ("52:54:00:12:34:63", "unknown")),
    "never answers, and a wrong SecureOn password": (silent, ("node04", "node05")),
    "boots and never registers": (hangs, ("node06",)),
    "a replayed token": (replay, ("token",)),
    "a corrupted layer": (spoiled, ("boot", "SHA-256", "image")),
    "reboots by itself in a job": (reboot, ("rack3/node",)),
    "a cable cut in a job": (cable, ("rack3/node",)),
    "Redfish and IPMI": (bmc, ("node07", "node08")),
}


def run(image: Path, room: Path, lan: Lan, given: Any) -> None:
    """Make each fault, and write down what became of it."""
    home, own = room / "faults", room / "image"
    home.mkdir()
    shutil.copytree(image, own)
    told: list[str] = []
    net = OnLan()
    with ExitStack() as stack:
        # The cheap ones are those of the rushes: `fastest` would try those first that never booted.
        rack = stack.enter_context(e2e.rack(home, net, image=own, interface="rack0", rank="cheapest"))
        _plug(rack, home, stack)
        rack.options = {"boot": "75s", "most": 3, "wait": "40s"}
        stack.enter_context(on_lan(lan, rack, net))
        rack.start()
        scene = Scene(rack, own)
        for name, (fault, about) in FAULTS.items():
            if given.only not in name:
                continue
            scene.begin()
            began, outcome = time.monotonic(), "shown"
            try:
                fault(scene)
            except (AssertionError, OSError, IndexError, ValueError) as error:
                outcome = f"NOT SHOWN: {type(error).__name__}: {str(error)[:300]}"
            lines = list(dict.fromkeys(scene.lines(*about)))
            told += [
                f"### {name}",
                f"{outcome}, {time.monotonic() - began:.0f} s.",
                "",
                *(f"    {one}" for one in lines[:14]),
                "",
            ]
            print(f"== {name}: {outcome}, {time.monotonic() - began:.0f} s", *lines[:20], sep="\n   ", flush=True)
    if not given.dry:
        page.renew("rack-faults", "\n".join(told), "What goes wrong, and what is said", PAGE)


def _plug(rack: e2e.Rack, home: Path, stack: ExitStack) -> None:
    status = e2e.switches(rack.daemon, "status")
    for number in (1, 2, 3):
        rack.plug(number)  # a packet, and nothing that could tell
    rack.plug(4).plugged = False
    rack.plug(5, card_secureon="00:11:22:33:44:55", secureon="00:11:22:33:44:56")
    rack.plug(6, power=status)
    for number in (7, 8):
        rack.plug(number)
    pki = home / "pki"
    pki.mkdir()
    made = certificates.make(pki)
    names = {"node07": rack.boxes["node07"].mac}
    for folder in ("redfish", "ipmi"):
        (home / folder).mkdir()
    pair = (Path(made.pem("server")), Path(made.key("server")))
    url = stack.enter_context(bmcs.redfish(home / "redfish", rack.daemon, names, pair))
    port = stack.enter_context(bmcs.ipmi(home / "ipmi", rack.daemon, rack.boxes["node08"].mac))
    secret = home / "bmc.password"
    secret.write_text(bmcs.PASSWORD)
    own = {"user": bmcs.USER, "password": {"file": str(secret)}}
    power = {"redfish": {"url": url, "system": "node07", "verify": made.pem("ca"), **own}}
    rack.inventory["machines"]["node07"]["power"] = power
    rack.inventory["machines"]["node08"]["power"] = {"ipmi": {"host": "127.0.0.1", "port": port, **own}}
    rack.plug(0x63)
    rack.boxes["stranger"] = rack.boxes.pop("node99")
    del rack.inventory["machines"]["node99"]
    for box in rack.boxes.values():
        rack.inventory["machines"].get(box.room.name, {})["watts"] = 100 if box.room.name < "node04" else 200
        box.command = [word for word in box.command if word != REBOOTS.strip()]
