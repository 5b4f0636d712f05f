"""A rack of machines that are qemu, end to end: what a boot takes on each way of booting, a rush, and what goes wrong.

Everything is real but the iron (tests/rack/e2e.py). Needs root for the rack's LAN, a network namespace; without, the
figures of qemu's own network alone are taken. Times are told beside a bare boot of the same kernel in the same run:
firmware, iPXE, kernel, and a first program that turns the machine off.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import page
from fleetd.boot.dnsmasq import ula
from fleetd.boot.manifest import load_image
from fleetd.boot.off import initrd
from tests.boot.lan import SERVER, Lan, ip, made
from tests.boot.test_lan import SUBNET
from tests.image.machines import OVMF, by_network, serving
from tests.rack import e2e

PAGE: Final = page.PAGE.parent / "benchmarks-rack.md"
TARGET: Final = 2.0
MIB: Final = 1 << 20
ROUTER: Final = "port=0\ninterface=card0\nbind-dynamic\nno-ping\ndhcp-range=10.77.0.100,10.77.0.200,255.255.255.0,1h\n"
ROUTER_AT: Final = "10.77.0.254/24"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NEW_NET: Final = 0x40000000
STEPS: Final = (
    ("userland", "fleetd: eth0 has"),
    ("layers verified", "the app layer is what"),
    ("enrolled", "fleetd: enrolled"),
    ("worker started", "worker started"),
)


@dataclass
class OnLan:
    """The rack's own LAN: each machine has a tap on its bridge."""

    firmware: str = "bios"
    dhcp: str = "full"
    host: str = SERVER
    seen: str = SERVER
    shared: str = SERVER
    taps: int = 0

    def boot(self) -> dict[str, Any]:
        """Say what the LAN is."""
        return {"dhcp": self.dhcp, "interface": "rack0", "subnet": str(SUBNET)}

    def machine(self, number: int) -> dict[str, Any]:
        """Say where a machine is."""
        return {"ip": f"10.77.0.{10 + number}", "broadcast": "10.77.0.255", "source": SERVER}

    def card(self, box: e2e.Box, url: str) -> list[str]:
        """Give a machine its cable."""
        del url
        self.taps += 1
        tap = f"tap{self.taps}"
        ip("tuntap", "add", tap, "mode", "tap")
        ip("link", "set", tap, "master", "rack0", "up")
        box.env["TAP"] = tap
        net = ["-netdev", f"tap,id=n0,ifname={tap},script=no,downscript=no"]
        card = f"virtio-net-pci,netdev=n0,mac={box.mac}"
        if self.firmware == "bios":
            return [*net, "-device", card, "-boot", "n"]
        shutil.copy(OVMF / "OVMF_VARS_4M.fd", box.room / "vars")
        code = f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"
        flash = ["-drive", code, "-drive", f"if=pflash,unit=1,format=raw,file={box.room / 'vars'}"]
        return [*net, "-device", f"{card},romfile=,bootindex=1", *flash]


@contextmanager
def on_lan(lan: Lan, rack: e2e.Rack, net: OnLan) -> Iterator[None]:
    """Serve DHCP on the LAN as fleetd configures it."""
    rack.write()
    running = []
    if net.dhcp == "proxy":
        running.append(lan.dnsmasq("router", ROUTER))
    conf = rack.fleetd("boot", "dnsmasq", "-p", str(rack.home / "policy.yaml"))
    if net.firmware == "http":  # the same firmware prefers PXE; without a file for it there, it goes on to HTTP
        conf = "\n".join(line for line in conf.splitlines() if "tag:uefi" not in line) + "\n"
    running.append(lan.dnsmasq("rack", conf))
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait(10)


def enter(lan: Lan) -> None:
    """Have this process, and all that it starts from now on, on the rack's LAN."""
    ip("-n", lan.names["rack"], "address", "add", f"{ula(SUBNET)}1/64", "dev", "rack0", "nodad")
    handle = os.open(f"/run/netns/{lan.names['rack']}", os.O_RDONLY)
    if _LIBC.setns(handle, _NEW_NET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(handle)


def bare(image: Path, room: Path) -> float:
    """Boot the kernel with nothing but a program that turns the machine off; returns seconds."""
    kernel = load_image(image).parts["kernel"].name
    served = room / "served"
    served.mkdir(parents=True)
    shutil.copy(image / kernel, served / "kernel")
    (served / "initrd").write_bytes(initrd())
    with serving(served) as port:
        at = f"http://10.0.2.2:{port}"
        script = f"#!ipxe\nkernel {at}/kernel initrd=initrd quiet console=ttyS0,115200\ninitrd {at}/initrd\nboot\n"
        (served / "boot.ipxe").write_text(script)
        box = e2e.Box("52:54:00:12:34:01", [], room=room / "bare")
        words = [shutil.which("qemu-system-x86_64") or "", *e2e.QEMU.split(), "-m", "192"]
        box.command = [*words, *by_network(f"{at}/boot.ipxe", uefi=False, room=room / "bare")]
        box.switch_on()
        assert box.process is not None
        assert box.process.wait(e2e.SLOW_S) == 0
        return time.monotonic() - box.began_at


def life(rack: e2e.Rack, box: e2e.Box, name: str) -> dict[str, float]:
    """Take one machine from a packet to its first job, and from its last to off; returns seconds."""
    before = box.starts
    rack.submit(name, 0.1)
    rack.until(f"{name} is done", lambda: rack.noted(f"end {name}"))
    assert box.starts == before + 1
    found = {what: at for what, text in STEPS if (at := box.when(text)) is not None}
    found["first job done"] = rack.noted(f"end {name}")[0][0] - box.began_at
    peak_kib = _status(box, "VmHWM")
    node = f"rack3/{box.room.name}.{before + 1}"
    at = time.monotonic()
    rack.fleetd("drain", node)
    rack.until(f"{node} is off", lambda: box.ended_at)
    assert box.process is not None
    assert box.process.returncode == 0
    return found | {"drain to off": box.ended_at - at, "qemu MiB": peak_kib / 1024}


def _status(box: e2e.Box, key: str) -> int:
    assert box.process is not None
    text = Path(f"/proc/{box.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(key)))


VARIANTS: Final = {
    "BIOS, full DHCP": OnLan(),
    "BIOS, proxyDHCP": OnLan(dhcp="proxy"),
    "UEFI PXE": OnLan(firmware="uefi"),
    "UEFI HTTP": OnLan(firmware="http"),
}


def figures(image: Path, room: Path, lan: Lan | None, only: str) -> dict[str, dict[str, float]]:
    """Take one life on each way of booting."""
    found: dict[str, dict[str, float]] = {}
    nets: dict[str, Any] = {"BIOS, user network": e2e.User()} if lan is None else VARIANTS
    for at, (name, net) in enumerate(nets.items()):
        if only not in name:
            continue
        home = room / f"figures-{at}-{len(nets)}"
        home.mkdir()
        with ExitStack() as stack:
            interface = "rack0" if lan else ""
            rack = stack.enter_context(e2e.rack(home, net, image=image, interface=interface))
            box = rack.plug(7, memory=192 if "BIOS" in name else 512, power=e2e.switches(rack.daemon, "status"))
            try:
                if lan:
                    stack.enter_context(on_lan(lan, rack, net))
                rack.start()
                found[name] = life(rack, box, "first")
            except (AssertionError, OSError) as error:
                print(f"{name}: FAILED: {str(error)[-4000:]}", flush=True)
                continue
        print(name, {what: round(value, 1) for what, value in found[name].items()}, flush=True)
    return found


def main(argv: list[str]) -> int:
    """Run it. Each part is a process of its own: one that has gone to the rack's LAN does not come back."""
    parser = argparse.ArgumentParser(prog="bench rack", description=__doc__)
    parser.add_argument("--only", default="", help="only variants or faults with this in their name")
    parser.add_argument("--part", choices=("figures", "lan", "faults", "all"), default="all")
    parser.add_argument("--dry", action="store_true", help="print, and leave the page alone")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.part == "all":
        return max(_part(part, argv) for part in ("figures", "faults"))
    image, room = e2e.node_image(), Path(tempfile.mkdtemp(prefix="fleetd-rack-"))
    try:
        if given.part == "figures":
            return _figures(image, room, given, argv)
        from bench import rack_faults  # noqa: PLC0415 - it is made of this module's parts

        with made(room) as lan:
            lan.plug("router", ROUTER_AT)
            enter(lan)
            if given.part == "lan":
                given.out.write_text(json.dumps(figures(image, room, lan, given.only)))
            else:
                rack_faults.run(image, room, lan, given)
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return 0


def _part(part: str, argv: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "bench", "rack", *argv, "--part", part], check=False).returncode


def _figures(image: Path, room: Path, given: argparse.Namespace, argv: list[str]) -> int:
    bare_s = bare(image, room)
    print(f"bare boot: {bare_s:.1f} s", flush=True)
    found = figures(image, room, None, given.only)
    if os.geteuid() == 0:
        _part("lan", [*argv, "--out", str(room / "lan.json")])
        found |= json.loads((room / "lan.json").read_text())
    text = report(bare_s, found, load_image(image).over_the_wire())
    print(text)
    if not given.dry:
        page.renew("rack-boots", text, "From a packet to the first job", PAGE)
    ours = found.get("BIOS, user network", {}).get("first job done", 0.0)
    return int(ours > TARGET * bare_s)


def report(bare_s: float, found: dict[str, dict[str, float]], wire: int) -> str:
    """Return the table."""
    columns = [*(what for what, _ in STEPS), "first job done"]
    head = f"| seconds from the packet | {' | '.join(columns)} | by bare boots | drain to off | qemu's memory, MiB |"
    rows = [
        f"| {name} | {' | '.join(f'{one[column]:.1f}' if column in one else '-' for column in columns)} "
        f"| {one['first job done'] / bare_s:.2f} | {one['drain to off']:.1f} | {one['qemu MiB']:.0f} |"
        for name, one in found.items()
    ]
    note = (
        f"`python -m bench rack --part figures`: one life each, qemu without acceleration. A bare boot of the same "
        f"kernel (BIOS, user network, iPXE, kernel, a program that turns the machine off) took {bare_s:.1f} s in the "
        f"same run. BIOS machines have 192 MiB, UEFI ones 512; {wire / MIB:.1f} MiB come over the wire in each boot."
    )
    return "\n".join([note, "", head, "|" + "---|" * (head.count("|") - 1), *rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
