"""One connection to a Kubernetes API server: requests with a deadline, watches, and every fault as one line.

Promises: what the server says no to is a typed error with the pool's name and the fix; a server that asks to wait
(429, Retry-After) is left in peace by everybody for so long; a token that has expired is read anew, once. Every request
is counted. Objects are plain JSON: the generated classes take ten times as long to read, and forget what they do not
know.
"""

import asyncio
import inspect
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from fleetd.core.model import Seconds
from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.faults import AnswerError, fault

Json = dict[str, Any]
CALL_S: Final = 4.5  # less than the loop gives a list
PATIENT_S: Final = 12.0  # for a server that restarts, within what the loop gives a launch
WAIT_S: Final = 0.5
LINGER_S: Final = 0.1  # a connection that was cancelled within its TLS handshake takes a moment to end
MOST_WAIT_S: Final = 60.0
AT_ONCE: Final = 16
JSON: Final = "application/json"
MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
MANAGER: Final = "fleetd"
_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_PRELOADS: Final = "_preload_content" in inspect.signature(RESTClientObject.request).parameters  # the client before 37


class Access(Protocol):
    """How the server is reached, and as whom."""

    @property
    def namespace(self) -> str | None:
        """Return the namespace; None for that of the credentials."""

    @property
    def kubeconfig(self) -> str | None:
        """Return the file; None for the pod's own account."""

    @property
    def context(self) -> str | None:
        """Return the context; None for the current one."""


class Api:
    """The connection of one pool, or of whoever else has a place in the policy."""

    def __init__(self, pool: str, options: Access, place: str = "") -> None:
        """Nothing is sent before `open`. `place` is what messages begin with, the pool where it is empty."""
        self.place = place or f"pool {pool}"
        self._options = options
        self._rest: RESTClientObject | None = None
        self._configuration: Any = None
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._not_before: Seconds = 0.0
        self.namespace = options.namespace or "default"
        self.requests: Counter[str] = Counter()  # by "VERB STATUS"

    async def open(self) -> None:
        """Read the credentials; the server need not be up."""
        if self._rest is None:
            self._configuration = await self._configure()
            self._rest = RESTClientObject(self._configuration)

    async def close(self) -> None:
        """Let go of the connections; safe twice."""
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest.close()
            await asyncio.sleep(LINGER_S)

    async def get(self, path: str, **query: Any) -> Json:
        """Read an object."""
        return await self.call("GET", path, query=query)

    async def merge(self, path: str, patch: Json) -> Json:
        """Change some fields of an object."""
        return await self.call("PATCH", path, patch, kind=MERGE)

    async def apply(self, path: str, whole: Json, limit_s: Seconds = CALL_S) -> Json:
        """Have an object be as this says, whether it is there already or not."""
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self.call("PATCH", path, whole, kind=APPLY, query=query, limit_s=limit_s, patient=True)

    async def delete(self, path: str, uid: str, **how: Any) -> bool:
        """Delete an object, if it is still the one; return False for one that was gone, or another of its name."""
        body = {"preconditions": {"uid": uid}, **how}
        try:
            await self.call("DELETE", path, body, limit_s=PATIENT_S, patient=True)
        except AnswerError as error:
            if error.status not in (404, 409):
                raise
            return False
        return True

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        kind: str = JSON,
        query: Mapping[str, Any] | None = None,
        limit_s: Seconds = CALL_S,
        patient: bool = False,
    ) -> Json:
        """Send a request and return the object that is answered.

        `patient`: where there is no answer, try again until the limit; only for what may be sent twice.
        """
        answer = await self._ask(_Request(method, path, body, kind, query or {}), limit_s, patient=patient)
        try:
            return dict(json.loads(answer)) if answer else {}
        except ValueError:
            raise AnswerError(f"{self.place}: {path}: the answer is not JSON: is this an API server?", 200) from None

    async def lines(self, path: str, last: int, container: str | None) -> Sequence[str]:
        """Read the last lines of a log."""
        query = {"tailLines": last} | ({"container": container} if container else {})
        said = await self._ask(_Request("GET", path, None, JSON, query), CALL_S)
        return said.decode(errors="replace").splitlines()[-last:]

    async def watch(self, path: str, query: Mapping[str, Any], limit_s: Seconds) -> AsyncIterator[Json]:
        """Yield one object at once, empty, when the server has taken the watch; then each event, until it ends."""
        try:
            async with asyncio.timeout(limit_s):
                async with asyncio.timeout(CALL_S):
                    answer = await self._send(_Request("GET", path, None, JSON, query), limit_s)
                async with answer:
                    self.requests[f"WATCH {answer.status}"] += 1
                    if answer.status == 401:
                        await self._renew()
                    if answer.status >= 300:
                        raise self._fault(path, answer.status, await answer.read())
                    try:
                        yield {}
                        async for line in answer.content:
                            yield json.loads(line)
                    finally:
                        _drop(answer)
        except TimeoutError:
            raise ProviderError(f"{self.place}: a watch did not end in time: the connection is dead") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ProviderError(f"{self.place}: {self._unheard(error)}") from None
        except ValueError:
            raise ProviderError(f"{self.place}: {path}: a watch was cut within an event") from None

    # ── below

    async def _ask(self, request: "_Request", limit_s: Seconds, *, patient: bool = False) -> bytes:
        deadline, renewed = time.monotonic() + limit_s, False
        while True:
            await self._wait(deadline)
            try:
                status, said, wait_s = await self._once(request, deadline)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.requests[f"{request.method} none"] += 1
                if patient and time.monotonic() + WAIT_S < deadline:
                    await asyncio.sleep(WAIT_S)
                    continue
                raise ProviderError(f"{self.place}: {self._unheard(error)}") from None
            if status < 300:
                return said
            if wait_s is not None:
                self._not_before = time.monotonic() + wait_s
                if self._not_before < deadline:
                    continue
            elif status == 401 and not renewed:
                renewed = True
                await self._renew()
                continue
            raise self._fault(request.path, status, said)

    async def _once(self, request: "_Request", deadline: Seconds) -> tuple[int, bytes, Seconds | None]:
        left_s = max(0.05, deadline - time.monotonic())
        async with self._gate, asyncio.timeout(left_s), await self._send(request, left_s) as answer:
            said = await answer.read()
        self.requests[f"{request.method} {answer.status}"] += 1
        return answer.status, said, _asked_to_wait(answer)

    async def _send(self, request: "_Request", limit_s: Seconds) -> aiohttp.ClientResponse:
        if self._rest is None:
            raise ProviderError(f"{self.place}: is not open")
        query = f"?{urlencode(request.query)}" if request.query else ""
        url = f"{self._configuration.host}{request.path}{query}"
        headers = {"Accept": JSON, "Content-Type": request.kind, "User-Agent": MANAGER, **await self._credentials()}
        given: dict[str, Any] = {"headers": headers, "body": request.body, "_request_timeout": limit_s}
        if _PRELOADS:
            given["_preload_content"] = False
        answer: Any = await self._rest.request(request.method, url, **given)
        found: aiohttp.ClientResponse = getattr(answer, "response", answer)  # the client from 37 on wraps it
        return found

    async def _wait(self, deadline: Seconds) -> None:
        wait_s = self._not_before - time.monotonic()
        if wait_s <= 0:
            return
        if self._not_before >= deadline:
            raise ProviderError(f"{self.place}: the API server asked to wait {wait_s:.0f} s more; it is overloaded")
        await asyncio.sleep(wait_s)

    async def _credentials(self) -> dict[str, str]:
        settings = self._configuration.auth_settings()
        settings = await settings if inspect.isawaitable(settings) else settings
        return {one["key"]: one["value"] for one in settings.values() if one["in"] == "header" and one["value"]}

    async def _renew(self) -> None:
        """Read the credentials anew: those at hand are taken for nobody's."""
        old, self._rest = self._rest, None
        self._configuration = await self._configure()
        self._rest = RESTClientObject(self._configuration)
        if old is not None:
            await old.close()

    async def _configure(self) -> Any:
        options, found = self._options, Configuration()
        try:
            if options.kubeconfig or options.context or "KUBERNETES_SERVICE_HOST" not in os.environ:
                file = str(Path(options.kubeconfig).expanduser()) if options.kubeconfig else None  # noqa: ASYNC240
                await config.load_kube_config(file, options.context, found, persist_config=False)
                _, current = config.list_kube_config_contexts(file)
                if options.context:
                    known, _ = config.list_kube_config_contexts(file)
                    current = next(one for one in known if one["name"] == options.context)
                namespace = current["context"].get("namespace")
            else:
                config.load_incluster_config(found)
                namespace = await asyncio.to_thread(_NAMESPACE_FILE.read_text)
        except Exception as error:  # noqa: BLE001 - it reads a file of many forms, and runs what the file names
            said = " ".join(str(error).split()) or type(error).__name__
            raise ProviderError(
                f"{self.place}: no credentials: {said}; set `kubeconfig:`, KUBECONFIG, or run it in a pod"
            ) from None
        self.namespace = options.namespace or namespace or "default"
        return found

    def _unheard(self, error: Exception) -> str:
        where = self._configuration.host if self._configuration else "?"
        said = " ".join(str(error).split()) or type(error).__name__
        return f"the API server {where} does not answer: {said}"

    def _fault(self, path: str, status: int, said: bytes) -> AnswerError:
        try:
            message = str(json.loads(said)["message"])
        except (ValueError, LookupError, TypeError):
            message = said.decode(errors="replace")[:300]
        return fault(self.place, self.namespace, path, status, " ".join(message.split()))


def _drop(answer: aiohttp.ClientResponse) -> None:
    """End the connection of an answer that has not come to its end, without a farewell."""
    if answer.connection is not None and answer.connection.transport is not None:
        answer.connection.transport.abort()


def _asked_to_wait(answer: aiohttp.ClientResponse) -> Seconds | None:
    """Return how long the server asks not to be asked; None where it does not."""
    if answer.status not in (429, 503) or "Retry-After" not in answer.headers:
        return 1.0 if answer.status == 429 else None
    try:
        return min(MOST_WAIT_S, max(0.0, float(answer.headers["Retry-After"])))
    except ValueError:
        return 1.0


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent."""

    method: str
    path: str
    body: Json | None
    kind: str
    query: Mapping[str, Any]
