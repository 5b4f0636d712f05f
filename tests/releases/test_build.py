"""A release is built the same wherever and whenever; what cannot be one is refused in one line and leaves nothing."""

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fleetd.errors import FleetdError
from fleetd.releases import uv as running
from fleetd.releases.build import build
from fleetd.releases.bundle import read
from fleetd.releases.faults import BundleError
from fleetd.releases.sign import make_key
from fleetd.releases.uv import find_uv
from tests.releases import sample

BUILD = """\
import sys
from pathlib import Path
from fleetd.releases.build import build
build(Path("."), Path(sys.argv[1]))
"""

pytestmark = pytest.mark.slow


def refused(folder: Path, out: Path) -> str:
    """Return the one line that a build ends with; it leaves no bundle."""
    with pytest.raises(BundleError) as caught:
        build(folder, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    return str(caught.value)


def test_a_release_says_what_is_in_it(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos", health='ready = "photos.jobs:resize"\n')
    said: list[str] = []
    built = build(folder, tmp_path / "out", None, said.append)
    manifest, digest = read(built.path, ())
    assert (manifest, digest) == (built.manifest, built.digest)
    assert (manifest.app, manifest.version, manifest.kind) == ("photos", "1.0", "wheel")
    assert manifest.jobs == {"resize": "photos.jobs:resize"}
    assert manifest.health == "photos.jobs:resize"
    assert manifest.requires_python == ">=3.11"
    assert set(manifest.files) == {"pyproject.toml", "uv.lock", "wheel/photos-1.0-py3-none-any.whl"}
    assert manifest.lock == manifest.files["uv.lock"].sha256
    assert said == [f"wrote {folder}/uv.lock: keep it beside the sources, so that every build has the same packages"]
    build(folder, tmp_path / "again", None, said.append)
    assert len(said) == 1


def test_path_time_modes_and_umask_do_not_matter(tmp_path: Path) -> None:
    """Two copies in other folders, with other times and modes, under another umask: the same bytes."""
    first = sample.project(tmp_path / "one" / "photos")
    subprocess.run([*find_uv(), "-q", "lock"], cwd=first, check=True)
    second = tmp_path / "two" / "somewhere" / "else"
    shutil.copytree(first, second)
    for path in second.rglob("*"):
        os.utime(path, (1_000_000_000, 1_100_000_000))
        path.chmod(0o700)
    (second / "src" / "photos" / "__pycache__").mkdir()
    (second / "src" / "photos" / "__pycache__" / "jobs.cpython-311.pyc").write_bytes(b"old")
    outs = []
    for folder, umask in (first, 0o022), (second, 0o077):
        out = tmp_path / f"{umask}.release"
        command = [sys.executable, "-c", BUILD, str(out)]
        root = Path(__file__).parents[2]
        around = {**os.environ, "PYTHONPATH": str(root), "TZ": "Asia/Tokyo" if umask == 0o077 else "UTC"}
        subprocess.run(command, cwd=folder, umask=umask, env=around, check=True)
        outs.append(out.read_bytes())
    assert outs[0] == outs[1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_the_owner_does_not_matter(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos")
    first = build(folder, tmp_path / "a")
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 12345, 12345)
    second = build(folder, tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.digest == second.digest


def test_a_change_in_the_sources_or_the_lock_is_another_release(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos")
    digests = {build(folder, tmp_path / "a").digest}
    (folder / "src" / "photos" / "jobs.py").write_text(sample.JOBS + "# more\n")
    digests.add(build(folder, tmp_path / "b").digest)
    (folder / "uv.lock").write_text((folder / "uv.lock").read_text() + "# a word\n")
    digests.add(build(folder, tmp_path / "c").digest)
    assert len(digests) == 3


def test_the_wheel_is_packed_anew_with_its_record_as_it_was(tmp_path: Path) -> None:
    built = build(sample.project(tmp_path / "photos"), tmp_path / "out")
    with zipfile.ZipFile(built.path) as outer:
        outer.extract("wheel/photos-1.0-py3-none-any.whl", tmp_path)
    with zipfile.ZipFile(tmp_path / "wheel" / "photos-1.0-py3-none-any.whl") as inner:
        infos = inner.infolist()
        assert [info.filename for info in infos] == sorted(info.filename for info in infos)
        assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
        assert {stat.S_IMODE(info.external_attr >> 16) for info in infos} == {0o644}
        assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
        record = inner.read("photos-1.0.dist-info/RECORD").decode()
    assert "photos/jobs.py,sha256=" in record


BACKEND = """\
import os, random, time, zipfile
from pathlib import Path

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "photos-1.0-py3-none-any.whl"
    about = "photos-1.0.dist-info"
    files = {str(path): path.read_bytes() for path in Path(".").rglob("*") if path.is_file()}
    files["photos.py"] = f"BUILT = {os.environ.get('SOURCE_DATE_EPOCH') or time.time_ns()}".encode()
    files["words.txt"] = " ".join({"one", "two", "three", "four", "five", "six"}).encode()
    files[f"{about}/METADATA"] = b"Metadata-Version: 2.1\\nName: photos\\nVersion: 1.0\\n"
    files[f"{about}/entry_points.txt"] = b"[fleetd.jobs]\\nresize = photos:resize\\n"
    names = list(files)
    random.shuffle(names)
    with zipfile.ZipFile(Path(folder, name), "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as wheel:
        wheel.mkdir("folder")
        for one in names:
            info = zipfile.ZipInfo(one, time.localtime()[:6])
            info.external_attr = random.choice([0o600, 0o755]) << 16
            wheel.writestr(info, files[one])
    return name
"""
CARELESS = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "photos"
version = "1.0"

[project.entry-points."fleetd.jobs"]
resize = "photos:resize"
"""


def test_a_careless_build_backend_and_the_leftovers_of_earlier_builds_do_not_matter(tmp_path: Path) -> None:
    """It packs whatever lies around, in any order, by the clock, with any modes, and has a set's order in it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(CARELESS)
    first = build(folder, tmp_path / "a")
    for path in ("build/old.py", ".git/HEAD", "venv/pyvenv.cfg", "photos.egg-info/PKG-INFO", "__pycache__/x.pyc"):
        (folder / path).parent.mkdir()
        (folder / path).write_text("")
    before = sample.tree(folder)
    second = build(folder, tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert sample.tree(folder) == before


def test_a_release_is_named_by_the_policy_s_word_where_the_project_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built = build(sample.project(tmp_path / "photos", more='[tool.fleetd]\napp = "pictures"\n'))
    assert built.manifest.app == "pictures"
    assert built.path == tmp_path / f"pictures-1.0-{built.digest[:12]}.release"


def test_a_signed_release_has_the_same_digest(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos")
    public = make_key(tmp_path / "key")
    plain, signed = build(folder, tmp_path / "a"), build(folder, tmp_path / "b", tmp_path / "key")
    assert plain.digest == signed.digest
    assert read(signed.path, (public,))[1] == plain.digest


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"jobs": ""}, 'has no job: [project.entry-points."fleetd.jobs"] names them'),
        ({"jobs": 'resize = "photos.jobs"\n'}, "job 'resize': expected \"module:function\", got 'photos.jobs'"),
        ({"jobs": "resize = 7\n"}, "job 'resize': expected \"module:function\", got 7"),
        ({"jobs": 'resize = "photos.tasks:resize"\n'}, "job 'resize' is in module 'photos.tasks', which is not in the"),
        ({"health": 'a = "photos.other:x"\n'}, "the health check is in module 'photos.other', which is not in the"),
        ({"health": 'a = "photos:x"\nb = "photos:y"\n'}, "2 health checks; one function may call the others"),
    ],
)
def test_jobs_that_cannot_be(tmp_path: Path, fields: dict[str, str], line: str) -> None:
    assert line in refused(sample.project(tmp_path / "photos", **fields), tmp_path / "out")


def test_no_project_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    assert refused(folder, tmp_path / "out") == (
        f"{folder}: has no pyproject.toml with a [project]; a release is built from one"
    )
    (folder / "pyproject.toml").write_text("[project\n")
    assert refused(folder, tmp_path / "out").startswith(f"{folder}/pyproject.toml: ")
    (folder / "pyproject.toml").write_text("[project]\nversion = '1'\n")
    assert refused(folder, tmp_path / "out") == f"{folder}/pyproject.toml: project: 'name' is missing"


def test_an_unsolvable_lock_is_refused_with_uv_s_reason_in_one_line(tmp_path: Path) -> None:
    with sample.index(tmp_path / "index", "tiny") as index:
        folder = sample.project(tmp_path / "photos", dependencies='"tiny>=2"', index=index.url)
        line = refused(folder, tmp_path / "out")
    assert line.startswith(f"{folder}/pyproject.toml: No solution found when resolving dependencies: Because only tiny")
    assert not (folder / "uv.lock").exists()


def test_a_stale_lock_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sample.index(tmp_path / "index", "tiny") as index:
        folder = sample.project(tmp_path / "photos", index=index.url)
        build(folder, tmp_path / "first")
        before = (folder / "uv.lock").read_text()
        text = (folder / "pyproject.toml").read_text().replace("dependencies = []", 'dependencies = ["tiny"]')
        (folder / "pyproject.toml").write_text(text)
        line = refused(folder, tmp_path / "out")
    assert line.startswith(f"{folder}/uv.lock: The lockfile at `uv.lock` needs to be updated")
    assert (folder / "uv.lock").read_text() == before


def test_a_package_in_a_folder_of_this_machine_is_refused(tmp_path: Path) -> None:
    sample.project(tmp_path / "other")
    text = (tmp_path / "other" / "pyproject.toml").read_text().replace('name = "photos"', 'name = "other"')
    (tmp_path / "other" / "pyproject.toml").write_text(text)
    more = '[tool.uv.sources]\nother = { path = "../other" }\n'
    folder = sample.project(tmp_path / "photos", dependencies='"other"', more=more)
    assert refused(folder, tmp_path / "out") == (
        f"{folder}/uv.lock: other is in a folder of this machine, which no other node has"
    )


def test_a_broken_build_backend_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos")
    shutil.rmtree(folder / "src")
    assert refused(folder, tmp_path / "out").startswith(f"{folder}: Failed to build")


def test_without_uv_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(running, "find_spec", lambda name: None)
    with pytest.raises(FleetdError, match=r"uv is missing: .* pip install 'fleetd\[releases\]'"):
        build(sample.project(tmp_path / "photos"), tmp_path / "out")


def test_uv_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "uv").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(running, "LIMIT_S", 0.2)
    with pytest.raises(FleetdError, match="uv lock took longer than 0 s"):
        build(sample.project(tmp_path / "photos"), tmp_path / "out")
