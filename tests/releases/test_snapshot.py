"""A folder as it is, for development: bundled by its content, without what is no source."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from fleetd.codecs.manifest import release_digest
from fleetd.releases import build as building
from fleetd.releases.build import snapshot
from fleetd.releases.bundle import Built, read
from fleetd.releases.faults import BundleError
from tests.releases import sample


def names(built: Built) -> set[str]:
    return set(built.manifest.files)


def test_a_snapshot_is_of_the_content_alone(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "jobs.py").write_text(sample.JOBS)
    first = snapshot(folder, tmp_path / "into")
    assert first.path == tmp_path / "into" / f"{first.digest}.release"
    assert (first.manifest.app, first.manifest.version, first.manifest.kind) == ("app", "dev", "folder")
    assert read(first.path, ())[1] == first.digest
    os.utime(folder / "jobs.py", (1, 1))
    (folder / "jobs.py").chmod(0o755)
    shutil.copytree(folder, tmp_path / "elsewhere" / "app")
    assert snapshot(tmp_path / "elsewhere" / "app", tmp_path / "into").digest == first.digest
    (folder / "jobs.py").write_text(sample.JOBS + "\n")
    assert snapshot(folder, tmp_path / "into").digest != first.digest


def test_a_snapshot_knows_the_jobs_that_the_project_tells(tmp_path: Path) -> None:
    built = snapshot(sample.project(tmp_path / "photos"), tmp_path / "into")
    assert built.manifest.jobs == {"resize": "photos.jobs:resize"}
    assert names(built) == {"app/pyproject.toml", "app/src/photos/__init__.py", "app/src/photos/jobs.py"}


def test_a_snapshot_leaves_out_what_is_no_source(tmp_path: Path) -> None:
    folder = sample.project(tmp_path / "photos")
    first = snapshot(folder, tmp_path / "into").digest
    for path in (
        ".git/HEAD",
        ".env",
        "src/photos/__pycache__/jobs.pyc",
        "src/photos/x.pyc",
        "venv/pyvenv.cfg",
        "venv/x.py",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("")
    assert snapshot(folder, tmp_path / "into").digest == first


def test_links_lead_nowhere_outside(tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "jobs.py").write_text("")
    (folder / "inside.py").symlink_to("jobs.py")
    assert names(snapshot(folder, tmp_path / "into")) == {"app/jobs.py", "app/inside.py"}
    for target in ("/etc/passwd", "..", "."):
        (folder / "link").symlink_to(target)
        with pytest.raises(BundleError, match=f"^{folder}/link: is a link to a folder or out of the app's folder"):
            snapshot(folder, tmp_path / "into")
        (folder / "link").unlink()


def test_a_folder_that_is_no_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    with pytest.raises(BundleError, match=r"has no files; a folder with pyproject\.toml or jobs\.py is wanted"):
        snapshot(folder, tmp_path / "into")
    (folder / "a.py").write_text("12345678")
    (folder / "b.py").write_text("")
    monkeypatch.setattr(building, "MOST_FILES", 1)
    with pytest.raises(BundleError, match="an app's folder holds code, data belongs elsewhere"):
        snapshot(folder, tmp_path / "into")
    monkeypatch.undo()
    monkeypatch.setattr(building, "MOST_FOLDER", 7)
    with pytest.raises(BundleError, match="an app's folder holds code, data belongs elsewhere"):
        snapshot(folder, tmp_path / "into")
    monkeypatch.undo()
    os.mkfifo(folder / "pipe")
    with pytest.raises(BundleError, match="pipe: is not a regular file"):
        snapshot(folder, tmp_path / "into")


def test_a_snapshot_is_named_by_its_manifest(tmp_path: Path) -> None:
    built = snapshot(sample.project(tmp_path / "photos"), tmp_path / "into")
    with zipfile.ZipFile(built.path) as archive:
        assert release_digest(archive.read("manifest.json")) == built.digest
