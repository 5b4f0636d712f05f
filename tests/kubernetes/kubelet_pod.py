"""A pod as the test kubelet knows it: its life, its fields, the environment of its container."""

import asyncio
import base64
import contextlib
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.process import _tree

HOST = "127.0.0.1"  # of the node and of its pods: they share the machine's network
LABEL = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")
WORD = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


@dataclass(slots=True)
class Run:
    """A pod's life here."""

    pod: Json
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gone: bool = False
    sick: bool = False  # its liveness probe failed: it is to be started anew
    process: asyncio.subprocess.Process | None = None

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])

    @property
    def namespace(self) -> str:
        return f"/api/v1/namespaces/{self.pod['metadata']['namespace']}"

    @property
    def path(self) -> str:
        return f"{self.namespace}/pods/{self.name}"

    @property
    def container(self) -> Json:
        return dict(self.pod["spec"]["containers"][0])

    def leaves(self) -> bool:
        return self.gone or "deletionTimestamp" in self.pod["metadata"]

    def note(self, key: str) -> str | None:
        found = (self.pod["metadata"].get("annotations") or {}).get(key)
        return None if found is None else str(found)

    def grace_s(self) -> float:
        """How long its processes have: until it is deleted, what its spec says."""
        asked = self.pod["metadata"].get("deletionGracePeriodSeconds")
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30) if asked is None else asked)


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
    """What a downward field says; a whole map of labels or annotations is a line for each."""
    found = LABEL.fullmatch(path)
    if found:
        return str((pod["metadata"].get(found[1]) or {}).get(found[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        things = pod["metadata"].get(path.rpartition(".")[2]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(things.items()))
    if path in ("status.podIP", "status.hostIP"):
        return HOST
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "")
    return str(value)


def resource_of(pod: Json, source: Json) -> str:
    """What a container asks for, as it is written there; the node has plenty where it does not say."""
    what, _, resource = source["resource"].partition(".")
    return str(pod["spec"]["containers"][0].get("resources", {}).get(what, {}).get(resource, 0))


async def data_of(api: Api, namespace: str, kind: str, name: str, *, optional: bool = False) -> dict[str, bytes]:
    """What is in a ConfigMap or a Secret (`kind` in the plural); raises LookupError as a kubelet words it."""
    try:
        found = await api.get(f"{namespace}/{kind}/{name}")
    except ProviderError:
        if optional:
            return {}
        raise LookupError(f'{kind[:-1]} "{name}" not found') from None
    if kind == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    plain = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return plain | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}


async def environment(api: Api, run: Run, own: dict[str, str]) -> dict[str, str]:
    """The variables of a pod's container, on top of these."""
    env = dict(own)
    for entry in run.container.get("envFrom") or ():
        for ref, kind in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
            if ref in entry:
                optional = bool(entry[ref].get("optional"))
                data = await data_of(api, run.namespace, kind, entry[ref]["name"], optional=optional)
                env |= {entry.get("prefix", "") + key: value.decode() for key, value in data.items()}
    for entry in run.container.get("env") or ():
        value = await _value(api, run, entry, env)
        if value is not None:
            env[entry["name"]] = value
    return env


async def _value(api: Api, run: Run, entry: Json, env: dict[str, str]) -> str | None:
    source = entry.get("valueFrom")
    if source is None:
        return expand(entry.get("value", ""), env)
    if "fieldRef" in source:
        return field_of(run.pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        return resource_of(run.pod, source["resourceFieldRef"])
    ref, kind = ("secretKeyRef", "secrets") if "secretKeyRef" in source else ("configMapKeyRef", "configmaps")
    name, key, optional = source[ref]["name"], source[ref]["key"], bool(source[ref].get("optional"))
    data = await data_of(api, run.namespace, kind, name, optional=optional)
    if key not in data:
        if optional:
            return None
        raise LookupError(f"couldn't find key {key} in {kind[:-1]} {name}")
    return data[key].decode()


def host_environment(home: str, name: str) -> dict[str, str]:
    """What a process finds that runs from the machine's own programs."""
    own = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
    own["PATH"] = f"{Path(sys.executable).parent}:{own.get('PATH', '')}"
    return {**own, "HOME": home, "HOSTNAME": name}
