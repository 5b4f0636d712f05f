"""What a foreign worker's supervisor was told.

Promises: values only.
"""

import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ForeignSettings:
    """`command` as it is started; `ladder`: the signals that tell it to finish, the hardest allowed one last.

    `undo`: the signal that takes the first of them back, None where the program knows none. `watch`: a change in what
    these hold renews the program. Of limits and recycling, 0 is never.
    """

    command: tuple[str, ...]
    slots: int
    spool: Path
    pool: str = "local"
    fleet: str = "local"
    app_name: str = ""
    node: str = ""
    controller: str = ""
    order_key: str = ""
    servers: tuple[str, ...] = ()
    ladder: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    undo: signal.Signals | None = None
    drain_deadline_s: float | None = None
    probe: tuple[str, ...] = ()  # the kind and its words
    watch: tuple[Path, ...] = ()
    orphan_after_s: float = 600.0
    log_format: str = "text"
    memory: int = 0
    recycle_s: float = 0.0
    recycle_memory: int = 0
