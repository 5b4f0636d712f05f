"""The bundle: one zip with the manifest, its signature if there is one, and the files that the manifest names.

Promises: what `read` or `opened` gives is verified whole: the manifest's spelling, its signature where keys are
trusted, each file's SHA-256, no file more and none less, and the wheel inside by the same rules. Nothing is written
meanwhile but to an unnamed temporary file. A fault is a BundleError in one line.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fleetd.codecs.manifest import Manifest, dump_manifest, load_manifest, release_digest
from fleetd.errors import ProtocolError
from fleetd.releases import wheel, zips
from fleetd.releases.faults import BundleError, on_disk
from fleetd.releases.sign import MOST_SIGNATURE, verify

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
PROJECT: Final = "pyproject.toml"
LOCK: Final = "uv.lock"
WHEEL: Final = "wheel/"
APP: Final = "app/"
SUFFIX: Final = ".release"
MOST_BUNDLE: Final = 512 * zips.MIB
MOST_MANIFEST: Final = 16 * zips.MIB


@dataclass(frozen=True, slots=True)
class Built:
    """A bundle that was made, at its place."""

    path: Path
    manifest: Manifest
    digest: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle while it is open. `raw` is the manifest's bytes, `wheel` the wheel of a bundle that has one."""

    archive: zipfile.ZipFile
    place: str
    manifest: Manifest
    digest: str
    raw: bytes
    signature: str | None
    wheel: BinaryIO | None


def write(path: Path, manifest: Manifest, contents: Mapping[str, bytes | Path], signature: str | None) -> None:
    """Write a bundle; it appears whole or not at all."""
    inside: dict[str, bytes | Path] = {MANIFEST: dump_manifest(manifest)}
    inside |= {SIGNATURE: signature.encode()} if signature else {}
    with on_disk(path, "write the bundle"):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                zips.write(file, {**inside, **contents}, first=tuple(inside))
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(name).rename(path)
        finally:
            Path(name).unlink(missing_ok=True)


def read(path: Path, trusted: tuple[str, ...]) -> tuple[Manifest, str]:
    """Verify a bundle and return its manifest and digest."""
    with opened(path, trusted, str(path)) as bundle:
        return bundle.manifest, bundle.digest


@contextmanager
def opened(path: Path, trusted: tuple[str, ...], place: str) -> Iterator[Bundle]:
    """Verify a bundle and hold it open."""
    with on_disk(path, "read the bundle"), zips.opened(path, place) as archive, tempfile.TemporaryFile() as spare:
        raw = _small(archive, MANIFEST, MOST_MANIFEST, place)
        signature = None
        if SIGNATURE in archive.namelist():
            signature = _small(archive, SIGNATURE, MOST_SIGNATURE, place).decode()
        verify(raw, signature, trusted, place)
        manifest = _manifest(raw, place)
        _match(archive, manifest, place)
        inside = None
        if manifest.kind == "wheel":
            inside = _wheel(archive, manifest, spare, place)
        yield Bundle(archive, place, manifest, release_digest(raw), raw, signature, inside)


def wheel_of(manifest: Manifest) -> str:
    """Return the name of the wheel in a bundle of that kind."""
    return next(name for name in manifest.files if name.startswith(WHEEL))


def _small(archive: zipfile.ZipFile, name: str, most: int, place: str) -> bytes:
    if name not in archive.namelist():
        raise BundleError(f"{place}: has no {name}: this is no release")
    if archive.getinfo(name).file_size > most:
        raise BundleError(f"{place}: {name} has more than the {most} bytes allowed")
    return b"".join(zips.chunks(archive, name, place))


def _manifest(raw: bytes, place: str) -> Manifest:
    try:
        manifest = load_manifest(raw)
    except ProtocolError as error:
        raise BundleError(f"{place}: {error}") from None
    names = set(manifest.files)
    if manifest.kind == "folder":
        good = all(name.startswith(APP) for name in names) and not manifest.lock
        wanted = "has only files in app/"
    else:
        wheels = {name for name in names if name.startswith(WHEEL) and name.endswith(".whl") and name.count("/") == 1}
        lock = manifest.files.get(LOCK)
        good = len(wheels) == 1 and names - wheels == {PROJECT} | ({LOCK} if lock else set())
        good = good and manifest.lock == (lock.sha256 if lock else "")
        wanted = f"has one wheel, {PROJECT} and, if any, {LOCK} with its digest"
    if not good:
        raise BundleError(f"{place}: manifest: files: a release of kind {manifest.kind} {wanted}")
    return manifest


def _match(archive: zipfile.ZipFile, manifest: Manifest, place: str) -> None:
    """Hold the files of the zip against the manifest, both ways."""
    there, told = set(archive.namelist()) - {MANIFEST, SIGNATURE}, set(manifest.files)
    if extra := sorted(there - told):
        raise BundleError(f"{place}: {extra[0]!r:.120} is in the bundle, not in its manifest")
    if missing := sorted(told - there):
        raise BundleError(f"{place}: {missing[0]!r:.120} is in the manifest, not in the bundle")
    for name, file in manifest.files.items():
        if archive.getinfo(name).file_size != file.size or zips.digest_of(archive, name, place) != file.sha256:
            raise BundleError(f"{place}: {name!r:.120} is not what the manifest says: its SHA-256 is another")


def _wheel(archive: zipfile.ZipFile, manifest: Manifest, spare: BinaryIO, place: str) -> BinaryIO:
    """Take the wheel out, look it through, and see that the module of each job is in it."""
    name = wheel_of(manifest)
    with archive.open(name) as source:
        shutil.copyfileobj(source, spare, zips.CHUNK)
    inner = f"{place}: {name.removeprefix(WHEEL)}"
    with zips.opened(spare, inner) as inside:
        wheel.check_targets(manifest.jobs, manifest.health, wheel.layout(inside, inner).values(), inner)
    return spare
