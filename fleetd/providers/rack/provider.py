"""Machines of your own as capacity: woken by a packet or their BMC, booted by the boot service, gone when proven off.

A node is one life of a machine, `rack3/node07.12`: its twelfth wake. The truth is the book; the `Tender` looks after
the machines, so `launch` and `stop` write down what is wanted and see to it that it is begun.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import ClassVar, Final, Literal

from fleetd.core.model import Launched, NodeId, Offer, Order, PoolPolicy, Seconds, Sighting, Stopped, World
from fleetd.core.ports import Known, Nudge, WorkerLaunch
from fleetd.errors import ExhaustedError, FleetdError, ProviderError, RefusedError
from fleetd.providers.rack.book import Book, Record, Wake
from fleetd.providers.rack.inventory import RackOptions, conflicts
from fleetd.providers.rack.judge import Patience, boot_deadline
from fleetd.providers.rack.rank import Candidate, Room, pick, ranked, told
from fleetd.providers.rack.tend import Page, Tended, Tender, end

GONE_S: Final = 600.0  # so long a node that went is told of
MINUTE_S: Final = 60.0
PATIENCE: Final = Patience()


class RackProvider:
    """Wakes and switches off the machines of one rack."""

    Options: ClassVar[type[RackOptions]] = RackOptions
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"
    stops_by_order: ClassVar[bool] = True

    def __init__(
        self,
        pool: PoolPolicy,
        options: RackOptions,
        launch: WorkerLaunch,
        patience: Patience = PATIENCE,
        clock: Callable[[], Seconds] = time.time,
    ) -> None:
        """`clock` is the wall's, which the book is kept by; tests are less patient."""
        self._pool, self._options, self._launch = pool, options, launch
        self._patience, self._clock = patience, clock
        self._book: Book | None = None
        self._tender: Tender | None = None
        self._turn = asyncio.Lock()

    @staticmethod
    def conflicts(pools: Mapping[str, RackOptions]) -> Sequence[tuple[str, str]]:
        """Return what is wrong between several racks of one policy, each with the pool at fault."""
        return conflicts({name: options.inventory for name, options in pools.items()})

    async def open(self, nudge: Nudge) -> None:
        """Take in the inventory, and begin to look after the machines."""
        if self._tender is not None:
            return
        names = {shape.mac: name for name, shape in self._options.inventory.machines.items()}
        with self._placed():
            self._book = await asyncio.to_thread(Book, self._launch.state_dir, self._pool.name)
            await asyncio.to_thread(self._book.know, names)
        self._tender = Tender(self._book, self._options, self._patience, self._clock, nudge)
        self._tender.start()

    async def close(self) -> None:
        """Look no more; the machines go on."""
        tender, self._tender = self._tender, None
        if tender is not None:
            await tender.stop()
        book, self._book = self._book, None
        if book is not None:
            book.close()

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """Take in what the workers said: it is the first sign of life."""
        del sentence
        if self._tender is not None:
            self._tender.hear(nodes)

    async def news(self) -> Sequence[str]:
        """Return what happened of itself since the last time: for the journal, each sentence once."""
        book, _ = self._opened()
        with self._placed():
            return await asyncio.to_thread(book.news)

    # ── what there is

    async def list(self) -> World:
        """Return the machines that are ours, those that are off or wait, and how many more could be had."""
        book, tender = self._opened()
        now = self._clock()
        with self._placed():
            page = await tender.page()
            ended = await asyncio.to_thread(book.ended, now - GONE_S)
            recent = await asyncio.to_thread(book.history, now - MINUTE_S)
        sightings = [
            Sighting(wake.node, "booting" if wake.up_at is None else "up", wake.app, wake.key)
            for wake in page.wakes.values()
        ]
        others = self._candidates(page, now)
        sightings += [
            Sighting(f"{self._pool.name}/{one.machine.name}", "warm" if one.warm else "off") for one in others
        ]
        return World(tuple(sightings), self._offer(page, others, recent, now), gone={w.node: w.reason for w in ended})

    def _candidates(self, page: Page, now: Seconds) -> Sequence[Candidate]:
        _, tender = self._opened()
        return [
            Candidate(
                one.machine,
                page.records.get(mac, Record(mac)),
                warm=now - one.signs.seen_at < self._patience.warm_s and one.signs.stage == "script",
                stranger=self._is_stranger(one, now),
            )
            for mac, one in tender.tended.items()
            if mac not in page.wakes
        ]

    def _is_stranger(self, one: Tended, now: Seconds) -> bool:
        """Whether a machine that we did not wake is on, and does not wait for us."""
        signs = one.signs
        answers = signs.silent_since is None and now - signs.answered_at < 2 * self._patience.idle_look_s
        waits = now - signs.seen_at < self._patience.warm_s
        return not waits and (signs.power == "on" if one.switch.tells else answers)

    def _offer(self, page: Page, others: Sequence[Candidate], recent: Sequence[Wake], now: Seconds) -> Offer:
        free = ranked(others, self._options.inventory.rank, (), now)
        chosen, why = pick(free, len(free), self._room(page, others, recent))
        _, tender = self._opened()
        whys = (why, told(others, now), "; ".join(list(tender.problems.values())[:1]))
        return Offer(len(chosen), None, "; ".join(text for text in whys if text))

    def _room(self, page: Page, others: Sequence[Candidate], recent: Sequence[Wake]) -> Room:
        _, tender = self._opened()
        rack = self._options.inventory
        on = [tender.tended[mac].machine for mac in page.wakes if mac in tender.tended]
        on += [one.machine for one in others if one.warm or one.stranger]
        watts = None if rack.watts is None else rack.watts - sum(machine.watts for machine in on)
        woken = len([wake for wake in recent if wake.sent or wake.ended_at is None])
        wakes = None if rack.wakes is None else int(rack.wakes) - woken
        return Room(watts, wakes, rack.watts or 0.0, rack.wakes or 0.0)

    # ── launch and stop

    async def launch(self, order: Order) -> Launched:
        """Wake what is missing of the order; one that cannot be switched on is left for the next best."""
        app = self._launch.apps.get(order.app)
        place = f"pool {self._pool.name}"
        if app is None or app.exec:
            why = "is unknown here" if app is None else "only apps with a `release` run here yet"
            raise RefusedError(f"{place}: app {order.app}: {why}")
        async with self._turn:
            with self._placed():
                return await self._launched(order)

    async def _launched(self, order: Order) -> Launched:
        book, tender = self._opened()
        tender.look_again()
        failed: list[str] = []
        tried: set[str] = set()
        while True:
            page, now = await tender.page(), self._clock()
            recent = await asyncio.to_thread(book.history, now - MINUTE_S)
            names = {mac: one.machine.name for mac, one in tender.tended.items()}
            ours = [w for m, w in page.wakes.items() if w.key == order.key or names.get(m) in order.named]
            others = [one for one in self._candidates(page, now) if one.machine.mac not in tried]
            chosen, why = self._pick(order, ours, others, self._room(page, others, recent), now)
            if not chosen:
                break
            tried |= {one.machine.mac for one in chosen}
            failed += await self._wake(order, chosen, now)
        if not ours and failed:
            raise ProviderError("; ".join(failed[:3]))
        if not ours and order.count:
            whys = [text for text in (why, told(others, now), *list(tender.problems.values())[:1]) if text]
            raise ExhaustedError(f"no machine to be had: {'; '.join(whys) or 'all are awake'}")
        return Launched(order.key, tuple(wake.node for wake in ours))

    def _pick(
        self, order: Order, ours: Sequence[Wake], others: Sequence[Candidate], room: Room, now: Seconds
    ) -> tuple[Sequence[Candidate], str]:
        """Return whom to wake: the named themselves, and the best for the rest of the order."""
        free = ranked(others, self._options.inventory.rank, order.named, now)
        named = [one for one in free if one.machine.name in order.named]
        away = len(set(order.named) - {one.machine.name for one in named} - {_machine(wake) for wake in ours})
        rest = [one for one in free if one not in named]
        wanted = order.count - len(ours) - away  # nobody stands in for a named one that cannot be had
        few = rest[: max(0, wanted - len(named))] if order.named else rest
        return pick([*named, *few], max(0, wanted), room)

    async def _wake(self, order: Order, chosen: Sequence[Candidate], now: Seconds) -> Sequence[str]:
        """Wake machines, all at once; return why some could not be. What is cancelled here, the tender goes on with."""
        book, tender = self._opened()
        begun: dict[asyncio.Task[str], Wake] = {}
        for one in chosen:
            window_s = boot_deadline(one.record, self._options.boot)
            machine = one.machine
            wake = await asyncio.to_thread(
                book.wake, machine.mac, order.key, order.app, now, window_s, name=machine.name
            )
            tended = tender.tended[machine.mac]
            if not one.warm:
                tended.act = asyncio.create_task(tender.switch_on(tended, wake))
                begun[tended.act] = wake
        if begun:
            await asyncio.wait(begun)
        failed = {wake: why for task, wake in begun.items() if (why := task.result())}
        for wake, why in failed.items():
            await asyncio.to_thread(end, book, wake, f"could not be switched on: {why}", self._clock(), fault=True)
        return tuple(failed.values())

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Write down that these are to go: their workers switch them off, and what does not go off is cut off."""
        del order
        book, tender = self._opened()
        with self._placed():
            for node in nodes:
                wake = await asyncio.to_thread(book.of, node)
                if wake is not None and wake.ended_at is None:
                    await asyncio.to_thread(book.stopping, wake, self._clock(), grace_s)
        tender.look_again()
        return Stopped(tuple(nodes))

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return what is known of a node's life. Its worker's own lines go to the console and the syslog host."""
        book, _ = self._opened()
        with self._placed():
            wake = await asyncio.to_thread(book.of, node)
            if wake is None:
                raise ProviderError(f"there is no {node} in the book, or it was long ago")
            seen = (await asyncio.to_thread(book.sightings)).get(wake.mac)
        lines = [(wake.at, f"woken for {wake.app} by order {wake.key}, as {wake.mac}")]
        lines += [(wake.sent_at, f"told to come on {wake.sent} times, the last time now")] if wake.sent else []
        if seen is not None and seen.at >= wake.at and (wake.ended_at is None or seen.at <= wake.ended_at):
            lines.append((seen.at, f"booting: {seen.stage}{f', from {seen.ip}' if seen.ip else ''}"))
        told_at = (
            (wake.used_at, "its token was taken"),
            (wake.up_at, "its worker spoke"),
            (wake.stop_at, f"told to go, within {wake.grace_s:.0f} s"),
            (wake.ended_at, wake.reason),
        )
        lines += [(at, text) for at, text in told_at if at is not None]
        return [f"{datetime.fromtimestamp(at).astimezone():%Y-%m-%d %H:%M:%S} {text}" for at, text in sorted(lines)][
            -last:
        ]

    # ── inside

    def _opened(self) -> tuple[Book, Tender]:
        if self._book is None or self._tender is None:
            raise ProviderError(f"pool {self._pool.name}: is not open")
        return self._book, self._tender

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Let every fault carry the pool's name."""
        place = f"pool {self._pool.name}: "
        try:
            yield
        except ProviderError as error:
            raise error if str(error).startswith(place) else type(error)(f"{place}{error}") from None
        except FleetdError as error:
            raise ProviderError(f"{place}{error}") from None


def _machine(wake: Wake) -> str:
    return wake.node.rpartition("/")[2].rpartition(".")[0]
