"""Releases and reload under load: what it costs the jobs, ours and our peers'.

python -m bench reload [--part campaign|peers|memory|rollout] [options]

campaign: a release every ten seconds, every fifth broken, under 70 % of the capacity. peers: new code every ten seconds
for Celery, RQ, dramatiq and fleetd's worker, each by its own way to load it. memory: what a swap costs. rollout: one
release over fifty nodes. Without `--part` all of them; each renews its block in docs/benchmarks-reload.md.
"""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from bench.reload import campaign, memory, peers, report, rollout, subjects
from bench.reload.fleet import CampaignError
from fleetd.errors import FleetdError

Block = tuple[str, str, str, bool]  # name, text, title, whether all went well


def _campaign(given: argparse.Namespace) -> Block:
    terms = campaign.Terms(
        jobs=given.jobs, every_s=given.every, ms=given.ms, seed=given.seed, dispatcher=given.dispatcher
    )
    found = campaign.run(terms, say)
    command = f"python -m bench reload --part campaign --jobs {given.jobs} --dispatcher {given.dispatcher}"
    command += f" --seed {given.seed}"
    for fault in found.faults:
        say(f"FAULT: {fault}")
    name = f"campaign-{given.dispatcher}"
    title = f"A release every {given.every:g} s ({given.dispatcher})"
    return name, report.of_campaign(found, command), title, not found.faults


def _peers(given: argparse.Namespace) -> Block:
    terms = peers.Terms(seconds=given.seconds, every_s=given.every, seed=given.seed, logs=given.logs)
    chosen = [one for one in subjects.SUBJECTS if given.only.lower() in one.name.lower()]
    found = [peers.measure(one, terms, say) for one in chosen]
    ours = [one for one in found if one.subject.name.startswith(subjects.OURS)]
    return "peers", report.of_peers(found, terms), "Beside others", all(one.verdict.good for one in ours)


def _memory(given: argparse.Namespace) -> Block:
    del given
    found = [memory.weigh(overlap, say) for overlap in (1, 0)]
    return "memory", report.of_memory(found), "Memory", True


def _rollout(given: argparse.Namespace) -> Block:
    found = rollout.run(given.nodes, say)
    good = found.jobs.good and all(one.back for one in found.journeys)
    return "rollout", report.of_rollout(found), f"Over {given.nodes} nodes", good


PARTS: Final[dict[str, Callable[[argparse.Namespace], Block]]] = {
    "campaign": _campaign,
    "peers": _peers,
    "memory": _memory,
    "rollout": _rollout,
}


def say(line: str) -> None:
    """Print a line at once, in one write: several threads say something."""
    print(f"{line}\n", end="", flush=True)


def main(argv: list[str]) -> int:
    """Run the parts asked for; 0 only where nothing was lost and every broken release was turned back."""
    parser = argparse.ArgumentParser(prog="bench reload", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--part", choices=PARTS, help="which one (default: all)")
    parser.add_argument("--jobs", type=int, default=200_000, help="of the campaign")
    parser.add_argument("--ms", type=float, default=6.0, help="what a job of the campaign takes")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="between two releases")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of a peer's two loads")
    parser.add_argument("--only", default="", metavar="NAME", help="of the peers, those whose name holds this")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the peers' logs there")
    parser.add_argument("--nodes", type=int, default=50, help="of the roll-out")
    parser.add_argument("--dispatcher", choices=("embedded", "gearmand"), default="embedded", help="of the campaign")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    worst = 0
    for name in (given.part,) if given.part else PARTS:
        try:
            block, text, title, good = PARTS[name](given)
        except (FleetdError, peers.RunError, CampaignError, TimeoutError) as error:
            print(f"bench reload: {name}: {error}", file=sys.stderr)
            worst = 1
            continue
        print(text)
        if given.page:
            report.renew(block, text, title)
        worst = max(worst, 0 if good else 1)
    return worst


def _end(_: int, __: FrameType | None) -> None:
    """Unwind, so that every server and worker is ended."""
    sys.exit(143)
