"""The life of a node: one table of moves, and the function that follows it.

Promises: a node changes its phase here and nowhere else; a move that the table does not hold raises. The table is the
documentation: `docs/architecture.md` draws its diagram from it.
"""

from dataclasses import replace
from enum import StrEnum
from typing import Final

from fleetd.core.memory import Node
from fleetd.core.model import Phase, Seconds


class Event(StrEnum):
    """What can happen to a node."""

    SIGHTED = "sighted"
    LEASED = "leased"
    SILENT = "silent"
    FENCE = "fence"
    UNFENCE = "unfence"
    STOP = "stop"
    OVERDUE = "overdue"
    VANISHED = "vanished"
    QUARANTINE = "quarantine"
    FREE = "free"


P, E = Phase, Event
MOVES: Final[dict[tuple[Phase, Event], tuple[Phase, str]]] = {
    (P.REQUESTED, E.SIGHTED): (P.BOOTING, "the provider lists it: the order was heard"),
    (P.REQUESTED, E.LEASED): (P.READY, "its worker spoke, before the provider listed it"),
    (P.REQUESTED, E.OVERDUE): (P.FAILED, "never seen by its deadline"),
    (P.BOOTING, E.LEASED): (P.READY, "its worker spoke"),
    (P.BOOTING, E.OVERDUE): (P.FAILED, "no lease by its boot deadline"),
    (P.READY, E.SILENT): (P.LOST, "its lease ran out: no capacity, yet counted against max and budget"),
    (P.READY, E.FENCE): (P.DRAINING, "it takes nothing new and finishes what runs"),
    (P.READY, E.STOP): (P.STOPPING, "an operator's force, nothing else"),
    (P.LOST, E.LEASED): (P.READY, "it was only out of touch"),
    (P.LOST, E.FENCE): (P.DRAINING, "drained by name; it hears of it once it is back in touch"),
    (P.LOST, E.STOP): (P.STOPPING, "an operator's force, nothing else"),
    (P.DRAINING, E.UNFENCE): (P.READY, "un-drain: the cheapest scale-out"),
    (P.DRAINING, E.STOP): (P.STOPPING, "its lease says drained, or an operator's force"),
    (P.REQUESTED, E.STOP): (P.STOPPING, "an operator's force"),
    (P.BOOTING, E.STOP): (P.STOPPING, "an operator's force, or the fleet ends before it came up"),
    (P.FAILED, E.LEASED): (P.READY, "late, but it came"),
    (P.FAILED, E.STOP): (P.STOPPING, "it never came up; it cannot be busy"),
    (P.READY, E.QUARANTINE): (P.QUARANTINED, "an operator keeps it out of service, alive for a look"),
    (P.DRAINING, E.QUARANTINE): (P.QUARANTINED, "an operator keeps it instead of letting it go"),
    (P.QUARANTINED, E.FREE): (P.READY, "an operator gives it back"),
    (P.QUARANTINED, E.FENCE): (P.DRAINING, "an operator lets it go"),
    (P.QUARANTINED, E.STOP): (P.STOPPING, "an operator's force"),
    (P.QUARANTINED, E.VANISHED): (P.GONE, "it died in quarantine"),
    (P.REQUESTED, E.VANISHED): (P.GONE, "died before it was listed"),
    (P.BOOTING, E.VANISHED): (P.GONE, "died while booting: the pool's breaker counts it"),
    (P.READY, E.VANISHED): (P.GONE, "died or was taken away; its jobs go back to the dispatcher"),
    (P.LOST, E.VANISHED): (P.GONE, "its hardware is gone"),
    (P.DRAINING, E.VANISHED): (P.GONE, "left by itself after its last job"),
    (P.STOPPING, E.VANISHED): (P.GONE, "stopped as asked"),
    (P.FAILED, E.VANISHED): (P.GONE, "gone by itself"),
}
# Capacity that serves jobs now, or will.
SERVING: Final = frozenset({P.READY})
COMING: Final = frozenset({P.REQUESTED, P.BOOTING})


def move(node: Node, event: Event, now: Seconds, reason: str = "") -> Node:
    """Return the node after the event; raises KeyError for a move that must not happen."""
    phase, comment = MOVES[node.phase, event]
    return replace(node, phase=phase, since=now, reason=reason or comment)


def may(node: Node, event: Event) -> bool:
    """Whether the table knows this move."""
    return (node.phase, event) in MOVES
