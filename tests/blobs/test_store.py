"""Files in the store: the same promises in a folder and in a bucket, whatever breaks on the way."""

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fleetd.blobs import line
from fleetd.blobs import store as stores
from fleetd.blobs.faults import BadFileError, StoreFullError
from fleetd.blobs.file import File
from fleetd.codecs.reference import Reference
from fleetd.core.model import FilesPolicy
from fleetd.depot import rooms
from fleetd.errors import FleetdError, UnreachableError, UsageError
from tests.blobs.site import TOKEN, Site, site

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - a second, for these tests alone

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Where the store keeps its bytes."""
    if request.param == "folder":
        return "files"
    address = request.getfixturevalue("s3")
    around = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "REGION": "us-east-1"}
    for name, value in around.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(rooms, "PART", MIB)
    bucket = "".join(letter for letter in tmp_path.name.lower() if letter.isalnum()) + str(os.getpid())
    httpx.put(f"{address}/{bucket}", trust_env=False).raise_for_status()
    return f"s3://{bucket}/some/files"


@pytest.fixture
def shop(tmp_path: Path, place: str) -> Iterator[Site]:
    with site(tmp_path, FilesPolicy(store=place, tokens=(TOKEN,), most=64 * MIB)) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, FilesPolicy(tokens=(TOKEN,), most=64 * MIB)) as made:
        yield made


def written(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 17])
def test_what_is_sent_comes_back_byte_for_byte(shop: Site, tmp_path: Path, size: int) -> None:
    file, there = written(tmp_path / "f", size), tmp_path / "there"
    reference = shop.store().send(file, keep_s=60)
    assert reference.size == size
    assert reference.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert reference.uri.startswith("fleetd://shop/")
    assert 59 <= reference.expires_at - time.time() <= 62
    shop.ticketed().fetch(reference, there)
    assert there.read_bytes() == file.read_bytes()
    assert b"".join(shop.store().stream(reference)) == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_a_file_that_is_there_already_is_not_sent_again(shop: Site, tmp_path: Path) -> None:
    file = written(tmp_path / "f", MIB)
    moved: list[int] = []
    first = shop.store().send(file, 60)
    again = shop.store().send(file, 600, lambda at, _: moved.append(at))
    assert (again.uri, moved) == (first.uri, [])
    assert again.expires_at > first.expires_at + 500


def test_one_that_was_written_to_in_place_is_another(folder: Site, tmp_path: Path) -> None:
    file = written(tmp_path / "f", MIB)
    first, told = folder.store().send(file), file.stat()
    file.write_bytes(os.urandom(MIB))
    os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))  # all that a stat tells is as before
    second = folder.store().send(file)
    assert second.sha256 == hashlib.sha256(file.read_bytes()).hexdigest() != first.sha256
    assert b"".join(folder.store().stream(second)) == file.read_bytes()
    assert len(b"".join(folder.store().stream(first))) == MIB, "a job may still need the first"


def test_what_came_otherwise_than_it_was_sent_is_not_kept(folder: Site) -> None:
    blob, sender = "ab" * 16, folder.store()
    sender.ask("POST", "/v1/blobs", {"id": blob, "size": 4})
    where = line.Where(f"/v1/blobs/{blob}/data?offset=0", "POST", 0, 4)
    sender.line.send(where, [b"oops"])
    told = sender.ask("POST", "/v1/blobs/done", {"id": blob, "sha256": hashlib.sha256(b"good").hexdigest()})
    assert told["sha256"] == hashlib.sha256(b"oops").hexdigest()
    assert list(folder.data.iterdir()) == []


def test_a_part_that_is_there_is_not_taken_twice(folder: Site) -> None:
    blob, sender = "ab" * 16, folder.store()
    sender.ask("POST", "/v1/blobs", {"id": blob, "size": 4})
    where = line.Where(f"/v1/blobs/{blob}/data?offset=0", "POST", 0, 2)
    sender.line.send(where, [b"go"])
    with pytest.raises(line.BusyStoreError, match="2 bytes are here; go on from there"):
        sender.line.send(where, [b"go"])
    assert (folder.data / blob).read_bytes() == b"go"
    assert sender.ask("POST", "/v1/blobs/next", {"id": blob})["offset"] == 2


def test_a_file_that_another_has_just_put_in_its_place_is_not_written_to(tmp_path: Path) -> None:
    with (tmp_path / "half").open("a+b", buffering=0) as file:
        assert stores._mine(file, tmp_path / "half")
        (tmp_path / "half").rename(tmp_path / "whole")
        assert not stores._mine(file, tmp_path / "half")
        (tmp_path / "half").touch()
        assert not stores._mine(file, tmp_path / "half")


class Snapped(Exception):  # noqa: N818 - an end
    """The client's end."""


def test_a_sender_that_ended_half_way_is_taken_up_by_the_next(shop: Site, tmp_path: Path) -> None:
    file = written(tmp_path / "f", 8 * MIB)

    def die(at: int, _: int) -> None:
        if at > 5 * MIB:
            raise Snapped

    with pytest.raises(Snapped):
        shop.store().send(file, None, die)
    seen: list[int] = []
    reference = shop.store().send(file, None, lambda at, _: seen.append(at))
    assert seen[0] > 4 * MIB, "what was there was sent again"
    assert b"".join(shop.store().stream(reference)) == file.read_bytes()


def test_a_reader_that_ended_half_way_is_taken_up_by_the_next(shop: Site, tmp_path: Path) -> None:
    reference = shop.store().send(written(tmp_path / "f", 8 * MIB))
    half = tmp_path / "room" / f".{reference.sha256[:32]}.part"
    half.parent.mkdir()
    half.write_bytes((tmp_path / "f").read_bytes()[: 5 * MIB])
    asked: list[int] = []
    reader = shop.store()
    real = reader._parts

    def noted(blob: str, of: Reference, at: int) -> Iterator[memoryview]:
        asked.append(at)
        return real(blob, of, at)

    type(reader)._parts, kept = lambda _, *args: noted(*args), type(reader)._parts  # type: ignore[method-assign]
    try:
        reader.fetch(reference, tmp_path / "there", half.parent)
    finally:
        type(reader)._parts = kept  # type: ignore[method-assign]
    assert asked[0] == 5 * MIB
    assert (tmp_path / "there").read_bytes() == (tmp_path / "f").read_bytes()


def test_half_of_another_content_is_found_out_and_thrown_away(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", MIB))
    half = tmp_path / f".{reference.sha256[:32]}.part"
    half.write_bytes(b"x" * 1000)
    with pytest.raises(BadFileError, match="altered: its content's SHA-256 is not that of the reference"):
        folder.store().fetch(reference, tmp_path / "there")
    assert not half.exists()
    folder.store().fetch(reference, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "f").read_bytes()


def test_two_readers_of_one_content_do_not_meet(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", 4 * MIB))
    threads = [
        threading.Thread(target=folder.store().fetch, args=(reference, tmp_path / f"to{at}", tmp_path / "room"))
        for at in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(tmp_path / f"to{at}").read_bytes() for at in range(4)} == {(tmp_path / "f").read_bytes()}
    assert list((tmp_path / "room").iterdir()) == []


def test_a_connection_that_breaks_every_megabyte_gets_there(folder: Site, tmp_path: Path) -> None:
    with broken(folder.port, MIB) as port:
        store = replace(folder.store(), line=replace(folder.store().line, url=f"http://127.0.0.1:{port}"))
        reference = store.send(written(tmp_path / "f", 5 * MIB))
        store.fetch(reference, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "f").read_bytes()


@contextlib.contextmanager
def broken(port: int, after: int) -> Iterator[int]:
    """A way to a port that hangs up whenever so many bytes have passed in either direction."""
    threads: list[threading.Thread] = []

    def start(do: Callable[..., None], *args: socket.socket) -> None:
        threads.append(threading.Thread(target=do, args=args))
        threads[-1].start()

    def pair(one: socket.socket) -> None:
        with one, socket.create_connection(("127.0.0.1", port)) as other:
            back = threading.Thread(target=carry, args=(other, one))
            back.start()
            carry(one, other)
            back.join()

    def carry(source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while (data := source.recv(65536)) and passed <= after:
                target.sendall(data)
                passed += len(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                start(pair, listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        start(serve, listener)
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


# ── bad input


def altered(site: Site, blob: str) -> None:
    path = site.data / blob
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def blob_of(reference: Reference) -> str:
    return reference.uri.rpartition("/")[2]


def test_what_was_altered_in_the_store_is_not_given_out(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", 2 * MIB))
    altered(folder, blob_of(reference))
    with pytest.raises(BadFileError, match=r"^file [0-9a-f]{12}: altered: its content's SHA-256"):
        folder.store().fetch(reference, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(BadFileError, match="altered"):
        for _ in folder.store().stream(reference):
            pass
    with pytest.raises(BadFileError, match="altered"):
        File(reference, folder.store(), lambda: tmp_path).read()


def test_what_was_truncated_in_the_store_is_said_at_once(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", 2 * MIB))
    os.truncate(folder.data / blob_of(reference), MIB)
    begun = time.monotonic()
    with pytest.raises(BadFileError, match=f"truncated: {MIB} of its {2 * MIB} bytes are left in the store"):
        folder.store().fetch(reference, tmp_path / "there")
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("change", [{"size": 5}, {"sha256": "ab" * 32}])
def test_an_altered_reference_is_refused(folder: Site, tmp_path: Path, change: dict[str, object]) -> None:
    reference = folder.store().send(written(tmp_path / "f", 1000))
    with pytest.raises(BadFileError, match="altered: the store has another size or SHA-256 for it"):
        folder.store().fetch(replace(reference, **change), tmp_path / "there")  # type: ignore[arg-type]


def test_an_expired_one_is_told_by_the_reader_and_by_the_store(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", 1000), keep_s=5)
    with pytest.raises(BadFileError, match=r"expired \d+ s ago: submit the job with its file again"):
        folder.store().fetch(replace(reference, expires_at=int(time.time()) - 9), tmp_path / "there")
    folder.ahead_s = 10.0
    for _ in range(2):  # before it is swept, and after
        with pytest.raises(BadFileError, match=r"expired \d s ago: submit the job with its file again"):
            folder.store().fetch(reference, tmp_path / "there")
        folder.depot.sweep()
    assert list(folder.data.iterdir()) == []
    assert folder.depot.used == 0


def test_a_foreign_reference_calls_nobody(folder: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        uri = f"http://127.0.0.1:{trap.getsockname()[1]}/{'ab' * 16}"
        for store in (folder.store(), folder.ticketed()):
            with pytest.raises(BadFileError, match=r"is refused: only fleetd://FLEET/ID is looked up"):
                store.fetch(Reference(uri, "ab" * 32, 5, 2_000_000_000), tmp_path / "there")
        with pytest.raises(TimeoutError):
            trap.accept()


def test_a_full_store_says_so_and_loses_nothing(shop: Site, tmp_path: Path) -> None:
    kept = shop.store().send(written(tmp_path / "a", 2 * MIB), keep_s=100)
    shop.files(most=3 * MIB)
    with pytest.raises(StoreFullError, match=r"files: the store is full: \d+ of its 3145728 bytes are in use"):
        shop.store().send(written(tmp_path / "b", 2 * MIB))
    assert b"".join(shop.store().stream(kept)) == (tmp_path / "a").read_bytes()
    shop.ahead_s = 200.0  # what has expired gives way
    reference = shop.store().send(tmp_path / "b", keep_s=60)
    assert reference.size == 2 * MIB


def test_a_full_disk_is_a_full_store(folder: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rooms.Intake.write
    with Path("/dev/full").open("wb", buffering=0) as nowhere:

        def full(self: rooms.Intake, parts: list[bytes]) -> None:
            if self.at > MIB:
                self._file = nowhere
            real(self, parts)

        monkeypatch.setattr(rooms.Intake, "write", full)
        with pytest.raises(StoreFullError, match="files: the store cannot take it: No space left on device"):
            folder.store().send(written(tmp_path / "f", 8 * MIB))
    monkeypatch.undo()
    seen: list[int] = []
    folder.store().send(tmp_path / "f", None, lambda at, _: seen.append(at))
    assert seen[0] > MIB, "what was there before the disk was full was lost"


def test_a_wrong_token_is_told(folder: Site, tmp_path: Path) -> None:
    wrong = replace(folder.store(), line=replace(folder.store().line, authorize=lambda *_: "Bearer wrong"))
    with pytest.raises(FleetdError, match="refused: authorization: needs a bearer token"):
        wrong.send(written(tmp_path / "f", 10))


def test_nobody_there_is_told_within_the_patience(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    store = stores.Store(line.Line(f"http://127.0.0.1:{port}", lambda *_: ""), patience_s=0.5)
    begun = time.monotonic()
    with pytest.raises(UnreachableError, match=f"the file store at http://127.0.0.1:{port}: .*refused"):
        store.send(written(tmp_path / "f", 10))
    assert 0.4 < time.monotonic() - begun < 3


def test_a_stop_ends_what_waits(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = line.Stop()
        store = stores.Store(line.Line(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda *_: "", stop))
        threading.Timer(0.3, stop).start()
        begun = time.monotonic()
        with pytest.raises(UnreachableError):
            store.send(written(tmp_path / "f", 10))
        assert time.monotonic() - begun < 2


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://user@host", "http://host:99999", "host:1"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(UsageError, match="must be http://HOST:PORT or https://HOST:PORT"):
        line.check_url(url, "files")


def test_a_restart_of_the_store_forgets_nothing(tmp_path: Path) -> None:
    policy = FilesPolicy(tokens=(TOKEN,), most=64 * MIB)
    file = written(tmp_path / "f", 4 * MIB)

    def die(at: int, _: int) -> None:
        if at > 2 * MIB:
            raise Snapped

    with site(tmp_path / "s", policy) as made:
        whole = made.store().send(written(tmp_path / "g", MIB))
        with pytest.raises(Snapped):
            made.store().send(file, None, die)
    with site(tmp_path / "s", policy) as made:
        assert made.depot.used > 5 * MIB
        assert b"".join(made.store().stream(whole)) == (tmp_path / "g").read_bytes()
        seen: list[int] = []
        made.store().send(file, None, lambda at, _: seen.append(at))  # hashed anew by the store
        assert seen[0] > MIB


def test_what_was_sent_half_and_left_gives_way_after_a_while(folder: Site, tmp_path: Path) -> None:
    def die(at: int, _: int) -> None:
        if at > MIB:
            raise Snapped

    with pytest.raises(Snapped):
        folder.store().send(written(tmp_path / "f", 4 * MIB), 50 * 3600, die)
    folder.ahead_s = 5 * 3600.0
    assert folder.depot.sweep() == 0
    folder.ahead_s = 7 * 3600.0
    assert folder.depot.sweep() == 1
    assert list(folder.data.iterdir()) == []


# ── files as jobs see them


def test_a_file_is_a_path_a_stream_or_bytes(folder: Site, tmp_path: Path) -> None:
    reference = folder.store().send(written(tmp_path / "f", 3 * MIB))
    content = (tmp_path / "f").read_bytes()
    made: list[Path] = []

    def room() -> Path:
        made.append(tmp_path / "jobs" / str(len(made)))
        made[-1].mkdir(parents=True)
        return made[-1]

    for one in (File(reference, folder.store(), room), File(content, None, room)):
        assert one.size == 3 * MIB
        assert one.read() == content
        with one.open() as stream:
            assert (stream.read(5), stream.read()) == (content[:5], content[5:])
        assert one.path.read_bytes() == content
        assert one.path == one.path
        assert b"".join(one.chunks()) == content
        with pytest.raises(BadFileError, match="are too many for memory"):
            one.read(MIB)


def test_what_the_api_refuses_is_one_line(folder: Site) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    call: Callable[..., httpx.Response] = lambda *a, **k: httpx.request(*a, headers=headers, trust_env=False, **k)  # noqa: E731
    blob = "ab" * 16
    for body, said in (
        ({"id": "../x", "size": 1}, "id"),
        ({"id": blob, "size": -1}, "size"),
        ({"id": blob, "size": 1, "keep_s": 0}, "keep_s"),
        ({"id": blob, "size": 1, "more": 1}, "more"),
    ):
        answer = call("POST", f"{folder.url}/v1/blobs", content=json.dumps(body))
        assert (answer.status_code, answer.json()["place"]) == (422, said)
    assert call("GET", f"{folder.url}/v1/blobs/{blob}").status_code == 404
    call("POST", f"{folder.url}/v1/blobs", content=json.dumps({"id": blob, "size": 4}))
    assert call("GET", f"{folder.url}/v1/blobs/{blob}").status_code == 409
    assert call("POST", f"{folder.url}/v1/blobs/{blob}/data?offset=2", content=b"xx").status_code == 409
    assert call("POST", f"{folder.url}/v1/blobs/{blob}/data?offset=0", content=b"toolong").status_code == 409
    assert (
        call("POST", f"{folder.url}/v1/blobs/done", content=json.dumps({"id": blob, "sha256": "ab" * 32})).status_code
        == 409
    )
    assert call("POST", f"{folder.url}/v1/jobs/end", content="{}").status_code == 401
