"""Without a controller: `fleetd plan`, one look and one decision, nothing acted on; `wake --direct`, one launch."""

import asyncio
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fleetd.cli.remote import state_folder
from fleetd.config import load
from fleetd.config.schedule import Schedules, month
from fleetd.control.loop import LAUNCH_TIMEOUT_S
from fleetd.control.outlook import Outlook
from fleetd.control.shadow import line
from fleetd.control.watch import TIMEOUT_S
from fleetd.control.wiring import Home, make_adapters
from fleetd.core.decide import decide, resume
from fleetd.core.memory import Memory, PoolMemory, Wake
from fleetd.core.model import Launched, Observation, Order, Plan, Policy
from fleetd.errors import UsageError
from fleetd.store.sqlite import Entry, Store
from fleetd.web.serve import bind


def dry_plan(path: Path) -> dict[str, Any]:
    """Return what a controller would do now: `intents` as lines and `why` by app and pool."""
    policy = load(path)
    memory, instance = remembered(policy)
    plan = asyncio.run(_decide(policy, memory, instance))
    return {"fleet": policy.fleet, "intents": [line(intent) for intent in plan.intents], "why": dict(plan.sentences)}


def remembered(policy: Policy) -> tuple[Memory, str]:
    """Return a fleet's memory and its controller's name among those of fleets of the same name; reads only."""
    folder = state_folder(policy.fleet)
    if not (folder / "fleet.db").exists():
        return Memory(), "none"
    store = Store(folder, read_only=True)
    try:
        return store.memory() or Memory(), store.meta("instance") or "none"
    finally:
        store.close()


async def _decide(policy: Policy, memory: Memory, instance: str) -> Plan:
    home = Home(state_folder(policy.fleet), instance, "http://127.0.0.1:0", "none")
    outlook = Outlook(make_adapters(policy, home), time.time, lambda: None)
    outlook.start()
    try:
        await outlook.look(TIMEOUT_S)
    finally:
        readings, worlds = outlook.readings(policy), outlook.worlds()
        await outlook.close()
    now = max(time.time(), memory.now)
    observation = Observation(
        now=now,
        month=month(policy, now),
        readings=readings,
        worlds=worlds,
        floors=Schedules(policy).floors(now, {}),
    )
    return decide(observation, policy, resume(memory, now))[0]


def wake_directly(path: Path, name: str, count: int, for_s: float) -> str:
    """Launch nodes without a controller, journalled; the next controller finds and adopts them. Returns what was done.

    Refused while a controller runs: it holds the fleet's lock, and is the one to ask.
    """
    policy = load(path)
    pool = policy.pools.get(name)
    if pool is None:
        raise UsageError(f"wake: no pool {name!r}; there are {', '.join(policy.pools)}")
    if count > pool.max_nodes:
        raise UsageError(f"wake: --count: {name} has at most {pool.max_nodes} nodes")
    store = Store(state_folder(policy.fleet))
    try:
        memory = store.memory() or Memory(epoch=store.epoch())
        key = f"direct-{memory.next_order}"
        order = Order(key, name, pool.apps[0], count, count, memory.epoch)
        entry = Entry(
            "event", f"order {key}: launch {count} in {name} for {order.app}: woken by hand, without a controller"
        )
        known = memory.pools.get(name, PoolMemory())
        woken = replace(
            known, wakes=(*known.wakes, Wake(count, max(time.time(), memory.now) + for_s)), drained_until=0.0
        )
        memory = replace(memory, next_order=memory.next_order + 1, pools={**memory.pools, name: woken})
        store.commit(memory, [entry], durable=True)
        home = Home(
            store.folder, store.meta("instance", secrets.token_hex(8)) or "", _url(policy, store), _join(policy, store)
        )
        launched = asyncio.run(_launch(policy, home, order))
        store.commit(memory, [Entry("event", f"order {key}: launched {', '.join(launched.nodes)}")], durable=True)
    finally:
        store.close()
    return (
        f"launched {', '.join(launched.nodes)}; the next `fleetd run` adopts what is up, and holds it for {for_s:.0f} s"
    )


async def _launch(policy: Policy, home: Home, order: Order) -> Launched:
    provider = make_adapters(policy, home).providers[order.pool]
    async with asyncio.timeout(LAUNCH_TIMEOUT_S):
        try:
            await provider.open(lambda: None)
            return await provider.launch(order)
        finally:
            await provider.close()


def _url(policy: Policy, store: Store) -> str:
    """Return where the next controller will be, so that the nodes find it: a port that is chosen now is kept."""
    host, port = policy.controller.host, policy.controller.port or int(store.meta("port") or 0)
    if not port:
        with bind(host, 0) as listener:
            port = listener.getsockname()[1]
        store.set_meta("port", str(port))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _join(policy: Policy, store: Store) -> str:
    return policy.controller.join or store.meta("join", secrets.token_hex(32)) or ""
