"""Builds the image that machines without disks boot: Debian, the worker, a kernel, and the small system at the start.

Promises: the same recipe, packages and wheels give the same image, to the last byte, wherever, whenever and by whomever
it is built. Parts are named by their content and the manifest is written last: a node that boots meanwhile gets the old
image or the new one, never a mixture. A new worker takes a new app layer, not a new Debian.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleetd import __version__
from fleetd.boot.debian import Root, make_root
from fleetd.boot.initramfs import find_busybox, make_initramfs
from fleetd.boot.kernel import open_kernel
from fleetd.boot.layers import moved, squash
from fleetd.boot.manifest import PARTS, Image, Part, write_image
from fleetd.boot.program import make_program
from fleetd.boot.recipe import LOCK, Recipe, dump_lock
from fleetd.releases.faults import on_disk

KERNEL: Final = "linux-image-amd64"
SUFFIXES: Final = {"kernel": "", "initrd": ".img", "base": ".squashfs", "app": ".squashfs"}
SHOWN: Final = 12
# The last console is the one that init speaks on; a machine that panics starts anew instead of standing still.
ARGUMENTS: Final = ("console=tty0", "console=ttyS0,115200", "quiet", "loglevel=4", "printk.devkmsg=on", "panic=30")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to build. `processors` 0 is all; `relock` lists the packages of today instead of holding to the list."""

    out: Path
    wheels: Path
    key: Path | None = None
    mirrors: Sequence[str] = ()
    kernel: str = KERNEL
    arguments: Sequence[str] = ARGUMENTS
    relock: bool = False
    processors: int = 0


def build_image(recipe: Recipe, wanted: Wanted, say: Say) -> Image:
    """Build an image into a folder; raises FleetdError, and then what was there before is still whole."""
    with tempfile.TemporaryDirectory(prefix="fleetd-image-") as name, on_disk(name, "build"):
        room = Path(name)
        app, compiled = make_program(wanted.wheels, _room(room / "program"))
        if not compiled:
            say("the worker is not compiled, since this Python is not the nodes': they start seconds later")
        say("making the root file system")
        root = make_root(recipe, room / "debian", wanted.mirrors, wanted.kernel, relock=wanted.relock)
        say("packing the layers")
        made, kernel = _pack(recipe, _room(room / "parts"), root, app, wanted.processors)
        image = Image(__version__, kernel, _keep(made, wanted.out), tuple(wanted.arguments), root.used)
        write_image(wanted.out, image, wanted.key)
        if wanted.relock:
            (recipe.folder / LOCK).write_text(dump_lock(root.used), "utf-8")
            say(f"{recipe.folder / LOCK}: lists the {len(root.used)} packages of this build")
    return image


def _pack(recipe: Recipe, room: Path, root: Root, app: Path, processors: int) -> tuple[dict[str, Path], str]:
    """Make the parts, and tell the kernel's version."""
    made = {what: room / what for what in PARTS}
    assert root.kernel is not None
    kernel = open_kernel(root.kernel, _room(room / "unpacked"), recipe.modules)
    squash(root.tar, made["base"], recipe.left_out, processors)
    squash(app, made["app"], (), processors)
    made["kernel"].write_bytes(kernel.image)
    made["initrd"].write_bytes(make_initramfs(recipe, kernel, find_busybox(root.tar)))
    return made, kernel.version


def _keep(made: Mapping[str, Path], out: Path) -> dict[str, Part]:
    """Put the parts into the folder, each under the name of its content."""
    parts = {}
    for what, path in made.items():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        part = Part(f"{what}-{digest[:SHOWN]}{SUFFIXES[what]}", path.stat().st_size, digest)
        moved(path, out / part.name)
        parts[what] = part
    return parts


def _room(path: Path) -> Path:
    path.mkdir()
    return path
