"""`fleetd plan`: one look and one decision, with the live code and nothing acted on or written."""

import asyncio
import time
from pathlib import Path
from typing import Any

from fleetd.cli.remote import state_folder
from fleetd.config import load
from fleetd.control.outlook import Outlook
from fleetd.control.schedule import floors, month
from fleetd.control.watch import TIMEOUT_S
from fleetd.control.wiring import Home, make_adapters
from fleetd.core.decide import decide, resume
from fleetd.core.memory import Memory
from fleetd.core.model import Drain, Intent, Launch, Observation, Plan, Policy, Stop, Undrain
from fleetd.store.sqlite import Store


def dry_plan(path: Path) -> dict[str, Any]:
    """Return what a controller would do now: `intents` as lines and `why` by app and pool."""
    policy = load(path)
    memory, instance = _remembered(policy)
    plan = asyncio.run(_decide(policy, memory, instance))
    return {"fleet": policy.fleet, "intents": [_line(intent) for intent in plan.intents], "why": dict(plan.sentences)}


def _remembered(policy: Policy) -> tuple[Memory, str]:
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
        floors=floors(policy, now, {}),
    )
    return decide(observation, policy, resume(memory, now))[0]


def _line(intent: Intent) -> str:
    match intent:
        case Launch(order, reason):
            return f"launch {order.count} in {order.pool} for {order.app}: {reason}"
        case Drain(_, node, _, reason):
            return f"drain {node}: {reason}"
        case Undrain(_, node, reason):
            return f"un-drain {node}: {reason}"
        case Stop(_, nodes, _, reason):
            return f"stop {', '.join(nodes)}: {reason}"
