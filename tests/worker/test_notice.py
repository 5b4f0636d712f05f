"""An instance that is told of its end: fenced at once, jobs done or handed back in time; and nothing else fences it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from fleetd.codecs.lease import WorkerOrder, join_token
from fleetd.errors import UnreachableError, UsageError
from fleetd.worker.imds import Imds
from fleetd.worker.notice import Notice, look, watch
from tests import servers
from tests.worker.conftest import StartWorker
from tests.worker.controller import SECRET, Controller
from tests.worker.controller import serving as controlling
from tests.worker.harness import Client, Worker, status
from tests.worker.metadata import INTERRUPTION, REBALANCE, Metadata, serving

BROKEN = ("slow", "trickle", "garbage", "endless", "no http", "500", "403")


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """The metadata service of an instance that is told nothing yet."""
    with serving() as made:
        yield made


# ── what is told


async def test_an_instance_that_is_told_nothing_goes_nowhere(metadata: Metadata) -> None:
    assert await look(Imds(metadata.url)) is None
    assert metadata.asked == [INTERRUPTION, REBALANCE]


async def test_an_interruption_says_how_long_there_is(metadata: Metadata) -> None:
    metadata.interrupt(100)
    notice = await look(Imds(metadata.url))
    assert notice is not None
    assert (notice.why, notice.at[-1]) == ("spot interruption", "Z")
    assert notice.left_s == pytest.approx(99, abs=2)


@pytest.mark.parametrize("ahead_s", [-86400.0, 86400.0])
async def test_the_time_left_is_by_the_services_own_clock(metadata: Metadata, ahead_s: float) -> None:
    metadata.ahead_s = ahead_s
    metadata.interrupt(100)
    notice = await look(Imds(metadata.url))
    assert notice is not None
    assert notice.left_s == pytest.approx(99, abs=2)


@pytest.mark.parametrize(
    ("body", "why", "left_s"),
    [
        ({"action": "terminate", "time": "2001-01-01T00:00:00Z"}, "spot interruption", 0.0),
        ({"action": "stop", "time": "2099-01-01T00:00:00Z"}, "spot interruption (stop)", 120.0),
        ({"action": "terminate"}, "spot interruption", 120.0),
        ({"action": "terminate", "time": "soon"}, "spot interruption", 120.0),
        ({"action": "terminate", "time": "2099-01-01T00:00:00"}, "spot interruption", 120.0),
        ({"action": "hibernate"}, "spot interruption (hibernate)", 0.0),
    ],
)
async def test_a_notice_leaves_two_minutes_at_most(
    metadata: Metadata, body: dict[str, str], why: str, left_s: float
) -> None:
    metadata.pages[INTERRUPTION] = json.dumps(body).encode()
    notice = await look(Imds(metadata.url))
    assert notice is not None
    assert (notice.why, notice.left_s) == (why, left_s)


async def test_a_rebalance_recommendation_sets_no_time_and_an_interruption_weighs_more(metadata: Metadata) -> None:
    metadata.recommend()
    notice = await look(Imds(metadata.url))
    assert notice is not None
    assert (notice.why, notice.left_s) == ("rebalance recommendation", None)
    metadata.interrupt(60)
    notice = await look(Imds(metadata.url))
    assert notice is not None
    assert notice.why == "spot interruption"


async def test_one_token_serves_many_questions_and_one_that_has_ended_is_renewed(metadata: Metadata) -> None:
    imds = Imds(metadata.url)
    for _ in range(3):
        await look(imds)
    assert len(metadata.tokens) == 1
    metadata.tokens.clear()
    metadata.interrupt(60)
    assert await look(imds) is not None
    assert len(metadata.tokens) == 1


# ── a service that is ill


@pytest.mark.parametrize("mode", BROKEN)
async def test_an_ill_service_says_nothing_and_holds_nobody_up(metadata: Metadata, mode: str) -> None:
    metadata.interrupt(100)  # told with a code that says otherwise, it does not count
    imds = Imds(metadata.url, timeout_s=0.3)
    await look(imds)  # it has a token by now
    metadata.mode = mode
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"^the metadata service\b"):
        await look(imds)
    assert time.monotonic() - began < 1.5


async def test_no_service_at_all_is_told_as_such() -> None:
    with pytest.raises(UnreachableError, match="Refused"):
        await look(Imds(f"http://127.0.0.1:{servers.free_port()}"))


@pytest.mark.parametrize("url", ["https://169.254.169.254", "169.254.169.254", "http://", "http://x:99999"])
def test_a_wrong_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--watch-instance .*expected http://HOST:PORT"):
        Imds(url)


@asynccontextmanager
async def watching(metadata: Metadata) -> AsyncIterator[list[Notice | None]]:
    """What a watch tells, asking often."""
    told: list[Notice | None] = []
    task = asyncio.create_task(watch(Imds(metadata.url, timeout_s=0.2), told.append, 0.01))
    yield told
    assert not task.done(), "it runs for ever"
    task.cancel()


async def until(what: Callable[[], bool]) -> None:
    """Wait until it is so."""
    async with asyncio.timeout(5):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_notice_is_told_once_and_so_is_its_end(metadata: Metadata) -> None:
    async with watching(metadata) as told:
        await until(lambda: len(metadata.asked) > 6)
        assert told == [], "there was none before"
        metadata.recommend()
        await until(lambda: len(told) == 1)
        metadata.interrupt(100)
        await until(lambda: len(told) == 2)
        asked = len(metadata.asked)
        await until(lambda: len(metadata.asked) > asked + 4)
        metadata.pages.clear()
        await until(lambda: len(told) == 3)
    assert [notice.why if notice else None for notice in told] == [
        *("rebalance recommendation", "spot interruption"),
        None,
    ]


async def test_a_service_that_falls_ill_after_a_notice_lifts_nothing(metadata: Metadata) -> None:
    metadata.interrupt(100)
    async with watching(metadata) as told:
        await until(lambda: len(told) == 1)
        metadata.mode = "500"
        await asyncio.sleep(0.2)
        metadata.mode = "good"
        asked = len(metadata.asked)
        await until(lambda: len(metadata.asked) > asked + 3)
        assert len(told) == 1


# ── a worker on such an instance


@pytest.fixture
def controller() -> Iterator[Controller]:
    """A controller on a free port."""
    with controlling() as made:
        yield made


@pytest.fixture
def worker(start: StartWorker, gearmand: servers.Server, controller: Controller, metadata: Metadata) -> Worker:
    """A worker that watches its instance."""
    scope = ("--fleet", "shop", "--pool", "burst", "--node", "burst/i-1", "--controller", controller.url)
    env = {"FLEETD_JOIN_TOKEN": join_token(SECRET, "shop", "burst")}
    worker = start("--server", gearmand.address, *scope, "--watch-instance", metadata.url, env=env)
    controller.wait(lambda lease: lease.state == "working")
    return worker


@pytest.mark.real
def test_a_worker_that_is_to_go_finishes_its_job_takes_no_other_and_says_so_at_once(
    worker: Worker, controller: Controller, metadata: Metadata, client: Client, gearmand: servers.Server
) -> None:
    client.submit("nap", b"7")
    worker.wait_note("start")
    metadata.interrupt(110)
    seen = controller.wait(lambda lease: bool(lease.leaving))
    assert (seen.state, seen.busy, seen.leaving) == ("draining", 1, "spot interruption")
    assert seen.leaving_s == pytest.approx(107, abs=6)
    client.submit("upper", b"x")
    drained = controller.wait(lambda lease: lease.state == "drained")
    assert client.end().args[1] == b"slept"
    assert drained.leaving_s is not None
    assert seen.leaving_s is not None
    assert drained.leaving_s < seen.leaving_s
    assert status(gearmand.port)["upper"][:2] == (1, 0)
    controller.order = WorkerOrder(1, "work")
    controller.wait(lambda lease: lease.order == 1)
    assert controller.leases[-1].state == "drained", "an order lifts no notice's fence"


@pytest.mark.real
def test_what_cannot_be_finished_in_time_goes_back_ten_seconds_before_the_end_whatever_is_ordered(
    worker: Worker, controller: Controller, metadata: Metadata, client: Client, gearmand: servers.Server
) -> None:
    client.submit("nap", b"60")
    worker.wait_note("start")
    metadata.interrupt(17)
    seen = controller.wait(lambda lease: bool(lease.leaving))
    controller.order = WorkerOrder(1, "drain")  # as the core does at once: its deadline, none, is not this machine's
    drained = controller.wait(lambda lease: lease.state == "drained" and lease.order == 1)
    assert drained.leaving_s == pytest.approx(10, abs=1.5)
    assert seen.leaving_s is not None
    assert seen.leaving_s > 10
    assert status(gearmand.port)["nap"][:2] == (1, 0)
    assert "attempt=" not in worker.log


@pytest.mark.real
def test_a_rebalance_recommendation_fences_without_a_deadline_and_its_end_lifts_the_fence(
    worker: Worker, controller: Controller, metadata: Metadata, client: Client
) -> None:
    metadata.recommend()
    drained = controller.wait(lambda lease: lease.state == "drained")
    assert (drained.leaving, drained.leaving_s) == ("rebalance recommendation", None)
    metadata.pages.clear()
    working = controller.wait(lambda lease: lease.state == "working", len(controller.leases))
    assert (working.leaving, working.leaving_s) == ("", None)
    assert client.run("upper", b"x").args[1] == b"X"


@pytest.mark.real
@pytest.mark.parametrize("mode", ["slow", "garbage", "500"])
def test_an_ill_service_harms_no_job(worker: Worker, metadata: Metadata, client: Client, mode: str) -> None:
    metadata.mode = mode
    worker.wait_log("metadata: no answer")
    for _ in range(10):
        assert client.run("upper", b"x").args[1] == b"X"
    assert worker.log.count("metadata: no answer") == 1
    metadata.mode = "good"
    worker.wait_log("metadata: answers again")
    assert "fenced" not in worker.log
