"""`fleetd rack`: the machines of racks as their book has them, also beside a running controller; `fleetd wol-relay`."""

import asyncio
import getpass
import json
import os
import re
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fleetd.cli.asking import Fleet, Json, nearest
from fleetd.errors import FleetdError, UsageError

if TYPE_CHECKING:
    from fleetd.providers.rack.book import Book, Record, Seen, Wake

app = typer.Typer()
rack_app = typer.Typer(help="The machines of racks: list, scan, admit, forget, free.", no_args_is_help=True)
app.add_typer(rack_app, name="rack")
Pool = Annotated[str | None, typer.Option("--pool", help="which rack, where there are several")]
Machine = Annotated[str, typer.Argument(help="a machine's name or hardware address")]
WAITS_S: Final = 30.0  # one that waits asks the boot service every ten
LEAST_KEY: Final = 16
RELAY_KEY: Final = "FLEETD_RELAY_KEY"


@rack_app.command("list")
def list_(pool: Pool = None, fleet: Fleet = None, as_json: Json = False) -> None:
    """Show every machine: what it does, since when, how long its boots take, why it is kept out."""
    rows = []
    for path in _books(pool, fleet):
        with _opened(path) as book:
            rows += _rows(book, time.time())
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'MACHINE':24} {'STATE':10} {'SINCE':>7} {'WAKES':>5} {'BOOT':>6}  {'ADDRESS':17}  WHY")
    for row in rows:
        boot = "-" if row["boot_s"] is None else f"{row['boot_s']:.0f} s"
        since = "-" if row["since_s"] is None else _age(row["since_s"])
        machine = f"{row['pool']}/{row['machine']}"
        print(f"{machine:24} {row['state']:10} {since:>7} {row['wakes']:>5} {boot:>6}  {row['mac']:17}  {row['why']}")


@rack_app.command()
def scan(pool: Pool = None, fleet: Fleet = None, as_json: Json = False) -> None:
    """Show the hardware addresses that asked the boot service and are of no machine that is known."""
    rows = []
    for path in _books(pool, fleet):
        with _opened(path) as book:
            rows += [_pending(book, seen, time.time()) for seen in book.pending()]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        age, ip = _age(row["age_s"]), row["ip"] or "no address"
        print(f"{row['mac']}  {ip:15}  {row['arch']:7}  {age:>4} ago  fleetd rack admit {row['mac']} --name NAME")
    if not rows:
        print("nobody unknown has asked the boot service; switch a machine on, and let it boot from the network")


@rack_app.command()
def admit(
    mac: Annotated[str, typer.Argument(help="its hardware address, as `scan` shows it")],
    name: Annotated[str | None, typer.Option("--name", help="what to call it; default: its address")] = None,
    pool: Pool = None,
    fleet: Fleet = None,
    as_json: Json = False,
) -> None:
    """Let a machine boot, and be woken from now on. For its own settings, enter it into the inventory."""
    from fleetd.providers.rack.inventory import NAME

    address = _mac(mac)
    called = name or f"m{address.replace(':', '')}"
    if not re.fullmatch(NAME, called):
        raise UsageError(f"--name: expected letters, digits and '-', as in node07, got {called!r}")
    with _opened(_one(pool, fleet)) as book:
        book.admit(address, called, getpass.getuser(), time.time())
        word = f"{address} is {book.pool}/{called} from now on"
    print(json.dumps({"done": word}) if as_json else f'{word}; in the inventory: {called}: {{mac: "{address}"}}')


@rack_app.command()
def forget(machine: Machine, pool: Pool = None, fleet: Fleet = None, as_json: Json = False) -> None:
    """Take an admission back. What the inventory has is taken out of the inventory."""
    with _opened(_one(pool, fleet)) as book:
        address = _find(book, machine)
        admitted = address in book.admitted()
        if not book.forget(address):
            raise UsageError(f"{machine}: was neither admitted nor seen; a machine of the inventory is taken out there")
        word = f"{address} is {'admitted no longer' if admitted else 'forgotten until it is seen again'}"
    print(json.dumps({"done": word}) if as_json else word)


@rack_app.command()
def free(machine: Machine, pool: Pool = None, fleet: Fleet = None, as_json: Json = False) -> None:
    """Let a machine that is kept out be woken again: you have seen to it."""
    with _opened(_one(pool, fleet)) as book:
        address = _find(book, machine)
        freed = book.free(address)
        word = f"{book.pool}/{machine} {'may be woken again' if freed else 'was not kept out'}"
    print(json.dumps({"done": word}) if as_json else word)


@app.command("wol-relay")
def wol_relay(
    listen: Annotated[str, typer.Option("--listen", help="HOST:PORT to be asked at")],
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help=f"the key's file; default: the variable {RELAY_KEY}")
    ] = None,
    mac: Annotated[list[str] | None, typer.Option("--mac", help="wake this machine, and no others than those")] = None,
    broadcast: Annotated[str, typer.Option("--broadcast", help="where packets go")] = "255.255.255.255",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="the UDP port that packets go to")] = 9,
    source: Annotated[str, typer.Option("--source", help="the address of this machine that they come from")] = "",
) -> None:
    """Send magic packets in this network for a controller in another one. Runs until it is told to end."""
    from fleetd.providers.rack.power.relay import RelayAgent

    host, _, number = listen.rpartition(":")
    if not host or not number.isdecimal() or int(number) > 65535:
        raise UsageError(f"--listen: expected HOST:PORT, as in 10.20.0.2:8090, got {listen!r}")
    macs = frozenset(_mac(one) for one in mac or ())
    agent = RelayAgent(_key(key_file), macs, (broadcast, port), lambda text: print(text, flush=True), source=source)
    asyncio.run(_serve(agent, host.strip("[]"), int(number), listen))


async def _serve(agent: Any, host: str, port: int, listen: str) -> None:
    try:
        server = await agent.serve(host, port)
    except OSError as error:
        raise FleetdError(f"--listen {listen}: cannot listen there: {error.strerror}") from None
    where = server.sockets[0].getsockname()
    print(f"relaying magic packets, asked at {where[0]}:{where[1]}", flush=True)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started it deaf to the first
        loop.add_signal_handler(number, ended.set)
    async with server:
        await ended.wait()


def _key(path: Path | None) -> bytes:
    try:
        text = path.read_text() if path else os.environ.get(RELAY_KEY, "")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--key-file: {path} cannot be read: {getattr(error, 'strerror', 'it is no text')}") from None
    key = text.strip()
    if len(key) < LEAST_KEY:
        what = "is needed" if not key else "is too short"
        raise UsageError(f"wol-relay: a key of {LEAST_KEY} characters or more {what}: --key-file, or {RELAY_KEY}")
    return key.encode()


# ── books


def _books(pool: str | None, fleet: str | None) -> list[Path]:
    """Return the books here, those of running and of ended controllers; raises UsageError where there is none."""
    from fleetd.cli.remote import Settings

    folder = Settings().state
    found = sorted(folder.glob(f"{fleet or '*'}/rack/*.sqlite"))
    chosen = [path for path in found if pool in (None, path.stem)]
    if not found:
        of = f" of fleet {fleet!r}" if fleet else ""
        raise UsageError(f"no rack{of} was served here yet (looked in {folder}); start `fleetd run` with one")
    if not chosen:
        known = sorted({path.stem for path in found})
        raise UsageError(f"--pool: no rack {pool!r} here; there are: {', '.join(known)}{nearest(str(pool), known)}")
    return chosen


def _one(pool: str | None, fleet: str | None) -> Path:
    found = _books(pool, fleet)
    if len(found) > 1:
        names = ", ".join(f"{path.stem} of {path.parent.parent.name}" for path in found)
        raise UsageError(f"several racks here ({names}); say which with --pool and --fleet")
    return found[0]


@contextmanager
def _opened(path: Path) -> "Iterator[Book]":
    from fleetd.providers.rack.book import Book

    book = Book(path.parent.parent, path.stem)
    try:
        yield book
    finally:
        book.close()


def _mac(text: str) -> str:
    from fleetd.codecs.magic import mac_text

    try:
        return mac_text(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _find(book: "Book", machine: str) -> str:
    """Return the address of a machine by its name, with or without its pool, or by the address itself."""
    name = machine.removeprefix(f"{book.pool}/")
    names = {record.name: mac for mac, record in book.records().items() if record.name}
    names |= {called: mac for mac, called in book.admitted().items()}
    if name in names:
        return names[name]
    if name.count(":") == 5 or name.count("-") == 5:
        return _mac(name)
    raise UsageError(f"{machine}: no such machine in {book.pool}{nearest(name, list(names))}")


# ── rows


def _rows(book: "Book", now: float) -> list[dict[str, Any]]:
    records, seen, admitted = book.records(), book.sightings(), book.admitted()
    wakes = {wake.mac: wake for wake in book.wakes()}
    names = {mac: record.name for mac, record in records.items() if record.name} | admitted
    return [
        _row(book.pool, names[mac], mac, records.get(mac), wakes.get(mac), seen.get(mac), now)
        for mac in sorted(names, key=lambda mac: names[mac])
    ]


def _row(
    pool: str, name: str, mac: str, record: "Record | None", wake: "Wake | None", seen: "Seen | None", now: float
) -> dict[str, Any]:
    state, since, why = _state(record, wake, seen, now)
    boots = record.boots_s if record else ()
    return {
        "pool": pool,
        "machine": name,
        "mac": mac,
        "state": state,
        "since_s": None if since is None else round(max(0.0, now - since), 1),
        "node": wake.node if wake else None,
        "app": wake.app if wake else None,
        "wakes": record.wakes if record else 0,
        "boot_s": round(statistics.median(boots), 1) if boots else None,
        "failures": record.failures if record else 0,
        "why": why,
    }


def _state(
    record: "Record | None", wake: "Wake | None", seen: "Seen | None", now: float
) -> tuple[str, float | None, str]:
    """Return what a machine does, since when, and a word on it."""
    if wake is not None:
        if wake.stop_at is not None:
            return "going", wake.stop_at, "was told to go off"
        if wake.up_at is not None:
            return "up", wake.up_at, f"runs {wake.app}"
        came = f"came as far as {seen.stage!r}" if seen and seen.at >= wake.at else f"was told {wake.sent} times"
        return "booting", wake.at, came
    if record is not None and record.quarantined_until > now:
        return "kept out", None, f"for {_age(record.quarantined_until - now)}: {record.why}"
    if seen is not None and now - seen.at < WAITS_S:
        return "waits", seen.at, "is on, and waits to be wanted"
    return "off", None, f"last time: {record.why}" if record and record.why else ""


def _pending(book: "Book", seen: "Seen", now: float) -> dict[str, Any]:
    age_s = round(max(0.0, now - seen.at), 1)
    return {"pool": book.pool, "mac": seen.mac, "ip": seen.ip, "arch": seen.arch, "stage": seen.stage, "age_s": age_s}


def _age(value_s: float) -> str:
    for unit, unit_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if value_s >= unit_s:
            return f"{value_s / unit_s:.0f}{unit}"
    return f"{value_s:.0f}s"
