"""The shelf keeps the same promises in a folder and in S3-compatible storage: a server of that on loopback."""

import io
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import obstore
import pytest

from fleetd.errors import FleetdError, UsageError
from fleetd.releases.faults import BundleError
from fleetd.releases.shelf import Shelf, open_shelf
from fleetd.releases.sign import make_key
from fleetd.releases.stores import MissingError, ObjectStore
from tests.releases import sample

Open = Callable[..., Shelf]
FOLDER = {"app/jobs.py": b"x = 1\n"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 - a second, for these tests alone

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket, with the environment that leads to it."""
    around = {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    name = "".join(letter for letter in tmp_path.name.lower() if letter.isalnum()) + str(os.getpid())
    httpx.put(f"{s3}/{name}", trust_env=False).raise_for_status()
    return name


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """What opens a shelf of this kind, the same one each time."""
    if request.param == "s3":
        where = f"s3://{request.getfixturevalue('bucket')}/some/releases"
    else:
        where = str(tmp_path / "shelf")
    return lambda *trusted: open_shelf(where, trusted)


def fetched(shelf: Shelf, digest: str) -> bytes:
    file = io.BytesIO()
    shelf.fetch(digest, file)
    return file.getvalue()


def test_what_is_put_is_listed_and_comes_back_byte_for_byte(tmp_path: Path, shelf: Open) -> None:
    assert shelf().list() == []
    digest = sample.bundle(tmp_path / "b")
    entry = shelf().put(tmp_path / "b")
    size = (tmp_path / "b").stat().st_size
    assert (entry.digest, entry.app, entry.version, entry.kind, entry.size) == (digest, "photos", "1.0", "wheel", size)
    assert entry.signed is False
    assert shelf().list() == [entry]
    assert shelf().find(digest) == entry
    assert fetched(shelf(), digest) == (tmp_path / "b").read_bytes()


def test_the_same_release_twice_is_one(tmp_path: Path, shelf: Open) -> None:
    sample.bundle(tmp_path / "b")
    assert shelf().put(tmp_path / "b") == shelf().put(tmp_path / "b")
    assert len(shelf().list()) == 1


def test_what_is_none_is_not_kept(tmp_path: Path, shelf: Open) -> None:
    (tmp_path / "b").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"^release: is damaged, or is no zip"):
        shelf().put(tmp_path / "b")
    assert shelf().list() == []


def test_what_is_not_there_is_said_to_be_missing(shelf: Open) -> None:
    for act in (shelf().find, shelf().open):
        with pytest.raises(MissingError):
            act("ab" * 32)
    with pytest.raises(UsageError, match="a digest has 64 hex digits"):
        shelf().find("../../etc/passwd")
    shelf().delete("ab" * 32)


def test_the_keys_of_today_count_at_every_step(tmp_path: Path, shelf: Open) -> None:
    mine, other = make_key(tmp_path / "mine"), make_key(tmp_path / "other")
    digest = sample.bundle(tmp_path / "unsigned")
    sample.bundle(tmp_path / "signed", key=tmp_path / "mine")
    with pytest.raises(BundleError, match=r"^release: is not signed"):
        shelf(mine).put(tmp_path / "unsigned")
    shelf().put(tmp_path / "unsigned")
    assert [entry.signed for entry in shelf(mine).list()] == [False]
    for act in (shelf(mine).find, shelf(mine).open):
        with pytest.raises(BundleError, match=f"^release {digest[:12]}: is not signed"):
            act(digest)
    assert shelf(mine).put(tmp_path / "signed").signed
    assert fetched(shelf(mine), digest) == (tmp_path / "signed").read_bytes()
    assert [entry.signed for entry in shelf(other).list()] == [False]
    with pytest.raises(BundleError, match="none of the trusted keys"):
        shelf(other).find(digest)


def test_gc_keeps_the_newest_of_each_app_and_what_is_in_use(tmp_path: Path, shelf: Open) -> None:
    digests = []
    for at in range(4):
        files = {"app/jobs.py": f"x = {at}\n".encode()}
        sample.bundle(tmp_path / "b", files, sample.manifest(files, app="photos" if at else "other"))
        digests.append(shelf().put(tmp_path / "b").digest)
    assert shelf().gc({digests[1]}, 1) == [digests[2]]
    assert {entry.digest for entry in shelf().list()} == {digests[0], digests[1], digests[3]}
    shelf().delete(digests[0])
    assert [entry.digest for entry in shelf().list()] == [digests[3], digests[1]]
    with pytest.raises(MissingError):
        shelf().open(digests[0])


# ── a folder


def test_a_folder_holds_nothing_half(tmp_path: Path) -> None:
    shelf = open_shelf(str(tmp_path / "shelf"), ())
    digest = sample.bundle(tmp_path / "b")
    shelf.put(tmp_path / "b")
    assert sample.tree(tmp_path / "shelf") == [f"{digest}.json", f"{digest}.release"]
    (tmp_path / "shelf" / f".tmp-{digest}.json-x").write_text("{")
    (tmp_path / "shelf" / ("cd" * 32 + ".release")).write_bytes(b"its card has not come yet")
    assert [entry.digest for entry in shelf.list()] == [digest]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"manifest": {}, "signature": null, "size": 1, "pushed_at": 1.0}'])
def test_a_card_that_was_altered_is_said_to_be(tmp_path: Path, text: str) -> None:
    shelf = open_shelf(str(tmp_path / "shelf"), ())
    digest = sample.bundle(tmp_path / "b")
    shelf.put(tmp_path / "b")
    (tmp_path / "shelf" / f"{digest}.json").write_text(text)
    with pytest.raises(BundleError, match="its card in the store was altered"):
        shelf.find(digest)


def test_a_release_that_claims_another_app_is_not_found_under_its_digest(tmp_path: Path) -> None:
    shelf = open_shelf(str(tmp_path / "shelf"), ())
    digest = sample.bundle(tmp_path / "b")
    shelf.put(tmp_path / "b")
    path = tmp_path / "shelf" / f"{digest}.json"
    card = json.loads(path.read_text())
    card["manifest"]["app"] = "billing"
    path.write_text(json.dumps(card))
    with pytest.raises(BundleError, match="was altered"):
        shelf.find(digest)


def test_where_a_shelf_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sample.bundle(tmp_path / "b")
    with pytest.raises(FleetdError, match="file: cannot keep a release: "):
        open_shelf(str(tmp_path / "file"), ()).put(tmp_path / "b")
    with pytest.raises(UsageError, match="must be a folder or s3://BUCKET/PREFIX"):
        open_shelf("gs://bucket", ())
    with pytest.raises(UsageError, match="is no public key"):
        open_shelf(str(tmp_path), ("ed25519:x",))


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    sample.bundle(tmp_path / "b")
    open_shelf(str(tmp_path / "shelf"), ()).put(tmp_path / "b")
    assert stat.S_IMODE((tmp_path / "shelf").stat().st_mode) == 0o700


# ── S3


@pytest.mark.slow
def test_objects_stand_below_the_prefix(tmp_path: Path, bucket: str) -> None:
    digest = sample.bundle(tmp_path / "b")
    open_shelf(f"s3://{bucket}/some/releases/", ()).put(tmp_path / "b")
    whole = obstore.store.S3Store(bucket, client_options={"allow_http": True})
    names = sorted(found["path"] for batch in obstore.list(whole) for found in batch)
    assert names == [f"some/releases/{digest}.json", f"some/releases/{digest}.release"]


@pytest.mark.slow
def test_a_bucket_that_is_not_there_and_a_server_that_is_gone(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.bundle(tmp_path / "b")
    with pytest.raises(FleetdError, match=r"^s3://no-such-bucket: cannot keep a release: ") as caught:
        open_shelf("s3://no-such-bucket", ()).put(tmp_path / "b")
    assert "it, or its bucket, is not there" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="names no bucket"):
        ObjectStore("s3:///prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(FleetdError, match=f"^s3://{bucket}: cannot list the releases: "):
        open_shelf(f"s3://{bucket}", ()).list()


@pytest.mark.slow
def test_a_large_release_goes_up_in_parts_and_comes_down_whole(tmp_path: Path, bucket: str) -> None:
    files = {"app/data.bin": os.urandom(12 * 1024 * 1024)}
    digest = sample.bundle(tmp_path / "b", files)
    shelf = open_shelf(f"s3://{bucket}/large", ())
    shelf.put(tmp_path / "b")
    assert fetched(shelf, digest) == (tmp_path / "b").read_bytes()


def test_many_threads_share_a_shelf(tmp_path: Path, shelf: Open) -> None:
    digest = sample.bundle(tmp_path / "b")
    one, found = shelf(), []
    one.put(tmp_path / "b")

    def read() -> None:
        found.append(fetched(one, digest))

    crowd = [threading.Thread(target=read) for _ in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(30)
    assert found == [(tmp_path / "b").read_bytes()] * 8
