"""What each machine of a rack is given when it asks: a script, then the files and the token that the script names.

Promises: a machine boots only in the window after a wake of ours, and its token is in that boot alone; every other one,
known or not, is told to wait, and to turn itself off where nobody wants it for long. Nothing is found by a path: names
that are not on the list are not there. What is seen of a machine is written into the book.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qs, urlsplit

from fleetd.boot.certificate import Certificate
from fleetd.boot.http import Answer, Asked, File, said
from fleetd.boot.off import initrd
from fleetd.boot.stock import Fit, Stock
from fleetd.codecs.cpio import file, folder, pack
from fleetd.codecs.ipxe import Boot, address, boot_script, hyphened, off_script, wait_script
from fleetd.codecs.magic import mac_text
from fleetd.core.model import PoolPolicy, Seconds
from fleetd.core.ports import WorkerLaunch
from fleetd.dispatchers.credentials import TOKEN_VARIABLE, read_credentials
from fleetd.errors import FleetdError
from fleetd.providers.rack.book import Book, Stage, Wake
from fleetd.providers.rack.inventory import Inventory
from fleetd.providers.rack.shapes import Boot as BootOptions

SEED: Final = "seed"
OCTETS: Final = "application/octet-stream"
FORGET_S: Final = 60.0  # a machine that did not ask for so long does not wait any more
MOST_WAITING: Final = 4096
PLATFORMS: Final = {"pcbios": "bios", "efi": "uefi"}
Verdict = Literal["boot", "wait", "off"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where this rack's services are, and what a worker on its machines is told."""

    pool: PoolPolicy
    inventory: Inventory
    boot: BootOptions
    controller: str
    enrol: str
    launch: WorkerLaunch


def verdict(wake: Wake | None, now: Seconds, waited_s: Seconds, wait_s: Seconds) -> Verdict:
    """Say what a known machine is to do: boot for a wake of ours, whose token is not taken; else wait, not for ever."""
    if wake and wake.used_at is None and wake.stop_at is None and wake.at <= now <= wake.until:
        return "boot"
    return "wait" if waited_s < wait_s else "off"


@dataclass(slots=True)
class Machines:
    """Answers the machines of one rack. `told` hears, once, what an owner should know."""

    site: Site
    book: Book
    stock: Stock
    certificate: Certificate
    clock: Callable[[], Seconds]
    told: Callable[[str], None]
    _waiting: dict[str, tuple[Seconds, Seconds]] = field(default_factory=dict)  # by MAC: since when, last asked

    async def answer(self, asked: Asked) -> Answer:
        """Answer one request."""
        if asked.method not in ("GET", "HEAD"):
            return Answer(405, b"there is nothing to be written here\n", headers={"Allow": "GET, HEAD"})
        return await asyncio.to_thread(self._find, asked)  # the book and the files may have to be waited for

    def _find(self, asked: Asked) -> Answer:
        answer = said(404, "there is no such thing here")
        match asked.path.split("/"):
            case ["", "ipxe", text] if mac := _mac(text):
                answer = self._script(mac, asked)
            case ["", "boot", text, name] if mac := _mac(text):
                answer = self._part(mac, name, asked)
            case ["", "off", "initrd"]:
                answer = Answer(200, initrd(), OCTETS)
            case ["", "off", "kernel"]:
                answer = self._file("kernel")
            case ["", "loader", name]:
                answer = self._loader(name)
            case ["", "healthz"]:
                answer = self._health()
        return answer

    def _script(self, mac: str, asked: Asked) -> Answer:
        now, name = self.clock(), self._names().get(mac)
        platform = parse_qs(asked.query).get("platform", [""])[0]
        if asked.method == "GET":
            self._see(mac, "script", asked, PLATFORMS.get(platform, ""))
        again = address(self.site.boot.url, "ipxe", hyphened(mac))
        waited_s, wait_s = self._waited(mac, now), self.site.boot.wait
        wake = self.book.current(mac) if name else None
        match verdict(wake, now, waited_s, wait_s):
            case "boot" if wake is not None:
                return _text(self._boot(mac, wake, again, wait_s - waited_s))
            case "off":
                self._waiting.pop(mac, None)
                return _text(self._off(f"nobody wanted {name or mac} for {waited_s:.0f} s: off", again))
            case _:
                known = (
                    f"{name} waits until it is wanted" if name else f"{mac} is not admitted: fleetd rack admit {mac}"
                )
                return _text(wait_script(known, again, wait_s - waited_s))

    def _boot(self, mac: str, wake: Wake, again: str, left_s: Seconds) -> str:
        """Return the script that boots, or the one that waits where there is no image that is fit."""
        try:
            fit = self.stock.fit()
            return boot_script(self._plan(mac, wake, fit, again))
        except FleetdError as error:
            self.told(f"{wake.node} cannot boot: {error}")
            return wait_script("the image is not fit to boot: the log of fleetd says why", again, left_s)

    def _off(self, say: str, again: str) -> str:
        kernel, nothing = (address(self.site.boot.url, "off", part) for part in ("kernel", "initrd"))
        try:
            self.stock.file("kernel")
        except FleetdError:
            return off_script(say, again)
        return off_script(say, again, kernel, nothing)

    def _plan(self, mac: str, wake: Wake, fit: Fit, again: str) -> Boot:
        self._waiting.pop(mac, None)
        boot, at = self.site.boot, hyphened(mac)
        layers = [
            argument
            for layer in ("base", "app")
            for argument in (
                f"fleetd.{layer}={address(boot.url, 'boot', at, layer)}",
                f"fleetd.{layer}.sha256={fit.digest(layer)}",
            )
        ]
        syslog = [f"fleetd.syslog={boot.syslog}"] if boot.syslog else []
        return Boot(
            say=f"booting {wake.node}",
            kernel=address(boot.url, "boot", at, "kernel"),
            initrds=[address(boot.url, "boot", at, name) for name in ("initrd", SEED)],
            arguments=[*fit.arguments, *boot.arguments, *syslog, f"fleetd.mac={mac}", f"BOOTIF=01-{at}", *layers],
            again=again,
        )

    def _part(self, mac: str, name: str, asked: Asked) -> Answer:
        """Give a machine a part of its boot; the token's part is for one in its window, and made anew each time."""
        if mac not in self._names():
            return said(403, f"{mac} is not admitted")
        if name == SEED:
            return self._seed(mac, asked)
        stages: Mapping[str, Stage] = {"kernel": "kernel", "initrd": "initrd", "base": "base", "app": "app"}
        if name not in stages:
            return said(404, "there is no such part of a boot")
        answer = self._file(name)
        if asked.method == "GET" and answer.file is not None:
            self._see(mac, stages[name], asked)
        return answer

    def _file(self, part: str) -> Answer:
        try:
            return Answer(200, media=OCTETS, file=self.stock.file(part))
        except FleetdError as error:
            self.told(f"{self.site.pool.name}: {part} is not served: {error}")
            return said(503, f"{part} is not fit to be served: the log of fleetd says why")

    def _seed(self, mac: str, asked: Asked) -> Answer:
        machine = self.site.inventory.machine(self._names()[mac], mac)
        # Where the addresses are given out by us, who asks from another is another.
        if self.site.boot.dhcp == "full" and machine.ip and asked.peer != machine.ip:
            self._report(
                f"{machine.name}: its token was asked for from {asked.peer}, which is not {machine.ip}: refused"
            )
            return said(403, "this is another machine's")
        wake = self.book.current(mac)
        token = self.book.token(mac, self.clock()) if asked.method == "GET" and wake else None
        if token is None or wake is None:
            return said(403, f"{machine.name} was not woken by us just now")
        return Answer(200, self._pack(wake, token), OCTETS)

    def _pack(self, wake: Wake, token: str) -> bytes:
        token_env = {TOKEN_VARIABLE: shown} if (shown := read_credentials().token) else {}
        worker = json.dumps({"args": self._arguments(wake), "env": token_env}).encode()
        return pack(
            [
                folder("fleetd", 0o700),
                file("fleetd/token", token.encode(), 0o400),
                file("fleetd/controller", self.site.enrol.encode(), 0o400),
                file("fleetd/ca.pem", self.certificate.pem.encode(), 0o400),
                file("fleetd/worker.json", worker, 0o400),
            ]
        )

    def _arguments(self, wake: Wake) -> list[str]:
        """Return the command line of the worker on a machine."""
        launch, pool, app = self.site.launch, self.site.pool, self.site.launch.apps.get(wake.app)
        if app is None:
            raise FleetdError(f"{wake.node}: the policy has no app {wake.app}")
        words = ["--app-name", app.name, "--fleet", launch.fleet, "--pool", pool.name, "--node", wake.node]
        return [*words, "--order-key", wake.key, "--controller", self.site.controller, *launch.options(app, pool)]

    def _loader(self, name: str) -> Answer:
        found: File | None = self.stock.loader(name)
        return Answer(200, media=OCTETS, file=found) if found else said(404, "there is no such loader")

    def _health(self) -> Answer:
        try:
            self.stock.fit()
        except FleetdError as error:
            return said(503, str(error))
        return said(200, "good")

    # ── what is known

    def _names(self) -> dict[str, str]:
        named = {machine.mac: name for name, machine in self.site.inventory.machines.items()}
        return self.book.admitted() | named

    def _see(self, mac: str, stage: Stage, asked: Asked, arch: str = "") -> None:
        self.book.see(mac, stage, asked.peer, arch, self.clock())

    def _report(self, line: str) -> None:
        self.book.report(line, self.clock())

    def _waited(self, mac: str, now: Seconds) -> Seconds:
        since, last = self._waiting.pop(mac, (now, now))
        if now - last > FORGET_S:
            since = now
        self._waiting[mac] = since, now
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]
        return now - since


def host_of(url: str) -> str:
    """Return the host of an address, as it stands in a certificate."""
    return urlsplit(url).hostname or ""


def _mac(text: str) -> str:
    """Return an address that stands in a path, or "" for what is none."""
    try:
        return mac_text(text)
    except ValueError:
        return ""


def _text(script: str) -> Answer:
    return Answer(200, script.encode())
