"""A node whose controller is gone: it works on, and once it has idled past its lease the power goes off.

All of it is real, from the boot service's second initrd to the worker: only the last step, the power, is a file.
"""

import asyncio
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fleetd.worker.enrolled import cards
from tests import servers
from tests.boot.rack import MAC, Rack, serving
from tests.boot.test_machines import unpack
from tests.worker import controller as office
from tests.worker.harness import APP, Client, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
ORPHAN_S = 2.0
NODE = """
import os, sys
from pathlib import Path
from fleetd.worker.node import Log, Node, environment, read_orders
folder, own, off = map(Path, sys.argv[1:])
orders, log = read_orders(folder), Log(console=Path("/dev/stdout"))
around = {**os.environ, **environment(orders, own, None), "HOME": str(folder.parent), "PATH": os.environ["PATH"]}
around |= {name: str(folder.parent) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
Node(orders, log, around, user=None).run()
off.write_text("off")
"""


def boot(rack: Rack, room: Path, mac: str, changed: dict[str, str]) -> subprocess.Popen[bytes]:
    """Do as the machine's init does: lay out what came with the boot, and become the node."""
    link = http.client.HTTPConnection("127.0.0.1", rack.port, timeout=10)
    link.request("GET", f"/boot/{mac}/seed")
    seed = unpack(link.getresponse().read())
    link.close()
    for name, (_, content) in seed.items():
        path = room / name
        if name == "fleetd":
            path.mkdir()
        else:
            path.write_bytes(content)
    orders: dict[str, Any] = json.loads((room / "fleetd" / "worker.json").read_text())
    words = orders["args"]
    for option, value in changed.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    (room / "fleetd" / "worker.json").write_text(json.dumps(orders))
    command = [sys.executable, "-c", NODE, *(str(room / name) for name in ("fleetd", "own", "off"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(node: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a node, and return what it has said."""
    with node:
        try:
            said, _ = node.communicate(timeout=30)
        finally:
            node.kill()
    assert node.returncode == 0, said.decode()
    return said.decode()


def app(room: Path) -> Path:
    (room / "app").mkdir()
    (room / "app" / "jobs.py").write_text(APP)
    return room / "app"


async def test_a_node_without_its_controller_works_on_then_ends_and_the_power_goes(
    tmp_path: Path, gearmand: servers.Server
) -> None:
    mac = (cards() or [MAC])[0]
    async with serving(tmp_path) as rack:
        rack.book.admit(mac, "node99")
        wake = rack.wake(mac)
        with office.serving() as controller:
            changed = {"--controller": controller.url, "--server": gearmand.address, "--slots": "1"}
            changed |= {"--app": str(app(tmp_path)), "--orphan-after": str(ORPHAN_S), "--fleet": "shop"}
            node = await asyncio.to_thread(boot, rack, tmp_path, mac, changed)
            lease = await asyncio.to_thread(controller.wait, lambda lease: lease.state == "working")
            assert (lease.node, lease.pool) == (wake.node, "rack3")
            assert controller.errors == []
            assert rack.book.sightings()[mac].stage == "enrolled"
            used = rack.book.current(mac)
            assert used is not None
            assert used.used_at is not None
            client = Client(gearmand.port)
            client.submit("nap", b"4")
            await asyncio.to_thread(controller.wait, lambda lease: lease.busy == 1)
            controller.mode = "503"  # on the connections that outlive its listener, too
        gone = time.monotonic()
        end = await asyncio.to_thread(client.end)
        assert end.args[1] == b"slept"  # twice as long as it may idle: never in the middle of a job
        again = await asyncio.to_thread(client.run, "upper", b"x")
        assert again.args[1] == b"X"
        assert not (tmp_path / "off").exists()
        await asyncio.to_thread(until, (tmp_path / "off").exists, 30)
        assert time.monotonic() - gone >= 4 + ORPHAN_S - 0.5
        said = ended(node)
        client.sock.close()
    assert "and no job either" in said
    assert "the worker has ended with 0" in said


async def test_the_credential_is_in_a_file_of_its_owners_and_the_token_is_not_in_any_environment(
    tmp_path: Path, gearmand: servers.Server
) -> None:
    mac = (cards() or [MAC])[0]
    async with serving(tmp_path) as rack:
        rack.book.admit(mac, "node99")
        rack.wake(mac)
        with office.serving() as controller:
            changed = {"--controller": controller.url, "--server": gearmand.address, "--slots": "1"}
            changed |= {"--app": str(app(tmp_path)), "--orphan-after": "1"}
            node = await asyncio.to_thread(boot, rack, tmp_path, mac, changed)
            await asyncio.to_thread(controller.wait, lambda lease: lease.state == "working")
            kept = tmp_path / "own" / "join"
            assert kept.stat().st_mode & 0o777 == 0o600
            for pid in _tree(node.pid):
                around = Path(f"/proc/{pid}/environ").read_bytes()
                assert kept.read_bytes().rpartition(b".")[2] not in around
            controller.mode = "503"
        ended(node)


def _tree(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(one for child in map(int, text.split()) for one in _tree(child))]
