"""One of several controllers: it stands by until the seat is its own, acts, and gives the seat back.

Promises: while it stands by, neither store nor adapter is open, and the policy is read anew when its turn comes; the
seat is given back only once nothing acts any more, and before anything acts, what the next holder must know is written
there.
"""

import asyncio
import secrets
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Final

from fleetd.config import load
from fleetd.control.leader import Leader
from fleetd.control.loop import Controller, Say
from fleetd.core.model import Policy
from fleetd.errors import FleetdError
from fleetd.store.sqlite import Entry, Store
from fleetd.web.serve import bind, make_server
from fleetd.web.standby import make_standby

CLOSE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Lead:
    """A seat that is held, and where its holder listens (None: at a port that the store remembers).

    `stop` is set where a signal to end came before anybody else listened to signals.
    """

    leader: Leader
    listener: socket | None
    stop: asyncio.Event

    async def enter(self, controller: Controller) -> None:
        """Write down on the seat and in the journal what is true from now on; nothing has acted yet."""
        leader, store = self.leader, controller.store
        await leader.settle(controller.memory.epoch, store.meta("instance") or "")
        before = f"{leader.before} held it before" if leader.before else "nobody held it, or it was given back"
        line = f"{leader.seat.place} is held by this controller, {leader.me}; {before}"
        entry = Entry("leader", f"{line}; epoch {controller.memory.epoch}")
        await controller.on_disk(store.commit, controller.memory, [entry], durable=True)


def adopt(lead: Lead | None, store: Store) -> str:
    """Return the fleet's name among nodes of fleets of its name: the seat's, where it has one, else the store's."""
    shared = lead.leader.term.instance if lead else ""
    if shared and store.meta("instance") != shared:
        store.set_meta("instance", shared)
    return store.meta("instance", secrets.token_hex(8)) or ""


async def stand_by_and_lead(
    path: Path, policy: Policy, leader: Leader, say: Say, act: Callable[[Policy, Lead], Awaitable[bool]]
) -> None:
    """Wait for the seat and act; returns when that ends, or at a signal.

    `act` is told the policy of that moment, and returns whether everything that acted has ended.
    """
    of = policy.controller
    listener = bind(of.host, of.port) if of.port else None
    stop, quiet = asyncio.Event(), True
    try:
        if not await _stand_by(policy, leader, listener, say, stop):
            return
        keeping = asyncio.create_task(leader.keep())
        try:
            quiet = await act(await _anew(path, policy, say), Lead(leader, listener, stop))
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
            if quiet:
                await leader.give_back()
            else:
                say("leader", f"{leader.seat.place}: not given back, for something goes on; it expires by itself")
    finally:
        with suppress(FleetdError, TimeoutError):
            await asyncio.wait_for(leader.seat.close(), CLOSE_S)
        if listener is not None:
            listener.close()


async def _stand_by(policy: Policy, leader: Leader, listener: socket | None, say: Say, stop: asyncio.Event) -> bool:
    """Answer that this one does not act, until it may; False where it was told to end before."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the policy is read anew in any case
    say("start", f"fleet {policy.fleet}: {leader.seat.place}: {leader.me} would act")
    taking, stopping = asyncio.create_task(leader.take()), asyncio.create_task(stop.wait())
    answering = asyncio.create_task(_answer(policy, leader, listener))
    try:
        await asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (taking, stopping, answering):
            task.cancel()
        await asyncio.wait([taking, stopping, answering])
    if not taking.cancelled():
        taking.result()
    if stop.is_set():
        await leader.give_back()
        say("end", "it never acted")
        return False
    return True


async def _answer(policy: Policy, leader: Leader, listener: socket | None) -> None:
    """Serve on the address, whose socket stays open when this ends: what comes meanwhile waits in it."""
    if listener is None:
        return
    token = policy.controller.token or secrets.token_urlsafe(24)
    server = make_server(make_standby(policy, token, leader.holder))
    serving = asyncio.create_task(server.serve(sockets=[listener.dup()]))
    try:
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.wait([serving], timeout=CLOSE_S)


async def _anew(path: Path, policy: Policy, say: Say) -> Policy:
    """Return the policy as it is now; the one of the start where that one is wrong, or another fleet's."""
    try:
        now = await asyncio.to_thread(load, path)
    except FleetdError as error:
        say("reload", f"{str(error).splitlines()[0]} (the old policy stays)")
        return policy
    if (now.fleet, now.controller.leader) != (policy.fleet, policy.controller.leader):
        say("reload", f"{path}: fleet and controller.leader cannot change without a restart (the old policy stays)")
        return policy
    return now
