"""Locks between processes, and folders that are whole or not there."""

import multiprocessing
import os
from pathlib import Path

import pytest

from fleetd.releases.disk import locked, put_in_place, scratch

ROUNDS = 60


def contend(lock: Path, mark: Path) -> None:
    """Take the lock again and again; whoever finds another's mark inside fails."""
    for _ in range(ROUNDS):
        with locked(lock):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.sched_yield()
            mark.unlink()


def test_one_process_at_a_time_though_the_lock_s_file_comes_and_goes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=contend, args=(tmp_path / "lock", tmp_path / "mark")) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(60)
    assert [one.exitcode for one in crowd] == [0, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_who_does_not_wait_is_told(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as mine:
        assert mine
        with locked(tmp_path / "lock", wait=False) as second:
            assert not second
        assert (tmp_path / "lock").exists()
    with locked(tmp_path / "lock", wait=False) as mine:
        assert mine


def test_a_scratch_folder_goes_whatever_happens_and_takes_what_was_left_with_it(tmp_path: Path) -> None:
    (tmp_path / ".tmp-a-dead").mkdir()
    (tmp_path / ".tmp-b-alive").mkdir()

    def fail() -> None:
        with scratch(tmp_path, "a") as folder:
            (folder / "file").write_text("")
            assert [path.name for path in tmp_path.iterdir() if path != folder] == [".tmp-b-alive"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-b-alive"]


def test_what_is_put_in_place_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("")
    with scratch(tmp_path, "x") as room:
        (room / "new").mkdir()
        (room / "new" / "file").write_text("")
        put_in_place(room / "new", tmp_path / "there")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["there", "there/file"]
