"""`fleetd boot`: the boot service of racks; what DHCP servers are to be told; what keeps machines from booting."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fleetd.cli.asking import Json, nearest
from fleetd.errors import FleetdError, UsageError

if TYPE_CHECKING:
    from fleetd.boot.machines import Site
    from fleetd.control.wiring import Home
    from fleetd.core.model import Policy

app = typer.Typer()
boot_app = typer.Typer(help="Boot the machines of racks: the service, and what their LAN must be told.")
app.add_typer(boot_app, name="boot")
Say = Callable[[str, str], None]
Given = Annotated[Path | None, typer.Option("--policy", "-p", help="the policy file")]
Rack = Annotated[str | None, typer.Option("--rack", help="which rack's pool; needless where there is one")]
LOOK_S: Final = 1.0
OTHERS: Final = ("isc", "kea", "pfsense")


@boot_app.callback(invoke_without_command=True)
def boot(context: typer.Context, policy: Given = None) -> None:
    """Serve the racks of a policy until Ctrl-C, without a controller; `fleetd run` does the same by itself."""
    context.obj = policy
    if context.invoked_subcommand is None:
        path = _path(policy, context)
        asyncio.run(_alone(path))


@boot_app.command()
def dnsmasq(
    context: typer.Context,
    policy: Given = None,
    rack: Rack = None,
    isc: Annotated[bool, typer.Option("--isc", help="for ISC dhcpd instead")] = False,
    kea: Annotated[bool, typer.Option("--kea", help="for Kea instead")] = False,
    pfsense: Annotated[bool, typer.Option("--pfsense", help="for pfSense instead")] = False,
    tftp: Annotated[Path, typer.Option("--tftp", help="the folder of iPXE")] = Path("/usr/lib/ipxe"),
) -> None:
    """Print dnsmasq's configuration for a rack: full DHCP or proxyDHCP, as boot.dhcp says; or another server's."""
    from fleetd.boot import dnsmasq as texts

    site = _one(_path(policy, context), rack)
    wanted = [name for name, given in zip(OTHERS, (isc, kea, pfsense), strict=True) if given]
    if len(wanted) > 1:
        raise UsageError(f"--{wanted[1]}: one kind of server at a time; leave --{wanted[0]} out")
    lan = texts.lan_of(site.pool.name, site.inventory, _admitted(site), str(tftp))
    print(getattr(texts, wanted[0] if wanted else "dnsmasq")(lan), end="")


@boot_app.command()
def show(context: typer.Context, policy: Given = None, as_json: Json = False) -> None:
    """Show where racks boot from, their image, and the fingerprint of the certificate that is pinned in each boot."""
    rows = [_shown(site) for site in _sites(_path(policy, context))]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['rack']}: boots at {row['boot']}, enrols at {row['enrol']}")
        print(f"  certificate  SHA-256 {row['fingerprint']}")
        print(f"  image        {row['image']}")
        print(f"  pending      {', '.join(row['pending']) or 'no unknown machine was seen'}")


@boot_app.command()
def doctor(context: typer.Context, policy: Given = None, as_json: Json = False) -> None:
    """Look for what keeps machines from booting: the image, the addresses, other DHCP servers (root)."""
    found = [finding for site in _sites(_path(policy, context)) for finding in _examined(site)]
    if as_json:
        print(json.dumps([{"good": good, "what": what} for good, what in found]))
    else:
        for good, what in found:
            print(f"{'good' if good else 'BAD '}  {what}")
    if not all(good for good, _ in found):
        raise typer.Exit(1)


async def serve(policy: Callable[[], "Policy"], home: "Home", say: Say) -> None:
    """Serve the racks of a running controller's policy until cancelled; a policy without one costs nothing."""
    while not any(pool.kind == "rack" for pool in policy().pools.values()):  # noqa: ASYNC110 - a reload tells nobody
        await asyncio.sleep(LOOK_S)
    from fleetd.boot.service import Home as Service
    from fleetd.boot.service import serve_racks
    from fleetd.control.wiring import worker_launch

    launch = partial(worker_launch, home=home)
    await serve_racks(Service(policy, launch, home.join_secret, time.time, say))


# ── without a controller


async def _alone(path: Path) -> None:
    from fleetd.config import load

    policy, home = _home(path)
    if not any(pool.kind == "rack" for pool in policy.pools.values()):
        raise UsageError(f"{path}: has no rack to boot")
    loop, serving = asyncio.get_running_loop(), asyncio.current_task()
    assert serving is not None

    def reload() -> None:
        nonlocal policy
        try:
            policy = load(path)
        except FleetdError as error:
            _say("reload", f"{error} (the old policy stays)")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        await serve(lambda: policy, home, _say)
    except asyncio.CancelledError:
        _say("end", "machines that boot now find nobody here")


def _say(kind: str, text: str) -> None:
    print(f"{kind}: {text}", file=sys.stderr, flush=True)


def _home(path: Path) -> tuple["Policy", "Home"]:
    """Return a policy, and what its controller has told or left about itself."""
    from fleetd.cli.remote import state_folder
    from fleetd.config import load
    from fleetd.control.wiring import Home
    from fleetd.store.sqlite import Store

    policy = load(path)
    folder, secret, port = state_folder(policy.fleet), policy.controller.join, policy.controller.port
    if (folder / "fleet.db").exists() and not (secret and port):
        store = Store(folder, read_only=True)
        try:
            secret = secret or store.meta("join")
            port = port or int(store.meta("port") or 0)
        finally:
            store.close()
    if not secret:
        raise UsageError(
            f"{path}: controller.join: is not set, and no controller ran here yet: machines need it to join"
        )
    return policy, Home(folder, "", f"http://{policy.controller.host}:{port}", secret)


def _path(own: Path | None, context: typer.Context) -> Path:
    path = own or context.obj
    if path is None:
        raise UsageError("boot: needs --policy FILE")
    return Path(path)


def _sites(path: Path) -> list["Site"]:
    from fleetd.boot.service import sites_of
    from fleetd.control.wiring import worker_launch

    policy, home = _home(path)
    sites = sites_of(policy, worker_launch(policy, home))
    if not sites:
        raise UsageError(f"{path}: no rack boots from here: none has `boot` in its inventory")
    return sites


def _one(path: Path, name: str | None) -> "Site":
    sites = {site.pool.name: site for site in _sites(path)}
    if name is None and len(sites) > 1:
        raise UsageError(f"{path}: has several racks ({', '.join(sites)}); say which with --rack")
    if name is not None and name not in sites:
        raise UsageError(f"--rack {name}: no such rack; there are: {', '.join(sites)}{nearest(name, list(sites))}")
    return sites[name] if name else next(iter(sites.values()))


def _admitted(site: "Site") -> dict[str, str]:
    from fleetd.providers.rack.book import Book

    book = Book(site.launch.state_dir, site.pool.name)
    try:
        return book.admitted()
    finally:
        book.close()


def _pending(site: "Site") -> list[str]:
    from fleetd.providers.rack.book import Book

    book = Book(site.launch.state_dir, site.pool.name)
    try:
        return [seen.mac for seen in book.pending()]
    finally:
        book.close()


def _shown(site: "Site") -> dict[str, Any]:
    from fleetd.boot.service import certificate_of

    good, image = _image(site)
    del good
    certificate = certificate_of(site)
    return {
        "rack": site.pool.name,
        "boot": site.boot.url,
        "enrol": site.enrol,
        "fingerprint": certificate.fingerprint,
        "image": image,
        "pending": _pending(site),
    }


def _image(site: "Site") -> tuple[bool, str]:
    from fleetd.boot.manifest import check_parts, load_image

    folder = Path(site.boot.image)
    try:
        image = load_image(folder, site.launch.keys)
        check_parts(folder, image)
    except FleetdError as error:
        return False, str(error)
    signed = "signed" if site.launch.keys else "not asked for a signature: the policy has no releases.keys"
    return True, f"{folder}: fleetd {image.version}, {image.over_the_wire() >> 20} MiB a boot, {signed}"


def _examined(site: "Site") -> list[tuple[bool, str]]:
    """Return what was looked at: whether it is good, and what it is."""
    import socket

    from fleetd.boot.service import rival, split

    found = [_image(site)]
    host, port = split(site.boot.listen)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, 0))
            found.append((True, f"boot.listen: {host}:{port} is an address of this host"))
        except OSError as error:
            found.append((False, f"boot.listen: {host}:{port}: {error.strerror}: is the address on this host?"))
    line = rival(site, sure=True)
    found.append((not line, line or f"DHCP: what answers on {site.boot.interface} fits boot.dhcp: {site.boot.dhcp}"))
    return [(good, f"{site.pool.name}: {what}") for good, what in found]
