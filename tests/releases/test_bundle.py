"""A bundle is taken whole and verified, or refused in one line that says what is wrong; nothing is written."""

import io
import random
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetd.codecs.manifest import File, dump_manifest, load_manifest, release_digest
from fleetd.errors import FleetdError
from fleetd.releases import bundle, zips
from fleetd.releases.bundle import read
from fleetd.releases.faults import BundleError
from fleetd.releases.sign import make_key, sign
from tests.releases import sample

FOLDER = {"app/jobs.py": b"x = 1\n", "app/data/a.txt": b"a"}


def refused(path: Path, trusted: tuple[str, ...] = ()) -> str:
    """Return the one line that a bundle is refused with, without its place."""
    with pytest.raises(BundleError) as caught:
        read(path, trusted)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{path}: ")


def test_a_good_bundle_gives_its_manifest_and_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "b"
    digest = sample.bundle(path)
    manifest, found = read(path, ())
    assert found == digest == release_digest(dump_manifest(manifest))
    assert manifest.jobs == {"resize": "photos.jobs:resize"}
    sample.bundle(path, FOLDER)
    assert read(path, ())[0].kind == "folder"


def test_what_is_written_is_read_and_needs_no_more_than_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    contents = dict(FOLDER)
    bundle.write(first, sample.manifest(FOLDER), contents, None)
    bundle.write(second, sample.manifest(FOLDER), dict(reversed(contents.items())), None)
    assert first.read_bytes() == second.read_bytes()
    assert read(first, ())[0] == sample.manifest(FOLDER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


BAD_NAMES = [
    ("../x.py", "leads out of its folder"),
    ("app/../../x.py", "leads out of its folder"),
    ("/etc/x.py", "is an absolute path"),
    ("app\\x.py", "has a backslash"),
    ("C:x.py", "is an absolute path"),
    ("app//x.py", "is not a plain path"),
    ("app/./x.py", "is not a plain path"),
    ("app/x\x00.py", "is not a plain path"),
    ("app/x\n.py", "is not a plain path"),
    ("app/" + "x" * 256, "is too long"),
    ("app/" + "x/" * 500 + "x", "is too long"),
]


@pytest.mark.parametrize(("name", "why"), BAD_NAMES)
def test_a_name_that_is_no_plain_path_below_its_folder(tmp_path: Path, name: str, why: str) -> None:
    path = tmp_path / "b"
    raw = dump_manifest(sample.manifest(FOLDER))
    path.write_bytes(sample.zipped([("manifest.json", raw), *FOLDER.items(), (name, b"")]))
    assert refused(path) == f"the name {name!r:.120} {why}"


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("app/link", sample.LINK, "is a symbolic link"),
        ("app/fifo", (stat.S_IFIFO | 0o644) << 16, "is not a regular file"),
        ("app/device", (stat.S_IFBLK | 0o644) << 16, "is not a regular file"),
        ("app/folder/", 0, "is not a regular file"),
    ],
)
def test_what_is_not_a_regular_file(tmp_path: Path, name: str, mode: int, why: str) -> None:
    path = tmp_path / "b"
    files = FOLDER | {name: b"/etc/passwd"}
    told = sample.manifest(files)
    path.write_bytes(sample.zipped([("manifest.json", dump_manifest(told)), *files.items()], {name: mode}))
    assert refused(path) == f"{name!r} {why}"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["app/a.py", "app/a.py"], "the name 'app/a.py' is there twice"),
        (["app/a.py", "app/A.py"], "the name 'app/A.py' differs from 'app/a.py' only by case"),
        (["app/\u00e9.py", "app/e\u0301.py"], "the name 'app/e\u0301.py' differs from 'app/\u00e9.py' only by case"),
        (["app/a", "app/a/b.py"], "'app/a' is a file, and a folder in 'app/a/b.py'"),
        (["manifest.json"], "the name 'manifest.json' is there twice"),
    ],
)
def test_names_that_are_one_file_somewhere(tmp_path: Path, names: list[str], why: str) -> None:
    path = tmp_path / "b"
    raw = dump_manifest(sample.manifest(dict.fromkeys(names, b"")))
    path.write_bytes(sample.zipped([("manifest.json", raw), *((name, b"") for name in names)]))
    assert refused(path) == why


def test_files_and_manifest_must_name_each_other(tmp_path: Path) -> None:
    path = tmp_path / "b"
    more = FOLDER | {"app/more.py": b""}
    sample.bundle(path, more, sample.manifest(FOLDER))
    assert refused(path) == "'app/more.py' is in the bundle, not in its manifest"
    sample.bundle(path, FOLDER, sample.manifest(more))
    assert refused(path) == "'app/more.py' is in the manifest, not in the bundle"


def test_a_file_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    path = tmp_path / "b"
    sample.bundle(path, FOLDER | {"app/jobs.py": b"x = 2\n"}, sample.manifest(FOLDER))
    assert refused(path) == "'app/jobs.py' is not what the manifest says: its SHA-256 is another"
    told = sample.manifest(FOLDER)
    sample.bundle(path, FOLDER, replace(told, files=told.files | {"app/data/a.txt": File("0" * 64, 1)}))
    assert refused(path) == "'app/data/a.txt' is not what the manifest says: its SHA-256 is another"


@pytest.mark.parametrize(
    ("files", "fields", "why"),
    [
        (sample.wheel_files() | {"app/x.py": b""}, {"kind": "wheel"}, "kind wheel has one wheel"),
        (sample.wheel_files() | {"wheel/b-1.0-py3-none-any.whl": b""}, {}, "kind wheel has one wheel"),
        ({"pyproject.toml": b""}, {}, "kind wheel has one wheel"),
        (sample.wheel_files() | {"uv.lock": b""}, {"lock": "0" * 64}, "kind wheel has one wheel"),
        (FOLDER | {"x.py": b""}, {}, "kind folder has only files in app/"),
    ],
)
def test_files_that_do_not_fit_the_kind(
    tmp_path: Path, files: dict[str, bytes], fields: dict[str, str], why: str
) -> None:
    path = tmp_path / "b"
    sample.bundle(path, files, sample.manifest(files, **fields))
    assert why in refused(path)


def test_a_zip_bomb_by_what_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "b"
    sample.bundle(path, {"app/zeros": bytes(20 * zips.MIB)})
    assert "times its size: a zip bomb" in refused(path)


def test_more_than_the_limits_allow(tmp_path: Path) -> None:
    path = tmp_path / "z"
    path.write_bytes(sample.zipped([(f"f{at}", random.Random(at).randbytes(100)) for at in range(10)]))

    def why(limits: zips.Limits) -> str:
        with pytest.raises(BundleError) as caught, zips.opened(path, "z", limits):
            pass
        return str(caught.value)

    assert why(zips.Limits(total=999)) == "z: unpacks to 1000 bytes, more than the 999 allowed"
    assert why(zips.Limits(files=9)) == "z: 10 files, more than the 9 allowed"
    with zips.opened(path, "z", zips.Limits(total=1000, files=10)) as archive:
        assert len(archive.namelist()) == 10


def test_a_zip_bomb_that_lies_about_its_size_is_read_no_further_than_it_told(tmp_path: Path) -> None:
    path = tmp_path / "z"
    honest = bytearray(sample.zipped([("f", bytes(50 * zips.MIB))], method=zipfile.ZIP_DEFLATED))
    at = honest.index(b"PK\x01\x02") + 24
    honest[at : at + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(honest)
    came: list[bytes] = []
    with pytest.raises(BundleError, match="is damaged"), zips.opened(path, "z") as archive:
        came.extend(zips.chunks(archive, "f", "z"))
    assert sum(map(len, came)) <= 1000


def test_entries_that_lie_over_each_other_unpack_to_no_more_than_is_allowed(tmp_path: Path) -> None:
    """The bomb that names one packed block many times: what is declared is counted for each of them."""
    path = tmp_path / "z"
    archive = bytearray(sample.zipped([("a", bytes(15 * zips.MIB)), ("b", b"")], method=zipfile.ZIP_DEFLATED))
    first = archive.index(b"PK\x01\x02")
    second = archive.index(b"PK\x01\x02", first + 4)
    archive[second + 16 : second + 28] = archive[first + 16 : first + 28]  # CRC and sizes
    archive[second + 42 : second + 46] = archive[first + 42 : first + 46]  # where it is
    path.write_bytes(archive)
    with pytest.raises(BundleError, match="a zip bomb"), zips.opened(path, "z"):
        pass


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_truncated_bundle(tmp_path: Path, share: float) -> None:
    path = tmp_path / "b"
    sample.bundle(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refused(path).startswith("is damaged, or is no zip: ")


def test_a_directory_that_lies_about_where_files_are(tmp_path: Path) -> None:
    path = tmp_path / "b"
    sample.bundle(path)
    body = bytearray(path.read_bytes())
    at = body.rindex(b"PK\x05\x06") + 16
    body[at : at + 4] = (int.from_bytes(body[at : at + 4], "little") + 1000).to_bytes(4, "little")
    path.write_bytes(body)
    assert refused(path).startswith("is damaged, or is no zip: ")


def test_what_is_no_release(tmp_path: Path) -> None:
    path = tmp_path / "b"
    path.write_bytes(b"#!/bin/sh\n")
    assert refused(path).startswith("is damaged, or is no zip: ")
    path.write_bytes(sample.zipped([("app/x.py", b"")]))
    assert refused(path) == "has no manifest.json: this is no release"
    path.write_bytes(sample.zipped([("manifest.json", b"{}")]))
    assert refused(path) == "manifest: format: None is not known here, only 1"
    with pytest.raises(FleetdError, match="cannot read the bundle: No such file or directory"):
        read(tmp_path / "none", ())


# ── the wheel inside


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (sample.wheel({"../../evil.py": b""}), "the name '../../evil.py' leads out of its folder"),
        (sample.wheel({"/evil.py": b""}), "the name '/evil.py' is an absolute path"),
        (sample.wheel({"photos-1.0.data/purelib/../../evil.py": b""}), "leads out of its folder"),
        (sample.wheel({"photos-1.0.data/purelib/photos/jobs.py": b""}), "the name 'photos/jobs.py' is there twice"),
        (sample.wheel({"photos/JOBS.py": b""}), "'photos/JOBS.py' differs from 'photos/jobs.py' only by case"),
        (sample.wheel({"photos/link": b"/"}, {"photos/link": sample.LINK}), "'photos/link' is a symbolic link"),
        (b"no wheel", "is damaged, or is no zip"),
    ],
)
def test_a_wheel_inside_with_the_same_sins(tmp_path: Path, inside: bytes, why: str) -> None:
    path = tmp_path / "b"
    sample.bundle(path, sample.wheel_files(inside))
    line = refused(path)
    assert line.startswith("photos-1.0-py3-none-any.whl: ")
    assert why in line


def test_a_wheel_inside_that_is_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "b"
    inside = sample.zipped([("photos/jobs.py", bytes(30 * zips.MIB))], method=zipfile.ZIP_DEFLATED)
    sample.bundle(path, sample.wheel_files(inside))
    assert "photos-1.0-py3-none-any.whl: unpacks to" in refused(path)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"jobs": {"resize": "photos.tasks:resize"}}, "job 'resize' is in module 'photos.tasks'"),
        ({"health": "other:check"}, "the health check is in module 'other'"),
    ],
)
def test_a_job_whose_module_is_not_in_the_wheel(tmp_path: Path, fields: dict[str, object], line: str) -> None:
    path, files = tmp_path / "b", sample.wheel_files()
    sample.bundle(path, files, sample.manifest(files, **fields))
    assert refused(path) == f"photos-1.0-py3-none-any.whl: {line}, which is not in the wheel"


# ── signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path, str]:
    """Two pairs of keys."""
    folder = tmp_path_factory.mktemp("keys")
    return folder / "a", make_key(folder / "a"), folder / "b", make_key(folder / "b")


def test_with_a_key_only_what_it_signed_is_taken(tmp_path: Path, keys: tuple[Path, str, Path, str]) -> None:
    mine, public, other, other_public = keys
    path = tmp_path / "b"
    unsigned = sample.bundle(path)
    assert refused(path, (public,)) == "is not signed, and signatures are asked for; build it with --key"
    assert sample.bundle(path, key=mine) == unsigned
    assert read(path, (public,))[1] == read(path, (other_public, public))[1] == read(path, ())[1] == unsigned
    sample.bundle(path, key=other)
    assert refused(path, (public,)) == f"is signed by '{other_public}', which is none of the trusted keys"


def test_an_altered_release_is_refused_though_its_signature_is_kept(
    tmp_path: Path, keys: tuple[Path, str, Path, str]
) -> None:
    mine, public, _, _ = keys
    path = tmp_path / "b"
    raw = dump_manifest(sample.manifest(FOLDER))
    evil = FOLDER | {"app/jobs.py": b"import os\n"}
    entries = [("manifest.json", dump_manifest(sample.manifest(evil))), ("manifest.sig", sign(raw, mine).encode())]
    path.write_bytes(sample.zipped([*entries, *evil.items()]))
    assert refused(path, (public,)) == "its signature is wrong: it was altered after it was signed"
    path.write_bytes(sample.zipped([("manifest.json", raw), entries[1], *evil.items()]))
    assert "is not what the manifest says" in refused(path, (public,))


@pytest.mark.parametrize("text", [b"", b"ed25519:", b"\xff\xfe", b"{0} ", b"{0} AAAA", b"{0} !!", b"x" * 513])
def test_a_signature_that_is_none(tmp_path: Path, keys: tuple[Path, str, Path, str], text: bytes) -> None:
    _, public, _, _ = keys
    path = tmp_path / "b"
    raw = dump_manifest(sample.manifest(FOLDER))
    signature = text.replace(b"{0}", public.encode())
    path.write_bytes(sample.zipped([("manifest.json", raw), ("manifest.sig", signature), *FOLDER.items()]))
    refused(path, (public,))


# ── whatever the bytes


def flipped(at: float, byte: int) -> Callable[[bytes], bytes]:
    def change(body: bytes) -> bytes:
        index = int(at * (len(body) - 1))
        return body[:index] + bytes([byte]) + body[index + 1 :]

    return change


def cut(start: float, length: int) -> Callable[[bytes], bytes]:
    return lambda body: body[: int(start * len(body))] + body[int(start * len(body)) + length :]


def doubled(start: float, length: int) -> Callable[[bytes], bytes]:
    return lambda body: body[: int(start * len(body)) + length] + body[int(start * len(body)) :]


SHARES = st.floats(0, 1)
CHANGES = st.lists(
    st.builds(flipped, SHARES, st.integers(0, 255))
    | st.builds(cut, SHARES, st.integers(1, 64))
    | st.builds(doubled, SHARES, st.integers(1, 64)),
    min_size=1,
    max_size=4,
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=CHANGES)
def test_altered_bytes_give_the_same_release_or_a_refusal(
    tmp_path: Path, method: int, changes: list[Callable[[bytes], bytes]]
) -> None:
    path = tmp_path / "b"
    files = sample.wheel_files()
    raw = dump_manifest(sample.manifest(files))
    body = sample.zipped([("manifest.json", raw), *files.items()], method=method)
    for change in changes:
        body = change(body)
    path.write_bytes(body)
    try:
        manifest, digest = read(path, ())
    except FleetdError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both ways out are good
    else:
        assert (manifest, digest) == (load_manifest(raw), release_digest(raw))
    assert [one.name for one in tmp_path.iterdir()] == ["b"]


def test_the_sample_itself_is_a_zip_with_the_names_that_it_was_given() -> None:
    """Otherwise the tests of bad names would test zipfile's mending of them."""
    with zipfile.ZipFile(io.BytesIO(sample.zipped([("a\\b", b""), ("/x", b"")]))) as archive:
        assert [info.orig_filename for info in archive.infolist()] == ["a\\b", "/x"]
