"""The recipe of the node image, a folder: which packages, which hashes they have, what is left out.

    packages        names, one a line; essential packages come by themselves
    packages.lock   SHA-256 and file of each package that may be used, as sha256sum writes and checks them
    left-out        paths in the root file system that no node needs, as shell patterns
    modules         kernel modules that the small system at the start may need, as shell patterns
    init, dhcp      the small system's programs
    hooks/          programs run on the root file system, in order of their names, before it is packed
    initramfs/      files that the small system has, too: lib/firmware/… for a card that needs it; may be missing

Promises: a missing or wrong file is one line with its place. `#` begins a comment in all but programs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import fleetd
from fleetd.errors import UsageError
from fleetd.releases.faults import on_disk

LOCK: Final = "packages.lock"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_LOCKED: Final = re.compile(r"([0-9a-f]{64})  ([a-z0-9+.-]+_[A-Za-z0-9+.~%-]+_[a-z0-9]+\.deb)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe as it was read. `lock` tells the SHA-256 of each package's file; empty where none are listed yet."""

    folder: Path
    packages: tuple[str, ...]
    lock: Mapping[str, str]
    left_out: tuple[str, ...]
    modules: tuple[str, ...]
    hooks: tuple[Path, ...]
    programs: Mapping[str, bytes]
    files: Mapping[str, bytes]


def default_folder() -> Path:
    """Return where the recipe is: packed with fleetd, or beside it in a checkout."""
    package = Path(fleetd.__file__).parent
    packed = package / "boot" / "recipe"
    return packed if packed.exists() else package.parent / "pxe"


def read_recipe(folder: Path) -> Recipe:
    """Read a recipe; raises UsageError for what is missing or wrong."""
    packages = tuple(_lines(folder / "packages"))
    for name in packages:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{folder / 'packages'}: {name!r:.80} is no name of a package")
    with on_disk(folder, "read the recipe"):
        hooks = tuple(sorted(path for path in (folder / "hooks").glob("*") if path.is_file()))
        return Recipe(
            folder=folder,
            packages=packages,
            lock=read_lock(folder / LOCK),
            left_out=tuple(_lines(folder / "left-out")),
            modules=tuple(_lines(folder / "modules")),
            hooks=hooks,
            programs={name: _bytes(folder / name) for name in ("init", "dhcp")},
            files=dict(_files(folder / "initramfs")),
        )


def read_lock(path: Path) -> dict[str, str]:
    """Read a list of hashes by file; one that is not there is empty."""
    if not path.exists():
        return {}
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        match = _LOCKED.fullmatch(line)
        if match is None:
            raise UsageError(f"{path}:{number}: expected a SHA-256, two spaces and NAME_VERSION_ARCHITECTURE.deb")
        found[match[2]] = match[1]
    return found


def dump_lock(hashes: Mapping[str, str]) -> str:
    """Return a list of hashes as `sha256sum -c` reads it, too."""
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: is missing; a recipe is a folder as pxe in fleetd's sources") from None


def _lines(path: Path) -> Iterator[str]:
    for line in _bytes(path).decode("utf-8", "replace").splitlines():
        if text := line.partition("#")[0].strip():
            yield text
