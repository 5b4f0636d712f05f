import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetd.boot.dnsmasq import Lan, dnsmasq, isc, kea, lan_of, pfsense
from fleetd.boot.rivals import conflict
from fleetd.codecs.dhcp import Reply
from fleetd.errors import UsageError
from fleetd.providers.rack.inventory import Inventory
from tests import servers
from tests.boot.lan import NODE_MAC, SERVER, STRANGER_MAC, made
from tests.boot.lan import Lan as RealLan

BOOT = {"listen": f"{SERVER}:8081", "url": f"http://{SERVER}:8081", "interface": "rack0", "subnet": "10.77.0.0/24"}
SCRIPT = "http://10.77.0.1:8081/ipxe/${netX/mac:hexhyp}?platform=${platform}"
LOADER = "http://10.77.0.1:8081/loader/snponly.efi"
ROUTER = """port=0
interface=card0
bind-dynamic
no-ping
dhcp-range=10.77.0.100,10.77.0.200,255.255.255.0,1h
"""


def rack(**boot: Any) -> Lan:
    machines = {"node07": {"mac": NODE_MAC, "ip": "10.77.0.17"}, "node08": {"mac": "52:54:00:12:34:08"}}
    inventory = Inventory.model_validate({"boot": {**BOOT, "dhcp": "full", **boot}, "machines": machines})
    return lan_of("rack3", inventory, {"52:54:00:12:34:09": "node09"}, "/usr/lib/ipxe")


# ── what is printed


@pytest.mark.parametrize("dhcp", ["full", "proxy"])
def test_dnsmasq_takes_what_is_printed(tmp_path: Path, dhcp: str) -> None:
    path = tmp_path / "conf"
    path.write_text(dnsmasq(rack(dhcp=dhcp, gateway="10.77.0.254", dns=["10.77.0.53", "10.77.0.54"])))
    done = subprocess.run(
        [servers.find("dnsmasq"), "--test", f"--conf-file={path}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "syntax check OK" in done.stderr) == (0, True), done.stderr


def test_every_known_machine_is_in_it_and_the_router_is_no_router() -> None:
    text = dnsmasq(rack())
    assert f"dhcp-host={NODE_MAC},10.77.0.17,node07\n" in text
    assert "dhcp-host=52:54:00:12:34:08,node08\n" in text
    assert "dhcp-host=52:54:00:12:34:09,node09\n" in text
    assert "dhcp-option=option:router\n" in text  # none: else dnsmasq names itself
    assert "ra-param=rack0,5,0\n" in text  # a lifetime of 0: nobody sends anything through us


@pytest.mark.parametrize(
    ("boot", "span"),
    [
        ({}, "10.77.0.10,10.77.0.254"),
        ({"range": "10.77.0.100-10.77.0.150"}, "10.77.0.100,10.77.0.150"),
        ({"subnet": "10.77.0.0/28"}, "10.77.0.4,10.77.0.14"),
    ],
)
def test_the_range_is_given_or_follows_from_the_subnet(boot: dict[str, Any], span: str) -> None:
    machines = {"machines": {"node07": {"mac": NODE_MAC}}}
    inventory = Inventory.model_validate({"boot": {**BOOT, "dhcp": "full", **boot}, **machines})
    assert f"dhcp-range={span},255." in dnsmasq(lan_of("rack3", inventory, {}, "/t"))


@pytest.mark.parametrize(
    ("boot", "line"),
    [
        ({"subnet": None}, "boot.subnet: is needed"),
        ({"interface": ""}, "boot.interface: is needed"),
        ({"dhcp": "none"}, "boot.dhcp: is none"),
        ({"listen": "10.78.0.1:8081"}, "boot.listen: 10.78.0.1 is not within the rack's subnet, 10.77.0.0/24"),
        ({"listen": "localhost:8081"}, "boot.listen: localhost is not within"),
        ({"range": "a-b"}, "boot.range: 'a-b' must be FIRST-LAST"),
        ({"range": "10.77.0.9-10.77.1.9"}, "is not within 10.77.0.0/24"),
        ({"range": "10.77.0.9-10.77.0.8"}, "is not within"),
    ],
)
def test_what_is_missing_is_said_by_its_key(boot: dict[str, Any], line: str) -> None:
    inventory = Inventory.model_validate({"boot": {**BOOT, "dhcp": "full", **boot}})
    with pytest.raises(UsageError) as caught:
        dnsmasq(lan_of("rack3", inventory, {}, "/t"))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_other_servers_are_told_the_same() -> None:
    lan = rack(gateway="10.77.0.254")
    given = json.loads(kea(lan))["Dhcp4"]
    classes = {one["name"]: one["boot-file-name"] for one in given["client-classes"]}
    assert classes == {"ipxe": SCRIPT, "bios": "undionly.kpxe", "uefi": "snponly.efi", "http": LOADER}
    assert {"hw-address": NODE_MAC, "hostname": "node07", "ip-address": "10.77.0.17"} in given["subnet4"][0][
        "reservations"
    ]
    for text in (isc(lan), pfsense(lan)):
        assert all(part in text for part in (SCRIPT, LOADER, "undionly.kpxe", "snponly.efi", NODE_MAC))


@pytest.mark.real
def test_isc_dhcpd_takes_its_part(tmp_path: Path) -> None:
    program = servers.find("dhcpd")
    (tmp_path / "conf").write_text(isc(rack(gateway="10.77.0.254", dns=["10.77.0.53"])))
    done = subprocess.run([program, "-t", "-cf", str(tmp_path / "conf")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ── who answers


def offer(server: str, address: str = "10.77.0.99") -> Reply:
    return Reply(2, server, address, "0.0.0.0", "")


@pytest.mark.parametrize(
    ("dhcp", "found", "line"),
    [
        ("full", [offer(SERVER)], ""),
        ("full", [offer(SERVER), offer("10.77.0.254")], "DHCP conflict: 10.77.0.254 gives out addresses here, too"),
        ("full", [], "dnsmasq does not answer at 10.77.0.1"),
        ("proxy", [offer(SERVER, "0.0.0.0"), offer("10.77.0.254")], ""),
        ("proxy", [offer(SERVER, "0.0.0.0")], "no DHCP server gives out addresses here"),
        ("proxy", [offer("10.77.0.254")], "dnsmasq does not answer"),
        (
            "proxy",
            [offer("10.77.0.253"), offer("10.77.0.254")],
            "several give out addresses here: 10.77.0.253, 10.77.0.254",
        ),
        ("none", [offer("10.77.0.254")], ""),
    ],
)
def test_a_conflict_is_one_line(dhcp: Any, found: list[Reply], line: str) -> None:
    said = conflict(found, dhcp, SERVER)
    assert line in said
    assert bool(said) == bool(line)


# ── the real dnsmasq on a LAN of the test's own


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[RealLan]:
    servers.find("dnsmasq")
    with made(tmp_path) as real:
        real.plug("node", mac=NODE_MAC)
        yield real


@pytest.mark.real
@pytest.mark.slow
def test_full_dhcp_gives_bios_uefi_and_http_boot_what_they_need(lan: RealLan) -> None:
    lan.dnsmasq("rack", dnsmasq(rack()))
    for arch, ipxe, file, vendor in (
        (0, False, "undionly.kpxe", ""),
        (7, False, "snponly.efi", ""),
        (9, False, "snponly.efi", ""),
        (16, False, LOADER, "HTTPClient"),
        (0, True, SCRIPT, ""),
        (7, True, SCRIPT, ""),
    ):
        answers = lan.ask("node", mac=NODE_MAC, arch=arch, ipxe=ipxe, wait_s=1.0)
        assert [one["kind"] for one in answers] == [2, 5], (arch, answers)
        for one in answers:
            found = (one["address"], one["file"], one["vendor"], one["next"])
            assert found == ("10.77.0.17", file, vendor, SERVER), (arch, ipxe)


@pytest.mark.real
@pytest.mark.slow
def test_a_client_of_another_make_gets_the_same(lan: RealLan, tmp_path: Path) -> None:
    lan.dnsmasq("rack", dnsmasq(rack()))
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "bound ip=$ip file=$boot_file$bootfile"\nexit 0\n')
    script.chmod(0o755)
    program = servers.find("udhcpc")
    more = ["-x", "0x5d:0007", "-V", "PXEClient:Arch:00007:UNDI:003016"]
    said = lan.run("node", program, "-i", "card0", "-f", "-q", "-n", "-s", str(script), *more)
    found = re.search(r"bound ip=(\S+) file=(\S*)", said)
    assert found
    assert found.groups() == ("10.77.0.17", "snponly.efi")


@pytest.mark.real
@pytest.mark.slow
def test_a_proxy_adds_to_a_server_that_knows_nothing_of_us(lan: RealLan) -> None:
    lan.plug("router", "10.77.0.254/24")
    lan.dnsmasq("router", ROUTER)
    lan.dnsmasq("rack", dnsmasq(rack(dhcp="proxy")))
    for arch in (0, 7):
        by = {one["server"]: one for one in lan.ask("node", mac=NODE_MAC, arch=arch, ipxe=True, wait_s=1.0)}
        assert by["10.77.0.254"]["file"] == ""
        assert str(by["10.77.0.254"]["address"]).startswith("10.77.0.1")
        found = tuple(by[SERVER][what] for what in ("address", "file", "next"))
        assert found == ("0.0.0.0", SCRIPT, SERVER)  # without a next server, iPXE would not listen
    lan.run("node", "ip", "address", "add", "10.77.0.55/24", "dev", "card0")
    for arch, menu, file in ((0, 0x8000, "undionly.kpxe"), (7, None, "snponly.efi"), (9, None, "snponly.efi")):
        question = {"mac": NODE_MAC, "arch": arch, "own": "10.77.0.55", "server": SERVER, "menu": menu}
        answers = lan.ask("node", **question)
        assert [(one["file"], one["vendor"]) for one in answers] == [(file, "PXEClient")], arch


@pytest.mark.real
@pytest.mark.slow
def test_a_second_server_on_the_lan_is_found(lan: RealLan) -> None:
    lan.plug("router", "10.77.0.254/24")
    lan.dnsmasq("rack", dnsmasq(rack()))
    look = f"from fleetd.boot.rivals import conflict, offers; print(conflict(offers('rack0'), 'full', '{SERVER}'))"
    assert lan.run("rack", sys.executable, "-c", look) == "\n"
    lan.dnsmasq("router", ROUTER)
    said = lan.run("rack", sys.executable, "-c", look)
    assert said.startswith("DHCP conflict: 10.77.0.254 gives out addresses here, too: turn it off, or set boot.dhcp")


@pytest.mark.real
@pytest.mark.slow
def test_an_unknown_machine_gets_an_address_so_that_it_can_be_seen(lan: RealLan) -> None:
    lan.dnsmasq("rack", dnsmasq(rack()))
    lan.plug("stranger", mac=STRANGER_MAC)
    answers = lan.ask("stranger", mac=STRANGER_MAC, arch=0, ipxe=True, wait_s=5.0)
    assert answers[-1]["kind"] == 5
    assert answers[-1]["file"] == SCRIPT
    assert answers[-1]["address"] not in ("0.0.0.0", "10.77.0.17", SERVER)
