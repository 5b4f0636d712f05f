"""Layers of a node's root file system: a tar, less what no node needs, as squashfs.

Promises: the same tar gives the same bytes, however many processors squash it and whoever does: owners
and modes are those in the tar, and time stands still. A file takes its place in one step.
"""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Final

from fleetd.errors import FleetdError, UsageError
from fleetd.releases.faults import on_disk

LIMIT_S: Final = 900.0
CLOCK: Final = "315532800"  # 1980, the time of everything that is built
_SQUASH: Final = (
    *("-tar", "-comp", "zstd", "-Xcompression-level", "19", "-b", "128K", "-noappend", "-no-xattrs", "-quiet"),
    # A tar tells nothing of the root folder itself: it would be the builder's, and of this very second.
    *("-no-progress", "-root-uid", "0", "-root-gid", "0", "-root-mode", "0755"),
    *("-mkfs-time", CLOCK, "-all-time", CLOCK),
)


def squash(tar: Path, out: Path, left_out: Sequence[str] = (), processors: int = 0) -> None:
    """Write what is in a tar, less what `left_out` names, as a squashfs; by default with every processor."""
    if shutil.which("mksquashfs") is None:
        raise UsageError("mksquashfs is missing; run scripts/need mksquashfs, or: apt-get install squashfs-tools")
    out.unlink(missing_ok=True)
    # Its file begins with the numbers of its owners, and the builder's is one of them: be root, if only by name.
    alone = ["unshare", "--map-root-user"] if os.geteuid() else []
    command = [*alone, "mksquashfs", "-", str(out), *_SQUASH, *(["-processors", str(processors)] if processors else [])]
    said_path = out.with_name(f"{out.name}.said")
    with on_disk(out, "write the layer"), said_path.open("w+b") as said, tarfile.open(tar) as whole:
        squasher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        try:
            assert squasher.stdin is not None
            with squasher.stdin as pipe:
                _copy(whole, pipe, left_out)
            squasher.wait(LIMIT_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass  # it ended too early, or does not end: its own word tells why
        finally:
            squasher.kill()
            squasher.wait()
        said.seek(0)
        reason = said.read().decode(errors="replace").strip()[:300]
    said_path.unlink()
    if squasher.returncode:
        raise FleetdError(f"{out}: mksquashfs ended with {squasher.returncode}: {reason}")


def _copy(whole: tarfile.TarFile, pipe: IO[bytes], left_out: Sequence[str]) -> None:
    with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT) as kept:
        for member in whole:
            name = member.name.removeprefix("./")
            if name in ("", ".") or is_left_out(name, left_out):
                continue
            kept.addfile(member, whole.extractfile(member) if member.isreg() else None)


def is_left_out(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or a folder that it is in, is named by one of the patterns."""
    parts = name.split("/")
    paths = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(fnmatchcase(path, pattern) for path in paths for pattern in patterns)


def moved(source: Path, to: Path) -> None:
    """Put a file in its place in one step, from another file system, too."""
    with on_disk(to, "write the file"):
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f".{to.name}.new")
        shutil.copyfile(source, beside)
        beside.replace(to)
