"""Probes of the test kubelet: over HTTP and TCP, with their periods and thresholds; `exec` and `grpc` never pass.

Promises: a readiness or liveness probe begins once the startup probe has passed; a container without a readiness probe
is ready while it runs.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp

from fleetd.providers.kubernetes.api import Json
from tests.kubernetes.kubelet_pod import HOST, Run


def begins_ready(spec: Json) -> bool:
    """Whether a container is ready as soon as it runs."""
    return "readinessProbe" not in spec and "startupProbe" not in spec


async def watch(run: Run, ready: Callable[[bool], Awaitable[None]], sick: Callable[[], None]) -> None:
    """Probe until cancelled: tell `ready` of each change, and `sick` when the container is to be started anew."""
    spec = run.container
    if "startupProbe" in spec:
        async for well in _changes(spec, spec["startupProbe"]):
            if not well:
                sick()
                return
            break
    async with asyncio.TaskGroup() as group:
        if "livenessProbe" in spec:
            group.create_task(_live(spec, sick))
        if "readinessProbe" in spec:
            group.create_task(_ready(spec, ready))
        elif "startupProbe" in spec:
            await ready(True)  # noqa: FBT003 - its only argument


async def _live(spec: Json, sick: Callable[[], None]) -> None:
    async for well in _changes(spec, spec["livenessProbe"]):
        if not well:
            sick()
            return


async def _ready(spec: Json, ready: Callable[[bool], Awaitable[None]]) -> None:
    async for well in _changes(spec, spec["readinessProbe"]):
        await ready(well)


async def _changes(spec: Json, probe: Json) -> AsyncIterator[bool]:
    """What a probe has come to say: enough times in a row, and each time that it changes."""
    said: bool | None = None
    passed = failed = 0
    await asyncio.sleep(probe.get("initialDelaySeconds", 0))
    while True:
        well = await _asked(spec, probe)
        passed, failed = (passed + 1, 0) if well else (0, failed + 1)
        enough = passed >= probe.get("successThreshold", 1) or failed >= probe.get("failureThreshold", 3)
        if enough and well is not said:
            said = well
            yield well
        await asyncio.sleep(probe.get("periodSeconds", 10))


async def _asked(spec: Json, probe: Json) -> bool:
    with contextlib.suppress(OSError, TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
            if "tcpSocket" in probe:
                _, writer = await asyncio.open_connection(HOST, _port(spec, probe["tcpSocket"]["port"]))
                writer.close()
                return True
            if "httpGet" in probe:
                return await _fetched(spec, probe["httpGet"])
    return False


async def _fetched(spec: Json, get: Json) -> bool:
    scheme, port = get.get("scheme", "HTTP").lower(), _port(spec, get["port"])
    headers = {one["name"]: one["value"] for one in get.get("httpHeaders") or ()}
    url = f"{scheme}://{get.get('host') or HOST}:{port}{get.get('path', '/')}"
    asked = aiohttp.ClientSession(headers={"User-Agent": "kube-probe/test", **headers})
    async with asked as session, session.get(url, ssl=False, allow_redirects=False) as answer:
        return 200 <= answer.status < 400


def _port(spec: Json, port: int | str) -> int:
    named = {one.get("name"): one["containerPort"] for one in spec.get("ports") or ()}
    return int(named.get(port, port))
