"""The blocks of docs/benchmarks-reload.md: figures in tables, the target beside each, met or missed."""

import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Final

from bench import page
from bench.processes import ROOT
from bench.reload import campaign, figures, memory, peers, rollout
from bench.reload.loads import Books

PAGE: Final = ROOT / "docs" / "benchmarks-reload.md"
TOP: Final = """\
# Benchmarks: releases and reload

What happens to jobs while the code that runs them is changed under load. The figures were written by the benchmarks
themselves: `python -m bench reload`, `python -m bench faults`. Waits are counted from the moment at which a job was due
by a plan made in advance (an open loop), so that a client or a dispatcher that is late is not quietly left out. Whether
a job was lost or ran twice is judged by `bench.ledger` from the list of confirmed submissions and from the lines that
the jobs themselves wrote, in files outside of every runtime.
"""
WIDTH: Final = 120
PAUSE_S: Final = 0.050
THROUGHPUT: Final = 0.98
OWN_MB: Final = 3.0
MORE: Final = 0.25


def renew(name: str, text: str, title: str) -> None:
    """Put a block on the page."""
    page.renew(name, text, title, PAGE, TOP)


def prose(text: str) -> str:
    """Return a paragraph in lines of the page's width."""
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def verdict(*, met: bool) -> str:
    """In the words of all benchmarks."""
    return "met" if met else "missed"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; figures stand to the right."""
    marks = ["---" if at == 0 else "--:" for at in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


# ── our own releases


def of_campaign(found: campaign.Result, command: str) -> str:
    """Return the block of the campaign."""
    swapped, calm, terms = found.swapped, found.calm, found.terms
    good = swapped.verdict.good and calm.verdict.good
    turned = [fate for fate in found.broken if fate.refused_s is not None]
    targets = [
        ["lost, run twice", f"{len(swapped.verdict.lost)}, {len(swapped.verdict.doubled)}", verdict(met=good)],
        [
            "every broken release rolled back",
            f"{len(turned)} of {len(found.broken)}",
            verdict(met=len(turned) == len(found.broken)),
        ],
        [
            f"throughput at least {THROUGHPUT:.0%} of arrivals",
            f"{swapped.kept_up:.2%}",
            verdict(met=swapped.kept_up >= THROUGHPUT),
        ],
        [
            f"added pause at p99 at most {PAUSE_S * 1000:.0f} ms",
            f"{found.pause_s * 1000:+.1f} ms",
            verdict(met=found.pause_s <= PAUSE_S),
        ],
    ]
    facts = (
        f"Capacity {found.capacity:,.0f} jobs/s, measured by the first release; load {found.rate:,.0f} jobs/s. "
        f"{len(found.fates)} releases, one every {terms.every_s:g} s, {len(found.broken)} of them broken; "
        f"{terms.shape.nodes} nodes of {terms.shape.slots} slots; a job takes {terms.ms:g} ms. "
        f"The whole took {found.seconds:.0f} s."
    )
    parts = [
        page.machine(["fleetd"]),
        f"`{command}`",
        prose(facts),
        table(["Target", "Measured", ""], targets),
        table(["Load", "jobs", "lost", "run twice", "p50", "p99", "max", "sender late, p99"], _loads(swapped, calm)),
        prose(_dead(swapped)),
        "What became of the broken ones, from `fleetd status` and the journal:",
        "\n".join(_fate(fate) for fate in found.broken),
        prose(_runs(found)),
        *([f"Faults of the campaign: {'; '.join(found.faults)}."] if found.faults else []),
    ]
    return "\n\n".join(part for part in parts if part)


def _loads(swapped: Books, calm: Books) -> list[list[str]]:
    return [
        [
            name,
            f"{books.verdict.submitted:,}",
            str(len(books.verdict.lost)),
            str(len(books.verdict.doubled)),
            _ms(books.waits.p50),
            _ms(books.waits.p99),
            _ms(books.waits.most),
            _ms(books.lag.p99),
        ]
        for name, books in (("with releases", swapped), ("in peace, before and after", calm))
    ]


def _dead(books: Books) -> str:
    if not books.revived:
        return "No job failed for good."
    return (
        f"{len(books.revived)} jobs failed for good and became dead letters: the broken releases raise in them, or "
        "crash in them. At the end each was let run again as `fleetd dead retry` does, and ran; the waits leave them "
        "out."
    )


def _fate(fate: campaign.Fate) -> str:
    if fate.refused_s is None:
        return f"- {fate.release}: **not refused**"
    return (
        f"- {fate.release}: refused {fate.refused_s:.1f} s after its activation: `{_plain(fate.line or fate.reason)}`"
    )


def _plain(text: str) -> str:
    """Without the names of temporary folders, which tell nothing."""
    words = ["…/" + word.rsplit("/", 1)[-1] if word.startswith("/tmp/") else word for word in text.split()]
    return " ".join(words)


def _runs(found: campaign.Result) -> str:
    ran = figures.by_release(found.swapped.runs)
    everywhere = [fate.everywhere_s for fate in found.fates if fate.everywhere_s is not None]
    broken = {fate.release.number: ran.get(fate.release.number, 0) for fate in found.broken}
    text = f"Jobs that ran by a broken release to their end: {', '.join(f'{c} by {n}' for n, c in broken.items())}."
    if everywhere:
        text += f" A good one was on all nodes {median(everywhere):.1f} s after its activation (median)."
    return text


# ── peers


def of_peers(found: Sequence[peers.Outcome], terms: peers.Terms) -> str:
    """Return the block of the peers."""
    head = ["Runtime", "capacity", "jobs", "reloads", "lost", "run twice", "p99 in peace", "p99 with reloads"]
    rows = [
        [
            one.subject.name,
            f"{one.capacity:,.0f}/s",
            f"{one.verdict.submitted:,}",
            f"{one.reloaded} of {one.reloads}",
            str(len(one.verdict.lost)),
            str(len(one.verdict.doubled)),
            _ms(one.calm.p99),
            _ms(one.swapped.p99),
            _ms(max(0.0, one.pause_s)),
            f"{one.still_s:.2f} s",
            f"{one.kept_up:.1%}",
            one.subject.acknowledged,
        ]
        for one in found
    ]
    head += ["added pause at p99", "longest standstill", "started in time", "acknowledged"]
    notes = [f"- {one.subject.name}: {note}" for one in found for note in one.notes]
    packages = ["celery", "rq", "dramatiq", "redis", "fleetd"]
    return "\n\n".join(
        part for part in (page.machine(packages), table(head, rows), "\n".join(notes), prose(_method(terms))) if part
    )


def _method(terms: peers.Terms) -> str:
    return (
        f"Each runs the same job, {terms.ms:g} ms of sleep and one line in the ledger, in {terms.slots} processes. The "
        f"load is a Poisson stream at {peers.SHARE:.0%} of the runtime's own capacity: for {terms.seconds:g} s in "
        f"peace, then for {terms.seconds:g} s with new code on the disk every {terms.every_s:g} s and the runtime told "
        "of it as its documents say: TERM and a new start once it has ended (Celery, RQ), HUP (Celery, dramatiq, "
        "fleetd). All releases are good. A reload counts once a job has run by its code. Lost is what had not run "
        f"{peers.QUIET_S:g} s after the last job that did; what the broker still held then is told below. The longest "
        "standstill is the longest time in which no job at all started."
    )


# ── memory and roll-out


def of_memory(found: Sequence[memory.Weights]) -> str:
    """Return the block of the memory."""
    most = max(max(one.slots) for one in found) / memory.MB
    by_one = next(one for one in found if one.overlap == 1)
    targets = [
        [f"own memory of an idle slot under {OWN_MB:g} MB", f"{most:.1f} MB", verdict(met=most < OWN_MB)],
        [
            f"a swap with `overlap: 1` at most {MORE:.0%} above",
            f"{by_one.more:+.0%}",
            verdict(met=by_one.more <= MORE),
        ],
    ]
    rows = [
        [
            f"overlap {one.overlap or f'{len(one.slots)} (all)'}",
            f"{median(one.slots) / memory.MB:.1f} MB",
            f"{one.before / memory.MB:.0f} MB",
            f"{one.peak / memory.MB:.0f} MB",
            f"{one.more:+.0%}",
            f"{one.after / memory.MB:.0f} MB",
            f"{one.seconds:.1f} s",
        ]
        for one in found
    ]
    head = ["Swap", "an idle slot's own", "the whole before", "at its height", "more", "2 s after", "took"]
    text = (
        f"{memory.SLOTS} slots over an app with numpy and a table of 200,000 entries. Own memory is what a process "
        "shares with nobody (USS); the whole is the sum of the shares (PSS) of the supervisor and everything below "
        f"it, looked at {min(one.looks for one in found)} times or more in each swap. After a swap of all slots at "
        "once the generation before stays ready while the new one is on trial: the way back needs no import."
    )
    return "\n\n".join(
        [page.machine(["fleetd", "numpy"]), table(["Target", "Measured", ""], targets), table(head, rows), prose(text)]
    )


def of_rollout(found: rollout.Result) -> str:
    """Return the block of the roll-out."""
    rows = [
        [
            str(one.release),
            f"{one.tried}",
            f"{one.ran}",
            f"{one.seconds:.1f} s",
            "yes" if one.back else "**no**",
            _plain(one.reason) or "on all nodes",
        ]
        for one in found.journeys
    ]
    head = ["Release", "nodes that loaded it", "nodes that it took over", "decided after", "all nodes agree", "outcome"]
    good = found.journeys[0]
    steps = ", ".join(f"{count} after {at:.1f} s" for at, count in good.steps)
    text = (
        f"{found.nodes} nodes of the process pool with one slot each, canary {rollout.CANARY:.0%}, under "
        f"{rollout.RATE:g} jobs a second for each node: {found.jobs}. The good release's nodes: {steps}."
    )
    return "\n\n".join([page.machine(["fleetd"]), table(head, rows), prose(text)])
