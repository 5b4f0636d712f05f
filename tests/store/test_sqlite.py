"""The store keeps what it says it keeps: across restarts, crashes, a full disk and a second controller."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fleetd.codecs.lease import DeadLetter
from fleetd.core.flow import Flow, Rate
from fleetd.core.forecast import Season
from fleetd.core.life import Curve, Life
from fleetd.core.memory import Memory, Node, Pending, PoolMemory, QueueMemory, Spend, Wake, Wanted
from fleetd.core.model import Order, Phase
from fleetd.errors import FleetdError
from fleetd.store import sqlite
from fleetd.store.sqlite import Entry, Store

RICH = Memory(
    epoch=7,
    now=1000.5,
    next_order=42,
    ending=True,
    nodes={
        f"local/{at}.9": Node(
            id=f"local/{at}.9",
            pool="local",
            app="photos",
            phase=phase,
            since=900.25,
            launched_at=890.0,
            slots=4,
            key=f"7-{at}",
            busy=at,
            idle_at=1.5,
            digest="abc",
            heard_at=None if at % 2 else 999.0,
            missing_at=998.0 if at % 2 else None,
            missing=at,
            pinned=bool(at % 2),
            asked_at=997.0,
            reason="it's “so” \n\0 ☃",
        )
        for at, phase in enumerate(Phase)
    },
    orders={"7-41": Pending(Order("7-41", "local", "photos", 3, 9, 7), 995.0)},
    pools={"local": PoolMemory((1.0, 2.5), 2, 1e12, "quota", 0.5, 0.0, (Wake(2, 1200.0),))},
    queues={
        "resize": QueueMemory(
            waiting=5,
            running=2,
            read_at=999.0,
            flow=Flow(900.0, 7, ((995.0, 3),), ((998.0, 5),), 1),
            life=Life(((40, 2.5),), 2.5, 2.5, 3.0, 0.5, 998.0, Curve(21.0, (0.0, 0.5), (0.0, 0.1), 3.3, 1.5)),
            season=Season((-1.0, 2.0), 7, 3, 2.0, whole=True, season_error=0.5, persistence_error=1.5),
            rate=Rate(0.05, 0.01, 60.0, 0.0),
            price_s=12.5,
        )
    },
    peaks={"photos in local": ((990.0, 7.5), (999.0, 2.0))},
    wanted={"photos in local": Wanted(7, 6.5, 999.0)},
    launched=((990.0, 3),),
    stopped=((991.0, 1),),
    spend=Spend(1000.0, ((16, 0.25),), "2026-11", 12.5),
)

WRITER = """
import sys
from pathlib import Path
from fleetd.core.memory import Memory
from fleetd.store.sqlite import Entry, Store
store = Store(Path(sys.argv[1]))
for number in range(1, 100_000):
    store.commit(Memory(epoch=1, next_order=number), [Entry("event", str(number))], durable=True)
    print(number, flush=True)
"""


def letter(name: str, reason: str = "boom") -> DeadLetter:
    """A dead letter of this id."""
    return DeadLetter(name, "resize", "u", "H:1", 3, reason, "Traceback …", "cGF5")


@contextmanager
def opened(folder: Path, *, read_only: bool = False) -> Iterator[Store]:
    """A store, closed at the end."""
    store = Store(folder, read_only=read_only)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that commits without pause, each commit's number on its output."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_memory_comes_back_equal(tmp_path: Path) -> None:
    assert {node.phase for node in RICH.nodes.values()} == set(Phase)
    with opened(tmp_path) as store:
        assert store.memory() is None
        store.commit(RICH)
        assert store.memory() == RICH
    with opened(tmp_path) as store:
        assert store.memory() == RICH
    with opened(tmp_path, read_only=True) as store:
        assert store.memory() == RICH


def test_the_journal_is_in_order_and_tells_what_is_new(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.commit(Memory(epoch=1), [Entry("event", "a"), Entry("event", "b", at=5.0)])
        store.commit(Memory(epoch=2), [Entry("sentence", "c")])
        assert [(e.seq, e.epoch, e.kind, e.text) for e in store.journal()] == [
            (1, 1, "event", "a"),
            (2, 1, "event", "b"),
            (3, 2, "sentence", "c"),
        ]
        assert store.journal()[1].at == 5.0
        assert [e.text for e in store.journal(last=2)] == ["b", "c"]
        assert [e.text for e in store.journal(after=2)] == ["c"]
        assert store.epoch() == 2


def test_the_journal_is_pruned_to_its_newest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "JOURNAL_ROWS", 5)
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 10)
    with opened(tmp_path) as store:
        for number in range(20):
            store.commit(Memory(), [Entry("event", str(number))])
        assert [e.text for e in store.journal()] == ["15", "16", "17", "18", "19"]
        assert store.journal()[-1].seq == 20, "a number never comes again"


def test_what_was_committed_survives_sigkill_of_its_writer(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        assert process.stdout
        for line in process.stdout:
            if int(line) >= 20:
                break
        process.kill()
        said = [int(line), *map(int, process.stdout.read().split())][-1]
        process.wait(10)
    with opened(tmp_path) as store:
        memory, entries = store.memory(), store.journal(last=10_000)
        assert memory is not None
        assert memory.next_order in (said, said + 1)  # one more may be kept than could be said
        assert [int(e.text) for e in entries] == list(range(1, memory.next_order + 1)), "memory and journal are one"


def test_what_others_rely_on_is_synced_and_the_rest_need_not_be(tmp_path: Path) -> None:
    normal, full = 1, 2

    def level() -> int:
        assert store._db
        return int(store._db.execute("PRAGMA synchronous").fetchone()[0])

    with opened(tmp_path) as store:
        store.commit(RICH)
        assert level() == normal
        store.commit(RICH, durable=True)
        assert level() == full
        store.commit(RICH)
        store.add_dead("local", "n", [letter("a")])
        assert level() == full, "the worker forgets it"


def test_a_second_controller_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        assert process.stdout
        process.stdout.readline()
        with pytest.raises(FleetdError, match=rf"another controller \(process {process.pid}\) runs this fleet"):
            Store(tmp_path)
        with opened(tmp_path, read_only=True) as looker:
            assert looker.memory() is not None, "looking is allowed at any time"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with opened(tmp_path) as store:
            assert store.memory() is not None


def test_a_refused_controller_does_not_take_the_lock_from_the_first(tmp_path: Path) -> None:
    with opened(tmp_path):
        for _ in range(2):
            with pytest.raises(FleetdError, match=str(os.getpid())):
                Store(tmp_path)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_corrupt_file_is_one_clear_line(tmp_path: Path, *, read_only: bool) -> None:
    (tmp_path / "fleet.db").write_bytes(b"not a database, only some text " * 100)
    for _ in range(2):
        with pytest.raises(FleetdError) as caught:
            Store(tmp_path, read_only=read_only)
        assert str(caught.value) == (
            f"{tmp_path / 'fleet.db'}: file is not a database; move the file away to start anew"
        )


def test_a_file_that_is_not_there_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(FleetdError, match=r"fleet\.db: unable to open"):
        Store(tmp_path, read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_memory_of_another_version_is_none_and_its_epoch_is_not_used_again(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.commit(RICH, [Entry("event", "x")])
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute("UPDATE memory SET body = ?", (b'{"nodes": {"a": {"id": "a"}}}',))
    db.close()
    with opened(tmp_path) as store:
        assert store.memory() is None
        assert store.epoch() == 7
        store.commit(RICH)
        assert store.memory() == RICH


def test_a_memory_of_a_newer_version_with_more_fields_is_read(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.commit(RICH)
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute("UPDATE memory SET body = CAST(json_set(CAST(body AS TEXT), '$.tomorrow', 1) AS BLOB)")
    db.close()
    with opened(tmp_path) as store:
        assert store.memory() == RICH


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file may grow: what this process sees of a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in folder.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_clear_line_and_nothing_is_half_written(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.commit(RICH, [Entry("event", "before")])
        big = [Entry("event", "x" * 200_000)]
        with full_disk(tmp_path):
            for write in (
                lambda: store.commit(Memory(epoch=9), big, durable=True),
                lambda: store.add_dead("local", "n", [letter("d1", "x" * 200_000)]),
                lambda: store.set_meta("k", "x" * 200_000),
            ):
                with pytest.raises(FleetdError, match=r"fleet\.db: cannot write: "):
                    write()
            assert store.memory() == RICH
            assert [e.text for e in store.journal()] == ["before"]
            assert (store.count_dead(), store.meta("k")) == (0, None)
        store.commit(Memory(epoch=9), [Entry("event", "after")], durable=True)
        assert [e.text for e in store.journal()] == ["before", "after"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere: be somebody else meanwhile."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_read_only_folder_is_one_clear_line_and_nothing_is_left_in_it() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        with as_nobody():
            for place in (folder, folder / "shop"):
                with pytest.raises(FleetdError, match=f"^{place}: cannot keep the fleet's state here: Permission"):
                    Store(place)
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_a_state_folder_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("")
    with pytest.raises(FleetdError, match="shop: cannot keep the fleet's state here: File exists"):
        Store(tmp_path / "shop")


def test_dead_letters_are_kept_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.add_dead("local", "local/1.2", [letter("a"), letter("b"), letter("a")]) == ["a", "b"]
        assert store.add_dead("local", "local/1.2", [letter("b", "again"), letter("c")]) == ["b", "c"]
        assert store.count_dead() == 3
        assert [(d["id"], d["reason"], d["pool"], d["node"]) for _, d in store.dead()] == [
            ("c", "boom", "local", "local/1.2"),
            ("b", "boom", "local", "local/1.2"),
            ("a", "boom", "local", "local/1.2"),
        ]
        assert [d["id"] for _, d in store.dead(last=1)] == ["c"]


def test_settings_are_chosen_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        assert store.meta("port") is None
        assert store.meta("join", "first") == "first"
        assert store.meta("join", "second") == "first"
        store.set_meta("port", "1")
        store.set_meta("port", "2")
    with opened(tmp_path) as store:
        assert (store.meta("join"), store.meta("port")) == ("first", "2")


def test_a_dead_letter_is_not_lost_with_another_threads_failed_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        go, failures = threading.Event(), []

        def commit() -> None:
            go.wait(10)
            for _ in range(30):
                try:
                    store.commit(RICH, [Entry("event", "x"), Entry("event", None)])  # type: ignore[arg-type]
                except FleetdError as error:
                    failures.append(str(error))

        thread = threading.Thread(target=commit)
        thread.start()
        go.set()
        kept = [name for at in range(60) for name in store.add_dead("local", "n", [letter(str(at))])]
        thread.join()
        assert len(failures) == 30
        assert {d["id"] for _, d in store.dead()} == set(kept) == {str(at) for at in range(60)}


def test_closing_is_safe_twice_and_what_comes_after_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(FleetdError, match="is not open for writing"):
        store.commit(Memory())
    with pytest.raises(FleetdError, match="is closed"):
        store.memory()
