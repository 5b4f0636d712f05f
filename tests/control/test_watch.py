"""Watches: whatever an adapter does wrong is Blind with the reason, and nobody else's delay."""

import asyncio
import time

import pytest

from fleetd.control import watch as watching
from fleetd.control.watch import STALE_S, Watch, one_line
from fleetd.core.model import Blind
from fleetd.errors import SourceError


class Adapter:
    """Answers as the test says: a value, an exception, or never."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self) -> object:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "never":
            await asyncio.Event().wait()
        return self.answer


def test_before_the_first_answer_it_is_blind() -> None:
    assert Watch("q", Adapter(1), lambda: 0.0).latest() == Blind("not read yet")


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (7, 7),
        (SourceError("main: connection refused"), Blind("main: connection refused")),
        (OSError(111, "Connection refused"), Blind("[Errno 111] Connection refused")),
        (ValueError("two\nlines"), Blind("source main: ValueError: two lines")),
        ("never", Blind("no answer within 0 s")),
    ],
)
async def test_each_answer_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch, answer: object, seen: object) -> None:
    monkeypatch.setattr(watching, "TIMEOUT_S", 0.05)
    watch = Watch("source main", Adapter(answer), lambda: 0.0)
    await watch.once()
    assert watch.latest() == seen
    assert watch.fresh
    assert watch.looked.is_set()


async def test_an_old_answer_is_blind_and_an_old_reason_stays() -> None:
    now = 0.0
    watch, failed = Watch("q", Adapter(1), lambda: now), Watch("q", Adapter(SourceError("why")), lambda: now)
    await watch.once()
    await failed.once()
    now = STALE_S
    assert watch.latest() == 1
    now = STALE_S + 1
    assert watch.latest() == Blind("no answer for 9 s")
    assert failed.latest() == Blind("why")


async def test_a_wedged_adapter_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "TIMEOUT_S", 0.3)
    wedged, well = Adapter("never"), Adapter(1)
    watches = [Watch("a", wedged, time.monotonic, every_s=0.01), Watch("b", well, time.monotonic, every_s=0.01)]
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    await asyncio.sleep(0.25)
    assert wedged.asked == 1
    assert well.asked >= 10
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_adapter_that_is_well_again_is_seen_again() -> None:
    adapter = Adapter(RuntimeError("a bug"))
    watch = Watch("pool local", adapter, time.monotonic)
    await watch.once()
    assert watch.latest() == Blind("pool local: RuntimeError: a bug")
    adapter.answer = 3
    await watch.once()
    assert watch.latest() == 3


async def test_a_kick_asks_at_once_also_one_that_comes_during_an_answer() -> None:
    adapter = Adapter(1)
    watch = Watch("q", adapter, time.monotonic, every_s=60.0)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0.01)
    assert adapter.asked == 1
    watch.kick.set()
    await asyncio.sleep(0.01)
    assert adapter.asked == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_reason_is_one_bounded_line_that_can_be_stored() -> None:
    assert one_line(ValueError("a\n\tb")) == "a b"
    assert one_line(ValueError("half \ud800 a pair")) == "half ? a pair"
    assert len(one_line(ValueError("x" * 10_000))) == 500


async def test_news_is_told_when_an_answer_changes_and_only_then() -> None:
    told: list[object] = []
    adapter = Adapter(1)
    watch: Watch[object] = Watch("q", adapter, time.monotonic, lambda: told.append(watch.answer), every_s=0.005)
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0.05)
    assert told == [1]
    adapter.answer = 2
    await asyncio.sleep(0.05)
    assert told == [1, 2]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
