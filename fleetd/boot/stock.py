"""The files that machines boot: open, held against the signed manifest of their image, and again when they change.

Promises: what is handed out had the manifest's digest when it was last looked at, and has not changed since by size,
time or place; a transfer under way goes on with the file that it began with. Blocks: for threads.
"""

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fleetd.boot.http import File
from fleetd.boot.manifest import MANIFEST, Image, load_image
from fleetd.errors import FleetdError

CHUNK: Final = 1024 * 1024
LOADERS: Final = ("undionly.kpxe", "snponly.efi", "ipxe.efi")  # iPXE, as distributions name it
IPXE: Final = Path("/usr/lib/ipxe")
Stamp = tuple[int, int, int, int]


class Handle:
    """An open file that is closed when nobody holds it any more."""

    def __init__(self, path: Path) -> None:
        """Open it; raises OSError."""
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        """Close it."""
        if hasattr(self, "_number"):
            os.close(self._number)

    def fileno(self) -> int:
        """Return its number."""
        return self._number

    def stamp(self) -> Stamp:
        """Return what changes when the file does."""
        return _stamp(os.fstat(self._number))

    def digest(self) -> str:
        """Read it through, without moving its position."""
        made, at = hashlib.sha256(), 0
        while data := os.pread(self._number, CHUNK, at):
            made.update(data)
            at += len(data)
        return made.hexdigest()


@dataclass(frozen=True, slots=True)
class Fit:
    """An image that is fit to boot: the kernel arguments that it wants, and the digests of its layers."""

    arguments: Sequence[str]
    digests: Mapping[str, str]

    def digest(self, layer: str) -> str:
        """Return the SHA-256 of a layer."""
        return self.digests[layer]


@dataclass(slots=True)
class Stock:
    """One image in its folder. `keys`: who must have signed it; `loaders`: where iPXE is."""

    folder: Path
    keys: Sequence[str]
    loaders: Path = IPXE
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _image: tuple[Stamp, Image] | None = None
    _open: dict[str, tuple[Stamp, File]] = field(default_factory=dict)

    def fit(self) -> Fit:
        """Return what a script needs to know, once every part is proven; raises FleetdError."""
        with self._turn:
            image = self._read()
            digests = {name: self.file(name).digest for name in ("kernel", "initrd", "base", "app")}
            return Fit(tuple(image.arguments), digests)

    def file(self, part: str) -> File:
        """Return a part of the image, proven; raises FleetdError."""
        with self._turn:
            found = self._read().parts[part]
            return self._proven(part, self.folder / found.name, found.size, found.sha256)

    def loader(self, name: str) -> File | None:
        """Return iPXE itself for firmware that fetches it over HTTP; None where it is not installed."""
        path = self.loaders / name
        if name not in LOADERS or not path.is_file():
            return None
        with self._turn:
            return self._proven(name, path, None, None)

    def _read(self) -> Image:
        path = self.folder / MANIFEST
        try:
            stamp = _stamp(path.stat())
        except OSError as error:
            raise FleetdError(f"{path}: {error.strerror}; make an image with `fleetd image build`") from None
        if self._image is None or self._image[0] != stamp:
            self._image = stamp, load_image(self.folder, tuple(self.keys))
        return self._image[1]

    def _proven(self, name: str, path: Path, size: int | None, digest: str | None) -> File:
        """Return a file that is what it must be; one that was proven before is read again only if it has changed."""
        known = self._open.get(name)
        try:
            if known and known[0] == _stamp(path.stat()) and digest in (None, known[1].digest):
                return known[1]
            self._open.pop(name, None)
            handle = Handle(path)
            before = handle.stamp()
            found = handle.digest()
            if handle.stamp() != before:
                raise FleetdError(f"{path}: is being written; it is served once it is whole")
        except OSError as error:
            raise FleetdError(f"{path}: {error.strerror}") from None
        if digest is not None and found != digest:
            short = f"{before[1]} bytes instead of {size}" if before[1] != size else f"SHA-256 {found[:12]}…"
            raise FleetdError(f"{path}: is not what the manifest says ({short}): build the image anew or put it back")
        file = File(handle, before[1], found)
        self._open[name] = before, file
        return file


def _stamp(stat: os.stat_result) -> Stamp:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
