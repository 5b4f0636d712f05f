"""How long a scrape of the metrics page takes, and how many series it has; writes docs/benchmarks-scrape.md.

python -m bench scrape [--no-page]

Fleets of growing size with all that a page can show: each queue and pool measured, each node's worker leasing, releases
in two stages. A scrape is a real one: over HTTP on loopback, from the API's own server, with the token. The longest
turn of the event loop while a page is written is measured too, since that is what a tick would wait for.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

import httpx

from bench.page import PAGE, machine, renew
from fleetd.codecs.lease import JobCounts, Lease, ReleaseCounts
from fleetd.control.loop import Controller
from fleetd.control.metrics import MOST_NODES, take, write
from fleetd.control.outlook import Adapters
from fleetd.core.memory import Memory, Node, PoolMemory, QueueMemory, Rollout, Wanted
from fleetd.core.model import AppPolicy, Objective, Phase, Policy, PoolPolicy, QueuePolicy, SourcePolicy, Work
from fleetd.store.sqlite import Store
from fleetd.web.api import make_app
from fleetd.web.serve import bind, make_server

DOC: Final = PAGE.parent / "benchmarks-scrape.md"
TITLE: Final = "# What a scrape of the metrics costs\n"
SIZES: Final = ((20, 100), (200, 1_000), (200, 5_000))
SCRAPES: Final = 30
LIMIT_MS: Final = 100.0
GOOD, NEXT = "a" * 64, "b" * 64
TOKEN: Final = "the-operators-token"


def fleet(queues: int, nodes: int) -> Policy:
    """Return a policy of ten apps and ten pools."""
    apps = {f"app{i}": AppPolicy(f"app{i}") for i in range(10)}
    rules = {
        f"queue{i}": QueuePolicy(f"queue{i}", f"app{i % 10}", "main", f"job{i}", Objective(30.0)) for i in range(queues)
    }
    pools = {
        f"pool{i}": PoolPolicy(f"pool{i}", "fake", None, tuple(apps), 4, 0, nodes, price_per_h=0.1) for i in range(10)
    }
    return Policy("big", {"main": SourcePolicy("main", "fake", None)}, apps, rules, pools)


def made(policy: Policy, folder: Path, nodes: int) -> Controller:
    """Return a controller that holds such a fleet at work."""
    controller = Controller(policy, Store(folder), lambda _: Adapters({}, {}), lambda *_: None)
    now, known = controller.clock(), {}
    for at in range(nodes):
        name, pool, app = f"pool{at % 10}/{at}.123456", f"pool{at % 10}", f"app{at // 10 % 10}"
        digest = NEXT if at % 4 == 0 else GOOD
        known[name] = Node(name, pool, app, Phase.READY, now, now + at, 4, "k", 3, None, digest, now)
        jobs = {f"job{at % len(policy.queues)}": JobCounts(40, 36, 2, 80.0, {"40": 20, "50": 18}, [1.0, 2.0])}
        controller.leases.accept(
            Lease("big", pool, name, "boot", 1, app, "working", 4, 3, digest=digest, jobs=jobs,
                  releases={digest: ReleaseCounts(36, 2, 0)})
        )  # fmt: skip
    controller.memory = Memory(
        epoch=1,
        now=now,
        nodes=known,
        pools={pool: PoolMemory(boots_s=(60.0, 70.0)) for pool in policy.pools},
        queues={queue: QueueMemory(5, 10, now, now, judged=100.0, late=3.0) for queue in policy.queues},
        rollouts={app: Rollout(GOOD, "", NEXT, 0.25) for app in policy.apps},
        wanted={f"{app} in {pool}": Wanted(9) for app in policy.apps for pool in policy.pools},
    )
    controller.leases.rollouts = controller.memory.rollouts
    for queue in policy.queues:
        controller.counts.served(queue, Work(service_s=80.0, ended={40: 20, 50: 18}))
    return controller


class Took(NamedTuple):
    """One scrape in seconds: for its client, of CPU, and the longest turn of the loop in it and before it."""

    wall: float
    cpu: float
    turn: float
    quiet: float


async def scrape(controller: Controller) -> tuple[list[Took], bytes]:
    """Return what each scrape took, and a page."""
    server = make_server(make_app(controller, "join", TOKEN))
    listener = bind("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    turns: list[float] = []
    watching = asyncio.create_task(_turns(turns))
    took, text = list[Took](), b""
    async with httpx.AsyncClient(trust_env=False, timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        for _ in range(SCRAPES):
            turns.clear()
            await asyncio.sleep(0.55)  # beyond what a page stays fresh for
            quiet_s = max(turns)
            turns.clear()
            begun, spent = time.perf_counter(), time.process_time()
            answer = await http.get(f"http://127.0.0.1:{listener.getsockname()[1]}/metrics")
            await asyncio.sleep(0)
            took.append(
                Took(time.perf_counter() - begun, time.process_time() - spent, max(turns, default=0.0), quiet_s)
            )
            text = answer.raise_for_status().content
    watching.cancel()
    server.should_exit = True
    await serving
    return took, text


async def _turns(turns: list[float]) -> None:
    while True:
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        turns.append(time.perf_counter() - begun - 0.001)


def measure(queues: int, nodes: int) -> tuple[list[Took], bytes]:
    """Measure one size."""
    with tempfile.TemporaryDirectory() as folder:
        controller = made(fleet(queues, nodes), Path(folder), nodes)
        write(take(controller))
        found = asyncio.run(scrape(controller))
        controller.store.close()
    return found


def series_of(page: bytes) -> Counter[str]:
    """Count the series of a page by their subject: the first word of a name."""
    names = [line.partition("{")[0] for line in page.decode().splitlines() if not line.startswith("#")]
    return Counter(name.removeprefix("fleetd_").partition("_")[0] if "fleetd" in name else "process" for name in names)


def main(argv: list[str]) -> int:
    """Measure, print, and renew the page; 1 where a fleet of 1,000 nodes and 200 queues takes too long."""
    parser = argparse.ArgumentParser(prog="bench scrape", description=__doc__)
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    rows, subjects, failed = [], Counter[str](), False
    for queues, nodes in SIZES:
        took, page = measure(queues, nodes)
        median, cpu, turn, quiet = (1e3 * statistics.median(one) for one in zip(*took, strict=True))
        worst, series = 1e3 * max(one.wall for one in took), sum(series_of(page).values())
        cells = f"{queues} | {nodes:,} | {series:,} | {len(page) // 1024:,} KiB | {median:.0f} ms | {worst:.0f} ms"
        rows.append(f"| {cells} | {cpu:.0f} ms | {turn:.0f} ms | {quiet:.0f} ms |")
        print(rows[-1], flush=True)
        if nodes == 1_000:
            subjects, failed = series_of(page), median > LIMIT_MS
    head = "| queues | nodes | series | page | a scrape, median | worst of 30 | its CPU | turn | quiet |"
    table = "\n".join([head, "|---" * 9 + "|", *rows])
    of = "\n".join(
        ["| subject | series |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in subjects.most_common())]
    )
    body = f"""{machine(["prometheus-client", "uvicorn"])}

`python -m bench scrape`: over HTTP, from the API's own server in one process with the client.

{table}

At most {MOST_NODES:,} nodes have series of their own; more are counted all the same. A page is written in a thread
beside the event loop: `turn` is the longest turn of the loop during a scrape, and so the most that a tick begins late
for it, `quiet` the longest in the half second before (medians of {SCRAPES}). The machine
was shared with other work, which the worst scrapes may be due to.

The series of 200 queues and 1,000 nodes in 10 pools and 10 apps, by the first word of their name:

{of}"""
    if given.page:
        renew("scrape", body, "", DOC, TITLE)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
