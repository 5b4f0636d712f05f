"""The metrics page: what the latest tick left and what was counted, as Prometheus reads it.

Promises: a snapshot is taken at once, between two ticks; the page is written from it in another thread, so that no
scrape holds up a tick; of those who ask at once, one is served and the others get the same page. Bounded: at most
`MOST_NODES` nodes have series of their own. What is unknown has no sample, never a zero. Changes nothing.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from fleetd.control import metrics_names as names
from fleetd.control.leases import TTL_S, LeaseBook
from fleetd.control.loop import Controller
from fleetd.control.metrics_count import Counts, Labels
from fleetd.control.metrics_gauges import Facts, Worker, samples
from fleetd.control.metrics_names import Family
from fleetd.control.shadow import Shadow
from fleetd.control.uncollected import uncollected
from fleetd.core.model import NodeId

MOST_NODES: Final = 1000
QUOTE, ESCAPED = '"', '\\"'
FRESH_S: Final = 0.5  # who asks again within this gets the page of before


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a page is written from: the facts of the latest tick, and a copy of what was counted."""

    facts: Facts
    counts: Counts


def take(controller: Controller) -> Snapshot:
    """Return what there is now. Quick: frozen values are shared, only the counts are copied."""
    counts = controller.counts.copy()
    static, cost = (counts.numbers[family.name] for family in (names.POOL_STATIC, names.POOL_COST))
    counts.numbers[names.POOL_SAVED.name] = {pool: whole - cost.get(pool, 0.0) for pool, whole in static.items()}
    counts.numbers[names.DROPPED.name] = {(): float(counts.dropped)}
    facts = Facts(
        controller.policy,
        controller.memory,
        controller.observation,
        now=controller.clock(),
        epoch_s=time.time() - controller.clock(),
        started_at=controller.started_at,
        leads=not isinstance(controller, Shadow),
        dead=controller.count_dead(),
        workers=_workers(controller.leases, controller.clock()),
        states=_states(controller.leases, controller.clock()),
        most_nodes=MOST_NODES,
    )
    return Snapshot(facts, counts)


def _workers(leases: LeaseBook, now: float) -> Mapping[NodeId, Worker]:
    return {
        name: Worker(now - entry.heard_at, entry.done, entry.failed)
        for name, entry in leases.entries.items()
        if entry.lease is not None
    }


def _states(leases: LeaseBook, now: float) -> Mapping[tuple[str, str], int]:
    """Count the workers of the policy's pools by what they say of themselves."""
    alive = (entry.lease for entry in leases.entries.values() if entry.lease and now - entry.heard_at <= TTL_S)
    return Counter((lease.pool, lease.state) for lease in alive if lease.pool in leases.policy.pools)


class Metrics(Collector):
    """The families of one snapshot, for a registry of prometheus_client."""

    def __init__(self, snapshot: Snapshot) -> None:
        """`snapshot` is read and not changed."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield every family of the table, those without a sample included: their help is there from the start."""
        facts, counts = self._snapshot.facts, self._snapshot.counts
        fleet = facts.policy.fleet
        gathered: dict[str, list[tuple[Labels, float]]] = {}
        for family, labels, value in samples(facts):
            gathered.setdefault(family.name, []).append(((fleet, *labels), value))
        for name, numbers in counts.numbers.items():
            gathered.setdefault(name, []).extend(((fleet, *labels), value) for labels, value in numbers.items())
        for family in names.FAMILIES:
            if family.kind == "histogram":
                yield _histogram(family, fleet, counts)
            else:
                yield _plain(family, gathered.get(family.name, []))


def _plain(family: Family, rows: list[tuple[Labels, float]]) -> Metric:
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=("fleet", *family.labels))
    for labels, value in rows:
        metric.add_metric(labels, value)
    return metric


def _histogram(family: Family, fleet: str, counts: Counts) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=("fleet", *family.labels))
    bounds = [*map(repr, family.buckets), "+Inf"]
    for labels, spread in counts.spreads.get(family.name, {}).items():
        metric.add_metric((fleet, *labels), list(zip(bounds, accumulate(spread.counts), strict=True)), spread.sum)
    return metric


def write(snapshot: Snapshot) -> bytes:
    """Return the page, the controller's own process included, as text of the Prometheus format."""
    process = ProcessCollector(registry=None)
    with uncollected():  # thousands of samples and no cycle; a tick that ends meanwhile may turn the collector on again
        return spell(chain(Metrics(snapshot).collect(), process.collect()))


def spell(metrics: Iterable[Metric]) -> bytes:
    """Return families as text. As `generate_latest`, at a third of its time: a large fleet has thousands of samples."""
    pairs: dict[tuple[str, str], str] = {}  # a label and its value come again and again
    lines = []
    for metric in metrics:
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"# HELP {name} {_escape(metric.documentation)}\n# TYPE {name} {metric.type}\n")
        for sample in metric.samples:
            found = []
            for pair in sample.labels.items():
                if (text := pairs.get(pair)) is None:
                    text = pairs[pair] = f'{pair[0]}="{_escape(pair[1]).replace(QUOTE, ESCAPED)}"'
                found.append(text)
            value: str = floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            lines.append(f"{sample.name}{{{','.join(found)}}} {value}\n")
    return "".join(lines).encode()


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


class Page:
    """The page of one controller."""

    def __init__(self, controller: Controller) -> None:
        """Nothing is read before the first `get`."""
        self._controller = controller
        self._turn = asyncio.Lock()
        self._at, self._text = float("-inf"), b""

    async def get(self) -> bytes:
        """Return the page of now, or of less than half a second ago."""
        async with self._turn:
            if time.monotonic() - self._at >= FRESH_S:
                snapshot = take(self._controller)
                self._text = await asyncio.to_thread(write, snapshot)
                self._at = time.monotonic()
            return self._text
