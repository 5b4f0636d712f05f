"""The worker's settings, as the command line gave them and as its processes hand them on.

Promises: values only; `dump` and `load` are each other's inverse.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleetd.dispatchers.address import Address

GRACE_S = 5.0  # between the soft end of a job, which it may catch, and the hard one, which it cannot


@dataclass(frozen=True, slots=True)
class Settings:
    """What `fleetd.worker` was told. `job_limit_s` and `drain_deadline_s`: None is unlimited."""

    servers: tuple[Address, ...]
    app: Path
    slots: int
    spool: Path
    pool: str = "local"
    fleet: str = "local"
    app_name: str = ""
    node: str = ""
    digest: str = ""
    controller: str = ""
    order_key: str = ""
    job_limit_s: float | None = None
    attempts: int = 3
    orphan_after_s: float = 600.0
    drain_deadline_s: float | None = None
    log_format: str = "text"


def dump(settings: Settings) -> str:
    """Return the settings as JSON."""
    return json.dumps(asdict(settings), default=str)


def load(text: str) -> Settings:
    """Read what `dump` wrote."""
    raw: dict[str, Any] = json.loads(text)
    servers = tuple(Address(**server) for server in raw.pop("servers"))
    return Settings(servers=servers, app=Path(raw.pop("app")), spool=Path(raw.pop("spool")), **raw)
