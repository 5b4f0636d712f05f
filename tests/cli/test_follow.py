"""A followed policy: what counts is what the file holds, however it came there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.cli import follow as module
from fleetd.cli.follow import follow
from tests.kubernetes.kubelet_volumes import write as swap

pytestmark = pytest.mark.slow


class Seen:
    """What the file held each time that it was said to have changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contents: list[str] = []

    async def changed(self) -> None:
        self.contents.append(self.path.read_text())

    async def comes(self, *contents: str) -> None:
        """Wait until just these have been seen, and for a moment more that nothing else is."""
        async with asyncio.timeout(10):
            while len(self.contents) < len(contents):
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert self.contents == list(contents)


@contextlib.asynccontextmanager
async def followed(path: Path) -> AsyncIterator[Seen]:
    seen = Seen(path)
    task = asyncio.create_task(follow(path, seen.changed))
    await asyncio.sleep(0.5)  # until it watches
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEBOUNCE_MS", 90)


async def test_writing_and_replacing_are_seen_and_what_changes_nothing_is_not(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("one")
    async with followed(path) as seen:
        path.write_text("two")
        await seen.comes("two")
        path.touch()
        (tmp_path / "other").write_text("x")
        (tmp_path / "new").write_text("three")
        (tmp_path / "new").replace(path)
        await seen.comes("two", "three")


async def test_the_swap_of_a_mounted_config_map_is_seen_once(tmp_path):
    """Seen to fail when the file itself is watched: nothing is written to it."""
    place = tmp_path / "mounted"
    swap(place, {"policy.yaml": (b"one", 0o644), "join": (b"x", 0o644)})
    async with followed(place / "policy.yaml") as seen:
        swap(place, {"policy.yaml": (b"two", 0o644), "join": (b"x", 0o644)})
        await seen.comes("two")
        swap(place, {"policy.yaml": (b"two", 0o644), "join": (b"y", 0o644)})
        swap(place, {"policy.yaml": (b"three", 0o644), "join": (b"y", 0o644)})
        await seen.comes("two", "three")


async def test_a_file_that_is_away_for_a_while_changes_nothing_by_that(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("one")
    async with followed(path) as seen:
        path.unlink()
        await asyncio.sleep(0.4)
        path.write_text("one")
        await asyncio.sleep(0.4)
        path.write_text("two")
        await seen.comes("two")


async def test_where_the_system_tells_of_no_change_it_is_found_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_MS", 200)
    real = tmp_path / "elsewhere" / "real.yaml"
    real.parent.mkdir()
    real.write_text("one")
    path = tmp_path / "here" / "policy.yaml"
    path.parent.mkdir()
    path.symlink_to(real)
    async with followed(path) as seen:
        real.write_text("two")  # of another folder, that nobody watches
        await seen.comes("two")
