"""Looks after the machines of a rack: asks the switches, knocks, reads the book, and does what `judge` says.

Promises: no machine holds up another: every look and every switching is a task of its own, one at a time a machine. All
that must outlive this process is in the book before it is acted on; what is only in memory is seen again by looking.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from fleetd.core.model import NodeId
from fleetd.core.ports import Known, Nudge
from fleetd.errors import FleetdError, ProviderError
from fleetd.providers.rack.book import Book, Record, Seen, Wake
from fleetd.providers.rack.inventory import Machine, RackOptions
from fleetd.providers.rack.judge import Can, Case, Cut, Gone, Patience, Send, Signs, backoff_s, boot_deadline, judge
from fleetd.providers.rack.power import Switch, switch_of
from fleetd.providers.rack.probe import knock

Seconds = float
SPOKE: Final = frozenset({"working", "draining", "drained"})
TOLD_AGAIN_S: Final = 600.0  # the same complaint about the same machine


@dataclass(slots=True)
class Tended:
    """A machine under our eyes: its switch, what was seen of it, what is being done with it."""

    machine: Machine
    switch: Switch
    signs: Signs = field(default_factory=Signs)
    looked_at: Seconds = 0.0
    look: "asyncio.Task[None] | None" = None
    act: "asyncio.Task[str] | asyncio.Task[None] | None" = None
    said: dict[str, Seconds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """What the book says now."""

    wakes: Mapping[str, Wake]  # by address
    records: Mapping[str, Record]
    seen: Mapping[str, Seen]


class Tender:
    """The eyes and hands of one rack."""

    def __init__(
        self, book: Book, options: RackOptions, patience: Patience, clock: Callable[[], Seconds], nudge: Nudge
    ) -> None:
        self._book, self._options, self._patience, self._clock, self._nudge = book, options, patience, clock, nudge
        self.tended: dict[str, Tended] = {}
        self.problems: dict[str, str] = {}  # machines that cannot be switched from here, and why
        self._known: Mapping[NodeId, Known] = {}
        self._known_at: Seconds = 0.0
        self._began_at = clock()
        self.hands = False  # a plan, a shadow and a pool that is only watched have eyes, and no hands
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; `stop` ends it."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End every task; the machines stay as they are."""
        tasks = [self._task, *(task for one in self.tended.values() for task in (one.look, one.act))]
        self._task = None
        live = [task for task in tasks if task is not None]
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
        for one in self.tended.values():
            await one.switch.close()

    def look_again(self) -> None:
        """Something was ordered, and written into the book: see to it now."""
        self.hands = True
        self._wanted.set()

    def hear(self, nodes: Mapping[NodeId, Known]) -> None:
        """Take in what the controller knows of our nodes; one that acts on this pool is the only one that tells."""
        self._known, self._known_at, self.hands = nodes, self._clock(), True

    async def page(self) -> Page:
        """Read the book, and keep up with which machines there are."""
        wakes, records, seen, admitted = await asyncio.to_thread(self._read)
        self._keep_up(admitted)
        return Page({wake.mac: wake for wake in wakes}, records, seen)

    def _read(self) -> tuple[list[Wake], dict[str, Record], dict[str, Seen], dict[str, str]]:
        return self._book.wakes(), self._book.records(), self._book.sightings(), self._book.admitted()

    def _keep_up(self, admitted: Mapping[str, str]) -> None:
        """Have a switch for every machine of the inventory, and for those that were admitted since."""
        rack = self._options.inventory
        given = {shape.mac: rack.machine(name) for name, shape in rack.machines.items()}
        given |= {mac: rack.machine(name, mac) for mac, name in admitted.items() if mac not in given}
        for mac in self.tended.keys() - given.keys():
            del self.tended[mac]
        for mac, machine in given.items():
            if mac in self.tended or mac in self.problems:
                continue
            try:
                self.tended[mac] = Tended(machine, switch_of(machine))
            except ProviderError as error:
                self.problems[mac] = str(error)

    # ── the beat

    async def _run(self) -> None:
        while True:
            with suppress(FleetdError):  # the book cannot be read: `list` says so, to whom it concerns
                await self._beat()
            try:
                async with asyncio.timeout(self._patience.beat_s):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()

    async def _beat(self) -> None:
        page, now = await self.page(), self._clock()
        for mac, one in self.tended.items():
            wake = page.wakes.get(mac)
            self._note(one, wake, page.seen.get(mac))
            if wake is not None and not wake.up_at and one.signs.heard_at > wake.at:
                await asyncio.to_thread(self._book.up, wake, one.signs.heard_at)
                self._nudge()
                continue  # judged with what the book says next time
            self._look_at(one, wake, now)
            if wake is not None and self.hands and (one.act is None or one.act.done()):
                await self._judge(one, wake, page.records.get(mac), now)

    def _note(self, one: Tended, wake: Wake | None, seen: Seen | None) -> None:
        signs = one.signs
        if seen is not None:
            signs.stage, signs.seen_at, signs.booted_at = seen.stage, seen.at, seen.booted_at
        known = self._known.get(wake.node) if wake is not None else None
        if known is not None and known.age_s is not None and known.state in SPOKE:
            signs.heard_at = max(signs.heard_at, self._known_at - known.age_s)
        elif wake is not None and wake.up_at is not None:
            signs.heard_at = max(signs.heard_at, self._began_at)  # a controller that just began has heard nobody yet

    async def _judge(self, one: Tended, wake: Wake, record: Record | None, now: Seconds) -> None:
        can = Can(one.switch.tells, one.switch.cuts, self._options.off)
        deadline_s = boot_deadline(record, self._options.boot)
        match judge(Case(wake, one.signs, can, deadline_s, self._patience, now)):
            case Send():
                one.act = asyncio.create_task(self._again(one, wake))
            case Cut():
                one.signs.cuts, one.signs.cut_at = one.signs.cuts + 1, now
                one.act = asyncio.create_task(self._cut(one, f"told to go {now - (wake.stop_at or now):.0f} s ago"))
            case Gone(reason, fault, cut):
                await self._gone(one, wake, reason, fault=fault)
                if cut:
                    one.act = asyncio.create_task(self._cut(one, reason))

    async def _gone(self, one: Tended, wake: Wake, reason: str, *, fault: bool) -> None:
        now = self._clock()
        one.signs = Signs(stage=one.signs.stage, seen_at=one.signs.seen_at, booted_at=one.signs.booted_at)
        await asyncio.to_thread(end, self._book, wake, reason, now, fault=fault)
        self._nudge()

    # ── hands

    async def switch_on(self, one: Tended, wake: Wake) -> str:
        """Tell a machine to come on; return what is wrong where that cannot be done. It counts as told all the same."""
        problem = ""
        try:
            await one.switch.on()
        except ProviderError as error:
            problem = str(error)
        await asyncio.to_thread(self._book.sent, wake, self._clock())
        return problem

    async def _again(self, one: Tended, wake: Wake) -> None:
        if problem := await self.switch_on(one, wake):
            self._say(one, problem)

    async def _cut(self, one: Tended, why: str) -> None:
        try:
            await one.switch.off()
            self._say(one, f"{one.machine.name}: its power was cut: {why}", about="cut")
        except ProviderError as error:
            self._say(one, str(error))

    def _say(self, one: Tended, text: str, about: str = "") -> None:
        """Leave word for the journal, of the same thing not again and again."""
        now, about = self._clock(), about or text
        if now - one.said.get(about, 0.0) > TOLD_AGAIN_S:
            one.said[about] = now
            self._book.report(text, now)

    # ── eyes

    def _look_at(self, one: Tended, wake: Wake | None, now: Seconds) -> None:
        """Look at a machine when it is time to, without waiting for the answer."""
        patience = self._patience
        every_s = patience.idle_look_s if wake is None else patience.look_s
        if wake is not None and (wake.stop_at is not None or one.signs.silent_since is not None):
            every_s = patience.beat_s
        if now - one.looked_at >= every_s and (one.look is None or one.look.done()):
            one.looked_at = now
            one.look = asyncio.create_task(self._look(one, wake))

    async def _look(self, one: Tended, wake: Wake | None) -> None:
        answer = await knock(one.machine.ip, one.machine.probe)
        now = self._clock()
        if answer == "answers":
            one.signs.answered_at, one.signs.silent_since = now, None
        elif answer == "silent":
            one.signs.silent_since = one.signs.silent_since or now
        if one.switch.tells:
            await self._ask(one)
        on = one.signs.power == "on" or (not one.switch.tells and answer == "answers")
        waits = self._clock() - one.signs.seen_at < self._patience.warm_s
        if wake is not None or not on or waits:
            return
        if await asyncio.to_thread(self._book.current, one.machine.mac) is None:  # it may be woken while we look
            self._say(one, f"{one.machine.name} is on, and not by us: it is left alone, and counted against the watts")

    async def _ask(self, one: Tended) -> None:
        asked_at = self._clock()
        try:
            state = await one.switch.state()
        except ProviderError as error:
            state = None
            self._say(one, str(error))
        if state is not None:
            one.signs.power, one.signs.power_at = state, asked_at
        elif one.signs.power is not None and asked_at - one.signs.power_at > self._patience.idle_look_s:
            one.signs.power = None


def end(book: Book, wake: Wake, reason: str, now: Seconds, *, fault: bool) -> None:
    """End a wake; a fault keeps the machine out for a while, a good end forgets its former ones."""
    machine = wake.node.rpartition("/")[2].rpartition(".")[0]
    book.end(wake.mac, f"{machine} {reason}", now)
    record = book.records().get(wake.mac)
    if not fault:
        book.free(wake.mac)
        return
    out_s = backoff_s((record.failures if record else 0) + 1)
    book.failed(wake.mac, reason, now + out_s)
    book.report(f"{wake.node}: {machine} {reason}; kept out for {out_s:.0f} s", now)
