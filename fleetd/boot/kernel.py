"""A kernel and those of its modules that the small system at the start needs, out of Debian's package.

Promises: a module comes with all that it depends on, read from the modules themselves (`.modinfo`), so that neither
depmod nor root is needed; what a pattern does not find is one line.
"""

import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError, UsageError

UNPACK_S: Final = 300.0
_SECTION: Final = struct.Struct("<IIQQQQ")  # of an ELF section: name, type, flags, address, offset, size


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module: what it needs loaded before it, and which hardware it is for."""

    name: str
    data: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel with some of its modules, in no particular order."""

    version: str
    image: bytes
    modules: Mapping[str, Module]

    def dependencies(self) -> str:
        """Return the modules.dep: each module's file, then all that it needs, the deepest last."""
        lines = (
            " ".join([f"{name}.ko:", *(f"{need}.ko" for need in self._all(name))]) for name in sorted(self.modules)
        )
        return "".join(f"{line}\n" for line in lines)

    def aliases(self) -> str:
        """Return the modules.alias: which module is for which hardware."""
        return "".join(
            f"alias {alias} {name}\n" for name in sorted(self.modules) for alias in self.modules[name].aliases
        )

    def _all(self, name: str) -> list[str]:
        found: dict[str, None] = {}
        for need in self.modules[name].needs:
            for deeper in (need, *self._all(need)):
                found.pop(deeper, None)  # what is needed by more comes later
                found[deeper] = None
        return list(found)


def open_kernel(package: Path, room: Path, patterns: Sequence[str]) -> Kernel:
    """Unpack the package into an empty folder and choose modules by the patterns of their names."""
    try:
        subprocess.run(["dpkg-deb", "-x", str(package), str(room)], check=True, capture_output=True, timeout=UNPACK_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise FleetdError(f"{package}: cannot be unpacked: {error}") from None
    images = sorted((room / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise FleetdError(f"{package}: has {len(images)} kernels in boot/, and one was expected")
    version = images[0].name.removeprefix("vmlinuz-")
    files = {_plain(path.stem): path for path in sorted((room / "lib/modules" / version / "kernel").rglob("*.ko"))}
    return Kernel(version, images[0].read_bytes(), dict(_chosen(files, patterns, package)))


def _chosen(files: Mapping[str, Path], patterns: Sequence[str], package: Path) -> Iterator[tuple[str, Module]]:
    built_in = _built_in(files)
    waiting = []
    for pattern in patterns:
        found = [name for name in files if fnmatchcase(name, _plain(pattern))]
        if not found and _plain(pattern) not in built_in:
            raise UsageError(f"modules: {pattern}: {package.name} has no such module")
        waiting += found
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        module = read_module(name, files[name].read_bytes(), files)
        waiting += module.needs
        yield name, module


def _built_in(files: Mapping[str, Path]) -> frozenset[str]:
    """Return the modules that are part of the kernel itself: asked for, they are there already."""
    some = next(iter(files.values()), None)
    top = next((folder for folder in some.parents if folder.name == "kernel"), None) if some else None
    listed = top.parent / "modules.builtin" if top else None
    if listed is None or not listed.exists():
        return frozenset()
    return frozenset(_plain(Path(line).stem) for line in listed.read_text("ascii").split())


def read_module(name: str, data: bytes, known: Iterable[str]) -> Module:
    """Read a module's own word on what it needs; what is wished for (softdep) counts where it is `known`."""
    told = [entry.partition("=") for entry in _modinfo(name, data).decode("utf-8", "replace").split("\0") if entry]
    needs = [_plain(need) for key, _, text in told if key == "depends" for need in text.split(",") if need]
    softly = [text.partition("pre:")[2].partition("post:")[0] for key, _, text in told if key == "softdep"]
    wished = [_plain(need) for text in softly for need in text.split()]
    needs += [need for need in wished if need in known and need not in needs and need != name]
    return Module(name, data, tuple(needs), tuple(text for key, _, text in told if key == "alias"))


def _modinfo(name: str, data: bytes) -> bytes:
    """Return the section .modinfo of an ELF file of 64 bits."""
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("it is no ELF of 64 bits")  # noqa: TRY301
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        sections = [_SECTION.unpack_from(data, table + size * index) for index in range(count)]
        strings = sections[names][4]
        for at, _, _, _, offset, length in sections:
            if data[strings + at : strings + at + 9] == b".modinfo\0":
                return data[offset : offset + length]
    except (struct.error, IndexError, ValueError) as error:
        raise FleetdError(f"module {name}: cannot be read: {error}") from None
    raise FleetdError(f"module {name}: has no .modinfo")


def _plain(name: str) -> str:
    """Names of modules are written with - or _, and mean the same."""
    return name.replace("-", "_")
