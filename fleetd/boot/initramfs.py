"""The small system that a node starts with: busybox, kernel modules and an init, as an archive that the kernel unpacks.

Promises: written in plain Python, without root and without the distribution's tools; the same inputs give the same
bytes. What a single machine alone may know is not in here, but in a second archive that the boot service makes.
"""

import lzma
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from fleetd.boot.kernel import Kernel
from fleetd.boot.recipe import Recipe
from fleetd.codecs.cpio import ALIGN, Entry, device, file, folder, pack
from fleetd.errors import FleetdError

BUSYBOX: Final = "./usr/bin/busybox"
PROGRAM: Final = 0o755


def make_initramfs(recipe: Recipe, kernel: Kernel, busybox: bytes) -> bytes:
    """Return the archive, packed with xz as the kernel unpacks it."""
    return packed(pack(_entries(recipe, kernel, busybox)))


def packed(archive: bytes) -> bytes:
    """Pack an archive; the kernel's own xz knows no other check than CRC32, and zeros may follow up to a multiple."""
    made = lzma.compress(archive, check=lzma.CHECK_CRC32, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])
    return made + bytes(-len(made) % ALIGN)


def find_busybox(tar: Path) -> bytes:
    """Return busybox out of a root file system."""
    with tarfile.open(tar) as whole:
        try:
            found = whole.extractfile(BUSYBOX)
        except KeyError:
            found = None
        if found is None:
            raise FleetdError(f"{tar}: has no {BUSYBOX[2:]}; the recipe's packages must have busybox-static")
        return found.read()


def _entries(recipe: Recipe, kernel: Kernel, busybox: bytes) -> Iterator[Entry]:
    yield from _tree(_files(recipe, kernel, busybox))
    yield folder("dev")
    # Before anything is mounted the kernel opens the first for init, and init may speak to the second.
    yield device("dev/console", 5, 1)
    yield device("dev/null", 1, 3, 0o666)


def _files(recipe: Recipe, kernel: Kernel, busybox: bytes) -> dict[str, tuple[bytes, int]]:
    modules = f"lib/modules/{kernel.version}"
    found = {f"{modules}/{name}.ko": (module.data, 0o644) for name, module in kernel.modules.items()}
    found[f"{modules}/modules.dep"] = (kernel.dependencies().encode(), 0o644)
    found[f"{modules}/modules.alias"] = (kernel.aliases().encode(), 0o644)
    found["bin/busybox"] = (busybox, PROGRAM)
    found["init"] = (recipe.programs["init"], PROGRAM)
    found["etc/dhcp"] = (recipe.programs["dhcp"], PROGRAM)
    return found | {name: (data, 0o644) for name, data in recipe.files.items()}


def _tree(files: Mapping[str, tuple[bytes, int]]) -> Iterator[Entry]:
    """Yield the files in the order of their names, each folder once and before what is in it."""
    made: set[str] = set()
    for name in sorted(files):
        for parent in reversed(PurePosixPath(name).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                yield folder(str(parent))
        yield file(name, *files[name])
