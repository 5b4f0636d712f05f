"""Pods as capacity, on a real control plane: a burst, scale-ins under load, and a thousand pods.

python -m bench kube [--only burst|scale-ins|thousand] [--jobs 2000] [--drains 50] [--pods 1000] [--seed N]

The control plane is tests/kubernetes/plane.py's, a test kubelet runs the pods as processes of this machine, and the
controller has an account with no right but those in docs/kubernetes.md. What was written when is read from the server's
own audit log; what jobs did, from lines that the jobs wrote.
"""

import argparse
import asyncio
import contextlib
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench.page import PAGE, machine, renew
from fleetd.control.loop import Controller
from fleetd.control.outlook import Adapters
from fleetd.core.model import PoolPolicy
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.store.sqlite import Store
from tests.control.fleet import FakeSource, lease, policy
from tests.kubernetes import plane
from tests.kubernetes.fleets import KubeFleet, kube_fleet
from tests.kubernetes.plane import AnswerError, Cluster
from tests.kubernetes.rigs import KubeRig, rules, template_object

FILE = PAGE.with_name("benchmarks-kubernetes.md")
TOP = """\
# Benchmarks: Kubernetes

Written by `python -m bench kube` itself, on a real control plane (etcd, kube-apiserver, kube-controller-manager and
kube-scheduler, all on this machine) whose pods are processes of the same two cores: the API server, the workers and the
jobs share them, so the times are upper bounds. What was written when is read from the server's audit log.
"""
MOST = 20
LIMIT_S = 400.0


def main(argv: list[str]) -> int:
    """Run what is asked for, and renew its part of the page."""
    parser = argparse.ArgumentParser(prog="bench kube", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("burst", "scale-ins", "thousand"))
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--drains", type=int, default=50)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=20261125)
    given = parser.parse_args(argv)
    parts: dict[str, Callable[[Cluster, argparse.Namespace], tuple[str, bool]]] = {
        "burst": burst,
        "scale-ins": scale_ins,
        "thousand": thousand,
    }
    titles = {"burst": "A burst", "scale-ins": "Scale-ins under load", "thousand": "A thousand pods"}
    good = True
    with tempfile.TemporaryDirectory(prefix="fleetd-kube-") as folder, plane.start(Path(folder) / "plane") as cluster:
        version = cluster.call("GET", "/version")["gitVersion"]
        about = f"{machine(['fleetd', 'kubernetes'])}\n| Kubernetes | {version} |"
        for name, part in parts.items():
            if given.only in (None, name):
                text, fine = part(cluster, given)
                renew(f"kube-{name}", f"{about}\n\n{text}", titles[name], FILE, TOP)
                print(text, flush=True)
                good = good and fine
    return 0 if good else 1


# ── a burst


def burst(cluster: Cluster, given: argparse.Namespace) -> tuple[str, bool]:
    """0 -> 20 -> 0, in both modes."""
    rows, good = [], True
    for mode in ("pods", "scale"):
        with cluster.kubelet(f"burst-{mode}"), at_home(cluster, mode, MOST) as fleet:
            fleet.start()
            began = fleet.burst(given.jobs, 0.1)
            up_s = until(lambda fleet=fleet: len(fleet.nodes("ready")) == MOST, began)  # type: ignore[misc]
            done_s = until(lambda fleet=fleet: len(fleet.done()) == given.jobs, began)  # type: ignore[misc]
            empty_s = until(lambda fleet=fleet: not fleet.pods(), began)  # type: ignore[misc]
            write_s = fleet.writes(began)[0]
            lost, killed = len(set(fleet.submitted) - fleet.done()), fleet.killed()
            good = good and not lost and not killed and write_s <= 2.0
            rows.append(
                f"| `{mode}` | {write_s:.2f} s | {up_s:.0f} s | {done_s:.0f} s | {empty_s:.0f} s | {lost} | {killed} |"
            )
    head = "| mode | first write | 20 ready | all done | none left | lost | killed |\n|---|--:|--:|--:|--:|--:|--:|"
    text = f"""\
{given.jobs} jobs of 0.1 s are submitted at once to a fleet without a pod; at most {MOST} pods with one slot each.

{head}
{chr(10).join(rows)}

"First write": from the first submit to the moment at which the API server received the first pod, or the new number of
replicas; the target is 2 s. KEDA's defaults look every 30 s while there is no pod, and a HorizontalPodAutoscaler every
15 s. "None left": the policy (`stability: thrifty`) lets go as what it remembers of the rush fades, the last pods one
by one; a pod that is let go is gone within three seconds. All times count from the first submit."""
    return text, good


# ── scale-ins


def scale_ins(cluster: Cluster, given: argparse.Namespace) -> tuple[str, bool]:
    """Scale-ins at random moments, by fleetd in both modes, and as an autoscaler does it."""
    rows, good = [], True
    for mode in ("pods", "scale", "autoscaler"):
        with cluster.kubelet(f"ins-{mode}"):
            row, fine = _scale_in(cluster, given, mode)
        rows.append(row)
        print(row, flush=True)
        good = good and fine
    head = "| who chooses | scale-ins | runs killed | jobs lost | wrong victims |\n|---|--:|--:|--:|--:|"
    text = f"""\
Six pods with one slot each, and more jobs of 0.5 to 3 s than they can run; {given.drains} times, at a random moment,
one pod is to go and another comes. In `pods` and `scale` an operator drains a node that is drawn by chance: it is
fenced, ends its job, and only then is it stopped. The third row is what a HorizontalPodAutoscaler does: the number of
replicas is lowered by one, and the ReplicaSet takes whichever pod it likes. The grace of a pod is 1 s there, shorter
than the longest job, as the default of 30 s is for jobs of a minute.

{head}
{chr(10).join(rows)}

"Runs killed": runs of a job that wrote their first line and not their last. The dispatcher gives such a job to another
worker, so that it is late and half done twice, but not lost. "Wrong victims": pods that went instead of the drained
one; the provider looks after each scale-in."""
    return text, good


def _scale_in(cluster: Cluster, given: argparse.Namespace, who: str) -> tuple[str, bool]:
    chance = random.Random(given.seed)
    mode = "scale" if who == "autoscaler" else who
    count = given.drains * 6
    changes = {"act": False} if who == "autoscaler" else {"min": 6}
    with at_home(cluster, mode, 6, grace_s=1 if who == "autoscaler" else 60) as fleet:
        fleet.write(**changes)
        fleet.start()
        if who == "autoscaler":
            fleet.keep_secret()
            fleet.cluster.call("PATCH", _scale_path(fleet), {"spec": {"replicas": 6}})
        fleet.until("six workers run", lambda: len(fleet.nodes("ready")) >= 6, 120)
        fleet.burst(count, [chance.uniform(0.5, 3.0) for _ in range(count)])
        if who == "autoscaler":
            _as_an_autoscaler(fleet, chance, given.drains)
        else:
            _drain(fleet, chance, given.drains)
        wrong = _wrong_victims(fleet)
        fleet.until("all jobs are done", lambda: len(fleet.done()) == count, LIMIT_S)
        lost, killed = len(set(fleet.submitted) - fleet.done()), fleet.killed()
    name = {"pods": "fleetd, `pods`", "scale": "fleetd, `scale`", "autoscaler": "the ReplicaSet"}[who]
    told = "-" if who != "scale" else str(wrong)
    return f"| {name} | {given.drains} | {killed} | {lost} | {told} |", who == "autoscaler" or not (lost or killed)


def _drain(fleet: KubeFleet, chance: random.Random, times: int) -> None:
    drained: list[str] = []
    while len(drained) < times:
        ready = [node for node in fleet.nodes("ready") if node not in drained]
        if ready:
            drained.append(chance.choice(ready))
            answer = fleet.fleetd("drain", drained[-1])
            assert answer.returncode == 0, answer.stderr
        time.sleep(chance.uniform(0.0, 1.0))
    fleet.until("the drained are gone", lambda: not set(fleet.nodes()) & set(drained), 120)


def _as_an_autoscaler(fleet: KubeFleet, chance: random.Random, times: int) -> None:
    for _ in range(times):
        for wanted in (5, 6):
            fleet.cluster.call("PATCH", _scale_path(fleet), {"spec": {"replicas": wanted}})
            fleet.until(f"{wanted} pods", partial(_has_pods, fleet, wanted), 60)
        fleet.until("six workers run", lambda: _busy(fleet) >= 5, 60)
        time.sleep(chance.uniform(0.5, 2.0))


def _has_pods(fleet: KubeFleet, wanted: int) -> bool:
    return len(fleet.pods()) == wanted


def _busy(fleet: KubeFleet) -> int:
    """Runs under way on pods that live, by the ledger."""
    alive = {pod["metadata"]["uid"] for pod in fleet.pods()}
    runs: Counter[str] = Counter()
    for what, _, pod, _ in fleet.lines():
        runs[pod] += 1 if what == "begin" else -1
    return sum(runs[pod] for pod in alive)


def _scale_path(fleet: KubeFleet) -> str:
    return f"/apis/apps/v1/namespaces/{fleet.namespace}/deployments/worker/scale"


def _wrong_victims(fleet: KubeFleet) -> int:
    time.sleep(6.0)  # the ConfigMap is written every few seconds
    path = f"/api/v1/namespaces/{fleet.namespace}/configmaps/fleetd-pods"
    with contextlib.suppress(AnswerError):
        return int(json.loads(fleet.cluster.call("GET", path)["data"]["status"]).get("wrong_victims", 0))
    return 0


# ── a thousand pods


def thousand(cluster: Cluster, given: argparse.Namespace) -> tuple[str, bool]:
    """Pods whose status the test kubelet makes up: what a tick, a change and the memory of them cost."""
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster.kubelet("thousand"),
        cluster.namespace("thousand") as namespace,
    ):
        rig = KubeRig(cluster, namespace, Path(folder), {"mode": "pods", "template": "worker"})
        cluster.make(template_object(namespace, image="fake/worker"))
        rig.allow(rules())
        figures = asyncio.run(many(rig, given.pods))
    good = figures["tick_ms"] < 200.0 and figures["quiet"] <= figures["quiet_bound"]
    text = f"""\
{given.pods} pods, made and watched by the provider in `pods` mode under a real controller, whose ticks decide and write
to SQLite as always. Their leases, each busy with a job, are handed in every two seconds.

| | |
|---|--:|
| pods made | {figures["pods"]:.0f}, in {figures["launch_s"]:.0f} s |
| a tick with all of them: median, worst | {figures["tick_ms"]:.0f} ms, {figures["worst_ms"]:.0f} ms |
| the provider's part of it (`list`) | {figures["list_ms"]:.1f} ms |
| API requests for the whole launch, per pod | {figures["per_pod"]:.2f} |
| API requests in 60 s in which nothing happens | {figures["quiet"]:.0f} |
| lists of pods in all that time | {figures["lists"]:.0f} |
| this process before, and with all pods | {figures["before_mb"]:.0f} MB, {figures["after_mb"]:.0f} MB |
| of which importing the client | {figures["import_mb"]:.0f} MB |

The target is a tick under 200 ms. A tick asks the API server for nothing: the watch is read as it comes, and renewed
every 40 s."""
    return text, good


async def many(rig: KubeRig, count: int, quiet_s: float = 60.0) -> dict[str, float]:
    """Have a controller hold `count` pods; return what that costs."""
    before_mb = _memory_mb()
    options = KubernetesOptions(mode="pods", template="worker", namespace=rig.namespace, kubeconfig=str(rig.config))
    pool = PoolPolicy("pods", "kubernetes", options, ("photos",), slots=1, min_nodes=count, max_nodes=count)
    provider = rig.make()
    store = Store(rig.folder / "store.db")
    controller = Controller(policy(pool), store, lambda _: Adapters({"main": FakeSource()}, {"pods": provider}), _quiet)
    began = time.monotonic()
    running = asyncio.create_task(controller.run())
    leasing = asyncio.create_task(_lease(controller))
    try:
        await _seen(lambda: len(controller.memory.nodes) >= count, 120.0)
        launch_s = time.monotonic() - began
        made = provider.api.requests.total()
        await asyncio.sleep(10.0)
        ticks = []
        for _ in range(20):
            start = time.monotonic()
            await controller.tick()
            ticks.append(1e3 * (time.monotonic() - start))
            await asyncio.sleep(0.2)
        start = time.monotonic()
        for _ in range(20):
            await provider.list()
        list_ms = 1e3 * (time.monotonic() - start) / 20
        quiet = provider.api.requests.total()
        await asyncio.sleep(quiet_s)
        quiet = provider.api.requests.total() - quiet
        lists = len([line for line in rig.cluster.audit() if _is_list(line, rig.namespace)])
        return {
            "pods": len(controller.memory.nodes),
            "launch_s": launch_s,
            "tick_ms": median(ticks),
            "worst_ms": max(ticks),
            "list_ms": list_ms,
            "per_pod": made / count,
            "quiet": quiet,
            "quiet_bound": 20,
            "lists": lists,
            "before_mb": before_mb,
            "after_mb": _memory_mb(),
            "import_mb": _import_mb(),
        }
    finally:
        running.cancel()
        leasing.cancel()
        await asyncio.gather(running, leasing, return_exceptions=True)
        await rig.close()
        store.close()


async def _lease(controller: Controller) -> None:
    """Speak for the workers that there are not."""
    number = 0
    while True:
        number += 1
        for node in list(controller.memory.nodes.values()):
            controller.leases.accept(lease(node.id, number, busy=1, key=node.key))
        await asyncio.sleep(2.0)


def _is_list(line: dict[str, Any], namespace: str) -> bool:
    about = line.get("objectRef", {})
    user = line["user"].get("username", "")
    wanted = about.get("resource") == "pods" and about.get("namespace") == namespace and line["verb"] == "list"
    return bool(wanted and user.startswith("system:serviceaccount:"))


def _memory_mb() -> float:
    with Path("/proc/self/statm").open() as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def _import_mb() -> float:
    import subprocess  # noqa: PLC0415

    code = (
        "import pathlib, resource; size = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1]); "
        "a = size(); import fleetd.providers.kubernetes; print((size() - a) * resource.getpagesize())"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(said.stdout) / 1e6


def _quiet(kind: str, text: str) -> None:
    if kind == "error":
        print(f"{kind}: {text}", file=sys.stderr, flush=True)


async def _seen(check: Callable[[], bool], limit_s: float) -> None:
    async with asyncio.timeout(limit_s):
        while not check():
            await asyncio.sleep(0.1)


# ── for all of them


@contextlib.contextmanager
def at_home(cluster: Cluster, mode: str, most: int, *, grace_s: int = 60) -> Iterator[KubeFleet]:
    """A fleet in a folder of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="fleetd-kube-") as folder,
        kube_fleet(Path(folder) / "home", cluster, mode, most, grace_s=grace_s) as fleet,
    ):
        yield fleet


def until(check: Callable[[], bool], since: float) -> float:
    """Wait for it; return how long after the moment it was so."""
    while not check():
        if time.time() - since > LIMIT_S:
            raise TimeoutError(f"not within {LIMIT_S:.0f} s")
        time.sleep(0.2)
    return time.time() - since


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
