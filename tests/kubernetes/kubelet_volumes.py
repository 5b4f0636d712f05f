"""The volumes of a pod on the test kubelet: folders of this machine that its container has mounted.

Promises: what is projected (ConfigMaps, Secrets, fields, tokens) changes while the pod runs, all files of a volume at
once, as a kubelet does it: `..data` is a link that is put in another's place, what programs open are links through it.
A token is renewed at four fifths of its life. Kinds: configMap, secret, downwardAPI, projected, emptyDir, hostPath and
persistentVolumeClaim. What a volume names and is not there is a LookupError, to be tried again.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from tests.kubernetes.kubelet_pod import Run, data_of, field_of, resource_of

Files = dict[str, tuple[bytes, int]]  # by path: what is in it, its mode
RENEW_SHARE = 0.8
MODE = 0o644


@dataclass(slots=True)
class Token:
    """A token of the pod's account, and when to ask for the next one."""

    text: bytes
    renew_at: float


def renew_at(taken_at: float, lasts_s: float, most_s: float | None = None) -> float:
    """When a token is to be renewed: well before its end, or after `most_s`."""
    return taken_at + min(RENEW_SHARE * lasts_s, lasts_s if most_s is None else most_s)


@dataclass(slots=True)
class Volumes:
    """The volumes of one pod. `claims` is where the folders of claims are."""

    api: Api
    run: Run
    folder: Path
    claims: Path
    token_life_s: float | None = None  # renew earlier, for tests
    tokens: dict[str, Token] = field(default_factory=dict)

    @property
    def spec(self) -> list[Json]:
        return list(self.run.pod["spec"].get("volumes") or ())

    @property
    def security(self) -> Json:
        return dict(self.run.pod["spec"].get("securityContext") or {})

    async def fill(self) -> None:
        """Make all that is not there, and bring what is projected up to date."""
        for volume in self.spec:
            place = self.folder / volume["name"]
            if "hostPath" in volume:
                if volume["hostPath"].get("type") == "DirectoryOrCreate":
                    Path(volume["hostPath"]["path"]).mkdir(parents=True, exist_ok=True)
            elif "persistentVolumeClaim" in volume:
                self._grant(await self._claimed(volume["persistentVolumeClaim"]["claimName"]))
            elif "emptyDir" in volume:
                place.mkdir(parents=True, exist_ok=True)
                place.chmod(0o777)
                self._grant(place)
            else:
                files = await self._files(volume)
                write(place, files, self._owner(volume))

    async def refresh(self) -> None:
        """Bring what is projected up to date; what cannot be read now stays as it is."""
        for volume in self.spec:
            if volume.keys() & {"configMap", "secret", "downwardAPI", "projected"}:
                with contextlib.suppress(LookupError, ProviderError):
                    write(self.folder / volume["name"], await self._files(volume), self._owner(volume))

    async def mounts(self) -> list[Json]:
        """What the container has where, for its cell; the outer ones first."""
        named = {volume["name"]: volume for volume in self.spec}
        found = []
        for one in self.run.container.get("volumeMounts") or ():
            volume = named[one["name"]]
            source = await self._source(volume)
            if one.get("subPath"):
                source = source / one["subPath"]
                if not source.exists():
                    source.mkdir(parents=True)
            fixed = bool(volume.keys() & {"configMap", "secret", "downwardAPI", "projected"})
            read_only = bool(one.get("readOnly")) or fixed
            found.append({"source": str(source), "target": one["mountPath"], "read_only": read_only})
        return sorted(found, key=lambda mount: str(mount["target"]).count("/"))

    async def _source(self, volume: Json) -> Path:
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        if "persistentVolumeClaim" in volume:
            return await self._claimed(volume["persistentVolumeClaim"]["claimName"])
        return self.folder / str(volume["name"])

    async def _claimed(self, name: str) -> Path:
        """The folder of the volume that a claim is bound to."""
        try:
            claim = await self.api.get(f"{self.run.namespace}/persistentvolumeclaims/{name}")
            bound = await self.api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        except (ProviderError, KeyError):
            raise LookupError(f'persistentvolumeclaim "{name}" is not bound') from None
        path = Path(bound["spec"]["hostPath"]["path"])
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _grant(self, place: Path) -> None:
        """Let the pod's group write there."""
        group = self.security.get("fsGroup")
        if group is None or place.stat().st_gid == group:
            return
        for path in [place, *place.rglob("*")]:
            os.chown(path, -1, group, follow_symlinks=False)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o2070 if path.is_dir() else 0o060))

    # ── what is projected

    async def _files(self, volume: Json) -> Files:
        if "projected" not in volume:
            kind = next(kind for kind in ("configMap", "secret", "downwardAPI") if kind in volume)
            given = volume[kind]
            source = {"name": given.get("secretName") or given.get("name"), **given}
            return await self._part(volume["name"], kind, source, given.get("defaultMode", MODE))
        mode = volume["projected"].get("defaultMode", MODE)
        files: Files = {}
        for source in volume["projected"].get("sources") or ():
            for kind, given in source.items():
                files |= await self._part(volume["name"], kind, given, mode)
        return files

    async def _part(self, volume: str, kind: str, given: Json, mode: int) -> Files:
        if kind == "serviceAccountToken":
            return {given["path"]: (await self._token(volume, given), self._token_mode(mode))}
        if kind == "downwardAPI":
            return {item["path"]: (self._field(item).encode(), item.get("mode", mode)) for item in given["items"]}
        plural = {"configMap": "configmaps", "secret": "secrets"}[kind]
        optional = bool(given.get("optional"))
        data = await data_of(self.api, self.run.namespace, plural, given["name"], optional=optional)
        items = given.get("items")
        if items is None:
            return {key: (value, mode) for key, value in data.items()}
        lacking = [item["key"] for item in items if item["key"] not in data]
        if lacking and not optional:
            raise LookupError(f"references non-existent {plural[:-1]} key: {lacking[0]}")
        return {item["path"]: (data[item["key"]], item.get("mode", mode)) for item in items if item["key"] in data}

    def _field(self, item: Json) -> str:
        if "fieldRef" in item:
            return field_of(self.run.pod, item["fieldRef"]["fieldPath"])
        return resource_of(self.run.pod, item["resourceFieldRef"])

    async def _token(self, volume: str, given: Json) -> bytes:
        key = f"{volume}/{given['path']}"
        known = self.tokens.get(key)
        if known is not None and time.time() < known.renew_at:
            return known.text
        lasts_s = int(given.get("expirationSeconds") or 3600)
        pod = {"kind": "Pod", "apiVersion": "v1", "name": self.run.name, "uid": self.run.uid}
        spec: dict[str, Any] = {"expirationSeconds": lasts_s, "boundObjectRef": pod}
        if given.get("audience"):
            spec["audiences"] = [given["audience"]]
        account = self.run.pod["spec"].get("serviceAccountName") or "default"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        try:
            answer = await self.api.call("POST", f"{self.run.namespace}/serviceaccounts/{account}/token", asked)
        except ProviderError as error:
            if known is not None:
                return known.text
            raise LookupError(f"failed to fetch token: {error}") from None
        text = str(answer["status"]["token"]).encode()
        self.tokens[key] = Token(text, renew_at(time.time(), lasts_s, self.token_life_s))
        return text

    def _token_mode(self, mode: int) -> int:
        """A token is its user's alone, or its group's where there is one."""
        return 0o640 if self.security.get("fsGroup") is not None else 0o600 if self._user() is not None else mode

    def _user(self) -> int | None:
        given = {**self.security, **(self.run.container.get("securityContext") or {})}
        return given.get("runAsUser")

    def _owner(self, volume: Json) -> tuple[int, int]:
        group = self.security.get("fsGroup")
        if group is not None:
            return -1, int(group)
        user = self._user()
        is_token = any("serviceAccountToken" in one for one in volume.get("projected", {}).get("sources") or ())
        return (user, -1) if is_token and user is not None else (-1, -1)


def write(place: Path, files: Mapping[str, tuple[bytes, int]], owner: tuple[int, int] = (-1, -1)) -> bool:
    """Have a folder show just these files, from one moment to the next; return whether anything changed."""
    place.mkdir(parents=True, exist_ok=True)
    data = place / "..data"
    if data.exists() and _read(data) == {path: what for path, (what, _) in files.items()}:
        return False
    before = data.resolve() if data.is_symlink() else None
    fresh = place / f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.{secrets.token_hex(4)}"
    fresh.mkdir(mode=0o755)
    for path, (what, mode) in files.items():
        file = fresh / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(what)
        file.chmod(mode | 0o040 if owner[1] != -1 else mode)
        os.chown(file, *owner)
    link = place / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(data)
    shown = {path.split("/", 1)[0] for path in files}
    there = {path.name for path in place.iterdir() if not path.name.startswith("..")}
    for name in shown - there:
        (place / name).symlink_to(f"..data/{name}")
    for name in there - shown:
        (place / name).unlink()
    if before is not None:
        shutil.rmtree(before, ignore_errors=True)
    return True


def _read(folder: Path) -> dict[str, bytes]:
    real = folder.resolve()
    return {str(path.relative_to(real)): path.read_bytes() for path in real.rglob("*") if path.is_file()}
