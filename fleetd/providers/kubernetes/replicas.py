"""The number of replicas of a target: read and written by its scale subresource alone.

Promises: nobody else's write is written over; what an order raises the number to is in a ConfigMap before it is, so
that the order, sent again after a crash, raises it no further.
"""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Final

from fleetd.errors import ProviderError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.api import PATIENT_S, Api, Json
from fleetd.providers.kubernetes.faults import AnswerError
from fleetd.providers.kubernetes.manifest import Maker
from fleetd.providers.kubernetes.options import Reference

TRIES: Final = 12
WAIT_S: Final = 0.1
ORDERS_KEPT: Final = 20


class Replicas:
    """The number. It has one writer here: whoever calls is alone."""

    def __init__(self, api: Api, target: Reference, maker: Maker) -> None:
        """Nothing is asked yet."""
        self._api, self._target, self._maker = api, target, maker
        self._path = f"{target.path(api.namespace)}/scale"
        self._orders: dict[str, int] | None = None  # what the number is to be raised to, by order under way

    async def read(self) -> Json:
        """Return the scale as it is now."""
        return await self._api.call("GET", self._path, limit_s=PATIENT_S, patient=True)

    async def raise_by(self, missing: int, key: str, there: Callable[[], int]) -> bool:
        """Raise the number for an order; return False where that was done before a restart.

        `there`: how many pods there are; what the number was raised to before, and is still to come, is counted in.
        """
        if self._orders is None:
            self._orders = await self._read_orders()
        wanted, anew = self._orders.get(key), key not in self._orders
        for _ in range(TRIES):
            scale = await self.read()
            now = _number(scale)
            if wanted is None:
                # Once for all tries: a write whose answer was lost looks like somebody else's; it is not to be doubled.
                wanted = now + max(0, missing - max(0, now - there()))
                self._orders[key] = wanted
                await self._write_orders()
            if wanted <= now or await self._write(scale, wanted):
                return anew
            await _step_aside()
        raise self._contested()

    async def lower_by(self, count: int) -> None:
        """Lower the number, in one write."""
        wanted: int | None = None
        for _ in range(TRIES):
            scale = await self.read()
            wanted = max(0, _number(scale) - count) if wanted is None else wanted
            if wanted >= _number(scale) or await self._write(scale, wanted):
                return
            await _step_aside()
        raise self._contested()

    async def settle(self, key: str) -> None:
        """Forget an order: its pods bear its name."""
        if self._orders and self._orders.pop(key, None) is not None:
            await self._write_orders()

    async def _write(self, scale: Json, replicas: int) -> bool:
        """Write the number over the one that was read; return False where somebody has written since."""
        meta = {key: scale["metadata"][key] for key in ("name", "namespace", "resourceVersion", "uid")}
        whole = {"apiVersion": scale["apiVersion"], "kind": "Scale", "metadata": meta, "spec": {"replicas": replicas}}
        try:
            await self._api.call("PUT", self._path, whole, limit_s=PATIENT_S, patient=True)
        except AnswerError as error:
            if error.status != 409:
                raise
            return False
        return True

    def _contested(self) -> ProviderError:
        return ProviderError(f"{self._api.place}: somebody else writes {self._target} all the time; find out who")

    # ── what is promised

    async def _read_orders(self) -> dict[str, int]:
        try:
            found = await self._api.get(self._kept)
            return {str(key): int(to) for key, to in json.loads(found["data"]["orders"]).items()}
        except AnswerError as error:
            if error.status != 404:
                raise
            return {}
        except (ValueError, LookupError, AttributeError):
            return {}  # somebody has edited it

    async def _write_orders(self) -> None:
        orders = dict(list((self._orders or {}).items())[-ORDERS_KEPT:])
        whole = self._maker.status_object({"orders": json.dumps(orders)})
        whole["metadata"]["name"] = self._kept.rpartition("/")[2]
        await self._api.apply(self._kept, whole, limit_s=PATIENT_S)

    @property
    def _kept(self) -> str:
        pool = self._maker.pool.name
        return f"/api/v1/namespaces/{self._api.namespace}/configmaps/{names.kept_name(pool)}-orders"


async def _step_aside() -> None:
    """Wait for a moment of chance, so that two writers do not meet again."""
    await asyncio.sleep(random.uniform(0.0, WAIT_S))  # noqa: S311


def _number(scale: Json) -> int:
    return int(scale["spec"].get("replicas") or 0)
