"""All slots of a worker, of however many generations: told what to do, added up, buried.

Promises: a fence or a stop holds for all generations, those to come included; what a generation did is still told when
it is gone. Which generation takes over from which is `swaps`' business.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from fleetd.codecs.lease import JobCounts, ReleaseCounts
from fleetd.dispatchers.credentials import Credentials
from fleetd.worker.attempts import Books, add
from fleetd.worker.cell import Want
from fleetd.worker.cgroup import Groups
from fleetd.worker.crew import Crew
from fleetd.worker.settings import Settings

WATCH_S: Final = 0.25
KEPT: Final = 8  # releases whose counts are told


class Generations:
    """The generations that there are. `on_change` is called when something changed that others wait for.

    `on_failed(reason, traceback)`: the only generation there is cannot serve the app. `news` is set with every change,
    `failures` says of a generation why it cannot serve.
    """

    def __init__(
        self,
        credentials: Credentials,
        on_change: Callable[[], None],
        on_failed: Callable[[str, str], None],
        groups: Groups | None = None,
    ) -> None:
        self._credentials = credentials
        self._on_change = on_change
        self._on_failed = on_failed
        self._books = Books(groups=groups)
        self._gone: dict[str, JobCounts] = {}
        self._told: dict[str, ReleaseCounts] = {}
        self.wanted = Want.WORK
        self.news = asyncio.Event()
        self.failures: dict[Crew, str] = {}
        self.crews: list[Crew] = []
        self.active: Crew | None = None  # the one that takes jobs

    def hire(self, settings: Settings) -> Crew:
        """Start a generation; it has no slots yet."""
        crew = Crew(settings, self._credentials, self._books, self.changed, lambda *said: self._failed(crew, *said))
        self.crews.append(crew)
        crew.want(self.wanted)
        crew.nursery.start()
        return crew

    def want(self, want: Want) -> None:
        """Tell every slot, those to come included, what to do."""
        self.wanted = want
        for crew in self.crews:
            crew.want(want)
        self.changed()

    def release(self) -> None:
        """End every slot that has not come to rest; its jobs go back to their dispatchers at no cost."""
        for crew in self.crews:
            crew.release()

    def give_up(self, reason: str, traceback: str = "") -> None:
        """Say that nothing here can serve the app."""
        self._on_failed(reason, traceback)

    def changed(self) -> None:
        """Say that something changed."""
        self.news.set()
        self._on_change()

    def _failed(self, crew: Crew, reason: str, traceback: str) -> None:
        self.failures[crew] = reason
        if crew is self.active:
            self.give_up(reason, traceback)
        self.changed()

    # ── what is

    @property
    def digest(self) -> str:
        """The digest of the release that takes jobs now; "" before the first."""
        return self.active.settings.digest if self.active else ""

    @property
    def crashes(self) -> int:
        """How often a slot died with a job in it."""
        return self._books.crashes

    @property
    def at_rest(self) -> bool:
        """Whether no slot takes or runs anything."""
        return all(crew.at_rest for crew in self.crews)

    @property
    def up(self) -> bool:
        """Whether the app is imported and every slot is there."""
        return self.active is not None and self.active.up

    @property
    def gone(self) -> bool:
        """Whether no slot is left and the last word about each dead one's job is spoken."""
        return all(crew.gone for crew in self.crews)

    def busy(self) -> list[tuple[str, float]]:
        """The running jobs: function and age."""
        return [job for crew in self.crews for job in crew.busy()]

    def idle_s(self) -> float:
        """Seconds since the last job ended, or since the start; 0 while one runs."""
        return min((crew.idle_s() for crew in self.crews), default=time.monotonic() - self._books.born)

    def counts(self) -> dict[str, JobCounts]:
        """What was done, by function, since the worker's start."""
        found = dict(self._gone)
        for crew in self.crews:
            for name, counts in crew.counts().items():
                found[name] = add(found.get(name, JobCounts()), counts)
        return found

    def releases(self) -> dict[str, ReleaseCounts]:
        """What was done, by digest, of the newest few releases."""
        for crew in self.crews:
            self._told[crew.settings.digest] = self.tally(crew)
        for digest in list(self._told)[:-KEPT]:
            del self._told[digest]
        return dict(self._told)

    def tally(self, crew: Crew) -> ReleaseCounts:
        """Return what a generation did."""
        counts, digest = list(crew.counts().values()), crew.settings.digest
        done, failed = sum(one.done for one in counts), sum(one.failed for one in counts)
        if crew.on_trial:  # a job that fails goes back and fails again: it is one job all the same
            failed = self._books.failed.by(digest)
        return ReleaseCounts(done, failed, self._books.crashed.by(digest))

    # ── children

    def reap(self) -> None:
        """Take note of every child that ended. Called on SIGCHLD."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            owners = [owner for crew in self.crews if (owner := crew.owner(found.si_pid)) is not None]
            code = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])
            for owner in owners:  # none for an orphan that some job left behind: a subreaper inherits it
                owner(code)

    async def watch(self) -> None:
        """End jobs past their limits, renew worn slots, let go of generations that are over. Runs for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            for crew in list(self.crews):
                await crew.watch()
            self._bury()
            self.news.set()

    def _bury(self) -> None:
        """Let go of generations that have neither slots nor posts nor a process, and keep what they did."""
        for crew in list(self.crews):
            if crew.gone and not crew.posts and not crew.nursery.pid and crew is not self.active:
                self.releases()
                self.crews.remove(crew)
                self.failures.pop(crew, None)
                for name, counts in crew.counts().items():
                    self._gone[name] = add(self._gone.get(name, JobCounts()), counts)

    async def close(self) -> None:
        """End what is left, at once."""
        for crew in self.crews:
            crew.kill()
        give_up_at = time.monotonic() + 2
        while any(crew.slots or crew.nursery.pid for crew in self.crews) and time.monotonic() < give_up_at:
            self.reap()
            await asyncio.sleep(0.01)
        for crew in self.crews:
            await crew.settle(2)
