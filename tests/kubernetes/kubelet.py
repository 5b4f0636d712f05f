"""A kubelet for tests: a Node whose pods are processes of this machine. `python -m tests.kubernetes.kubelet --help`.

A container's command runs as a local process with its environment (values, fields of the pod, Secrets and ConfigMaps);
it is told to end by SIGTERM, and killed after the pod's grace. Its status is what its process is. What a pod bears
makes it go wrong on purpose:

    image  missing/…            it cannot be pulled
    image  fake/…               there is no process: it is said to run until it is deleted (a thousand cost nothing)
    note   test/evict           it is evicted
    note   test/preempt         it is preempted

A NODE's heartbeat stops while `HOME/silent` exists: its pods run on, and the cluster takes it for lost.
"""

import argparse
import asyncio
import contextlib
import datetime as dt
import os
import re
import signal
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.kubernetes.informer import Informer
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.process import _tree

BEAT_S = 5.0
ROOM = {"cpu": "64", "memory": "256Gi", "pods": "3000", "ephemeral-storage": "100Gi"}
BACK_OFF_S = (1.0, 10.0)
LABEL = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
WORD = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(slots=True)
class Run:
    """A pod's life here."""

    pod: Json
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/pods/{self.name}"

    def leaves(self) -> bool:
        return self.gone or "deletionTimestamp" in self.pod["metadata"]

    def note(self, key: str) -> str | None:
        found = (self.pod["metadata"].get("annotations") or {}).get(key)
        return None if found is None else str(found)


class Kubelet:
    """One node."""

    def __init__(self, api: Api, node: str, home: Path, room: dict[str, str]) -> None:
        self.api, self.node, self.home, self.room = api, node, home, room
        self.runs: dict[str, Run] = {}
        self.stopped = asyncio.Event()
        self.pods: Informer[Json] = Informer(
            api, "/api/v1/pods", {"fieldSelector": f"spec.nodeName={node}"}, lambda pod: pod, self.look
        )
        self.port = 0

    async def run(self) -> None:
        await self.serve()
        await self.register()
        self.pods.start()
        beat = asyncio.create_task(self.beat())
        await self.stopped.wait()
        beat.cancel()
        await self.pods.close()
        for run in self.runs.values():
            await kill(run)

    # ── the node

    async def register(self) -> None:
        labels = {"kubernetes.io/hostname": self.node, "kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node, "labels": labels}}
        with contextlib.suppress(ProviderError):
            await self.api.call("POST", "/api/v1/nodes", node)
        await self.report()

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if not (self.home / "silent").exists():
                with contextlib.suppress(ProviderError):
                    await self.report()

    async def report(self) -> None:
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}
        ready["lastTransitionTime"] = now()
        status = {
            "capacity": self.room,
            "allocatable": self.room,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        await self.api.merge(f"/api/v1/nodes/{self.node}/status", {"status": status})

    async def serve(self) -> None:
        """Answer the API server, which asks here for what a container has said."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self.say)
        runner = web.AppRunner(app)
        await runner.setup()
        certificates = self.home.parent / "certs"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def say(self, request: web.Request) -> web.Response:
        for run in self.runs.values():
            if run.name == request.match_info["pod"]:
                log = self.folder(run) / f"{request.match_info['container']}.log"
                lines = log.read_text(errors="replace").splitlines(keepends=True) if log.exists() else []
                last = int(request.query.get("tailLines", len(lines)))
                return web.Response(text="".join(lines[-last:] if last else []))
        return web.Response(status=404)

    # ── its pods

    def look(self) -> None:
        if self.pods.trouble:
            return
        for uid, pod in self.pods.items.items():
            run = self.runs.get(uid)
            if run is None:
                run = self.runs[uid] = Run(pod)
                run.task = asyncio.create_task(self.live(run))
            elif run.pod["metadata"]["resourceVersion"] != pod["metadata"]["resourceVersion"]:
                run.pod = pod
                run.changed.set()
        for uid in self.runs.keys() - self.pods.items.keys():
            run = self.runs.pop(uid)
            run.gone = True
            run.changed.set()

    async def live(self, run: Run) -> None:
        try:
            await self._live(run)
        except Exception as error:
            print(f"{run.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise

    async def _live(self, run: Run) -> None:
        image = run.pod["spec"]["containers"][0]["image"]
        if run.pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            await self.until_leaving(run)
        elif image.startswith("missing/"):
            await self.waiting(run, "ErrImagePull", f"{image}: not found")
            await asyncio.sleep(0.3)
            if not run.leaves():
                await self.waiting(run, "ImagePullBackOff", f'Back-off pulling image "{image}"')
            await self.until_leaving(run)
        elif image.startswith("fake/"):
            await self.running(run)
            await self.until_leaving(run)
        else:
            await self.work(run)
        if not run.gone:
            await self.forget(run)

    async def work(self, run: Run) -> None:
        """Run the worker, again and again where it is to be restarted."""
        restarts, wait_s, last = 0, BACK_OFF_S[0], None
        while not run.leaves():
            began = time.monotonic()
            try:
                run.process = await self.spawn(run)
            except LookupError as error:
                await self.waiting(run, "CreateContainerConfigError", str(error).strip("'"))
                await self.until_leaving(run)
                return
            except OSError as error:
                await self.waiting(run, "RunContainerError", f"{error.strerror}: {error.filename}")
                await self.until_leaving(run)
                return
            await self.running(run, restarts, last)
            code = await self.ended(run)
            if run.gone:
                return
            last = {"terminated": {"exitCode": abs(code), "reason": "Completed" if code == 0 else "Error"}}
            policy = run.pod["spec"].get("restartPolicy", "Always")
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if run.leaves() or not again or run.note("test/evict") is not None:
                if not run.note("test/evict"):
                    await self.over(run, "Succeeded" if code == 0 else "Failed", last)
                break
            restarts += 1
            if time.monotonic() - began > 60:
                wait_s = BACK_OFF_S[0]
            await self.waiting(run, "CrashLoopBackOff", "back-off restarting failed container", restarts, last)
            await self.until_leaving(run, wait_s)
            wait_s = min(BACK_OFF_S[1], 2 * wait_s)
        await self.until_leaving(run)

    async def ended(self, run: Run) -> int:
        """Wait for the process; end it when the pod is to go."""
        assert run.process is not None
        waiter = asyncio.create_task(run.process.wait())
        told = taken = False
        while not waiter.done():
            run.changed.clear()
            if run.note("test/evict") is not None and not told:
                told = True
                await self.evict(run, "Evicted", "The node was low on resource: memory.")
                await kill(run)
            elif run.note("test/preempt") is not None and not taken:
                taken = True
                await self.taken(run)
            elif run.gone:
                await kill(run)
            elif run.leaves() and not told:
                told = True
                run.process.terminate()
                asyncio.create_task(self.kill_later(run, run.process))  # noqa: RUF006
            change = asyncio.create_task(run.changed.wait())
            await asyncio.wait({waiter, change}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        return await waiter

    async def kill_later(self, run: Run, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + float(run.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        while process.returncode is None:
            left_s = min(deadline, time.monotonic() + 0.2) - time.monotonic()
            grace_s = float(run.pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            deadline = min(deadline, time.monotonic() + grace_s)  # it may be shortened
            if left_s <= 0 or run.gone:
                await kill(run)
                return
            await asyncio.sleep(left_s)

    async def spawn(self, run: Run) -> asyncio.subprocess.Process:
        spec = run.pod["spec"]["containers"][0]
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        own["PATH"] = f"{Path(sys.executable).parent}:{own.get('PATH', '')}"
        env = {**own, "HOME": str(folder), "HOSTNAME": run.name}
        for entry in spec.get("env") or ():
            env[entry["name"]] = await self.value(run, entry, env)
        words = [expand(word, env) for word in [*(spec.get("command") or ()), *(spec.get("args") or ())]]
        with (folder / f"{spec['name']}.log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *words, env=env, cwd=spec.get("workingDir") or folder, stdout=log, stderr=log, start_new_session=True
            )

    async def value(self, run: Run, entry: Json, env: dict[str, str]) -> str:
        source = entry.get("valueFrom")
        if source is None:
            return expand(entry.get("value", ""), env)
        if "fieldRef" in source:
            return field_of(run.pod, source["fieldRef"]["fieldPath"])
        kind, plural = ("secretKeyRef", "secrets") if "secretKeyRef" in source else ("configMapKeyRef", "configmaps")
        name, key = source[kind]["name"], source[kind]["key"]
        root = run.path.rpartition("/pods/")[0]
        try:
            data = (await self.api.get(f"{root}/{plural}/{name}")).get("data", {})
        except ProviderError:
            raise LookupError(f'{plural[:-1]} "{name}" not found') from None
        if key not in data:
            raise LookupError(f"couldn't find key {key} in {plural[:-1]} {name}")
        if plural == "configmaps":
            return str(data[key])
        import base64  # noqa: PLC0415

        return base64.b64decode(data[key]).decode()

    def folder(self, run: Run) -> Path:
        return self.home / f"{run.name}-{run.pod['metadata']['uid']}"

    # ── what is said of them

    async def waiting(self, run: Run, reason: str, message: str, restarts: int = 0, last: Json | None = None) -> None:
        state = {"waiting": {"reason": reason, "message": message}}
        # A pod whose container crashed is still "Running".
        await self.status(run, "Running" if restarts else "Pending", state, restarts=restarts, last=last)

    async def running(self, run: Run, restarts: int = 0, last: Json | None = None) -> None:
        await self.status(run, "Running", {"running": {"startedAt": now()}}, restarts=restarts, last=last, ready=True)

    async def over(self, run: Run, phase: str, state: Json) -> None:
        await self.status(run, phase, state)

    async def evict(self, run: Run, reason: str, message: str) -> None:
        with contextlib.suppress(ProviderError):
            whole = {"phase": "Failed", "reason": reason, "message": message}
            await self.api.merge(f"{run.path}/status", {"status": whole})

    async def taken(self, run: Run) -> None:
        """What the scheduler does to make room: a condition, then a deletion."""
        taken = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "for it"}
        conditions = [*(run.pod["status"].get("conditions") or ()), {**taken, "lastTransitionTime": now()}]
        with contextlib.suppress(ProviderError):
            await self.api.merge(f"{run.path}/status", {"status": {"conditions": conditions}})
            await self.api.call("DELETE", run.path)

    async def status(
        self, run: Run, phase: str, state: Json, *, restarts: int = 0, last: Json | None = None, ready: bool = False
    ) -> None:
        spec = run.pod["spec"]["containers"][0]
        one = {"name": spec["name"], "image": spec["image"], "imageID": "", "state": state, "ready": ready}
        one |= {"restartCount": restarts, "lastState": last or {}}
        known = [c for c in run.pod.get("status", {}).get("conditions") or () if c["type"] == "PodScheduled"]
        told = [
            {"type": kind, "status": "True" if ready else "False", "lastTransitionTime": now()}
            for kind in ("Initialized", "ContainersReady", "Ready")
        ]
        status = {"phase": phase, "containerStatuses": [one], "conditions": known + told, "startTime": now()}
        try:
            await self.api.call(
                "PATCH",
                f"{run.path}/status",
                {"metadata": {"uid": run.pod["metadata"]["uid"]}, "status": status},
                kind="application/merge-patch+json",
                limit_s=30.0,
                patient=True,
            )
        except ProviderError:
            return  # it is gone

    async def until_leaving(self, run: Run, limit_s: float | None = None) -> None:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                while not run.leaves():
                    run.changed.clear()
                    await run.changed.wait()

    async def forget(self, run: Run) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": run.pod["metadata"]["uid"]}}
        with contextlib.suppress(ProviderError):
            await self.api.call("DELETE", run.path, body, limit_s=30.0, patient=True)


async def kill(run: Run) -> None:
    """Kill a pod's process with all that it started."""
    if run.process is None or run.process.returncode is not None:
        return
    for pid in _tree(run.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def expand(text: str, env: dict[str, str]) -> str:
    """Put variables in, as `$(NAME)`; `$$` is a dollar."""
    return WORD.sub(lambda found: "$" if found[0] == "$$" else env.get(found[1], found[0]), text)


def field_of(pod: Json, path: str) -> str:
    found = LABEL.fullmatch(path)
    if found:
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "")
    return str(value)


async def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kubelet")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--pods", default=ROOM["pods"], help="room for so many")
    parser.add_argument("--cpu", default=ROOM["cpu"])
    given = parser.parse_args(argv)
    given.home.mkdir(parents=True, exist_ok=True)
    api = Api(given.node, KubernetesOptions(mode="pods", template="x", kubeconfig=given.kubeconfig))
    await api.open()
    kubelet = Kubelet(api, given.node, given.home, {**ROOM, "pods": given.pods, "cpu": given.cpu})
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, kubelet.stopped.set)
    await kubelet.run()
    await api.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
