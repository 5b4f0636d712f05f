"""When a slot's process has to go: too large in the middle of a job, or worn between two.

Promises: looks at what the kernel counts, changes nothing. Memory is the resident set without what is shared with
files and, since a fork shares the app with all others, only what this process has by itself.
"""

import time
from pathlib import Path
from typing import Final

from fleetd.worker.children import SlotProcess
from fleetd.worker.settings import Settings

_MB: Final = 1024 * 1024
_LOOK_S: Final = 0.2  # the kernel walks all pages of a process to tell what it has by itself


def too_large(slot: SlotProcess, settings: Settings) -> str:
    """Return why a slot must be ended in the middle of its job; "" where it need not."""
    if not settings.slot_memory or slot.group is not None or (own := own_bytes(slot)) <= settings.slot_memory:
        return ""
    return f"used {own // _MB} MB, above its limit of {settings.slot_memory // _MB} MB; killed"


def worn(slot: SlotProcess, settings: Settings) -> str:
    """Return why a slot is to make room for a fresh one, once its job has ended; "" where it is not."""
    if slot.worn or slot.pid is None:
        return ""
    if settings.recycle_jobs and (jobs := slot.ended_jobs()) >= settings.recycle_jobs:
        return f"{jobs} jobs"
    if settings.recycle_s and (age_s := time.monotonic() - slot.since) >= settings.recycle_s:
        return f"{age_s:.0f} s old"
    if settings.recycle_memory and (own := own_bytes(slot)) > settings.recycle_memory:
        return f"{own // _MB} MB"
    return ""


def own_bytes(slot: SlotProcess) -> int:
    """Return the memory that a slot's process has by itself; looked at a few times a second at most."""
    now = time.monotonic()
    if slot.pid is not None and now - slot.weighed_at >= _LOOK_S:
        slot.weighed_at, slot.own = now, _own(slot.pid)
    return slot.own


def _own(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0  # it ended meanwhile
    kilobytes = [int(line.split()[1]) for line in text.splitlines() if line.startswith(("Private_", "Swap:"))]
    return 1024 * sum(kilobytes)
