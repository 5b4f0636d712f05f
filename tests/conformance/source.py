"""What every Source must do. An adapter's tests subclass `SourceConformance` and give it a `Rig` as the fixture `rig`.

The rig is the real system behind the adapter: the suite puts jobs in, starts and ends them, and takes the server away.
Values, not calls, are checked, so any adapter that passes tells the controller the truth.
"""

import abc
import asyncio
import time
from collections.abc import Mapping

import pytest

from fleetd.core.model import Reading
from fleetd.core.ports import Source
from fleetd.errors import SourceError

LIMIT_S = 5.0  # no reading may take longer, whatever the server does
SETTLE_S = 5.0  # a system may tell of a change a little later


class Rig(abc.ABC):
    """A real system with job queues. `function` is whatever a queue's glob matches in it."""

    @abc.abstractmethod
    def source(self, queues: Mapping[str, str]) -> Source:
        """Make the adapter under test; several may live at the same time."""

    @abc.abstractmethod
    async def put(self, function: str, count: int) -> None:
        """Add waiting jobs."""

    @abc.abstractmethod
    async def start(self, function: str, count: int) -> None:
        """Take waiting jobs as a worker does, and hold them running."""

    @abc.abstractmethod
    async def finish(self) -> None:
        """End every running job."""

    @abc.abstractmethod
    async def stop_server(self) -> None:
        """Take the server away, as a crash would."""

    @abc.abstractmethod
    async def start_server(self) -> None:
        """Bring it back at the same address. Its jobs may be gone."""


def ignore() -> None:
    """A nudge that nobody waits for."""


def depths(readings: object) -> dict[str, tuple[int, int]]:
    """(waiting, running) by queue."""
    assert isinstance(readings, (list, tuple))
    assert all(isinstance(reading, Reading) for reading in readings)
    found = {reading.queue: (reading.waiting, reading.running) for reading in readings}
    assert len(found) == len(readings), "a queue is told twice"
    return found


async def settles(source: Source, wanted: dict[str, tuple[int, int]]) -> None:
    """Read until the depths are `wanted`; fail with the last ones."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        async with asyncio.timeout(LIMIT_S):
            found = depths(await source.read())
        if found == wanted or time.monotonic() > deadline:
            assert found == wanted
            return
        await asyncio.sleep(0.05)


class SourceConformance:
    """Subclass it as Test…, with a fixture `rig`."""

    async def test_every_queue_is_told_of_before_its_first_job(self, rig: Rig) -> None:
        source = rig.source({"photos": "resize_*", "mail": "mail"})
        await source.open(ignore)
        assert depths(await source.read()) == {"photos": (0, 0), "mail": (0, 0)}
        await source.close()

    async def test_waiting_and_running_are_told_apart(self, rig: Rig) -> None:
        source = rig.source({"photos": "resize"})
        await source.open(ignore)
        await rig.put("resize", 5)
        await settles(source, {"photos": (5, 0)})
        await rig.start("resize", 2)
        await settles(source, {"photos": (3, 2)})
        await rig.finish()
        await settles(source, {"photos": (3, 0)})
        await source.close()

    async def test_a_queue_is_the_sum_of_what_its_glob_matches_and_nothing_else(self, rig: Rig) -> None:
        source = rig.source({"photos": "resize_*", "one": "resize_a"})
        await source.open(ignore)
        await rig.put("resize_a", 1)
        await rig.put("resize_b", 2)
        await rig.put("Resize_c", 4)
        await rig.put("other", 8)
        await settles(source, {"photos": (3, 0), "one": (1, 0)})
        await source.close()

    async def test_reading_takes_nothing_away(self, rig: Rig) -> None:
        source, other = rig.source({"q": "f"}), rig.source({"q": "f"})
        await rig.put("f", 3)
        for one in (source, other):
            await one.open(ignore)
            await settles(one, {"q": (3, 0)})
            await settles(one, {"q": (3, 0)})
            await one.close()

    async def test_opening_needs_no_server(self, rig: Rig) -> None:
        await rig.stop_server()
        source = rig.source({"q": "f"})
        async with asyncio.timeout(LIMIT_S):
            await source.open(ignore)
        await source.close()

    async def test_a_lost_server_is_an_error_in_time_and_never_a_zero(self, rig: Rig) -> None:
        source = rig.source({"q": "f"})
        await source.open(ignore)
        await rig.put("f", 3)
        await settles(source, {"q": (3, 0)})
        await rig.stop_server()
        for _ in range(2):
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(SourceError) as caught:
                    await source.read()
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) > 10
        await source.close()

    async def test_a_server_that_is_back_is_read_again_without_opening_anew(self, rig: Rig) -> None:
        source = rig.source({"q": "f"})
        await source.open(ignore)
        await source.read()
        await rig.stop_server()
        with pytest.raises(SourceError):
            await source.read()
        await rig.start_server()
        async with asyncio.timeout(SETTLE_S):
            while True:
                try:
                    await source.read()
                except SourceError:
                    await asyncio.sleep(0.05)
                else:
                    break
        await rig.put("f", 2)
        async with asyncio.timeout(SETTLE_S):
            while depths(await source.read())["q"][0] < 2:
                await asyncio.sleep(0.05)
        await source.close()

    async def test_a_cancelled_reading_does_not_spoil_the_next(self, rig: Rig) -> None:
        source = rig.source({"q": "f"})
        await source.open(ignore)
        await rig.put("f", 3)
        await settles(source, {"q": (3, 0)})
        for delay_s in (0.0, 0.0001, 0.0005, 0.001, 0.002):
            task = asyncio.ensure_future(source.read())
            await asyncio.sleep(delay_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await settles(source, {"q": (3, 0)})
        await source.close()

    async def test_readings_at_the_same_time_are_all_right(self, rig: Rig) -> None:
        source = rig.source({"q": "f", "other": "g"})
        await source.open(ignore)
        await rig.put("f", 3)
        await settles(source, {"q": (3, 0), "other": (0, 0)})
        for readings in await asyncio.gather(*(source.read() for _ in range(5))):
            assert depths(readings) == {"q": (3, 0), "other": (0, 0)}
        await source.close()

    async def test_closing_is_safe_twice_and_before_opening(self, rig: Rig) -> None:
        source = rig.source({"q": "f"})
        await source.close()
        source = rig.source({"q": "f"})
        await source.open(ignore)
        await source.read()
        await source.close()
        await source.close()

    async def test_wrong_options_are_refused(self, rig: Rig) -> None:
        options = type(rig.source({})).Options
        with pytest.raises(ValueError, match="surely_not_an_option"):
            options.model_validate({"surely_not_an_option": 1})
