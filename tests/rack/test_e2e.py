"""From a magic packet to a job done, drained and off, and once more: every part a real one, and no privileges."""

from pathlib import Path

import pytest

from fleetd.boot.manifest import load_image
from fleetd.providers.rack.book import Book
from tests.rack import e2e

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("rack-image")]


@pytest.fixture(scope="session")
def image() -> Path:
    """The node image, built where the cache has none."""
    return e2e.node_image()


def test_a_rush_wakes_a_machine_that_boots_works_drains_and_goes_off_and_the_next_rush_wakes_it_again(
    image: Path, tmp_path: Path
) -> None:
    parts = load_image(image).parts
    with e2e.rack(tmp_path, e2e.User(), image=image) as rack:
        box = rack.plug(7, secureon="00:11:22:33:44:55", card_secureon="00:11:22:33:44:55")
        rack.inventory["machines"]["node07"]["power"] = e2e.switches(rack.daemon, "status")
        rack.start()
        for life in (1, 2):
            node = f"rack3/node07.{life}"
            rack.submit(f"job{life}", 1.0)
            rack.daemon.wait(box.mac, on=True, limit_s=60)
            assert rack.daemon.heard[-1] == (box.mac, "001122334455", "woken")
            (done_at, text), *more = rack.until_noted(f"end job{life}")
            assert (text, more) == (f"end job{life} {box.mac}", [])
            for what in ("base", "app"):
                assert f"the {what} layer is what it should be: SHA-256 {parts[what].sha256}" in box.said
            assert _used(rack, node)
            rack.until_off("node07")
            assert box.process is not None
            assert box.process.returncode == 0  # by its own hand
            assert "fleetd: the worker has ended with 0" in box.said
            gone = rack.until_said("stopped as asked: off, says its switch", 60, life)
            assert "node07" in gone
            print(f"life {life}:\n{_times(box, done_at)}")
        assert box.starts == 2
        assert [became for _, _, became in rack.daemon.heard] == ["woken", "woken"]


def _used(rack: e2e.Rack, node: str) -> bool:
    book = Book(rack.home / "state" / "e2e", "rack3")
    try:
        wake = book.of(node)
        return wake is not None and wake.used_at is not None
    finally:
        book.close()


def _times(box: e2e.Box, done_at: float) -> str:
    said = ("the base layer is what", "the app layer is what", "enrolled", "slot started", "power off")
    rows = [(text, at) for text in said if (at := box.when(text)) is not None]
    rows += [("the first job is done", done_at - box.began_at), ("off", box.ended_at - box.began_at)]
    return e2e.table(sorted(rows, key=lambda row: row[1]))
