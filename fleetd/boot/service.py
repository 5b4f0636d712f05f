"""The boot service: for every rack of a policy its scripts, files and enrolment, over HTTP and TLS.

Promises: trouble with one rack, or with its image, costs no other and no controller: it is said, once, and tried again;
a reload of the policy is taken up without cutting a transfer, unless an address has changed. May not wake anything.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleetd.boot.certificate import Certificate, keep_certificate
from fleetd.boot.dnsmasq import lan_of
from fleetd.boot.enrol import Desk
from fleetd.boot.http import Files, Handler
from fleetd.boot.machines import Machines, Site, host_of
from fleetd.boot.rivals import conflict, offers
from fleetd.boot.stock import Stock
from fleetd.core.model import Policy, PoolPolicy, Seconds
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import FleetdError
from fleetd.providers.rack.book import Book
from fleetd.providers.rack.inventory import RackOptions

KIND: Final = "rack"
LOOK_S: Final = 1.0
AGAIN_S: Final = 10.0  # an address that is not there yet may come
SAID: Final = 100  # lines remembered, so that none is said at each request
Say = Callable[[str, str], None]  # (kind, text)


@dataclass(frozen=True, slots=True)
class Home:
    """What the boot service has of its fleet: the policy as it is now, its secret, what a worker needs to know."""

    policy: Callable[[], Policy]
    launch: Callable[[Policy], WorkerLaunch]
    secret: str
    clock: Callable[[], Seconds]
    say: Say


async def serve_racks(home: Home) -> None:
    """Serve every rack until cancelled."""
    running: dict[str, Service] = {}
    taken: Policy | None = None
    try:
        while True:
            policy = home.policy()
            if policy is not taken or any(not service.serves for service in running.values()):
                await _take(home, policy, running)
                taken = policy
            pause_s = LOOK_S if all(service.serves for service in running.values()) else AGAIN_S
            await asyncio.sleep(pause_s)
    finally:
        for service in running.values():
            await service.close()


async def _take(home: Home, policy: Policy, running: dict[str, "Service"]) -> None:
    sites = {site.pool.name: site for site in sites_of(policy, home.launch(policy))}
    for name in [name for name in running if name not in sites]:
        await running.pop(name).close()
    for name, site in sites.items():
        service = running.setdefault(name, Service(home))
        try:
            await service.take(site)
        except FleetdError as error:
            service.note(f"{name}: {error}")


def sites_of(policy: Policy, launch: WorkerLaunch) -> list[Site]:
    """Return the racks of a policy that boot from here."""
    return [site for pool in policy.pools.values() if pool.kind == KIND and (site := _site(pool, launch))]


def _site(pool: PoolPolicy, launch: WorkerLaunch) -> Site | None:
    options = pool.options
    assert isinstance(options, RackOptions)
    boot = options.inventory.boot
    if boot is None:
        return None
    host, port = enrol_at(boot.listen, boot.enrol)
    del host
    seen = host_of(boot.url)
    enrol = f"https://[{seen}]:{port}" if ":" in seen else f"https://{seen}:{port}"
    return Site(pool, options.inventory, boot, options.controller or launch.controller_url, enrol, launch)


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address as an inventory has it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def enrol_at(listen: str, enrol: str | None) -> tuple[str, int]:
    """Return where nodes are enrolled: beside the boot service, one port on, unless another place is given."""
    host, port = split(enrol or listen)
    return host, port if enrol else port + 1


@dataclass(slots=True)
class Service:
    """The boot service of one rack."""

    home: Home
    serves: bool = False
    _machines: Machines | None = None
    _book: Book | None = None
    _files: list[Files] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _said: dict[str, None] = field(default_factory=dict)
    _look: asyncio.Task[None] | None = None

    async def take(self, site: Site) -> None:
        """Serve a rack as the policy has it now; raises FleetdError where that is impossible at the moment."""
        before = self._machines
        if before is not None and self.serves and _places(before.site) == _places(site):
            if before.site.inventory is not site.inventory and self._book is not None:
                await asyncio.to_thread(self._book.know, _names(site))
            before.site = site
            before.stock = self._stock(site, before.stock)
            return
        await self.close()
        try:
            await self._open(site)
        except FleetdError:
            await self.close()  # half a service would hand out tokens that nobody takes
            raise

    async def _open(self, site: Site) -> None:
        name, home = site.pool.name, self.home
        book = self._book = await asyncio.to_thread(Book, site.launch.state_dir, name)
        await asyncio.to_thread(book.know, _names(site))
        certificate = await asyncio.to_thread(certificate_of, site)
        stock = self._stock(site)
        machines = self._machines = Machines(site, book, stock, certificate, home.clock, self.note)
        desk = Desk(book, site.launch.fleet, home.secret, home.clock)
        await self._listen(f"{name}: boot.listen", *split(site.boot.listen), machines.answer)
        at = enrol_at(site.boot.listen, site.boot.enrol)
        await self._listen(f"{name}: boot.enrol", *at, desk.answer, certificate)
        self.serves = True
        self._said.clear()
        home.say("boot", f"{name}: boots machines at {site.boot.url}, enrols them at {site.enrol}")
        self._look = asyncio.create_task(self._look_around(site, stock))

    async def _listen(
        self, what: str, host: str, port: int, handle: Handler, certificate: Certificate | None = None
    ) -> None:
        files = Files(handle, self.note)
        try:
            server = await files.start(host, port, certificate.context() if certificate else None)
        except OSError as error:
            raise FleetdError(
                f"{what}: {host}:{port}: {error.strerror or error}; is the address on this host?"
            ) from None
        self._files.append(files)
        self._servers.append(server)

    async def _look_around(self, site: Site, stock: Stock) -> None:
        """Say at the start what will keep machines from booting."""
        try:
            await asyncio.to_thread(stock.fit)
        except FleetdError as error:
            self.note(f"{site.pool.name}: no machine can boot: {error}")
        if line := await asyncio.to_thread(rival, site):
            self.note(f"{site.pool.name}: {line}")

    def _stock(self, site: Site, before: Stock | None = None) -> Stock:
        folder = Path(site.boot.image)
        keys = site.launch.keys
        return before if before and (before.folder, before.keys) == (folder, keys) else Stock(folder, keys)

    def note(self, line: str) -> None:
        """Say something once."""
        if line not in self._said:
            self.home.say("boot", line)
            self._said[line] = None
            if len(self._said) > SAID:
                del self._said[next(iter(self._said))]

    async def close(self) -> None:
        """Stop listening, and let everybody go. Safe twice."""
        self.serves = False
        if self._look is not None:
            self._look.cancel()
        for server in self._servers:
            server.close()
        for files in self._files:
            await files.let_go()
        self._servers, self._files, self._machines, self._look = [], [], None, None
        if self._book is not None:
            await asyncio.to_thread(self._book.close)
            self._book = None


def certificate_of(site: Site) -> Certificate:
    """Return the certificate of a rack's enrolment; raises FleetdError."""
    return keep_certificate(Path(site.launch.state_dir) / "rack", site.pool.name, host_of(site.boot.url))


def rival(site: Site, *, sure: bool = False) -> str:
    """Return what is wrong with the DHCP servers of a rack's LAN, or "". With `sure`, also that it cannot be told."""
    boot = site.boot
    if boot.dhcp == "none" or not boot.interface:
        return "boot.dhcp is none, or boot.interface is not given: DHCP is not looked at" if sure else ""
    try:
        lan = lan_of(site.pool.name, site.inventory, {}, "")
        return conflict(offers(boot.interface), boot.dhcp, str(lan.server))
    except FleetdError as error:
        return str(error) if sure else ""


def _names(site: Site) -> dict[str, str]:
    return {machine.mac: name for name, machine in site.inventory.machines.items()}


def _places(site: Site) -> tuple[object, ...]:
    """Return what can be changed by a new start alone."""
    return site.pool.name, site.boot.listen, site.boot.enrol, host_of(site.boot.url), site.launch.state_dir
