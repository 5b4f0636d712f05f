"""`fleetd queues --url`: a first look at any dispatcher, without a policy."""

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.errors import UsageError

LOOK_S: Final = 5.0
MOST_KEYS: Final = 1000


def first_look(url: str) -> list[dict[str, Any]]:
    """Return `queue`, `waiting`, and where it is known `running` and `workers`, of every queue there."""
    scheme = urlsplit(url).scheme
    match scheme:
        case "gearman":
            return asyncio.run(_gearman(url.partition("://")[2].rstrip("/")))
        case "redis" | "rediss":
            return asyncio.run(_redis(url))
        case _:
            raise UsageError(f"--url: {url!r}: must begin with gearman://, redis:// or rediss://")


async def _gearman(address: str) -> list[dict[str, Any]]:
    connection = AdminConnection(parse_address(address), timeout_s=LOOK_S)
    try:
        status = await connection.status()
        waiting = {row.function: row.high + row.normal + row.low for row in await connection.priority_status()}
    finally:
        await connection.close()
    return [
        {
            "queue": row.function,
            "waiting": waiting.get(row.function, max(0, row.total - row.running)),
            "running": row.running,
            "workers": row.workers,
        }
        for row in status
    ]


async def _redis(url: str) -> list[dict[str, Any]]:
    try:
        import redis.asyncio
        from redis.exceptions import RedisError
    except ModuleNotFoundError:
        raise UsageError("--url: redis needs the extra: pip install 'fleetd[redis]'") from None
    client = redis.asyncio.from_url(url, socket_timeout=LOOK_S, socket_connect_timeout=LOOK_S)
    rows: list[dict[str, Any]] = []
    try:
        for kind, length in (("list", client.llen), ("stream", client.xlen)):
            async for key in client.scan_iter(_type=kind, count=MOST_KEYS):
                name = key.decode(errors="backslashreplace")
                rows.append(
                    {"queue": f"{name} ({kind})", "waiting": await length(key), "running": None, "workers": None}
                )
                if len(rows) >= MOST_KEYS:
                    return rows
    except RedisError as error:
        host = urlsplit(url).hostname
        raise UsageError(f"--url: redis at {host}: {error}") from None
    finally:
        await client.aclose()
    return sorted(rows, key=lambda row: str(row["queue"]))
