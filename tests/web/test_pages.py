"""Lists in pages: nothing missed, nothing twice, also where the list changes meanwhile; only our cursors count."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fleetd.codecs.lease import DeadLetter
from fleetd.control import loop
from fleetd.store.sqlite import Entry
from fleetd.web.pages import dump_cursor
from tests.control.fleet import until
from tests.web.site import Site, called, refusal, two_pools


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    async with called(two_pools(tmp_path)) as site:
        yield site


async def pages(site: Site, path: str, key: str, limit: int, between: Callable[[], None] = lambda: None) -> list[Any]:
    """All pages of a list, one value for each row."""
    found: list[Any] = []
    cursor = ""
    while True:
        sign = "&" if "?" in path else "?"
        raw = (await site.operator("GET", f"{path}{sign}limit={limit}{cursor}")).json()
        rows = next(value for name, value in raw.items() if name != "next")
        assert len(rows) <= limit
        found.append([row[key] for row in rows])
        if raw["next"] is None:
            return found
        cursor = f"&cursor={raw['next']}"
        between()


def letter(name: str) -> DeadLetter:
    return DeadLetter(name, "resize_a", "u", "H:1", 3, "boom", "", "")


async def test_nodes_come_by_pool_and_age(site: Site) -> None:
    for pool, count in (("local", 3), ("burst", 2)):
        await site.operator("POST", "/v1/wake", {"pool": pool, "count": count, "for_s": 60})
    await until(lambda: len(site.fleet.controller.memory.nodes) == 5)
    rows = [row for page in await pages(site, "/v1/nodes", "id", 2) for row in page]
    assert rows == ["burst/1.1", "burst/2.1", "local/1.1", "local/2.1", "local/3.1"]
    assert await pages(site, "/v1/nodes?pool=burst", "id", 2) == [["burst/1.1", "burst/2.1"]]
    answer = await site.operator("GET", "/v1/nodes?pool=brst")
    assert refusal(answer) == (422, "pool: no pool 'brst'; did you mean 'burst'?")
    assert answer.json()["place"] == "pool"


async def test_the_journal_goes_back_page_by_page_each_in_order(site: Site) -> None:
    store, memory = site.fleet.store, site.fleet.controller.memory
    store.commit(memory, [Entry("event", str(at)) for at in range(10)])
    newest = store.journal(last=1)[0].seq
    raw = (await site.operator("GET", "/v1/journal?limit=3")).json()
    seqs = [entry["seq"] for entry in raw["entries"]]
    assert seqs == sorted(seqs)
    assert seqs[-1] >= newest
    found = await pages(site, "/v1/journal", "seq", 4, lambda: store.commit(memory, [Entry("event", "later")]))
    rows = sorted(row for page in found for row in page)
    assert rows == list(range(1, rows[-1] + 1)), "what came meanwhile moves nothing"


async def test_the_journal_after_a_number_goes_on_in_order(site: Site) -> None:
    store, memory = site.fleet.store, site.fleet.controller.memory
    begin = store.journal(last=1)[0].seq if store.journal(last=1) else 0
    store.commit(memory, [Entry("event", str(at)) for at in range(10)])
    found = await pages(site, f"/v1/journal?after={begin}", "seq", 4)
    rows = [row for page in found for row in page]
    assert rows[:10] == list(range(begin + 1, begin + 11))
    assert (await site.operator("GET", f"/v1/journal?after={10**17}")).json() == {"entries": [], "next": None}


async def test_dead_letters_go_back_though_letters_are_dropped_and_come(site: Site) -> None:
    store = site.fleet.store
    store.add_dead("local", "local/1.1", [letter(f"l{at}") for at in range(7)])
    newer = iter("xyz")

    def meanwhile() -> None:
        store.add_dead("local", "local/1.1", [letter(next(newer))])
        store.drop_dead("l5")  # the last one of the first page

    assert await pages(site, "/v1/dead", "id", 2, meanwhile) == [["l6", "l5"], ["l4", "l3"], ["l2", "l1"], ["l0"]]
    assert (await site.operator("GET", "/v1/dead/l3")).json()["id"] == "l3"
    code, line = refusal(await site.operator("GET", "/v1/dead/l5"))
    assert (code, line) == (404, "dead: there is no letter 'l5'; see `fleetd dead list`")


async def test_scripts_that_say_last_go_on(site: Site) -> None:
    assert len((await site.operator("GET", "/v1/journal?last=1")).json()["entries"]) <= 1


WRONG = [
    ("limit=0", "limit: must be greater than or equal to 1"),
    ("limit=1001", "limit: must be less than or equal to 1000"),
    ("limit=99999999999999999999", "limit: must be a whole number"),
    ("limit=1.0", "limit: must be a whole number"),
    ("limit=", "limit: must be a whole number"),
    ("limit=1&limit=2", "limit: is there twice"),
    ("cursor=x", "cursor: was not given here: take `next` of a page as it is, or leave it out"),
    ("cursor=W10", "cursor: was not given here: take `next` of a page as it is, or leave it out"),
    ("cursor=" + "W1tb" * 200, "cursor: was not given here: take `next` of a page as it is, or leave it out"),
    ("cursor=" + "W" * 2000, "cursor: must have at most 1000 characters"),
    ("cursor=" + dump_cursor("others", 1), "cursor: was not given here: "),
    ("cursor=" + dump_cursor("journal", "before", 1e300), "cursor: was not given here: "),
    ("cursor=" + dump_cursor("dead", float("nan"), "x"), "cursor: was not given here: "),
    ("curser=x", "curser: no such key; did you mean 'cursor'?; there are limit, cursor"),
    ("a%0d%0aSet-Cookie:%20b=c", "a\\r\\nSet-Cookie: b: no such key; there are limit, cursor"),
]


@pytest.mark.parametrize("path", ["/v1/nodes", "/v1/journal", "/v1/dead"])
async def test_wrong_pages_are_422_in_one_line(site: Site, path: str) -> None:
    for query, line in WRONG:
        answer = await site.operator("GET", f"{path}?{query}")
        code, said = refusal(answer)
        assert code == 422
        assert said.startswith(line), query
        assert "set-cookie" not in answer.headers
