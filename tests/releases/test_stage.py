"""Staging: whole and verified, or not at all; once, however many want it; and never in the way of what runs."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from fleetd.errors import FleetdError, UnreachableError
from fleetd.releases import stage as staging
from fleetd.releases.faults import BundleError
from fleetd.releases.sign import make_key
from fleetd.releases.stage import Cache, Fetch
from tests.releases import sample
from tests.releases.sample import sending

FOLDER = {"app/jobs.py": b"x = 1\n", "app/data/a.txt": b"a"}
ROOT = Path(__file__).parents[2]


def never(file: BinaryIO) -> None:
    raise AssertionError("there was nothing to fetch")


def refused(cache: Cache, digest: str, fetch: Fetch) -> str:
    """Return the one line that staging ends with; it leaves nothing behind."""
    before = sample.tree(cache.folder)
    with pytest.raises(FleetdError) as caught:
        cache.stage(digest, fetch)
    assert "\n" not in str(caught.value)
    assert [name for name in sample.tree(cache.folder) if name not in ("locks", "releases")] == before
    return str(caught.value)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", ())


def test_a_wheel_is_unpacked_to_be_imported(tmp_path: Path, cache: Cache) -> None:
    data = {"photos-1.0.data/purelib/photos/extra.py": b"E = 1\n", "photos-1.0.data/scripts/run": b"#!/bin/sh\n"}
    digest = sample.bundle(tmp_path / "b", sample.wheel_files(sample.wheel(data)))
    assert cache.find(digest) is None
    staged = cache.stage(digest, sending(tmp_path / "b"))
    assert staged.path == cache.folder / "releases" / digest
    assert staged.manifest.jobs == {"resize": "photos.jobs:resize"}
    assert staged.python == sys.executable
    assert sample.tree(staged.path) == [
        "manifest.json",
        "pyproject.toml",
        "site",
        "site/photos",
        "site/photos-1.0.dist-info",
        "site/photos-1.0.dist-info/METADATA",
        "site/photos-1.0.dist-info/RECORD",
        "site/photos-1.0.dist-info/WHEEL",
        "site/photos/__init__.py",
        "site/photos/extra.py",
        "site/photos/jobs.py",
    ]
    assert cache.find(digest) == cache.stage(digest, never) == staged
    assert sample.tree(cache.folder / "locks") == []


def test_a_folder_is_staged_as_it_was(tmp_path: Path, cache: Cache) -> None:
    digest = sample.bundle(tmp_path / "b", FOLDER)
    staged = cache.stage(digest, sending(tmp_path / "b"))
    assert (staged.path / "app" / "data" / "a.txt").read_bytes() == b"a"
    assert sample.tree(staged.path) == ["app", "app/data", "app/data/a.txt", "app/jobs.py", "manifest.json"]


# ── refused, and nothing left


def test_what_came_is_another_release(tmp_path: Path, cache: Cache) -> None:
    other = sample.bundle(tmp_path / "b", FOLDER)
    wanted = "ab" * 32
    assert refused(cache, wanted, sending(tmp_path / "b")) == (
        f"release {wanted[:12]}: what came is another release, {other[:12]}"
    )


@pytest.mark.parametrize("digest", ["", "ab", "../" * 21 + "a", "AB" * 32, "latest"])
def test_what_is_no_digest(cache: Cache, digest: str) -> None:
    with pytest.raises(FleetdError, match="a digest has 64 hex digits"):
        cache.stage(digest, never)
    assert cache.find(digest) is None


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"../../evil": b""}, "the name '../../evil' leads out of its folder"),
        (sample.wheel_files(sample.wheel({"../../../evil.py": b""})), "leads out of its folder"),
        (sample.wheel_files(sample.wheel({"photos/l": b"/"}, {"photos/l": sample.LINK})), "is a symbolic link"),
        (sample.wheel_files(name="photos-1.0-cp39-cp39-linux_x86_64.whl"), "is for another Python or machine"),
        (sample.wheel_files(name="photos-1.0-py3-none-win32.whl"), "is for another Python or machine"),
        (sample.wheel_files(name="photos.whl"), "is no name of a wheel"),
    ],
)
def test_what_no_node_may_unpack(tmp_path: Path, cache: Cache, files: dict[str, bytes], why: str) -> None:
    digest = sample.bundle(tmp_path / "b", files)
    assert why in refused(cache, digest, sending(tmp_path / "b"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "cache"]


def test_a_release_for_another_python(tmp_path: Path, cache: Cache) -> None:
    files = sample.wheel_files()
    digest = sample.bundle(tmp_path / "b", files, sample.manifest(files, requires_python=">=4"))
    version = ".".join(map(str, sys.version_info[:3]))
    line = refused(cache, digest, sending(tmp_path / "b"))
    assert line == f"release {digest[:12]}: needs Python >=4, and this is {version}"


def fetch_nothing(file: BinaryIO) -> None:
    del file


def fetch_half(file: BinaryIO) -> None:
    file.write(sample.zipped([("manifest.json", b"{}")])[:40])
    raise ConnectionResetError(104, "Connection reset by peer")


def fetch_refused(file: BinaryIO) -> None:
    file.write(b"PK")
    raise FleetdError("the controller says no")


def test_a_connection_that_breaks_is_no_fault_of_the_release(cache: Cache) -> None:
    with pytest.raises(UnreachableError):
        cache.stage("ab" * 32, fetch_half)


@pytest.mark.parametrize(
    ("fetch", "why"),
    [
        (fetch_nothing, "release {}: is damaged, or is no zip: File is not a zip file"),
        (fetch_half, "release {}: cannot be fetched: Connection reset by peer"),
        (fetch_refused, "the controller says no"),
    ],
)
def test_a_fetch_that_fails_or_lies(cache: Cache, fetch: Fetch, why: str) -> None:
    digest = "ab" * 32
    assert refused(cache, digest, fetch) == why.format(digest[:12])


def test_a_fetch_that_raises_what_it_may_not_leaves_nothing_either(cache: Cache) -> None:
    def wild(file: BinaryIO) -> None:
        file.write(b"PK")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.stage("ab" * 32, wild)
    assert sample.tree(cache.folder) == ["locks", "releases"]


def test_a_fetch_without_an_end(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MOST_BUNDLE", 1000)

    def endless(file: BinaryIO) -> None:
        while True:
            file.write(bytes(100))
            file.flush()

    assert refused(cache, "ab" * 32, endless) == f"release {'ab' * 6}: has more than the 1000 bytes allowed"


FULL = """
import resource, signal, sys
from pathlib import Path
from fleetd.releases.stage import Cache
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
Cache(Path(sys.argv[1]), ()).stage(sys.argv[3], lambda file: file.write(Path(sys.argv[2]).read_bytes()))
"""


@pytest.mark.parametrize("limit", [100, 1500])
def test_a_disk_that_takes_no_more(tmp_path: Path, limit: int) -> None:
    """While it is fetched (100 bytes), and while it is unpacked: the bundle is small, what is in it is not."""
    digest = sample.bundle(tmp_path / "b", {"app/jobs.py": b"#" * 4000})
    assert 100 < (tmp_path / "b").stat().st_size < 1500
    command = [sys.executable, "-c", FULL, str(tmp_path / "cache"), str(tmp_path / "b"), digest, str(limit)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    line = run.stderr.splitlines()[-1]
    assert line.startswith(f"fleetd.errors.FleetdError: {tmp_path}/cache")
    assert line.endswith(": File too large")
    assert sample.tree(tmp_path / "cache") == ["locks", "releases"]


# ── signatures


def test_a_key_that_comes_later_counts_for_what_is_here_already(tmp_path: Path) -> None:
    public = make_key(tmp_path / "key")
    digest = sample.bundle(tmp_path / "unsigned")
    sample.bundle(tmp_path / "signed", key=tmp_path / "key")
    Cache(tmp_path / "cache", ()).stage(digest, sending(tmp_path / "unsigned"))
    strict = Cache(tmp_path / "cache", (public,))
    assert strict.find(digest) is None
    with pytest.raises(BundleError, match="is not signed, and signatures are asked for"):
        strict.stage(digest, sending(tmp_path / "unsigned"))
    staged = strict.stage(digest, sending(tmp_path / "signed"))
    assert strict.find(digest) == staged
    other = make_key(tmp_path / "other")
    assert Cache(tmp_path / "cache", (other,)).find(digest) is None


def test_a_staged_manifest_that_was_altered_is_not_found(tmp_path: Path, cache: Cache) -> None:
    digest = sample.bundle(tmp_path / "b", FOLDER)
    staged = cache.stage(digest, sending(tmp_path / "b"))
    path = staged.path / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"photos"', b'"others"'))
    assert cache.find(digest) is None
    assert cache.stage(digest, sending(tmp_path / "b")) == staged


# ── many processes, and those that are killed


def fetch_slowly(file: BinaryIO, source: Path, counter: Path) -> None:
    with counter.open("a") as count:
        count.write("fetched\n")
    time.sleep(0.3)
    file.write(source.read_bytes())


def stage_it(folder: Path, digest: str, source: Path, counter: Path) -> None:
    staged = Cache(folder, ()).stage(digest, lambda file: fetch_slowly(file, source, counter))
    assert (staged.path / "app" / "jobs.py").read_bytes() == FOLDER["app/jobs.py"]


def test_many_processes_stage_a_release_once(tmp_path: Path) -> None:
    digest = sample.bundle(tmp_path / "b", FOLDER)
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", digest, tmp_path / "b", tmp_path / "counter")
    crowd = [context.Process(target=stage_it, args=arguments) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(30)
    assert [one.exitcode for one in crowd] == [0, 0, 0, 0]
    assert (tmp_path / "counter").read_text() == "fetched\n"


KILLED = """
import sys, time
from pathlib import Path
from fleetd.releases.stage import Cache
def fetch(file):
    body = Path(sys.argv[2]).read_bytes()
    file.write(body[:len(body) // 2])
    file.flush()
    print("half", flush=True)
    time.sleep(60)
Cache(Path(sys.argv[1]), ()).stage(sys.argv[3], fetch)
"""


def test_a_process_killed_while_it_fetches_leaves_nothing_that_counts(tmp_path: Path, cache: Cache) -> None:
    digest = sample.bundle(tmp_path / "b", FOLDER)
    command = [sys.executable, "-c", KILLED, str(cache.folder), str(tmp_path / "b"), digest]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"half\n"
        left = sample.tree(cache.folder)
        assert any(name.startswith(f"releases/.tmp-{digest}") for name in left)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert cache.find(digest) is None
    cache.stage(digest, sending(tmp_path / "b"))
    assert [name for name in sample.tree(cache.folder) if ".tmp-" in name] == []


# ── cleaning up


def fill(cache: Cache, folder: Path, count: int, app: str = "photos") -> list[str]:
    """Stage releases, the oldest first, and return their digests."""
    digests = []
    for at in range(count):
        files = {"app/jobs.py": f"x = {at}\n".encode()}
        digest = sample.bundle(folder / "b", files, sample.manifest(files, app=app))
        staged = cache.stage(digest, sending(folder / "b"))
        os.utime(staged.path, (1000.0 + at, 1000.0 + at))
        digests.append(digest)
    return digests


def here(cache: Cache) -> set[str]:
    return {path.name for path in (cache.folder / "releases").iterdir()}


def test_gc_keeps_what_it_is_told_and_the_last_used_of_each_app(tmp_path: Path, cache: Cache) -> None:
    assert cache.gc(set(), 0) == []
    first = fill(cache, tmp_path, 4)
    other = fill(cache, tmp_path, 1, "other")
    removed = cache.gc({first[0]}, 1)
    assert set(removed) == {first[1], first[2]}
    assert here(cache) == {first[0], first[3], *other}
    assert sample.tree(cache.folder / "locks") == []


def test_gc_goes_by_the_last_use(tmp_path: Path, cache: Cache) -> None:
    digests = fill(cache, tmp_path, 3)
    cache.find(digests[0])
    assert set(cache.gc(set(), 1)) == set(digests[1:])


def test_gc_leaves_alone_what_is_held(tmp_path: Path, cache: Cache) -> None:
    (digest,) = fill(cache, tmp_path, 1)
    staged = cache.find(digest)
    assert staged
    handle = staged.hold()
    assert cache.gc(set(), 0) == []
    assert cache.find(digest) == staged
    os.close(handle)
    assert cache.gc(set(), 0) == [digest]
    assert cache.find(digest) is None


def test_gc_leaves_alone_what_is_being_staged_and_clears_what_the_killed_left(tmp_path: Path, cache: Cache) -> None:
    digest = sample.bundle(tmp_path / "b", FOLDER)
    dead = cache.folder / "releases" / f".tmp-{'cd' * 32}-abc"
    dead.mkdir(parents=True)
    seen: list[list[str]] = []

    def fetch(file: BinaryIO) -> None:
        cache.gc(set(), 0)
        seen.append(sorted(here(cache)))
        file.write((tmp_path / "b").read_bytes())

    cache.stage(digest, fetch)
    assert len(seen[0]) == 1
    assert seen[0][0].startswith(f".tmp-{digest}-")


def test_the_interpreter_may_be_another(tmp_path: Path) -> None:
    digest = sample.bundle(tmp_path / "b")
    other = str(Path(getattr(sys, "_base_executable", sys.executable)))
    assert Cache(tmp_path / "cache", (), other).stage(digest, sending(tmp_path / "b")).python == other
