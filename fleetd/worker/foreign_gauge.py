"""What is known of how busy a foreign worker is, from one answer of its probe to the next.

Promises: what nobody can tell counts as busy; trouble with a probe is logged when it comes and when it goes, and is not
trouble while the program starts.
"""

import logging
import time
from collections.abc import Sequence

from fleetd.errors import UnreachableError
from fleetd.worker.foreign_probe import CANNOT_TELL, By, Command, Gearman, Http, Probe, ask, by
from fleetd.worker.foreign_process import Reaper
from fleetd.worker.foreign_redis import Celery, Rq
from fleetd.worker.foreign_settings import ForeignSettings
from fleetd.worker.logs import event


class Gauge:
    """`busy` is None where nobody can tell; `ready`: the program has answered since its start, or cannot be asked."""

    def __init__(self, probe: Probe | None) -> None:
        self._probe = probe
        self._trouble = ""
        self.reset()

    def reset(self) -> None:
        """The program starts, or has ended."""
        self.busy: int | None = None
        self.ready = self._probe is None
        self.idle_looks = 0
        self._idle_since = time.monotonic()

    @property
    def by(self) -> By:
        """How busy-ness is known."""
        return by(self._probe)

    @property
    def idle_s(self) -> float:
        """For how long it is known to run nothing."""
        return 0.0 if self.busy is None or self.busy else time.monotonic() - self._idle_since

    def told(self) -> int | str:
        """Say it in a word."""
        return "unknown" if self.busy is None else self.busy

    async def look(self, pids: Sequence[int]) -> tuple[int | None, str]:
        """Return what the probe says of a program with these processes, and why it cannot tell."""
        if self._probe is None:
            return None, ""
        try:
            return await ask(self._probe, pids), ""
        except UnreachableError as error:
            return None, f"{error}"

    def learn(self, busy: int | None, trouble: str) -> bool:
        """Take an answer in; return whether it is news."""
        before = self.busy, self.ready
        if trouble != self._trouble and (self.ready or not trouble) and CANNOT_TELL not in (trouble, self._trouble):
            level, text = (logging.WARNING, "cannot tell") if trouble else (logging.INFO, "tells again")
            event(level, f"probe: {text} how busy it is", error=trouble)
        self._trouble = trouble if self.ready or not trouble else self._trouble
        self.ready = self.ready or busy is not None or trouble == CANNOT_TELL
        if busy != 0 or self.busy != 0:
            self._idle_since = time.monotonic()
        self.idle_looks = self.idle_looks + 1 if busy == 0 else 0
        self.busy = busy
        return before != (self.busy, self.ready)

    def close(self) -> None:
        """Let go of the probe."""
        if self._probe is not None:
            self._probe.close()


def make_gauge(settings: ForeignSettings, reaper: Reaper, aside: set[int]) -> Gauge:
    """Return it with the probe that the settings name; raises UsageError."""
    match settings.probe:
        case ("celery", url):
            return Gauge(Celery(url, settings.command))
        case ("rq", url):
            return Gauge(Rq(url))
        case ("gearman", *globs):
            return Gauge(Gearman(settings.servers, globs))
        case ("command", *words):
            return Gauge(Command(words, settings.slots, reaper, aside))
        case ("http", url):
            return Gauge(Http(url))
    return Gauge(None)
