"""The operator's commands, folded into memory: floors, drains, holds, pause, quarantine. What follows is `fill`'s."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from fleetd.core import lifecycle
from fleetd.core.lifecycle import Event
from fleetd.core.memory import Node, PoolMemory, Wake
from fleetd.core.model import (
    ActivateCommand,
    Command,
    DrainAllCommand,
    DrainCommand,
    HoldCommand,
    Observation,
    PardonCommand,
    PauseCommand,
    QuarantineCommand,
    RollbackCommand,
    WakeCommand,
)
from fleetd.core.track import Draft

FOREVER: Final = 1e12  # finite, since JSON knows no infinity


def take_commands(draft: Draft, observation: Observation, apps: Mapping[str, Sequence[str]]) -> None:
    """Fold in the commands; one that names nothing that is here is said to be ignored. `apps`: the pools of each."""
    for name, memory in draft.pools.items():
        if any(wake.until <= draft.now for wake in memory.wakes):
            draft.pools[name] = replace(memory, wakes=tuple(w for w in memory.wakes if w.until > draft.now))
    for command in observation.commands:
        match command:
            case DrainAllCommand():
                draft.memory = replace(draft.memory, ending=True)
                draft.events.append("fleet: an operator ends it, every node drains")
            case PauseCommand(paused):
                draft.memory = replace(draft.memory, paused=paused)
                draft.events.append(f"fleet: an operator {'pauses all scaling' if paused else 'resumes scaling'}")
            case QuarantineCommand(_, str(node)) | DrainCommand(_, str(node)) if node in draft.nodes:
                _node(draft, draft.nodes[node], command)
            case ActivateCommand(name) | RollbackCommand(name) | PardonCommand(name) if name in apps:
                _ask_again(draft, name, apps[name])  # the rest is the rollout's business
            case WakeCommand(pool) | HoldCommand(pool) | DrainCommand(pool, None) if pool in draft.pools:
                _pool(draft, pool, draft.pools[pool], command)
            case _:
                draft.events.append(f"command {command} names nothing that is here: ignored")


def _ask_again(draft: Draft, app: str, pools: Sequence[str]) -> None:
    """Close the breakers of an app's pools: what they could not do for want of a release may work now."""
    for name in pools:
        memory = draft.pools[name]
        if memory.open_until > draft.now:
            draft.pools[name] = replace(memory, failures=0, open_until=0.0, why_open="")
            draft.events.append(f"pool {name}: asked again, since an operator changed the release of {app}")


def _pool(draft: Draft, name: str, memory: PoolMemory, command: Command) -> None:
    match command:
        case WakeCommand(_, count, for_s, machine):
            wakes = (*memory.wakes, Wake(0 if machine else count, draft.now + for_s, machine))
            after = replace(memory, wakes=wakes, drained_until=0.0, failures=0, open_until=0.0, why_open="")
            said = f"wants {machine or f'{count} nodes'} up for {for_s:.0f} s"
        case HoldCommand(_, for_s):
            after = replace(memory, held_until=draft.now + for_s)
            said = f"holds it for {for_s:.0f} s" if for_s else "lets it move again"
        case DrainCommand(_, None, for_s):
            until = draft.now + for_s if for_s is not None else FOREVER
            after, said = replace(memory, drained_until=until, wakes=()), "drains it"
        case _:
            return
    draft.pools[name] = after
    draft.events.append(f"pool {name}: an operator {said}")


def _node(draft: Draft, node: Node, command: Command) -> None:
    match command:
        case DrainCommand(force=force):
            draft.nodes[node.id] = replace(node, pinned=True)
            draft.forced += [node.id] if force else []
            draft.events.append(f"node {node.id}: an operator {'stops it by force' if force else 'drains it'}")
        case QuarantineCommand(free=free):
            event = Event.FREE if free else Event.QUARANTINE
            if lifecycle.may(node, event):
                draft.move(replace(node, pinned=False), event)
                (draft.freed if free else draft.fenced).append(node.id)
            else:
                draft.events.append(f"node {node.id}: is {node.phase}, {event} changes nothing")
