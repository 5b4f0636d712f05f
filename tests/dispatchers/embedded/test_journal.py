"""The journal on a real file: what was committed is there again, and what cannot be is one clear line."""

import sqlite3
from pathlib import Path

import pytest

from fleetd.dispatchers.embedded.journal import FILE, Journal, JournalError
from fleetd.dispatchers.embedded.model import Batch, Row


def row(number: int, payload: bytes = b"p\0\xff", **more: object) -> Row:
    values = {"function": b"f", "unique": b"u%d" % number, "payload": payload, "priority": 1, "since": 1.5 * number}
    return Row(number, **(values | more))  # type: ignore[arg-type]


def batch(*rows: Row, attempts: dict[int, int] | None = None, ends: tuple[int, ...] = ()) -> Batch:
    return Batch(1, rows, attempts or {}, ends)


def held(folder: Path) -> list[Row]:
    journal = Journal(folder)
    try:
        return list(journal.rows())
    finally:
        journal.close()


def test_what_was_committed_is_there_again_in_its_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    rows = [row(number) for number in range(1, 1300)]
    journal.commit(batch(*reversed(rows)))
    dead = row(3, dead="why", died=7.0, attempts=3)
    journal.commit(batch(dead, attempts={5: 2, 9999: 1}, ends=(*range(10, 1300), 9998)))
    journal.close()
    expected = [row(1), row(2), dead, row(4), row(5, attempts=2), *rows[5:9]]
    assert held(tmp_path) == expected


def test_a_dead_letter_that_was_revived_lives(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.commit(batch(row(1, dead="why", died=7.0, attempts=3)))
    journal.commit(batch(attempts={1: 0}))
    journal.close()
    assert held(tmp_path) == [row(1)]


def test_each_start_has_numbers_of_its_own(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.close()
    second = Journal(tmp_path)
    second.close()
    assert (first.start, second.start) == (1, 2)


def test_a_full_disk_leaves_nothing_of_the_batch_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.commit(batch(row(1)))
    journal._base.execute("PRAGMA max_page_count = 8")
    with pytest.raises(JournalError, match="cannot be written: database or disk is full"):
        journal.commit(batch(row(2), row(3, b"x" * 100_000), ends=(1,)))
    journal.commit(batch(row(4)))
    journal.close()
    assert held(tmp_path) == [row(1), row(4)]


@pytest.mark.parametrize("damage", ["header", "middle", "text"])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path)
    journal.commit(batch(*[row(number, b"x" * 500) for number in range(200)]))
    journal.close()
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:64] = b"?" * 64
    elif damage == "middle":
        data[8192 : 8192 + 4096 * 4] = b"\xa5" * 4096 * 4
    else:
        data = bytearray(b"this is a text\n" * 1000)
    path.write_bytes(data)
    with pytest.raises(JournalError, match="restore it from a backup, or move it away") as caught:
        held(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("CREATE TABLE theirs (x)")
    other.commit()
    other.close()
    with pytest.raises(JournalError, match="of another program or version"):
        Journal(tmp_path)
    other = sqlite3.connect(tmp_path / FILE)
    assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    other.close()


def test_two_dispatchers_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(JournalError, match="in use by another dispatcher"):
        Journal(tmp_path)
    first.commit(batch(row(1)))
    first.close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match=r"cannot be opened: (Not a directory|File exists)"):
        Journal(tmp_path / "file")
