"""A rack for the tests: an image of random parts, a book, and the boot service on loopback."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fleetd.boot.manifest import PARTS, Image, Part, load_image, write_image
from fleetd.boot.service import Home, serve_racks
from fleetd.core.model import AppPolicy, Policy, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.rack.book import Book
from fleetd.providers.rack.inventory import Inventory, RackOptions
from tests import servers

SECRET = "s" * 40
MAC, OTHER, STRANGER = "52:54:00:12:34:07", "52:54:00:12:34:08", "52:54:00:12:34:99"
SIZES: Mapping[str, int] = {"kernel": 300_000, "initrd": 5_000, "base": 1_000_000, "app": 70_001}


def make_image(folder: Path, sizes: Mapping[str, int] = SIZES, key: Path | None = None) -> Image:
    """Write an image whose parts are random."""
    folder.mkdir(exist_ok=True)
    parts = {}
    for what in PARTS:
        content = os.urandom(sizes[what])
        digest = hashlib.sha256(content).hexdigest()
        parts[what] = Part(f"{what}-{digest[:12]}", len(content), digest)
        (folder / parts[what].name).write_bytes(content)
    image = Image("1", "6.1.0", parts, ("console=ttyS0", "quiet"), {})
    write_image(folder, image, key)
    return image


@dataclass
class Rack:
    """What a test needs to hold of a running boot service."""

    folder: Path
    port: int
    enrols: int
    book: Book
    image: Image
    policy: Policy
    said: list[str] = field(default_factory=list)
    now: float = 0.0

    @property
    def enrol(self) -> str:
        return f"https://127.0.0.1:{self.enrols}"

    def clock(self) -> float:
        return self.now or time.time()

    def part(self, what: str) -> Path:
        return self.folder / "image" / self.image.parts[what].name

    def wake(self, mac: str = MAC, window_s: float = 300.0) -> Any:
        return self.book.wake(mac, "key-1", "photos", self.clock(), window_s)

    def pem(self) -> str:
        return (self.folder / "state" / "rack" / "rack3.pem").read_text()

    def change(self, **boot: Any) -> None:
        """Take a policy with other options of the boot service."""
        pool = self.policy.pools["rack3"]
        inventory = pool.options.inventory
        changed = inventory.model_copy(update={"boot": inventory.boot.model_copy(update=boot)})
        options = pool.options.model_copy(update={"inventory": changed})
        self.policy = replace(self.policy, pools={"rack3": replace(pool, options=options)})


def make_policy(folder: Path, port: int, enrols: int, boot: Mapping[str, Any] | None = None) -> Policy:
    at = {"listen": f"127.0.0.1:{port}", "url": f"http://127.0.0.1:{port}", "enrol": f"127.0.0.1:{enrols}"}
    given = {**at, "dhcp": "none", "image": str(folder / "image"), **(boot or {})}
    machines = {"node07": {"mac": MAC, "ip": "10.77.0.17"}, "node08": {"mac": OTHER}}
    inventory = Inventory.model_validate({"boot": given, "machines": machines})
    options = RackOptions(inventory=inventory, controller="http://10.77.0.1:8080")
    pool = PoolPolicy(name="rack3", kind="rack", options=options, apps=("photos",), slots=4, max_nodes=12)
    apps = {"photos": AppPolicy(name="photos")}
    return Policy(fleet="shop", apps=apps, pools={"rack3": pool}, queues={}, sources={})


def launch_of(policy: Policy, folder: Path, keys: tuple[str, ...] = ()) -> WorkerLaunch:
    return WorkerLaunch(
        fleet=policy.fleet,
        instance="i",
        controller_url="http://127.0.0.1:1",
        state_dir=str(folder / "state"),
        apps=policy.apps,
        servers={"photos": ("10.77.0.1:4730",)},
        limits={"photos": 60.0},
        token=lambda pool: "",
        keys=keys,
    )


@contextlib.asynccontextmanager
async def serving(folder: Path, keys: tuple[str, ...] = (), *, make: bool = True, **boot: Any) -> AsyncIterator[Rack]:
    """Serve a rack of two machines; its image is made, or is there."""
    image = make_image(folder / "image") if make else load_image(folder / "image")
    port, enrols = servers.free_port(), servers.free_port()
    book = Book(folder / "state", "rack3")
    rack = Rack(folder, port, enrols, book, image, make_policy(folder, port, enrols, boot))
    home = Home(
        policy=lambda: rack.policy,
        launch=lambda policy: launch_of(policy, folder, keys),
        secret=SECRET,
        clock=rack.clock,
        say=lambda kind, text: rack.said.append(text),
    )
    task = asyncio.create_task(serve_racks(home))
    try:
        async with asyncio.timeout(10):
            while not any("boots machines" in line for line in rack.said):
                assert not task.done(), rack.said
                await asyncio.sleep(0.01)
        yield rack
    finally:
        task.cancel()
        await asyncio.wait([task])
        rack.book.close()
