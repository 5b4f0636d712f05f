"""How a release comes to the nodes of an app: by canary and waves, and back again where it fails. Pure.

Promises: a node is told once what to run; a release that one node has refused, or whose jobs fail more often than
those of the release before, goes no further, and what ran before comes back everywhere; nodes that drain are left
alone. A few nodes that never get there (a full disk, a network of their own) hold up the others for a time, not for
ever.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

from fleetd.codecs.lease import ReleaseCounts
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory, Node, Rollout
from fleetd.core.model import (
    ActivateCommand,
    AppPolicy,
    Command,
    LeaseView,
    NodeId,
    Observation,
    PardonCommand,
    Phase,
    Policy,
    Reload,
    RollbackCommand,
    Seconds,
)

FIRST_WAVE: Final = 0.25
LATE_S: Final = 600.0  # so long the nodes of a wave are waited for; then those that run it are enough, if they are most
REFUSED_KEPT: Final = 16
HERE: Final = (*COMING, Phase.READY)
_COMMANDS: Final = (ActivateCommand, RollbackCommand, PardonCommand)


@dataclass(slots=True)
class Step:
    """One app's rollout under the pen."""

    app: AppPolicy
    now: Seconds
    nodes: dict[NodeId, Node]
    leases: Mapping[NodeId, LeaseView]
    rollout: Rollout
    intents: list[Reload]
    events: list[str]

    def change(self, said: str = "", **changes: object) -> None:
        """Note what changed, and say so."""
        self.rollout = replace(self.rollout, **changes)  # type: ignore[arg-type]
        if said:
            self.events.append(f"app {self.app.name}: {said}")


def roll(
    observation: Observation, policy: Policy, memory: Memory
) -> tuple[dict[str, Rollout], list[Reload], list[str]]:
    """Return the rollouts after this tick, by app, what nodes are to be told, and what happened."""
    commands = [command for command in observation.commands if isinstance(command, _COMMANDS)]
    if not commands and not memory.rollouts:  # nothing of ours is released here
        return {}, [], []
    rollouts: dict[str, Rollout] = dict(memory.rollouts)
    intents: list[Reload] = []
    events: list[str] = []
    nodes: dict[str, dict[NodeId, Node]] = {}
    for node in memory.nodes.values():
        if node.phase in HERE and node.id in observation.leases:
            nodes.setdefault(node.app, {})[node.id] = node
    for name, app in policy.apps.items():
        if app.exec:
            continue
        step = Step(
            app,
            memory.now,
            nodes.get(name, {}),
            observation.leases,
            rollouts.get(name, Rollout()),
            intents,
            events,
        )
        _take_commands(step, commands)
        if step.rollout.active:
            _turn_back(step)
            _go_on(step)
            _tell(step)
        if step.rollout != Rollout():
            rollouts[name] = step.rollout
    return {name: rollout for name, rollout in rollouts.items() if name in policy.apps}, intents, events


def _take_commands(step: Step, commands: Iterable[Command]) -> None:
    for command in commands:
        match command:
            case ActivateCommand(app=name) if name == step.app.name:
                _activate(step, command)
            case RollbackCommand(app=name) if name == step.app.name:
                _roll_back(step)
            case PardonCommand(name, digest) if name == step.app.name and digest in step.rollout.refused:
                _pardon(step, digest)
            case _:
                pass


def _pardon(step: Step, digest: str) -> None:
    """Forget that a release was refused, here and on the nodes."""
    rollout = step.rollout
    for name, node in step.nodes.items():
        if digest in step.leases[name].refused:
            told = rollout.told.get(name, rollout.active)
            wish = rollout.active if told == digest else told  # it goes on with what it was told to run
            step.intents.append(Reload(node.pool, name, wish, f"{short(digest)} is pardoned", digest))
    step.change(
        f"release {short(digest)} is pardoned",
        refused={known: why for known, why in rollout.refused.items() if known != digest},
        told={name: known for name, known in rollout.told.items() if known != digest},
    )


def _activate(step: Step, command: ActivateCommand) -> None:
    rollout, digest = step.rollout, command.digest
    if digest in rollout.refused:
        why = rollout.refused[digest]
        step.change(f"release {short(digest)} was refused and stays out until it is pardoned: {why}")
    elif digest == (rollout.candidate or rollout.active):
        step.change(f"release {short(digest)} is what it is to run already")
    elif not rollout.active:
        step.change(f"release {short(digest)} is active", active=digest, active_at=step.now)
    else:
        share = command.canary or (1.0 if command.at_once else FIRST_WAVE)
        step.change(
            f"release {short(digest)} comes in on {100 * share:.0f} % of nodes, in place of {short(rollout.active)}",
            candidate=digest,
            share=share,
            share_at=step.now,
            canary=command.canary is not None,
            settled_at=None,
        )


def _roll_back(step: Step) -> None:
    rollout = step.rollout
    if rollout.candidate:
        said = f"release {short(rollout.candidate)} is taken back by an operator; {short(rollout.active)} stays"
        step.change(said, candidate="", share=0.0)
    elif rollout.previous:
        said = f"an operator rolls back from {short(rollout.active)} to {short(rollout.previous)}"
        step.change(said, active=rollout.previous, previous=rollout.active, active_at=step.now)
    else:
        step.change("there is no release before this one to roll back to")


def _turn_back(step: Step) -> None:
    """Refuse the candidate, or what has just become active, where a node does, or where too many of its jobs fail."""
    rollout = step.rollout
    digest = rollout.candidate or rollout.active
    if digest in rollout.refused:
        return
    fresh = bool(rollout.candidate) or step.now - rollout.active_at < step.app.reload.probation_s
    reason = _refusal(step, digest) or (fresh and _more_failures(step, digest, rollout))
    if not reason or not fresh:
        return
    refused = dict(list({**rollout.refused, digest: reason}.items())[-REFUSED_KEPT:])
    if rollout.candidate:
        said = f"release {short(digest)} is refused, {short(rollout.active)} stays: {reason}"
        step.change(said, refused=refused, candidate="", share=0.0)
    elif rollout.previous and rollout.previous not in refused:
        said = f"release {short(digest)} is refused, rolled back to {short(rollout.previous)}: {reason}"
        step.change(said, refused=refused, active=rollout.previous, previous="", active_at=step.now)
    else:
        step.change(f"release {short(digest)} is refused, and there is none before it: {reason}", refused=refused)


def _refusal(step: Step, digest: str) -> str:
    """Return the first node's reason, by name, not to run the release."""
    for name in sorted(step.nodes):
        if digest in step.leases[name].refused:
            return f"{name}: {step.leases[name].refused[digest]}"
    return ""


def _more_failures(step: Step, digest: str, rollout: Rollout) -> str | None:
    """Compare over all nodes: each may see too few jobs to tell."""
    others = (rollout.active, rollout.previous)
    mine = _sum(step, (digest,))
    return mine.worse_than(_sum(step, [other for other in others if other != digest]))


def _sum(step: Step, digests: Iterable[str]) -> ReleaseCounts:
    found = [
        counts
        for name in step.nodes
        for digest in digests
        if (counts := step.leases[name].releases.get(digest)) is not None
    ]
    return ReleaseCounts(sum(one.done for one in found), sum(one.failed for one in found))


def _go_on(step: Step) -> None:
    """Let the candidate go further once all of its nodes run it, and have for long enough where they are a canary."""
    rollout, nodes = step.rollout, step.nodes
    if not rollout.candidate:
        return
    chosen = _chosen(rollout, nodes)
    behind = [name for name in chosen if nodes[name].digest != rollout.candidate]
    overdue = step.now - rollout.share_at > LATE_S and 2 * len(behind) < len(chosen)
    if behind and not overdue:
        if rollout.settled_at is not None:
            step.change(settled_at=None)
        return
    left = f", {len(behind)} nodes did not follow within {LATE_S:.0f} s: {', '.join(behind[:3])}" if behind else ""
    settled_at = step.now if rollout.settled_at is None else rollout.settled_at
    if rollout.canary and nodes and step.now - settled_at < step.app.reload.canary_s:
        step.change(settled_at=settled_at)
    elif rollout.share >= 1.0 or not nodes:
        on = f"{len(nodes) - len(behind)} of" if behind else "all"
        said = f"release {short(rollout.candidate)} is active on {on} {len(nodes)} nodes{left}"
        step.change(
            said, active=rollout.candidate, previous=rollout.active, candidate="", share=0.0, active_at=step.now
        )
    else:
        share = min(1.0, max(FIRST_WAVE, 2.0 * rollout.share))
        runs = f"release {short(rollout.candidate)} runs on {len(chosen) - len(behind)} nodes"
        said = f"{runs} and goes on to {100 * share:.0f} %{left}"
        step.change(said, share=share, share_at=step.now, canary=False, settled_at=None)


def _chosen(rollout: Rollout, nodes: Mapping[NodeId, Node]) -> list[NodeId]:
    """Return the nodes that are to run the candidate: first those that do, then by name."""
    if not rollout.candidate:
        return []
    names = sorted(nodes, key=lambda name: (nodes[name].digest != rollout.candidate, name))
    return names[: ceil(rollout.share * len(nodes))]


def _tell(step: Step) -> None:
    """Tell each node that runs another release than it should, once; one that refused it is left with what it has."""
    rollout = step.rollout
    chosen = frozenset(_chosen(rollout, step.nodes))
    told = {name: digest for name, digest in rollout.told.items() if name in step.nodes}
    for name, node in step.nodes.items():
        wish = rollout.candidate if name in chosen else rollout.active
        # What it was told last counts, not what it runs: it may still be on its way there.
        if told.get(name, node.digest) == wish or wish in step.leases[name].refused:
            continue
        told[name] = wish
        what = "the active release" if wish == rollout.active else "the release that comes in"
        runs = short(node.digest) if node.digest else "nothing yet"
        step.intents.append(Reload(node.pool, name, wish, f"{short(wish)} is {what}; it runs {runs}"))
    if told != rollout.told:
        step.change(told=told)


def short(digest: str) -> str:
    """Return the digits that people are shown."""
    return digest[:12]
