"""What every Source must do. An adapter's tests subclass `SourceConformance` and give it a `Rig` as the fixture `rig`.

The rig is the real system behind the adapter: the suite puts jobs in, starts and ends them, and takes the server away.
Values, not calls, are checked, so any adapter that passes tells the controller the truth.
"""

import abc
import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal

import pytest

from fleetd.control.watch import Watch
from fleetd.core.model import Blind, Reading
from fleetd.core.ports import Source
from fleetd.errors import SourceError

LIMIT_S = 5.0  # no reading may take longer, whatever the server does
SETTLE_S = 5.0  # a system may tell of a change a little later
TIMEOUT_S = 1.0  # what a rig gives its sources
Fault = Literal["killed", "cut", "swallowed", "garbage", "revoked"]


class Rig(abc.ABC):
    """A real system with job queues. `function` is whatever a queue's glob matches in it."""

    settle_s = SETTLE_S
    tells_running = True  # where it cannot, a job that is taken is no longer told of
    has_logins = True

    @property
    @abc.abstractmethod
    def port(self) -> int:
        """Where the server listens, on loopback."""

    @abc.abstractmethod
    def source(self, queues: Mapping[str, str], port: int | None = None) -> Source:
        """Make the adapter under test, with a time-out of `TIMEOUT_S`; several may live at the same time."""

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

    async def revoke(self) -> None:
        """Let the server no longer accept the sources' login."""
        raise NotImplementedError

    async def allow(self) -> None:
        """Let it accept the login again."""
        raise NotImplementedError

    async def settles(self, source: Source, wanted: Mapping[str, tuple[int, int]]) -> None:
        """Read until the depths are `wanted`, without what cannot be told; fail with the last ones."""
        told = {queue: (waiting, running if self.tells_running else 0) for queue, (waiting, running) in wanted.items()}
        deadline = time.monotonic() + self.settle_s
        while True:
            async with asyncio.timeout(LIMIT_S):
                found = depths(await source.read())
            if found == told or time.monotonic() > deadline:
                assert found == told
                return
            await asyncio.sleep(0.05)


class Wire:
    """A way to a server that can be broken: new connections are fine once it is mended, broken ones stay broken."""

    def __init__(self, target: int) -> None:
        self.target, self.port, self.state = target, 0, "whole"
        self._tasks: set[asyncio.Task[None]] = set()

    def breaks(self, fault: Fault) -> None:
        self.state = fault
        if fault == "cut":
            for task in self._tasks:
                task.cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server = None
        try:
            if self.state != "cut":
                back, server = await asyncio.open_connection("127.0.0.1", self.target)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, server))
                    group.create_task(self._pass(back, writer))
        except* (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, server):
                if end:
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broken = ""
        while data := await reader.read(65536):
            broken = broken or ("" if self.state == "whole" else self.state)
            if broken == "garbage":
                data = b"\xff\0<html>:$9\r\n\r\n" * 3
            if broken != "swallowed":
                writer.write(data)
                await writer.drain()
        raise EOFError

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    """A wire on a port of its own."""
    wire = Wire(port)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
        await server.wait_closed()
        await asyncio.sleep(0)


async def comes(check: Callable[[], bool], limit_s: float) -> float:
    """Wait until it holds and return how long that took; fail beyond the limit."""
    start = time.monotonic()
    while not check():
        assert time.monotonic() - start < limit_s, "it did not come in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - start


def ignore() -> None:
    """A nudge that nobody waits for."""


def depths(readings: object) -> dict[str, tuple[int, int]]:
    """(waiting, running) by queue."""
    assert isinstance(readings, (list, tuple))
    assert all(isinstance(reading, Reading) for reading in readings)
    found = {reading.queue: (reading.waiting, reading.running) for reading in readings}
    assert len(found) == len(readings), "a queue is told twice"
    return found


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
        await rig.settles(source, {"photos": (5, 0)})
        await rig.start("resize", 2)
        await rig.settles(source, {"photos": (3, 2)})
        await rig.finish()
        await rig.settles(source, {"photos": (3, 0)})
        await source.close()

    async def test_a_queue_is_the_sum_of_what_its_glob_matches_and_nothing_else(self, rig: Rig) -> None:
        source = rig.source({"photos": "resize_*", "one": "resize_a"})
        await source.open(ignore)
        await rig.put("resize_a", 1)
        await rig.put("resize_b", 2)
        await rig.put("Resize_c", 4)
        await rig.put("other", 8)
        await rig.settles(source, {"photos": (3, 0), "one": (1, 0)})
        await source.close()

    async def test_reading_takes_nothing_away(self, rig: Rig) -> None:
        source, other = rig.source({"q": "f"}), rig.source({"q": "f"})
        await rig.put("f", 3)
        for one in (source, other):
            await one.open(ignore)
            await rig.settles(one, {"q": (3, 0)})
            await rig.settles(one, {"q": (3, 0)})
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
        await rig.settles(source, {"q": (3, 0)})
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
        async with asyncio.timeout(rig.settle_s):
            while depths(await source.read())["q"][0] < 2:
                await asyncio.sleep(0.05)
        await source.close()

    async def test_a_cancelled_reading_does_not_spoil_the_next(self, rig: Rig) -> None:
        source = rig.source({"q": "f"})
        await source.open(ignore)
        await rig.put("f", 3)
        await rig.settles(source, {"q": (3, 0)})
        for delay_s in (0.0, 0.0001, 0.0005, 0.001, 0.002):
            task = asyncio.ensure_future(source.read())
            await asyncio.sleep(delay_s)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await rig.settles(source, {"q": (3, 0)})
        await source.close()

    async def test_readings_at_the_same_time_are_all_right(self, rig: Rig) -> None:
        source = rig.source({"q": "f", "other": "g"})
        await source.open(ignore)
        await rig.put("f", 3)
        await rig.settles(source, {"q": (3, 0), "other": (0, 0)})
        for readings in await asyncio.gather(*(source.read() for _ in range(5))):
            assert depths(readings) == {"q": (3, 0), "other": (0, 0)}
        await source.close()

    @pytest.mark.parametrize("fault", ["killed", "cut", "swallowed", "garbage", "revoked"])
    async def test_a_fault_blinds_in_time_and_nobody_else_and_is_over_when_it_is_over(
        self, rig: Rig, fault: Fault
    ) -> None:
        if fault == "revoked" and not rig.has_logins:
            pytest.skip("it knows no logins")
        await rig.put("f", 3)
        asked: list[float] = []

        async def ask() -> None:
            asked.append(time.monotonic())

        def sees_three() -> bool:
            return not isinstance(sick.answer, Blind) and depths(sick.answer) == {"q": (3, 0)}

        told: list[object] = []
        async with wire_to(rig.port) as wire, asyncio.TaskGroup() as group:
            source = rig.source({"q": "f"}, wire.port)
            sick = Watch("sick", source.read, time.monotonic, lambda: told.append(sick.answer), every_s=0.02)
            well = Watch("well", ask, time.monotonic, every_s=0.02)
            tasks = [group.create_task(watch.run()) for watch in (sick, well)]
            await comes(sees_three, rig.settle_s)
            told.clear()
            await self.harm(rig, wire, fault)
            assert await comes(lambda: isinstance(sick.answer, Blind), LIMIT_S) < TIMEOUT_S + 1
            await asyncio.sleep(0.3)
            assert all(isinstance(answer, Blind) for answer in told), told
            assert all(answer.reason.startswith("source ") for answer in told if isinstance(answer, Blind)), told
            await self.heal(rig, wire, fault)
            await comes(lambda: not isinstance(sick.answer, Blind), rig.settle_s)
            if fault != "killed":
                await comes(sees_three, rig.settle_s)
            for task in tasks:
                task.cancel()
        assert max(later - sooner for sooner, later in itertools.pairwise(asked)) < 0.5
        await source.close()

    @staticmethod
    async def harm(rig: Rig, wire: Wire, fault: Fault) -> None:
        if fault == "killed":
            await rig.stop_server()
        elif fault == "revoked":
            await rig.revoke()
        else:
            wire.breaks(fault)

    @staticmethod
    async def heal(rig: Rig, wire: Wire, fault: Fault) -> None:
        if fault == "killed":
            await rig.start_server()
        elif fault == "revoked":
            await rig.allow()
        wire.state = "whole"

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
