"""`fleetd run`: the controller, its API and its live view in one event loop; signals; the orderly end.

With `controller.leader` in the policy it is one of several, and stands by until it may act (cli/lead.py).
With `--shadow` it is one that touches nothing (control/shadow.py): it has a state folder and an address of its own,
starts no dispatcher, alerts nobody, and leaves the workers alone.
"""

import asyncio
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from socket import socket
from typing import Final

import structlog

from fleetd.cli import boot
from fleetd.cli.dry import remembered
from fleetd.cli.follow import follow
from fleetd.cli.lead import Lead, adopt, stand_by_and_lead
from fleetd.cli.remote import announce, call, state_folder
from fleetd.config import diff, load
from fleetd.control.alerts import Alerts
from fleetd.control.code import Code
from fleetd.control.embedded import end, ensure, keep
from fleetd.control.leader import guarded_loop, make_leader
from fleetd.control.loop import Controller, Say
from fleetd.control.outlook import Adapters
from fleetd.control.shadow import Glimpse, Shadow, load_glimpse
from fleetd.control.status import status
from fleetd.control.wiring import Home, make_adapters
from fleetd.core.model import AlertsPolicy, ControllerPolicy, DrainAllCommand, Policy
from fleetd.depot.depot import Depot
from fleetd.depot.keep import Keeper
from fleetd.depot.records import Records
from fleetd.errors import FleetdError
from fleetd.store.sqlite import Store
from fleetd.web.api import make_app
from fleetd.web.serve import bind, make_server

FRAME_S: Final = 0.5
HISTORY: Final = 60
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Options:
    """`drain` ends the workers at the end; `live` draws the view, otherwise events are logged, as `json` or text.

    `follow` takes the policy anew whenever its file has changed.
    """

    drain: bool
    live: bool
    json: bool
    shadow: bool = False
    follow: bool = False


def run_controller(path: Path, options: Options) -> None:
    """Run until ended by a signal, or, as one of several controllers, until it may act no more."""
    policy, log = _taken(load(path), options), _log(options)
    leader = make_leader(policy, log)
    if leader is None:
        asyncio.run(_act(path, options, log, policy))
        return
    with asyncio.Runner(loop_factory=partial(guarded_loop, leader.mind)) as runner:
        runner.run(stand_by_and_lead(path, policy, leader, log, partial(_act, path, options, log)))


async def _act(path: Path, options: Options, log: Say, policy: Policy, lead: Lead | None = None) -> bool:
    """Act; return whether all of it has ended."""
    store = Store(state_folder(f"{policy.fleet}-shadow" if options.shadow else policy.fleet))
    try:
        return await _run(path, policy, store, options, log, lead)
    finally:
        store.close()


async def _run(path: Path, policy: Policy, store: Store, options: Options, log: Say, lead: Lead | None) -> bool:
    join = policy.controller.join or store.meta("join", secrets.token_hex(32)) or ""
    token = policy.controller.token or store.meta("token", secrets.token_urlsafe(24)) or ""
    listener = (lead and lead.listener) or _listen(policy, store)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    controller = _shadow(policy, store, log) if options.shadow else _live(policy, store, url, join, log, lead)
    if lead is not None:
        await lead.enter(controller)
    code = Code(lambda: controller.policy, store.folder)
    records = Records(Depot(lambda: controller.policy, store.folder))
    server = make_server(make_app(controller, join, token, code, records))
    announce(store.folder, url, token, shadow=options.shadow)
    whose = "shadow of fleet" if options.shadow else "fleet"
    log("start", f"{whose} {policy.fleet}, epoch {controller.memory.epoch}, {url}, state in {store.folder}")
    if not options.shadow:
        await ensure(policy, store.folder)
        await code.look(controller, log)  # before the first tick: without code, nothing is launched
    life = asyncio.create_task(controller.run())
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reload = partial(_reload, controller, path, options, log)
    home = Home(store.folder, "", url, join)
    beside = [] if options.shadow else [Keeper(records, log).run(), *_beside(controller, code, home, log)]
    beside += [follow(path, reload)] if options.follow else []
    beside += [_view(controller)] if options.live else []
    others = [serving, *(asyncio.create_task(one) for one in beside)]
    _on_signals(controller, life, reload, options)
    if lead is not None and lead.stop.is_set():
        life.cancel()
    try:
        await asyncio.wait([life, serving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        life.cancel()
        server.should_exit = True
        controller.leases.let_go()
        for task in others[1:]:
            task.cancel()
        _, left_over = await asyncio.wait([life, *others], timeout=5.0)
        (store.folder / "controller.json").unlink(missing_ok=True)
    if options.shadow:
        log("end", "nothing was touched")
        _raise(life)
        return not left_over
    left = len(controller.memory.nodes)
    if controller.memory.ending and not left:
        await end(controller.policy, store.folder)
    log("end", f"{left} nodes live on; the next start adopts them" if left else "no node is left")
    _raise(life)
    return not left_over


def _beside(controller: Controller, code: Code, home: Home, log: Say) -> list[Coroutine[None, None, None]]:
    """Return what goes on beside the ticks of a controller that acts."""
    alerts = Alerts(lambda: controller.policy.alerts, log).run(lambda: status(controller, 0))
    kept = keep(lambda: controller.policy, controller.store.folder, log)
    racks = boot.serve(lambda: controller.policy, home, log)
    return [alerts, kept, code.watch(controller, log), racks]


def _raise(life: asyncio.Task[None]) -> None:
    if life.done() and not life.cancelled() and (error := life.exception()):
        raise error


def _taken(policy: Policy, options: Options) -> Policy:
    """Return the policy as this controller takes it: a shadow leaves the live controller's address and alerts to it."""
    return replace(policy, controller=ControllerPolicy(), alerts=AlertsPolicy()) if options.shadow else policy


def _live(policy: Policy, store: Store, url: str, join: str, log: Say, lead: Lead | None) -> Controller:
    home = Home(store.folder, adopt(lead, store), url, join)
    make = partial(_adapters, home)
    if lead is None:
        return Controller(policy, store, make, log)
    return Controller(policy, store, make, log, epoch=lead.leader.term.epoch, mind=lead.leader.mind)


def _adapters(home: Home, wanted: Policy) -> Adapters:
    return make_adapters(wanted, home)


def _shadow(policy: Policy, store: Store, log: Say) -> Controller:
    """Return a controller that looks at the live one's fleet, by the live one's name among the nodes."""

    def make(wanted: Policy) -> Adapters:
        home = Home(state_folder(wanted.fleet), remembered(wanted)[1], "http://127.0.0.1:0", "none")
        return make_adapters(wanted, home)

    async def ask() -> Glimpse:
        return load_glimpse(await asyncio.to_thread(call, "GET", "/v1/glimpse", policy.fleet))

    return Shadow(policy, store, make, log, ask)


def _listen(policy: Policy, store: Store) -> socket:
    """Bind the policy's address; a port chosen once is kept, so that workers find a restarted controller again."""
    host, port = policy.controller.host, policy.controller.port
    if host not in LOOPBACK and policy.controller.join is None:
        raise FleetdError(
            f"controller.listen: {host} is beyond loopback and needs controller.join: a lease is a credential"
        )
    if port:
        return bind(host, port)
    remembered = int(store.meta("port") or 0)
    try:
        listener = bind(host, remembered)
    except FleetdError:
        listener = bind(host, 0)
    store.set_meta("port", str(listener.getsockname()[1]))
    return listener


def _log(options: Options) -> Say:
    """Return what writes a line of the log to standard error; silent under the live view, which shows the events."""
    renderer = structlog.processors.JSONRenderer() if options.json else structlog.dev.ConsoleRenderer(colors=False)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    logger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr), processors=[stamp, renderer])

    def say(kind: str, text: str) -> None:
        if not options.live:
            logger.msg(text, kind=kind)

    return say


def _on_signals(
    controller: Controller,
    life: asyncio.Task[None],
    reload: Callable[[], Coroutine[None, None, None]],
    options: Options,
) -> None:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def end_now() -> None:
        if options.drain and not controller.memory.ending:
            controller.submit(DrainAllCommand())
            return
        life.cancel()

    def hang_up() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end_now)
    loop.add_signal_handler(signal.SIGHUP, hang_up)


async def _reload(controller: Controller, path: Path, options: Options, log: Say) -> None:
    """Take the policy anew and print the difference; one that cannot be taken changes nothing."""
    before = controller.policy
    try:
        policy = _taken(await asyncio.to_thread(load, path), options)
        for name in ("fleet", "controller.leader"):
            if attrgetter(name)(policy) != attrgetter(name)(before):
                raise FleetdError(f"{path}: {name}: cannot change while {before.fleet} runs")  # noqa: TRY301 - as below
        await controller.reload(policy)
    except FleetdError as error:
        first, *more = str(error).splitlines()
        rest = f", and {len(more)} more: see `fleetd check {path}`" if more else ""
        log("reload", f"{first}{rest} (the old policy stays)")
        return
    for line in diff(before, policy) or ["nothing changed"]:
        log("reload", line)


async def _view(controller: Controller) -> None:
    """Draw the live view until cancelled."""
    from rich.live import Live

    from fleetd.cli import render

    history: deque[float] = deque(maxlen=HISTORY)
    with Live(screen=os.environ.get("TERM") != "dumb", auto_refresh=False) as live, suppress(asyncio.CancelledError):
        while True:
            history.append(sum(queue.waiting for queue in controller.memory.queues.values()))
            live.update(render.fleet(status(controller), history=tuple(history)), refresh=True)
            await asyncio.sleep(FRAME_S)
