"""A kubelet for tests: a Node whose pods are processes of this machine. `python -m tests.kubernetes.kubelet --help`.

A container's command runs as a local process with its environment (values, fields of the pod, Secrets and ConfigMaps);
it is told to end by SIGTERM, and killed after the pod's grace. Its status is what its process is; it is ready when its
readiness probe says so (kubelet_probes.py). A pod with volumes, or a security context, or an image that `--root` gives
a root file system, has walls around it: its mounts at their paths, a root of its own, its user (kubelet_container.py,
kubelet_volumes.py, kubelet_cell.py; all that needs root). Claims get folders of this machine (kubelet_claims.py).
What a pod bears makes it go wrong on purpose:

    image  missing/…            it cannot be pulled
    image  fake/…               there is no process: it is said to run until it is deleted (a thousand cost nothing)
    note   test/evict           it is evicted
    note   test/preempt         it is preempted

A NODE's heartbeat stops while `HOME/silent` exists: its pods run on, and the cluster takes it for lost. One container a
pod; no init containers and no hooks. All pods share the machine's network.
"""

import argparse
import asyncio
import contextlib
import shutil
import signal
import ssl
import sys
import time
from pathlib import Path

from aiohttp import web

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.kubernetes.informer import Informer
from fleetd.providers.kubernetes.options import KubernetesOptions
from tests.kubernetes import kubelet_probes as probes
from tests.kubernetes import kubelet_status as say
from tests.kubernetes.kubelet_claims import Claims
from tests.kubernetes.kubelet_container import Containers, load_image
from tests.kubernetes.kubelet_pod import HOST, Run, kill
from tests.kubernetes.kubelet_volumes import Volumes

BEAT_S = 5.0
REFRESH_S = 1.0  # a kubelet takes a minute or two
RETRY_S = 0.5
ROOM = {"cpu": "64", "memory": "256Gi", "pods": "3000", "ephemeral-storage": "100Gi"}
BACK_OFF_S = (1.0, 10.0)


class Kubelet:
    """One node."""

    def __init__(self, api: Api, node: str, room: dict[str, str], containers: Containers) -> None:
        self.api, self.node, self.room, self.containers = api, node, room, containers
        self.home = containers.home
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
        others = [self.beat(), Claims(self.api, self.node, self.home / "claims").run()]
        tasks = [asyncio.create_task(other) for other in others]
        await self.stopped.wait()
        for task in tasks:
            task.cancel()
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
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": say.now()}
        ready["lastTransitionTime"] = say.now()
        status = {
            "capacity": self.room,
            "allocatable": self.room,
            "conditions": [ready],
            "addresses": [{"type": "InternalIP", "address": HOST}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        await self.api.merge(f"/api/v1/nodes/{self.node}/status", {"status": status})

    async def serve(self) -> None:
        """Answer the API server, which asks here for what a container has said."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self.log)
        runner = web.AppRunner(app)
        await runner.setup()
        certificates = self.home.parent / "certs"
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
        site = web.TCPSite(runner, HOST, 0, ssl_context=context)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def log(self, request: web.Request) -> web.Response:
        for run in self.runs.values():
            if run.name == request.match_info["pod"]:
                log = self.containers.folder(run) / f"{request.match_info['container']}.log"
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
        image = run.container["image"]
        if run.pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            await self.until_leaving(run)
        elif image.startswith("missing/"):
            await say.waiting(self.api, run, "ErrImagePull", f"{image}: not found")
            await asyncio.sleep(0.3)
            if not run.leaves():
                await say.waiting(self.api, run, "ImagePullBackOff", f'Back-off pulling image "{image}"')
            await self.until_leaving(run)
        elif image.startswith("fake/"):
            await say.running(self.api, run)
            await self.until_leaving(run)
        else:
            await self.work(run)
        if not run.gone:
            await say.forget(self.api, run)
        if self.containers.walled(run):  # logs of the others are kept for whoever looks after a failed test
            shutil.rmtree(self.containers.folder(run) / "volumes", ignore_errors=True)

    async def work(self, run: Run) -> None:
        """Run the container, again and again where it is to be restarted."""
        restarts, wait_s, last = 0, BACK_OFF_S[0], None
        volumes = self.containers.volumes(run)
        while not run.leaves():
            began, run.sick = time.monotonic(), False
            if not await self.begun(run, volumes):
                return
            code = await self.attended(run, volumes, restarts, last)
            if run.gone:
                return
            last = {"terminated": {"exitCode": abs(code), "reason": "Completed" if code == 0 else "Error"}}
            policy = run.pod["spec"].get("restartPolicy", "Always")
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if run.leaves() or not again or run.note("test/evict") is not None:
                if not run.note("test/evict"):
                    await say.status(self.api, run, "Succeeded" if code == 0 else "Failed", last)
                break
            restarts += 1
            if time.monotonic() - began > 60:
                wait_s = BACK_OFF_S[0]
            why = self.containers.failure(run) or "back-off restarting failed container"
            await say.waiting(self.api, run, "CrashLoopBackOff", why, restarts=restarts, last=last)
            await self.until_leaving(run, wait_s)
            wait_s = min(BACK_OFF_S[1], 2 * wait_s)
        await self.until_leaving(run)

    async def begun(self, run: Run, volumes: Volumes) -> bool:
        """Start the container, once all that it names is there; False if it never came to that."""
        said = ""
        while not run.leaves():
            try:
                run.process = await self.containers.start(run, volumes)
            except LookupError as error:
                if str(error) != said:
                    said = str(error)
                    await say.waiting(self.api, run, "CreateContainerConfigError", said.strip("'"))
                await self.until_leaving(run, RETRY_S)
            except OSError as error:
                await say.waiting(self.api, run, "RunContainerError", f"{error.strerror}: {error.filename}")
                await self.until_leaving(run)
            else:
                return True
        return False

    async def attended(self, run: Run, volumes: Volumes, restarts: int, last: Json | None) -> int:
        """Probe a running container and keep its volumes up to date until it ends; return its exit code."""

        async def ready(well: bool) -> None:  # noqa: FBT001 - its only argument
            await say.running(self.api, run, restarts, last, ready=well)

        def sick() -> None:
            run.sick = True
            run.changed.set()

        await ready(probes.begins_ready(run.container))
        tasks = [asyncio.create_task(probes.watch(run, ready, sick))]
        if self.containers.walled(run):
            tasks.append(asyncio.create_task(self.refresh(volumes)))
        try:
            return await self.ended(run)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def refresh(self, volumes: Volumes) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await volumes.refresh()

    async def ended(self, run: Run) -> int:
        """Wait for the process; end it when the pod is to go."""
        assert run.process is not None
        waiter = asyncio.create_task(run.process.wait())
        told = taken = False
        while not waiter.done():
            run.changed.clear()
            if run.note("test/evict") is not None and not told:
                told = True
                await say.evict(self.api, run, "Evicted", "The node was low on resource: memory.")
                await kill(run)
            elif run.note("test/preempt") is not None and not taken:
                taken = True
                await say.taken(self.api, run)
            elif run.gone:
                await kill(run)
            elif (run.leaves() or run.sick) and not told:
                told = True
                run.process.terminate()
                asyncio.create_task(self.kill_later(run, run.process))  # noqa: RUF006
            change = asyncio.create_task(run.changed.wait())
            await asyncio.wait({waiter, change}, return_when=asyncio.FIRST_COMPLETED)
            change.cancel()
        return await waiter

    async def kill_later(self, run: Run, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + run.grace_s()
        while process.returncode is None:
            left_s = min(deadline, time.monotonic() + 0.2) - time.monotonic()
            deadline = min(deadline, time.monotonic() + run.grace_s())  # it may be shortened
            if left_s <= 0 or run.gone:
                await kill(run)
                return
            await asyncio.sleep(left_s)

    async def until_leaving(self, run: Run, limit_s: float | None = None) -> None:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                while not run.leaves():
                    run.changed.clear()
                    await run.changed.wait()


async def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kubelet")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--pods", default=ROOM["pods"], help="room for so many")
    parser.add_argument("--cpu", default=ROOM["cpu"])
    parser.add_argument("--root", action="append", default=[], metavar="IMAGE=FOLDER", help="an image's file system")
    parser.add_argument("--token-life", type=float, metavar="S", help="renew tokens after so long, if not earlier")
    given = parser.parse_args(argv)
    given.home.mkdir(parents=True, exist_ok=True)
    api = Api(given.node, KubernetesOptions(mode="pods", template="x", kubeconfig=given.kubeconfig))
    await api.open()
    images = {image: load_image(Path(folder)) for image, folder in (one.split("=", 1) for one in given.root)}
    containers = Containers(api, api._configuration.host, given.home, images, given.token_life)
    kubelet = Kubelet(api, given.node, {**ROOM, "pods": given.pods, "cpu": given.cpu}, containers)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, kubelet.stopped.set)
    await kubelet.run()
    await api.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
