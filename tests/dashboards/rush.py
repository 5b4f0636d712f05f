"""A real fleet in a rush, scraped by a real Prometheus: jobs that succeed, fail and crash, a drain, releases good and
bad, a pool that fails, an operator's commands, a wrong token. What the dashboards' tests and pictures look at."""

import contextlib
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.client import Client
from fleetd.core.flow import Flow
from fleetd.core.memory import Memory, QueueMemory
from fleetd.store.sqlite import Store
from tests import servers
from tests.e2e.fleet import Fleet, _end_workers

PROBATION_S: Final = 5
TOKEN: Final = "the-token-of-the-rush"
APP: Final = """\
import ctypes, time
from fleetd.worker import job

@job
def nap(payload):
    time.sleep(float(payload))
    return b"VERSION"

@job
def nap_fail(payload):
    raise ValueError("no good")

@job
def nap_crash(payload):
    ctypes.string_at(0)

@job
def stray(payload):
    return payload

@job
def report(payload):
    time.sleep(0.05)
    return payload
"""
POLICY: Final = """\
version: 1
fleet: rush
sources: {{main: {{gearman: {{servers: ["{server}"]}}}}}}
apps: {{naps: {{release: {{path: app}}, attempts: 2, reload: {{probation: {probation}s}}}}}}
queues:
  nap: {{app: naps, source: main, match: "nap*", objective: {{wait: 2s, share: 90%}}, job_limit: 1m}}
  report: {{app: naps, source: main, match: report, objective: {{wait: 30s}}, priority: low, job_limit: 1m}}
pools:
  cloud: {{simulated: {{boot: [1s, 2s], launch_failure: 100%}}, apps: [naps], slots: 4, max: 3, price: 0.01/h}}
  local: {{process: {{}}, apps: [naps], slots: 1, max: 4, price: 0.05/h}}
budget: {{hour: 5, month: 900}}
stability: thrifty
controller: {{listen: "127.0.0.1:{port}", token: {{env: RUSH_TOKEN}}}}
"""
SCRAPE: Final = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: fleetd
    authorization: {{credentials: {token}}}
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""
RULES: Final = Path(__file__).parents[2] / "dashboards" / "rules.yaml"


@dataclass(frozen=True, slots=True)
class Ran:
    """A rush that is over; its Prometheus still answers. Times in seconds since 1970."""

    url: str
    start: float
    end: float

    def ask(self, path: str, **query: object) -> Any:
        """Ask Prometheus; what it refuses is an AssertionError with its words."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(address, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{query}: {error.read().decode()}") from None

    def course(self, expr: str, step: float = 1.0) -> list[dict[str, Any]]:
        """Return the series of a query over the rush, as Prometheus gives them."""
        return list(self.ask("query_range", query=filled(expr), start=self.start, end=self.end, step=step)["result"])


def filled(expr: str) -> str:
    """Return a panel's query as Grafana would send it with everything selected."""
    values = {"$__rate_interval": "15s", "$__range": "90s", "$fleet": "rush"}
    for name in ("queue", "pool", "app"):
        values[f"${name}"] = ".*"
    for name, value in values.items():
        expr = expr.replace(name, value)
    return expr


@contextlib.contextmanager
def rush(home: Path) -> Iterator[Ran]:
    """Run it, a minute and a half; everything is ended in the end."""
    port = servers.free_port()
    (home / "app").mkdir()
    (home / "app" / "jobs.py").write_text(APP)
    config = home / "prometheus.yml"
    config.write_text(SCRAPE.format(rules=RULES, token=TOKEN, port=port))
    os.environ["RUSH_TOKEN"] = TOKEN
    with servers.gearmand() as dispatcher, servers.prometheus(config, home / "data") as prometheus:
        fleet = Fleet(home, dispatcher)
        fleet.policy.write_text(POLICY.format(server=dispatcher.address, port=port, probation=PROBATION_S))
        remember(home / "state" / "rush")
        start = time.time()
        try:
            fleet.start()
            seen = Ran(f"http://{prometheus.address}", start, start)
            fleet.until("it is scraped", lambda: bool(seen.ask("query", query="fleetd_info")["result"]))
            play(fleet, f"http://127.0.0.1:{port}")
            fleet.until("it was scraped long enough", lambda: time.time() - start > 75, limit_s=100)
            yield Ran(f"http://{prometheus.address}", start, time.time())
        finally:
            if fleet.process and fleet.process.poll() is None:
                fleet.process.kill()
                fleet.process.wait()
            _end_workers(home)


def remember(folder: Path) -> None:
    """Let the fleet have run before: in its first five minutes no job is judged by its wait."""
    now = time.time()
    known = QueueMemory(read_at=now, learned_at=now, flow=Flow(begun_at=now - 600.0))
    store = Store(folder)
    store.commit(Memory(epoch=1, now=now, queues={"nap": known, "report": known}))
    store.close()


def play(fleet: Fleet, url: str) -> None:
    """Let happen what a night on call may bring."""
    with Client([fleet.server.address]) as client:
        submit(client, "nap", 30, "0.7")
        submit(client, "report", 40, "x")
        fleet.until("nodes are ready", lambda: len(fleet.nodes("ready")) >= 2)
        turned_away(url)
        submit(client, "nap_fail", 4, "")
        submit(client, "stray", 3, "x")
        # What fails while a release is on trial would be put down to the release.
        fleet.until("what fails has failed", lambda: fleet.status()["dead"] == 4)
        jobs = fleet.home / "app" / "jobs.py"
        jobs.write_text(APP.replace("VERSION", "two"))
        fleet.until("the new code is active", lambda: bool(released(fleet)["previous"]))
        over = time.monotonic() + PROBATION_S + 1.0
        submit(client, "nap", 30, "0.5")
        jobs.write_text(APP + "\nraise RuntimeError('half an edit')\n")
        fleet.until("bad code is refused", lambda: bool(released(fleet)["refused"]))
        fleet.until("the good code's trial is over", lambda: time.monotonic() > over)
        submit(client, "nap_crash", 1, "")
        submit(client, "nap", 30, "0.5")
        fleet.until("a node is ready", lambda: bool(fleet.nodes("ready")))
        fleet.fleetd("drain", fleet.nodes("ready")[0])
        fleet.fleetd("wake", "local", "--count", "2", "--for", "10s")
        submit(client, "report", 40, "x")
        fleet.until("all is done", lambda: all(not q["waiting"] for q in fleet.status()["queues"].values()))
        fleet.fleetd("pause")
        fleet.fleetd("resume")


def submit(client: Client, function: str, count: int, payload: str) -> None:
    for _ in range(count):
        client.submit(function, payload.encode())


def released(fleet: Fleet) -> dict[str, Any]:
    return dict(fleet.status()["releases"]["naps"])


def turned_away(url: str) -> None:
    """Ask with a wrong token."""
    asked = urllib.request.Request(f"{url}/v1/status", headers={"Authorization": "Bearer not-the-token-at-all"})
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(asked, timeout=5):
        raise AssertionError("a wrong token was let in")
