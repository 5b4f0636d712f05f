"""Starts the process of a pod's container on the test kubelet: in a cell of its own, or plainly on this machine.

A pod gets a cell (kubelet_cell.py) where its image has a root file system of its own, or where it has volumes or a
security context; any other runs as a process of this machine, in a folder of its own, and sees what the tests see.
"""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from tests.kubernetes.kubelet_pod import HOST, Run, environment, expand, host_environment
from tests.kubernetes.kubelet_volumes import Volumes

CELL = Path(__file__).with_name("kubelet_cell.py")
ROOT = Path(__file__).resolve().parents[2]
AUTOMATIC = "kube-api-access-"  # the volume that admission gives each pod: nobody asked for it
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system, and what its image says: the `config` of an OCI image, from FOLDER.json."""

    root: Path
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def user(self) -> int | None:
        """Its user, where that is a number."""
        name = str(self.config.get("User") or "").partition(":")[0]
        return int(name) if name.isdecimal() else None


def load_image(folder: Path) -> Image:
    """Read what an image says from FOLDER.json beside its root, if that is there."""
    beside = folder.with_name(f"{folder.name}.json")
    said = json.loads(beside.read_text()) if beside.exists() else {}
    return Image(folder, said.get("config", said))


@dataclass(slots=True)
class Containers:
    """What starts them. `images` are root file systems by the names of images; all others run from the machine's."""

    api: Api
    server: str  # the API server's address, for the environment
    home: Path
    images: Mapping[str, Image]
    token_life_s: float | None = None

    def folder(self, run: Run) -> Path:
        return self.home / f"{run.name}-{run.uid}"

    def volumes(self, run: Run) -> Volumes:
        return Volumes(self.api, run, self.folder(run) / "volumes", self.home / "claims", self.token_life_s)

    def walled(self, run: Run) -> bool:
        """Whether a pod gets a cell."""
        spec = run.pod["spec"]
        asked = [one for one in spec.get("volumes") or () if not one["name"].startswith(AUTOMATIC)]
        secured = spec.get("securityContext") or run.container.get("securityContext")
        return bool(asked or secured) or run.container["image"] in self.images

    async def start(self, run: Run, volumes: Volumes) -> asyncio.subprocess.Process:
        """Start a pod's container; LookupError where something that it names is not there."""
        folder = self.folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        if self.walled(run):
            return await self._start_cell(run, volumes)
        env = await environment(self.api, run, host_environment(str(folder), run.name))
        spec = run.container
        words = [expand(word, env) for word in [*(spec.get("command") or ()), *(spec.get("args") or ())]]
        return await self._spawn(run, words, env, spec.get("workingDir") or str(folder))

    async def _start_cell(self, run: Run, volumes: Volumes) -> asyncio.subprocess.Process:
        if os.geteuid() != 0:
            raise LookupError("a pod with volumes or a security context needs a kubelet that is root")
        image = self.images.get(run.container["image"]) or Image(Path("/"))
        await volumes.fill()
        cell = await self._cell(run, image, await volumes.mounts())
        path = self.folder(run) / "cell.json"
        path.write_text(json.dumps(cell))
        path.with_suffix(".failed").unlink(missing_ok=True)
        return await self._spawn(run, [sys.executable, "-I", str(CELL), str(path)], dict(os.environ), "/")

    def failure(self, run: Run) -> str:
        """Why a cell's program never began; empty where it did."""
        path = self.folder(run) / "cell.failed"
        return path.read_text() if path.exists() else ""

    async def _spawn(self, run: Run, words: list[str], env: dict[str, str], cwd: str) -> asyncio.subprocess.Process:
        log = self.folder(run) / f"{run.container['name']}.log"
        with log.open("ab") as out:
            log.chmod(0o666)  # whoever it runs as may open /dev/stdout anew
            return await asyncio.create_subprocess_exec(
                *words, env=env, cwd=cwd, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    async def _cell(self, run: Run, image: Image, mounts: Sequence[Json]) -> Json:
        spec, pod = run.container, run.pod["spec"].get("securityContext") or {}
        own = {**pod, **(spec.get("securityContext") or {})}
        uid = own.get("runAsUser", image.user)
        if own.get("runAsNonRoot") and not uid:
            raise LookupError("container has runAsNonRoot and image will run as root")
        uid, gid = uid or 0, own.get("runAsGroup", 0)
        groups = {gid, *pod.get("supplementalGroups", ()), *([pod["fsGroup"]] if "fsGroup" in pod else ())}
        env = await self._environment(run, image, uid)
        scratch = self.folder(run) / "scratch"
        scratch.mkdir(exist_ok=True)
        capabilities = own.get("capabilities") or {}
        return {
            "root": str(image.root),
            "scratch": str(scratch),
            "hostname": run.name,
            "mounts": [*await self._network_files(run), *mounts],
            "searchable": _on_the_way(Path(sys.executable).resolve(), ROOT) if image.root == Path("/") else [],
            "read_only": bool(own.get("readOnlyRootFilesystem")),
            "uid": uid,
            "gid": gid,
            "groups": sorted(groups),
            "drop": capabilities.get("drop") or [],
            "add": capabilities.get("add") or [],
            "privileged": bool(own.get("privileged")),
            "no_new_privileges": own.get("allowPrivilegeEscalation") is False,
            "cwd": spec.get("workingDir") or image.config.get("WorkingDir") or "/",
            "argv": _words(spec, image, env),
            "env": env,
        }

    async def _environment(self, run: Run, image: Image, uid: int) -> dict[str, str]:
        home = "/" if uid else "/root"
        own = {"PATH": PLAIN_PATH, "HOME": home, "HOSTNAME": run.name}
        if image.root == Path("/"):
            own = host_environment(home, run.name)
        own |= dict(entry.split("=", 1) for entry in image.config.get("Env") or ())
        server = urlsplit(self.server)
        own |= {"KUBERNETES_SERVICE_HOST": str(server.hostname), "KUBERNETES_SERVICE_PORT": str(server.port)}
        own |= {"KUBERNETES_SERVICE_PORT_HTTPS": str(server.port)}
        return await environment(self.api, run, own)

    async def _network_files(self, run: Run) -> list[Json]:
        """The file of host names, in which each Service of the cluster stands, for want of a name server."""
        names = [f"{HOST} localhost {run.name}"]
        try:
            services = (await self.api.get("/api/v1/services"))["items"]
        except ProviderError:
            services = []
        for service in services:
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            near = [name] if namespace == run.pod["metadata"]["namespace"] else []
            long = [f"{name}.{namespace}", f"{name}.{namespace}.svc", f"{name}.{namespace}.svc.cluster.local"]
            names.append(" ".join([HOST, *near, *long]))
        path = self.folder(run) / "hosts"
        path.write_text("\n".join(names) + "\n")
        return [{"source": str(path), "target": "/etc/hosts", "read_only": False}]


def _words(spec: Json, image: Image, env: dict[str, str]) -> list[str]:
    """The command line: the image's, where the container names none."""
    command, args = spec.get("command"), spec.get("args")
    if command is None:
        command = image.config.get("Entrypoint") or []
        args = args if args is not None else image.config.get("Cmd")
    words = [expand(word, env) for word in [*command, *(args or ())]]
    if not words:
        raise LookupError("no command specified")
    return words


def _on_the_way(*ends: Path) -> list[str]:
    """The folders above these: in the cell anybody may pass through them, though they be root's own."""
    folders = {folder for end in ends for folder in (end, *end.parents) if folder.is_dir()}
    return sorted(map(str, folders - {Path("/")}))
