"""Real firmware on a real LAN: qemu's iPXE, dnsmasq as `fleetd boot dnsmasq` configures it, and `fleetd boot`."""

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from fleetd.boot.dnsmasq import SCRIPT, ula
from fleetd.providers.rack.book import Book, Seen
from tests import servers
from tests.boot.lan import NODE_MAC, SERVER, Lan, ip, made
from tests.boot.rack import SECRET, make_image, serving
from tests.image.machines import OVMF, by_network, machine
from tests.worker.harness import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
PATIENCE_S = 180.0
SUBNET = IPv4Network("10.77.0.0/24")
QEMU = "-accel tcg -m 256 -smp 1 -nodefaults -no-user-config -no-reboot -display none"
POLICY = """
version: 1
fleet: shop
controller: {listen: "10.77.0.1:8080", join: {env: TEST_JOIN}}
sources: {main: {gearman: {servers: ["10.77.0.1:4730"]}}}
apps: {photos: {release: {path: app}}}
queues: {photos: {app: photos, source: main, match: "*", objective: {wait: 30s}}}
pools:
  rack3: {rack: {inventory: rack3.yaml}, apps: [photos], slots: 4, max: 2, price: 0.03/h}
"""


def policy(folder: Path, dhcp: str) -> Path:
    boot = {
        "listen": f"{SERVER}:8081",
        "url": f"http://{SERVER}:8081",
        "interface": "rack0",
        "subnet": "10.77.0.0/24",
        "dhcp": dhcp,
    }
    (folder / "rack3.yaml").write_text(
        json.dumps({"boot": boot, "machines": {"node07": {"mac": NODE_MAC, "ip": "10.77.0.17"}}})
    )
    (folder / "app").mkdir(exist_ok=True)
    (folder / "app" / "jobs.py").write_text("")
    (folder / "fleetd.yaml").write_text(POLICY)
    make_image(folder / "image")
    return folder / "fleetd.yaml"


def fleetd(folder: Path, *words: str) -> tuple[str, ...]:
    return ("env", f"FLEETD_STATE={folder / 'state'}", f"TEST_JOIN={SECRET}", sys.executable, "-m", "fleetd", *words)


def seen(book: Book, what: Callable[[Seen], bool]) -> Seen:
    def look() -> Seen | None:
        found = book.sightings().get(NODE_MAC)
        return found if found and what(found) else None

    return until(look, PATIENCE_S, lambda: str(book.sightings()))


@pytest.mark.parametrize(
    ("dhcp", "firmware"), [("full", "bios"), ("proxy", "bios"), ("full", "uefi"), ("proxy", "uefi")]
)
def test_a_machine_on_the_racks_lan_finds_its_script_waits_and_boots_when_woken(
    tmp_path: Path, dhcp: str, firmware: str
) -> None:
    qemu = servers.find("qemu-system-x86_64")
    if not os.access("/dev/net/tun", os.W_OK):
        pytest.skip("no /dev/net/tun")
    path = policy(tmp_path, dhcp)
    with made(tmp_path) as lan:
        words = [qemu, *QEMU.split(), *(_uefi(tmp_path) if firmware == "uefi" else ("-boot", "n"))]
        began = _boot(lan, tmp_path, path, dhcp, words)
        book = Book(tmp_path / "state" / "shop", "rack3")
        try:
            first = seen(book, lambda one: one.stage == "script")
            print(f"{dhcp} {firmware}: {time.monotonic() - began:.1f} s to the first script")
            assert first.arch == firmware
            assert (first.ip == "10.77.0.17") == (dhcp == "full")
            wake = book.wake(NODE_MAC, "key", "photos", time.time(), 300.0, name="node07")
            assert wake.node == "rack3/node07.1"
            seen(
                book, lambda one: one.stage in ("kernel", "initrd")
            )  # of which there is none: the image is of random bytes
        finally:
            book.close()


def _uefi(folder: Path) -> list[str]:
    """Return the options of a machine with UEFI: its network card has no iPXE, so it gets one by TFTP."""
    if not (OVMF / "OVMF_CODE_4M.fd").exists() or not Path("/usr/lib/ipxe/snponly.efi").exists():
        pytest.skip("ovmf or ipxe is not installed")
    shutil.copy(OVMF / "OVMF_VARS_4M.fd", folder / "vars")
    code = f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"
    return ["-drive", code, "-drive", f"if=pflash,unit=1,format=raw,file={folder / 'vars'}"]


def _boot(lan: Lan, folder: Path, path: Path, dhcp: str, words: list[str]) -> float:
    """Start the services and the machine; return when that was switched on."""
    inside = ("-n", lan.names["rack"])
    ip(*inside, "address", "add", f"{ula(SUBNET)}1/64", "dev", "rack0", "nodad")
    if dhcp == "proxy":
        lan.plug("router", "10.77.0.254/24")
        lan.dnsmasq(
            "router",
            "port=0\ninterface=card0\nbind-dynamic\nno-ping\ndhcp-range=10.77.0.100,10.77.0.200,255.255.255.0,1h\n",
        )
    lan.dnsmasq("rack", lan.run("rack", *fleetd(folder, "boot", "dnsmasq", "-p", str(path))))
    lan.start("rack", *fleetd(folder, "boot", "-p", str(path)))
    until(lambda: "boots machines" in lan.log("rack"), 30, lambda: lan.log("rack"))
    ip(*inside, "tuntap", "add", "tap0", "mode", "tap")
    ip(*inside, "link", "set", "tap0", "master", "rack0", "up")
    card = ("-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no")
    rom = ",romfile=" if "-boot" not in words else ""
    lan.start("rack", *words, *card, "-device", f"virtio-net-pci,netdev=n0,mac={NODE_MAC}{rom}")
    return time.monotonic()


async def test_without_privileges_a_machine_waits_and_boots_when_woken(tmp_path: Path) -> None:
    servers.find("qemu-system-x86_64")
    port = servers.free_port()
    url = f"http://10.0.2.2:{port}"
    async with serving(tmp_path, listen=f"127.0.0.1:{port}", url=url) as rack:
        options = by_network(url + SCRIPT, uefi=False, room=tmp_path / "tftp")
        with machine(tmp_path / "machine", *options) as on:
            await asyncio.to_thread(seen, rack.book, lambda one: (one.stage, one.arch) == ("script", "bios"))
            rack.wake()
            await asyncio.to_thread(seen, rack.book, lambda one: one.stage in ("kernel", "initrd"))
            assert on.process.poll() is None


def test_the_doctor_finds_what_keeps_machines_from_booting(tmp_path: Path) -> None:
    path = policy(tmp_path, "full")
    with made(tmp_path) as lan:
        examine = lan.inside("rack", *fleetd(tmp_path, "boot", "doctor", "-p", str(path)))
        bad = lan.end(examine, 1)
        assert "good  rack3: " in bad
        assert "BAD   rack3: dnsmasq does not answer at 10.77.0.1: start it with" in bad
        lan.dnsmasq("rack", lan.run("rack", *fleetd(tmp_path, "boot", "dnsmasq", "-p", str(path))))
        assert "good  rack3: DHCP: what answers on rack0 fits boot.dhcp: full" in lan.end(examine, 0)
        lan.plug("router", "10.77.0.254/24")
        lan.dnsmasq("router", "port=0\ninterface=card0\nbind-dynamic\nno-ping\ndhcp-range=10.77.0.100,10.77.0.200,1h\n")
        assert "BAD   rack3: DHCP conflict: 10.77.0.254 gives out addresses here, too" in lan.end(examine, 1)
