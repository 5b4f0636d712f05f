"""A release over fifty nodes: canary, then waves, then everywhere; and bad ones, which must end at the canary.

What each node ran is read from the nodes' own logs, and from the digest in the status at the end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.ledger import Verdict
from bench.reload.fleet import CampaignError, Fleet, Shape, fleet
from bench.reload.loads import send
from bench.reload.release import Release

CANARY: Final = 0.1
RATE: Final = 4.0  # jobs a second for each node
MS: Final = 20.0
LIMIT_S: Final = 180.0
LOAD_S: Final = 600.0  # at most; it ends with the last journey
GOOD: Final = Release(1)
BAD: Final = (Release(2, "import"), Release(3, "crash"))


@dataclass(frozen=True, slots=True)
class Journey:
    """How far a release came. `steps`: seconds after its activation and the nodes that ran it then.

    `tried`: nodes that began to load it; `ran`: nodes on which it took jobs over.
    """

    release: Release
    steps: Sequence[tuple[float, int]]
    tried: int
    ran: int
    seconds: float
    reason: str
    back: bool  # whether every node runs what it is to run at the end


@dataclass(frozen=True, slots=True)
class Result:
    """All journeys, and the jobs that ran meanwhile."""

    nodes: int
    journeys: Sequence[Journey]
    jobs: Verdict


@dataclass(slots=True)
class Traveller:
    """Follows one release through the fleet."""

    fleet: Fleet
    release: Release
    steps: list[tuple[float, int]] = field(default_factory=list)

    def follow(self) -> Journey:
        """Activate it and look until it is on all nodes or refused."""
        made, digest = self.fleet, self.fleet.digests[self.release.number]
        before = made.rollout().get("active")
        made.note(f"{self.release}: activated, canary {CANARY:.0%}")
        begun = time.monotonic()
        made.activate(self.release.number, canary=CANARY)
        reason, wanted = "", digest
        while True:
            rollout, now = made.rollout(), time.monotonic() - begun
            self._see(now, int((rollout.get("nodes") or {}).get(digest, 0)))
            if digest in (rollout.get("refused") or {}):
                reason, wanted = str(rollout["refused"][digest]), str(before)
                break
            if rollout.get("active") == digest and not rollout.get("candidate"):
                break
            if now > LIMIT_S:
                raise CampaignError(f"{self.release}: neither everywhere nor refused after {LIMIT_S:g} s")
            time.sleep(0.2)
        seconds = time.monotonic() - begun
        made.until("every node runs the active release", lambda: self._all(wanted), LIMIT_S)
        told = f"refused: {reason}" if reason else "on all nodes"
        made.note(f"{self.release}: {told} after {seconds:.1f} s")
        return Journey(
            self.release,
            self.steps,
            said_by(made, "generation comes", digest),
            said_by(made, "generation took over", digest),
            seconds,
            reason,
            self._all(wanted),
        )

    def _see(self, now: float, count: int) -> None:
        if count != (self.steps[-1][1] if self.steps else 0):
            self.steps.append((now, count))

    def _all(self, digest: str) -> bool:
        running = list(self.fleet.running().values())
        return len(running) == self.fleet.shape.nodes and all(one and digest.startswith(one) for one in running)


def said_by(made: Fleet, what: str, digest: str) -> int:
    """Return how many nodes logged this of a release."""
    mark = f"digest={digest[:12]}"
    return sum(
        any(what in line and mark in line for line in log.read_text("utf-8", "replace").splitlines())
        for log in (made.home / "state").rglob("logs/*.log")
    )


def run(nodes: int, say: Callable[[str], None], canary_s: float = 5.0) -> Result:
    """Roll a good release out, then bad ones, under a light load."""
    with fleet("embedded", Shape(nodes, 1, canary_s), say) as made:
        made.first()
        made.push([GOOD, *BAD])
        load = send(made, "sent", jobs=int(nodes * RATE * LOAD_S), rate=nodes * RATE, ms=MS, seed=1)
        try:
            journeys = [Traveller(made, one).follow() for one in (GOOD, *BAD)]
        finally:
            load.sender.terminate()
        return Result(nodes, journeys, load.settle().verdict)
