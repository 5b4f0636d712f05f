"""Gives claims their volumes: each PersistentVolumeClaim gets a PersistentVolume that is a folder of this machine.

Promises: the objects are real, and the cluster's own controller binds them; the volume is pinned to this node; once its
claim is gone, the volume and its folder go, too.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.kubernetes.informer import Informer

MARK = "test.fleetd/node"


class Claims:
    """The claims of the cluster, as one node sees them."""

    def __init__(self, api: Api, node: str, home: Path) -> None:
        self.api, self.node, self.home = api, node, home
        self.news = asyncio.Event()
        everywhere = "/api/v1/persistentvolumeclaims"
        self.claims: Informer[Json] = Informer(api, everywhere, {}, lambda claim: claim, self.news.set)
        mine = {"labelSelector": f"{MARK}={node}"}
        self.volumes: Informer[Json] = Informer(
            api, "/api/v1/persistentvolumes", mine, lambda volume: volume, self.news.set
        )

    async def run(self) -> None:
        self.claims.start()
        self.volumes.start()
        try:
            while True:
                await self.news.wait()
                self.news.clear()
                for claim in list(self.claims.items.values()):
                    if claim.get("status", {}).get("phase") == "Pending" and not claim["spec"].get("volumeName"):
                        await self.give(claim)
                for volume in list(self.volumes.items.values()):
                    if volume.get("status", {}).get("phase") == "Released":
                        await self.take(volume)
        finally:
            await self.claims.close()
            await self.volumes.close()

    async def give(self, claim: Json) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        folder = self.home / f"{meta['namespace']}-{meta['name']}-{meta['uid']}"
        chosen = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.node]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"pvc-{meta['uid']}", "labels": {MARK: self.node}},
            "spec": {
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "accessModes": spec["accessModes"],
                "storageClassName": spec.get("storageClassName") or "",
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(folder)},
                "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
                | {key: meta[key] for key in ("namespace", "name", "uid")},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [chosen]}]}},
            },
        }
        with contextlib.suppress(ProviderError):  # it is there, or another node was first
            await self.api.call("POST", "/api/v1/persistentvolumes", volume)

    async def take(self, volume: Json) -> None:
        with contextlib.suppress(ProviderError):
            await self.api.call("DELETE", f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
            shutil.rmtree(volume["spec"]["hostPath"]["path"], ignore_errors=True)
