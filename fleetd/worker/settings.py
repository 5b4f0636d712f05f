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
    """What `fleetd.worker` was told. `job_limit_s` and `drain_deadline_s`: None is unlimited.

    `slots` are processes, of which each runs `per_process` jobs at a time.

    `app` and `digest` are those of one generation; `app` is None while none is known yet. `python` runs it, "" being
    the worker's own. Of limits and recycling, 0 is never.
    """

    servers: tuple[Address, ...]
    app: Path | None
    slots: int
    spool: Path
    per_process: int = 1
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
    watch_instance: str = ""  # the metadata service that tells of this machine's end; "": none does
    python: str = ""
    cache: Path = Path()
    keys: tuple[str, ...] = ()
    overlap: int = 0  # slots of a new generation that may be there beyond `slots`; 0: all of them
    health_s: float = 3.0
    probation_s: float = 60.0
    crashes: int = 2
    slot_memory: int = 0
    recycle_jobs: int = 0
    recycle_s: float = 0.0
    recycle_memory: int = 0

    @property
    def lanes(self) -> int:
        """How many jobs run at a time."""
        return self.slots * self.per_process


def dump(settings: Settings) -> str:
    """Return the settings as JSON."""
    return json.dumps(asdict(settings), default=str)


def load(text: str) -> Settings:
    """Read what `dump` wrote."""
    raw: dict[str, Any] = json.loads(text)
    servers = tuple(Address(**server) for server in raw.pop("servers"))
    app, keys = raw.pop("app"), tuple(raw.pop("keys"))
    spool, cache = Path(raw.pop("spool")), Path(raw.pop("cache"))
    return Settings(servers=servers, app=Path(app) if app else None, keys=keys, spool=spool, cache=cache, **raw)
