"""A LAN of its own, run by `unshare -n`: what of packets and knocking only a real segment shows. Prints JSON.

One cable leads to a card that has no address and hears everything, another to a machine in a namespace of its own.
"""

import asyncio
import json
import socket
import subprocess
import time
from typing import Any

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import switch_of
from fleetd.providers.rack.probe import knock
from tests.rack.powerd import Outlet, PowerDaemon

MAC = "52:54:00:12:34:07"
PASSWORD = "00:11:22:33:44:55"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


async def main() -> dict[str, Any]:
    told: dict[str, Any] = {}
    try:
        await switch_of(Machine("node07", MAC)).on()
    except ProviderError as error:
        told["no route"] = str(error)
    ip("link", "set", "lo", "up")
    ip("link", "add", "rack0", "type", "veth", "peer", "name", "card0")
    for end in ("rack0", "card0"):
        ip("link", "set", end, "up")
    ip("addr", "add", "10.77.0.1/24", "dev", "rack0")
    with PowerDaemon([Outlet(MAC, ["sleep", "60"], PASSWORD)], interface="card0") as daemon:
        wol = Machine("node07", MAC, secureon=PASSWORD, broadcast="10.77.0.255", source="10.77.0.1")
        await switch_of(wol).on()
        daemon.wait(MAC, on=True)
        told["broadcast"] = daemon.heard
        daemon.outlets[MAC].cut()
        daemon.heard = []
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:  # as etherwake sends: no IP, to the card itself
            raw.bind(("rack0", 0))
            mac = bytes.fromhex(MAC.replace(":", ""))
            raw.send(mac + b"\x52\x54\x00\x00\x00\x01\x08\x42" + b"\xff" * 6 + mac * 16 + b"\x00\x11\x22\x33\x44\x55")
        daemon.wait(MAC, on=True)
        told["ethertype"] = daemon.heard
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as machine:
        try:
            told |= await _knocked(machine.pid)
        finally:
            machine.kill()
    return told


async def _knocked(pid: int) -> dict[str, Any]:
    time.sleep(0.5)
    inside = ["nsenter", "-t", str(pid), "-n", "ip"]
    ip("link", "add", "rack1", "type", "veth", "peer", "name", "eth0")
    ip("link", "set", "eth0", "netns", str(pid))
    ip("link", "set", "rack1", "up")
    ip("addr", "add", "10.78.0.1/24", "dev", "rack1")
    for words in (["addr", "add", "10.78.0.17/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        subprocess.run([*inside, *words], check=True, timeout=10)
    on = await knock("10.78.0.17", 9)
    nobody = await knock("10.78.0.18", 9, 5.0)
    subprocess.run([*inside, "link", "set", "eth0", "down"], check=True, timeout=10)
    return {"on": on, "nobody": nobody, "cable": await knock("10.78.0.17", 9)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
