"""One of several controllers, from start to end: when it acts, by which policy, when it gives the seat back."""

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.cli.lead import Lead, adopt, stand_by_and_lead
from fleetd.config import load
from fleetd.control.leader import Leader
from fleetd.core.election import Term
from fleetd.core.model import Policy
from fleetd.errors import FleetdError
from fleetd.store.sqlite import Store
from tests.control.test_leader import Place, Record

POLICY = """\
version: 1
fleet: shop
sources: {{main: {{gearman: {{servers: ["127.0.0.1:1"]}}}}}}
apps: {{photos: {{exec: [work]}}}}
queues: {{all: {{app: photos, source: main, match: "*", objective: {{wait: 90s}}}}}}
pools: {{local: {{process: {{}}, apps: [photos], slots: 1, max: {most}}}}}
"""


class Acts:
    """What happens while it acts."""

    def __init__(self, record: Record, *, ends: bool = True, fails: str = "") -> None:
        self.record, self.ends, self.fails = record, ends, fails
        self.policies: list[Policy] = []

    async def __call__(self, policy: Policy, lead: Lead) -> bool:
        assert self.record.term is not None
        assert self.record.term.holder == lead.leader.me
        self.policies.append(policy)
        if self.fails:
            raise FleetdError(self.fails)
        return self.ends


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(most=4))
    return path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def leader(record: Record, said: list[str]) -> Leader:
    return Leader(Place(record), "me", lambda _, line: said.append(line))


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def lives(path: Path, leader: Leader, acts: Acts, said: list[str]) -> None:
    await stand_by_and_lead(path, load(path), leader, lambda _, line: said.append(line), acts)


async def test_it_acts_while_it_holds_the_seat_and_gives_it_back_then(path, record, leader, said):
    acts = Acts(record)
    await lives(path, leader, acts, said)
    assert [who for _, who in record.writes] == ["me", ""]
    assert [policy.pools["local"].max_nodes for policy in acts.policies] == [4]


async def test_what_still_goes_on_at_the_end_keeps_the_seat_until_it_expires(path, record, leader, said):
    await lives(path, leader, Acts(record, ends=False), said)
    assert [who for _, who in record.writes] == ["me"]
    assert said[-1] == "seat: not given back, for something goes on; it expires by itself"


async def test_one_that_cannot_begin_gives_the_seat_back(path, record, leader, said):
    with pytest.raises(FleetdError, match="the disk is full"):
        await lives(path, leader, Acts(record, fails="the disk is full"), said)
    assert [who for _, who in record.writes] == ["me", ""]


async def test_a_signal_ends_one_that_stands_by_and_it_never_acts(path, record, leader, said):
    record.term = Term("other", version="7")
    acts = Acts(record)
    task = asyncio.create_task(lives(path, leader, acts, said))
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGHUP)  # which is nothing to it
    await asyncio.sleep(0.1)
    assert not task.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 5)
    assert (acts.policies, record.writes) == ([], [])
    assert said[-2:] == ["standby: seat is held by other", "it never acted"]


@pytest.mark.parametrize(
    ("change", "most", "line"),
    [
        (POLICY.format(most=7), 7, None),
        (POLICY.format(most="many"), 4, "expected a whole number, got 'many' (the old policy stays)"),
        (POLICY.format(most=7).replace("shop", "mill"), 4, "cannot change without a restart (the old policy stays)"),
    ],
)
async def test_the_policy_is_that_of_the_moment_it_begins(
    *, path, record, leader, said, change, most, line, monkeypatch
):
    monkeypatch.setattr("fleetd.control.leader.RETRY_S", 0.1)
    record.term = Term("other", version="7")
    acts = Acts(record)
    task = asyncio.create_task(lives(path, leader, acts, said))
    await asyncio.sleep(0.1)
    path.write_text(change)
    record.term = replace(record.term, holder="", version="8")
    await asyncio.wait_for(task, 5)
    assert [policy.pools["local"].max_nodes for policy in acts.policies] == [most]
    assert line is None or any(one.endswith(line) for one in said)


def test_the_name_among_fleets_of_one_name_is_the_seats_where_it_has_one(tmp_path, leader):
    store = Store(tmp_path / "state")
    own = adopt(None, store)
    assert adopt(Lead(leader, None, asyncio.Event()), store) == own
    leader.term = Term("me", instance="f00")
    assert adopt(Lead(leader, None, asyncio.Event()), store) == "f00"
    assert store.meta("instance") == "f00"
    store.close()
