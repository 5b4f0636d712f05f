"""The book: wakes, tokens that are taken once, who was seen, how machines fare; over several processes' connections."""

import sqlite3
import threading
from pathlib import Path

import pytest

from fleetd.errors import FleetdError
from fleetd.providers.rack.book import Book, LateError, UnknownError, UsedError

MAC, OTHER = "52:54:00:12:34:07", "52:54:00:12:34:08"
T = 1_700_000_000.0


@pytest.fixture
def book(tmp_path: Path):
    made = Book(tmp_path, "rack3")
    made.know({MAC: "node07", OTHER: "node08"})
    yield made
    made.close()


def wake(book, mac=MAC, at=T, key="1-1"):
    return book.wake(mac, key, "photos", at, 300.0)


def test_a_wake_names_its_node_by_machine_and_number(book, tmp_path):
    assert wake(book).node == "rack3/node07.1"
    assert book.end(MAC, "stopped as asked", T + 60)
    assert book.current(MAC) is None
    again = wake(book, at=T + 100)
    assert (again.node, again.number, again.until) == ("rack3/node07.2", 2, T + 400)
    assert Book(tmp_path, "rack3").current("52-54-00-12-34-07") == again
    assert [one.reason for one in book.history(T)] == ["stopped as asked", ""]
    assert book.of("rack3/node07.1").ended_at == T + 60


def test_a_machine_has_one_wake_at_a_time(book):
    wake(book)
    assert wake(book, at=T + 1, key="1-2").number == 2
    assert [one.node for one in book.wakes()] == ["rack3/node07.2"]
    assert book.of("rack3/node07.1").reason == "woken again"
    with pytest.raises(sqlite3.IntegrityError):
        book._db.execute("UPDATE wakes SET ended_at = NULL")


def test_an_unknown_machine_is_named_by_its_address(book):
    assert book.wake("52:54:00:00:00:01", "k", "photos", T, 60.0).node == "rack3/525400000001.1"


def test_a_token_is_issued_inside_the_window_of_a_wake_only(book):
    assert book.token(MAC, T) is None
    wake(book)
    assert book.token(MAC, T - 1) is None
    assert book.token(MAC, T + 301) is None
    assert book.token(OTHER, T + 1) is None
    assert book.token(MAC, T + 300) is not None
    book.stopping(book.current(MAC), T + 2, 60.0)
    assert book.token(MAC, T + 3) is None


def test_a_token_is_taken_once_and_a_second_use_is_reported(book):
    wake(book)
    token = book.token(MAC, T + 5)
    assert book.redeem(token, T + 10).used_at == T + 10
    with pytest.raises(UsedError, match=r"^rack3/node07.1: its token was used a second time, 7 s after its first use"):
        book.redeem(token, T + 17)
    assert [text for _, _, text in book.reports()] == [
        "rack3/node07.1: its token was used a second time, 7 s after its first use: refused"
    ]
    assert token not in book.path.read_bytes().decode("latin-1")


def test_a_used_token_stays_known_after_its_wake(book):
    wake(book)
    token = book.token(MAC, T)
    book.redeem(token, T)
    book.end(MAC, "stopped as asked", T + 60)
    wake(book, at=T + 100)
    with pytest.raises(UsedError):
        book.redeem(token, T + 101)


def test_a_second_issue_replaces_the_first_and_after_the_use_there_is_none(book):
    wake(book)
    first, second = book.token(MAC, T + 1), book.token(MAC, T + 2)
    with pytest.raises(UnknownError, match=r"^rack3: a token that was never issued, or was replaced"):
        book.redeem(first, T + 3)
    book.redeem(second, T + 3)
    assert book.token(MAC, T + 4) is None, "it has booted again by itself"


@pytest.mark.parametrize("late", [True, False])
def test_a_late_token_is_refused(book, late):
    wake(book)
    token = book.token(MAC, T + 1)
    if not late:
        book.end(MAC, "did not answer", T + 20)
    with pytest.raises(LateError, match="window is over" if late else "its wake is over: did not answer"):
        book.redeem(token, T + (301 if late else 30))


def test_a_token_is_taken_by_one_of_many_at_the_same_time(book, tmp_path):
    wake(book)
    token = book.token(MAC, T)
    took = []

    def take():
        mine = Book(tmp_path, "rack3")
        try:
            took.append(mine.redeem(token, T).node)
        except UsedError:
            took.append("refused")
        finally:
            mine.close()

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(took) == ["rack3/node07.1"] + ["refused"] * 7


def test_who_is_seen_and_not_known_is_pending_until_admitted(book):
    book.see("52:54:00:00:00:01", "script", "10.77.0.99", "x86_64", T)
    book.see(MAC, "script", "10.77.0.17", "", T)
    book.see(MAC, "kernel", "", "x86_64", T + 5)
    assert [seen.mac for seen in book.pending()] == ["52:54:00:00:00:01"]
    seen = book.sightings()[MAC]
    assert (seen.stage, seen.at, seen.ip, seen.arch, seen.first_at, seen.booted_at) == (
        "kernel", T + 5, "10.77.0.17", "x86_64", T, T,
    )  # fmt: skip
    book.admit("52-54-00-00-00-01", "node09", "root", T)
    assert book.pending() == []
    assert book.admitted() == {"52:54:00:00:00:01": "node09"}
    with pytest.raises(FleetdError, match=r"^rack3: node09 is 52:54:00:00:00:01 already; give 52:54:00:00:00:02 anoth"):
        book.admit("52:54:00:00:00:02", "node09", "root", T)
    with pytest.raises(FleetdError, match="node07 is"):
        book.admit("52:54:00:00:00:02", "node07", "root", T)
    assert book.forget("52:54:00:00:00:01")
    assert not book.forget("52:54:00:00:00:01")


def test_a_flood_of_invented_addresses_pushes_out_no_machine_of_ours(book, monkeypatch):
    monkeypatch.setattr("fleetd.providers.rack.book.PENDING_KEPT", 5)
    book.see(MAC, "script", "", "", T)
    for number in range(20):
        book.see(f"52:54:00:00:01:{number:02x}", "script", "", "", T + 1 + number)
    assert len(book.sightings()) == 6
    assert MAC in book.sightings()


def test_how_long_a_boot_took_is_learned_once_per_wake(book):
    first = wake(book)
    book.sent(first, T + 1)
    book.sent(first, T + 6)
    book.up(first, T + 42)
    book.up(first, T + 90)
    assert book.records()[MAC].boots_s == (42.0,)
    assert (book.current(MAC).sent, book.current(MAC).sent_at, book.current(MAC).up_at) == (2, T + 6, T + 42)


def test_failures_add_up_until_freed(book):
    book.failed(MAC, "did not answer", T + 60)
    book.failed(MAC, "did not answer", T + 240)
    record = book.records()[MAC]
    assert (record.failures, record.quarantined_until, record.why) == (2, T + 240, "did not answer")
    assert book.free(MAC)
    assert book.records()[MAC].failures == 0
    assert not book.free(MAC)


def test_asked_to_go_again_the_earlier_end_counts(book):
    made = wake(book)
    book.stopping(made, T, 100.0)
    book.stopping(made, T + 10, 200.0)
    assert (book.current(MAC).stop_at, book.current(MAC).grace_s) == (T, 100.0)
    book.stopping(made, T + 10, 0.0)
    assert (book.current(MAC).stop_at, book.current(MAC).grace_s) == (T, 10.0)


def test_a_machine_that_left_the_inventory_is_unknown(book):
    book.know({MAC: "renamed"})
    book.see(OTHER, "script", "", "", T)
    assert [seen.mac for seen in book.pending()] == [OTHER]
    assert wake(book).node == "rack3/renamed.1"


def test_a_book_that_cannot_be_kept_or_read_is_one_line(tmp_path):
    (tmp_path / "rack").write_text("a file")
    with pytest.raises(FleetdError, match=r"/rack: cannot keep the rack's book here: "):
        Book(tmp_path, "rack3")
    (tmp_path / "other" / "rack").mkdir(parents=True)
    (tmp_path / "other" / "rack" / "rack3.sqlite").write_text("nonsense " * 200)
    with pytest.raises(FleetdError, match=r"rack3\.sqlite: file is not a database; move the file away"):
        Book(tmp_path / "other", "rack3")
