"""The node's cache of releases: fetched, verified, unpacked, and only then there, ready to be run.

Promises: what `find` or `stage` gives is whole and was verified, its signature against the keys of today. A release
that came half, was altered, does not fit this Python or whose packages cannot be had leaves nothing behind. Many
processes may share one cache: the same release is staged once, and none that is held is removed. A process that is
killed at any point leaves nothing that is taken for a release; what it left is removed by the next one.
"""

import fcntl
import io
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fleetd.codecs.manifest import DIGEST, Manifest, load_manifest, release_digest
from fleetd.errors import FleetdError, UnreachableError, UsageError
from fleetd.releases import bundle, environment, wheel
from fleetd.releases.bundle import APP, LOCK, MANIFEST, MOST_BUNDLE, PROJECT, SIGNATURE, Bundle
from fleetd.releases.clean import RELEASES, clean, unheld
from fleetd.releases.disk import LOCKS, Capped, locked, put_in_place, scratch, settle
from fleetd.releases.environment import interpreter_of
from fleetd.releases.faults import BundleError, on_disk
from fleetd.releases.python import check_python, python_of
from fleetd.releases.sign import verify

SITE: Final = "site"
BUFFER: Final = 1024 * 1024
Fetch = Callable[[BinaryIO], None]


@dataclass(frozen=True, slots=True)
class Staged:
    """A release ready to be run: its folder, what it holds, and the interpreter to run it with."""

    path: Path
    manifest: Manifest
    python: str

    def hold(self) -> int:
        """Return a handle that keeps the release from being removed until it is closed, also by a process's end."""
        with on_disk(self.path, "hold the release"):
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(handle, fcntl.LOCK_SH)
        return handle


class Cache:
    """A folder of staged releases and their environments."""

    def __init__(self, folder: Path, trusted: tuple[str, ...], python: str = sys.executable) -> None:
        self.folder = folder.absolute()
        self._trusted, self._python = trusted, python

    def find(self, digest: str) -> Staged | None:
        """Return a release that is here, whole; None where it is not, or where today's keys do not vouch for it."""
        with on_disk(self.folder, "read the cache"):
            manifest = self._manifest(digest)
            if manifest is None:
                return None
            path = self._release(digest)
            interpreter = interpreter_of(path, self.folder, manifest.lock, python_of(self._python))
            if interpreter is not None and not interpreter.exists():
                return None
            with suppress(PermissionError):  # a cache that is only read, as in an image
                os.utime(path)  # `gc` goes by the time of the last use
            return Staged(path, manifest, str(interpreter or self._python))

    def stage(self, digest: str, fetch: Fetch) -> Staged:
        """Return the release; where it is not here, `fetch` writes its bundle's bytes. Raises FleetdError.

        A BundleError is the release's own fault, and asking again will not help; anything else is not.
        """
        place = f"release {digest[:12]}"
        if not DIGEST.fullmatch(digest):
            raise UsageError(f"{place!r}: a digest has 64 hex digits")
        if found := self.find(digest):
            return found
        with on_disk(self.folder, "stage"), locked(self.folder / LOCKS / digest):
            if self._manifest(digest) is None:
                self._receive(digest, fetch, place)
            manifest, path = self._known(digest), self._release(digest)
            interpreter = interpreter_of(path, self.folder, manifest.lock, python_of(self._python))
            if interpreter is not None:
                self._environ(interpreter, path, place)
        return Staged(path, manifest, str(interpreter or self._python))

    def gc(self, keep: set[str], last: int) -> list[str]:
        """Remove all releases but those to keep, those held, and the `last` ones used of each app; return them."""
        return clean(self.folder, keep, last)

    def _release(self, digest: str) -> Path:
        return self.folder / RELEASES / digest

    def _known(self, digest: str) -> Manifest:
        manifest = self._manifest(digest)
        if manifest is None:
            raise FleetdError(f"{self._release(digest)}: vanished while it was staged")
        return manifest

    def _manifest(self, digest: str) -> Manifest | None:
        """Return the manifest of a release that is here and vouched for."""
        path = self._release(digest)
        try:
            raw = (path / MANIFEST).read_bytes()
            signature = (path / SIGNATURE).read_text() if (path / SIGNATURE).exists() else None
            if release_digest(raw) != digest:
                return None
            verify(raw, signature, self._trusted, str(path))
            return load_manifest(raw)
        except (FileNotFoundError, BundleError):
            return None

    def _receive(self, digest: str, fetch: Fetch, place: str) -> None:
        """Fetch, verify, unpack, and put in place."""
        with scratch(self.folder / RELEASES, digest) as room:
            path, new = room / "bundle", room / "new"
            _fetch(fetch, path, place)
            with bundle.opened(path, self._trusted, place) as opened:
                if opened.digest != digest:
                    raise BundleError(f"{place}: what came is another release, {opened.digest[:12]}")
                check_python(opened.manifest.requires_python, python_of(self._python), place)
                self._unpack(opened, new)
            settle(new)
            put_in_place(new, self._release(digest))

    def _unpack(self, opened: Bundle, new: Path) -> None:
        new.mkdir()
        (new / MANIFEST).write_bytes(opened.raw)
        if opened.signature:
            (new / SIGNATURE).write_text(opened.signature)
        if opened.wheel is None:
            (new / APP).mkdir()
            kept = list(opened.manifest.files)
        else:
            name, python = bundle.wheel_of(opened.manifest).rpartition("/")[2], python_of(self._python)
            wheel.check_tag(name, python.version[:2], python.machine, opened.place)
            wheel.unpack(opened.wheel, new / SITE, f"{opened.place}: {name}")
            kept = [name for name in (PROJECT, LOCK) if name in opened.manifest.files]
        for name in kept:
            wheel.extract(opened.archive, name, new / name, opened.place)

    def _environ(self, interpreter: Path, release: Path, place: str) -> None:
        """Make the environment; a release whose packages cannot be had does not stay, unless it is being run."""
        try:
            environment.ensure(interpreter, release, self.folder, self._python, place)
        except BaseException:
            with unheld(release) as free:
                if free:
                    shutil.rmtree(release, ignore_errors=True)
            raise


def _fetch(fetch: Fetch, path: Path, place: str) -> None:
    """Let the bundle be written, and tell a fault of the way it comes from one of the disk."""
    try:
        with io.BufferedWriter(Capped(path, MOST_BUNDLE, place), BUFFER) as file:
            fetch(file)
    except OSError as error:
        raise UnreachableError(f"{place}: cannot be fetched: {error.strerror or error}") from None
