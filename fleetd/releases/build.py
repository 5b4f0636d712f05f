"""Makes bundles: a release for production from an app's project, or a folder as it is for development.

Promises: `build` gives the same bytes for the same sources, wherever, whenever and by whomever: it works on a copy
without the leftovers of earlier builds, the clock stands still for the build backend, and the wheel is packed anew.
`snapshot` gives the same digest for the same content. Neither imports or changes the app; `build` writes its uv.lock
where there is none, and says so.
"""

import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fleetd.codecs.manifest import File, Manifest, dump_manifest, release_digest
from fleetd.errors import FleetdError
from fleetd.releases import bundle, wheel, zips
from fleetd.releases.bundle import APP, LOCK, PROJECT, SUFFIX, WHEEL, Built
from fleetd.releases.faults import BundleError, on_disk
from fleetd.releases.lock import check_sources
from fleetd.releases.project import Project, read_project
from fleetd.releases.sign import sign
from fleetd.releases.uv import run_uv

# The clock of the build backend: the first moment that a zip can tell, as in the zips.
CLOCK: Final = "315532800"
MOST_FOLDER: Final = 64 * zips.MIB
MOST_FILES: Final = 20_000
SHOWN: Final = 12
_LEFTOVERS: Final = ("build", "dist")
Say = Callable[[str], None]


def _silent(text: str) -> None:
    del text


def build(folder: Path, out: Path | None = None, key: Path | None = None, say: Say = _silent) -> Built:
    """Build the release of a project; `out` is by default APP-VERSION-DIGEST.release in the working folder."""
    folder = folder.absolute()
    project = read_project(folder)
    if project is None:
        raise BundleError(f"{folder}: has no pyproject.toml with a [project]; a release is built from one")
    if not project.jobs:
        raise BundleError(f'{folder / PROJECT}: has no job: [project.entry-points."{wheel.JOBS}"] names them')
    _lock(folder, say)
    with tempfile.TemporaryDirectory(prefix="fleetd-build-") as name, on_disk(name, "build"):
        made = _wheel(folder, Path(name))
        contents: dict[str, bytes | Path] = {
            PROJECT: (folder / PROJECT).read_bytes(),
            LOCK: (folder / LOCK).read_bytes(),
            WHEEL + made.name: made,
        }
        about = wheel.describe(made)
        manifest = _manifest(about, project, contents)
        return _write(manifest, contents, out, key)


def _lock(folder: Path, say: Say) -> None:
    """See that uv.lock is there and fits pyproject.toml."""
    path = folder / LOCK
    if path.exists():
        run_uv(["lock", "--check"], folder, str(path))
    else:
        run_uv(["lock"], folder, str(folder / PROJECT))
        if not path.exists():
            raise BundleError(f"{folder}: uv wrote no uv.lock here: a member of a workspace cannot be released alone")
        say(f"wrote {path}: keep it beside the sources, so that every build has the same packages")
    with on_disk(path, "read the lock"):
        check_sources(path.read_bytes(), str(path))


def _wheel(folder: Path, room: Path) -> Path:
    """Build the wheel from a copy and pack it anew."""
    source, made = room / "source", room / "made"
    try:
        shutil.copytree(folder, source, ignore=_ignored(folder))
    except shutil.Error as error:
        raise FleetdError(f"{folder}: cannot be copied: {error.args[0][0][-1]}") from None
    arguments = ["build", "--wheel", "--python", sys.executable, "--out-dir", str(made), str(source)]
    run_uv(arguments, room, str(folder), environ={"SOURCE_DATE_EPOCH": CLOCK})
    (found,) = made.glob("*.whl")
    packed = room / found.name
    wheel.repack(found, packed)
    return packed


def _ignored(root: Path) -> Callable[[str, list[str]], set[str]]:
    """Leave out what is no source: hidden folders, caches, and what earlier builds left."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        here = Path(folder)
        return {
            name
            for name in names
            if name == "__pycache__"
            or name.endswith((".pyc", ".egg-info"))
            or (name.startswith(".") and (here / name).is_dir())
            or (here == root and name in _LEFTOVERS)
            or (here / name / "pyvenv.cfg").exists()
        }

    return ignored


def _manifest(about: wheel.Described, project: Project, contents: dict[str, bytes | Path]) -> Manifest:
    files = {name: _file(content) for name, content in contents.items()}
    return Manifest(
        app=project.app,
        version=about.version,
        kind="wheel",
        requires_python=about.requires_python,
        jobs=about.jobs,
        health=about.health,
        lock=files[LOCK].sha256,
        files=files,
    )


def _file(content: bytes | Path) -> File:
    if isinstance(content, bytes):
        return File(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        return File(hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size)


def _write(manifest: Manifest, contents: dict[str, bytes | Path], out: Path | None, key: Path | None) -> Built:
    raw = dump_manifest(manifest)
    digest = release_digest(raw)
    named = re.sub(r"[^\w.+-]", "_", f"{manifest.app}-{manifest.version}-{digest[:SHOWN]}")
    path = out or Path.cwd() / f"{named}{SUFFIX}"
    bundle.write(path, manifest, contents, sign(raw, key) if key else None)
    return Built(path, manifest, digest)


def snapshot(folder: Path, into: Path) -> Built:
    """Bundle a folder as it is, for development; the bundle is named by its digest in the folder `into`."""
    folder = folder.absolute()
    project = read_project(folder) or Project(folder.name, "", "", {}, "")
    with on_disk(folder, "read the app"):
        contents: dict[str, bytes | Path] = dict(_sources(folder))
        if not contents:
            raise BundleError(f"{folder}: has no files; a folder with pyproject.toml or jobs.py is wanted")
        manifest = Manifest(
            app=project.app,
            version=project.version or "dev",
            kind="folder",
            requires_python=project.requires_python,
            jobs=project.jobs,
            health=project.health,
            lock="",
            files={name: _file(content) for name, content in contents.items()},
        )
    digest = release_digest(dump_manifest(manifest))
    path = into / f"{digest}{SUFFIX}"
    if not path.exists():
        with on_disk(into, "keep the bundle"):
            into.mkdir(parents=True, exist_ok=True)
        bundle.write(path, manifest, contents, None)
    return Built(path, manifest, digest)


def _sources(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an app by their names in a bundle, each read once: what is hashed is what is kept."""
    total = count = 0
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _is_source(folder, Path(here, name)))
        for name in sorted(names):
            path = Path(here, name)
            if not _is_source(folder, path):
                continue
            if not path.is_file():
                raise BundleError(f"{path}: is not a regular file; move it out of the app's folder")
            count, total = count + 1, total + path.stat().st_size
            if total > MOST_FOLDER or count > MOST_FILES:
                what = f"more than {MOST_FOLDER // zips.MIB} MB or {MOST_FILES} files"
                raise BundleError(f"{folder}: has {what}; an app's folder holds code, data belongs elsewhere")
            yield APP + path.relative_to(folder).as_posix(), path.read_bytes()


def _is_source(root: Path, path: Path) -> bool:
    """Whether this belongs to the app: nothing hidden, no caches, no virtual environment; links only within it."""
    hidden = path.name.startswith(".") or path.name == "__pycache__" or path.suffix == ".pyc"
    if hidden or (path / "pyvenv.cfg").exists():
        return False
    if path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(root.resolve())):
        raise BundleError(f"{path}: is a link to a folder or out of the app's folder; a release follows none")
    return True
