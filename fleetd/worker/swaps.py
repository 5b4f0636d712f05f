"""How one generation takes over from another, and how it is turned back.

Promises: a new generation has imported its code, proved its health and connected before an old slot stops taking
jobs; one of its slots has to show itself beside the old ones first. One that fails, by its import, its health check,
crashes or a raised share of errors while on trial, is refused from then on, and the one before takes its place again.
Nothing is swapped while the worker is fenced; the newest wish counts.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from fleetd.codecs.lease import ReleaseCounts
from fleetd.worker.cell import Want
from fleetd.worker.crew import Crew
from fleetd.worker.generations import Generations
from fleetd.worker.logs import event
from fleetd.worker.settings import Settings

CONNECT_S: Final = 10.0  # a new slot that reaches no dispatcher for so long takes over all the same: no old one does
PROBE_S: Final = 2.0  # how long the first slot of a generation waits for a job to show itself
KEPT: Final = 8  # refusals that are told


class RefusedReleaseError(Exception):
    """A release must not run here."""


@dataclass(slots=True, eq=False)
class Trial:
    """A generation on trial, the one before it, and what that one had done."""

    new: Crew
    old: Crew
    until: float = 0.0
    before: ReleaseCounts = field(default_factory=ReleaseCounts)


class Swaps:
    """What is wanted to run here, and how it gets there. `refused` says, by digest, what must not run, and why."""

    def __init__(self, crews: Generations) -> None:
        self._crews = crews
        self._wanted: Settings | None = None
        self._trial: Trial | None = None
        self._busy = False  # with a release on its way
        self.refused: dict[str, str] = {}

    # ── what is wanted

    def change(self, settings: Settings) -> None:
        """Have this release run; the newest wish counts. One that was refused here is not tried again."""
        if settings.digest in self.refused:
            event(logging.WARNING, "release was refused here before", digest=settings.digest[:12])
        elif self._busy or settings.digest != self._crews.digest:
            self._wanted = settings
            self._crews.changed()

    def stay(self) -> None:
        """Have what takes jobs now go on, and whatever is on its way turn round."""
        if self._crews.active is not None:
            self.change(self._crews.active.settings)

    def refuse(self, digest: str, reason: str) -> None:
        """Note that a release must not run here."""
        event(logging.ERROR, "release refused", digest=digest[:12], reason=reason)
        self._refuse(digest, reason)

    def _refuse(self, digest: str, reason: str) -> None:
        self.refused[digest] = reason
        for known in list(self.refused)[:-KEPT]:
            del self.refused[known]
        self._crews.changed()

    def pardon(self, digest: str) -> None:
        """Forget that a release was refused."""
        self.refused.pop(digest, None)

    # ── one after the other

    def start(self, settings: Settings) -> None:
        """Start the first generation; there is nothing that it could replace, so all of its slots start at once."""
        self._crews.active = crew = self._crews.hire(settings)
        crew.post(range(settings.lanes), Want.WORK)

    async def run(self) -> None:
        """Bring in what is wanted, one release at a time, and turn back what fails its trial. Runs for ever."""
        while True:
            await self._until(lambda: self._wanted is not None or self._judgement() is not None)
            if (reason := self._judgement()) is not None:
                await self._turn_back(reason)
            elif self._wanted is not None:
                settings, self._wanted = self._wanted, None
                self._busy = True
                await self._bring(settings)
                self._busy = False

    async def _bring(self, settings: Settings) -> None:
        first = self._crews.active
        if first is None or (first in self._crews.failures and not first.nursery.proven):
            if first is not None:
                first.end()
            self.start(settings)
            return
        if settings.digest == self._crews.digest:
            return
        self._end_trial()  # what works now is what a failure of the next one turns back to
        old, new = first, self._crews.hire(settings)
        new.on_trial = True
        event(logging.INFO, "generation comes", digest=new.nursery.digest, old=old.nursery.digest)
        self._trial = trial = Trial(new, old, before=self._crews.tally(old))
        try:
            await self._prove(trial)
            if not self._superseded:
                await self._shift(old, new)
                trial.until = time.monotonic() + settings.probation_s
                event(logging.INFO, "generation took over", digest=new.nursery.digest, old=old.nursery.digest)
        except RefusedReleaseError as error:
            await self._turn_back(str(error))
            return
        if self._superseded and self._crews.active is old:
            self._trial = None
            new.end()

    @property
    def _superseded(self) -> bool:
        return self._wanted is not None or self._crews.wanted is Want.STOP

    async def _prove(self, trial: Trial) -> None:
        """Wait for the import and the health check, then let one slot take jobs beside the old ones.

        Ends early where another release is wanted meanwhile; raises RefusedReleaseError.
        """
        new = trial.new
        await self._until(lambda: new.nursery.ready or self._superseded or self._check(trial))
        if self._superseded:
            return
        new.post(range(new.settings.per_process), Want.FENCE)  # a process is started with all of its slots
        await self._connected(trial, new, [0])
        await self._unfenced(trial)
        new.post([0], Want.WORK)
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                await self._until(lambda: self._crews.tally(new).done > 0 or self._superseded or self._check(trial))

    async def _shift(self, old: Crew, new: Crew) -> None:
        """Let `new` take over, as many slots at a time as there is room for."""
        slots, per_process = new.settings.lanes, new.settings.per_process
        at_once = new.settings.overlap * per_process or slots
        trial = self._trial if self._trial is not None and self._trial.new is new else None
        self._crews.active = new
        for begin in range(0, slots, at_once):
            batch = list(range(begin, min(begin + at_once, slots)))
            new.post([index for index in batch if index not in new.posts], Want.FENCE)
            await self._connected(trial, new, batch)
            await self._unfenced(trial)
            new.post(batch, Want.WORK)
            old.dismiss(*batch)
            if at_once < slots:
                await self._until(lambda: not old.slots.keys() & set(batch) or self._check(trial))  # noqa: B023
        old.dismiss(*old.posts)
        if at_once < slots:  # memory is short: a way back imports anew
            old.end()

    async def _turn_back(self, reason: str) -> None:
        """Refuse the generation on trial; the one before takes its place again."""
        trial, self._trial = self._trial, None
        assert trial is not None, "only what is on trial is turned back"
        new, old = trial.new, trial.old
        digest, back = new.nursery.digest, old.nursery.digest
        event(logging.ERROR, "generation refused; rolled back", digest=digest, to=back, reason=reason)
        self._refuse(new.settings.digest, reason)
        new.dismiss(*new.posts)
        if old not in self._crews.crews or not old.nursery.ready:
            old.end()
            old = self._crews.hire(old.settings)
            await self._until(lambda: old.nursery.ready or old in self._crews.failures)
        if old in self._crews.failures:
            self._crews.give_up(f"the release before cannot be served any more either: {self._crews.failures[old]}", "")
        elif self._crews.active is new:
            await self._shift(new, old)
        new.end()
        self._crews.changed()

    def _end_trial(self) -> None:
        """The generation has stood its trial, or is itself replaced: there is no way back beyond it."""
        trial, self._trial = self._trial, None
        if trial is not None:
            trial.new.on_trial = False
            trial.old.end()

    # ── the trial

    def _judgement(self) -> str | None:
        """Return why the generation on trial has failed; None where it has not, or where its trial is over."""
        trial = self._trial
        if trial is None:
            return None
        if (reason := self._fault(trial)) is not None:
            return reason
        if trial.until and time.monotonic() >= trial.until:
            event(logging.INFO, "generation stood its trial", digest=trial.new.nursery.digest)
            self._end_trial()
        return None

    def _fault(self, trial: Trial) -> str | None:
        if trial.new in self._crews.failures:
            return self._crews.failures[trial.new]
        tally, most = self._crews.tally(trial.new), trial.new.settings.crashes
        if tally.crashed >= most:
            return f"{tally.crashed} jobs crashed it"
        return tally.worse_than(trial.before)

    def _check(self, trial: Trial | None) -> bool:
        """Raise RefusedReleaseError where the generation on trial has failed; always False otherwise."""
        if trial is not None and (reason := self._fault(trial)) is not None:
            raise RefusedReleaseError(reason)
        return False

    async def _connected(self, trial: Trial | None, crew: Crew, indices: list[int]) -> None:
        """Wait until these slots have as many dispatchers as the others have."""
        servers = max((other.connected(index) for other in self._crews.crews for index in other.slots), default=0)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                least = max(1, servers)
                await self._until(lambda: all(crew.connected(at) >= least for at in indices) or self._check(trial))

    async def _unfenced(self, trial: Trial | None) -> None:
        await self._until(lambda: self._crews.wanted is Want.WORK or self._check(trial))

    async def _until(self, seen: Callable[[], bool]) -> None:
        while not seen():
            self._crews.news.clear()
            await self._crews.news.wait()
