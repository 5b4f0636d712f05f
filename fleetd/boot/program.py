"""The app layer: fleetd's worker and the packages that it needs, unpacked from wheels, without an installer.

Promises: a wheel is what the list beside it says (worker.txt, by SHA-256), where there is a list; nothing of a wheel is
run. The same wheels give the same tar: no time and no owner of the machine that built it.
"""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError, UsageError
from fleetd.releases import wheel, zips
from fleetd.releases.faults import on_disk

HOME: Final = "opt/fleetd"
PYTHON: Final = (3, 11)
MACHINE: Final = "x86_64"
LIST: Final = "worker.txt"
CLOCK: Final = 315532800
COMPILE_S: Final = 300.0
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_PACKAGE: Final = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
_SCRIPT: Final = re.compile(r"[^/]+\.data/scripts/([^/]+)")
_CONFIG: Final = "home = /usr/bin\ninclude-system-site-packages = false\nversion = {}.{}\n"


def make_program(wheels: Path, room: Path) -> tuple[Path, bool]:
    """Write the app layer's tar into a folder; returns it, and whether it holds bytecode."""
    tree = room / "tree"
    site = tree / HOME / "lib" / f"python{PYTHON[0]}.{PYTHON[1]}" / "site-packages"
    with on_disk(room, "build the app layer"):
        (tree / HOME / "bin").mkdir(parents=True)
        for path in chosen_wheels(wheels):
            plain = room / path.name
            wheel.repack(path, plain)  # without entries for folders, which many wheels have
            _unpack(plain, site, tree / HOME / "bin")
        (tree / HOME / "pyvenv.cfg").write_text(_CONFIG.format(*PYTHON), "utf-8")
        (tree / HOME / "bin" / "python").symlink_to(f"/usr/bin/python{PYTHON[0]}.{PYTHON[1]}")
        compiled = _compile(site, tree)
        out = room / "app.tar"
        _pack(tree, out)
    return out, compiled


def chosen_wheels(folder: Path) -> list[Path]:
    """Return the wheels to unpack: those of the list in the folder, by their hashes, or all where there is none."""
    found = sorted(folder.glob("*.whl"))
    listed = folder / LIST
    if listed.exists():
        text = listed.read_text("utf-8")
        hashes = set(_HASH.findall(text))
        found = [path for path in found if hashlib.sha256(path.read_bytes()).hexdigest() in hashes]
        for name in _PACKAGE.findall(text):
            if not any(_names(path) == _plain(name) for path in found):
                raise FleetdError(f"{listed}: {name}: no wheel with the SHA-256 that is listed; fetch the wheels anew")
    if not any(_names(path) == "fleetd" for path in found):
        raise UsageError(
            f"{folder}: has no wheel of fleetd; in a checkout run: python -m scripts.wheels {folder}; "
            f"elsewhere: pip download 'fleetd[releases]' -d {folder}"
        )
    return found


def _unpack(path: Path, site: Path, scripts: Path) -> None:
    wheel.check_tag(path.name, PYTHON, MACHINE, str(path))
    with path.open("rb") as file:
        wheel.unpack(file, site, str(path))
    with zips.opened(path, str(path)) as archive:
        for name in archive.namelist():
            if script := _SCRIPT.fullmatch(name):
                wheel.extract(archive, name, scripts / script[1], str(path))


def _compile(site: Path, tree: Path) -> bool:
    """Compile the bytecode, which only the same Python can; without it a node starts some seconds later."""
    if sys.version_info[:2] != PYTHON:
        return False
    command = [sys.executable, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(tree), "-p", "/", str(site)]
    environ = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environ, capture_output=True, timeout=COMPILE_S, check=False)
    return done.returncode == 0


def _pack(tree: Path, out: Path) -> None:
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as packed:
        for path in _walk(tree):
            member = packed.gettarinfo(path, path.relative_to(tree).as_posix())
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime = CLOCK
            member.mode = 0o755 if path.is_dir() or path.parent == tree / HOME / "bin" else 0o644
            member.type = tarfile.REGTYPE if member.islnk() else member.type
            if member.isreg():
                member.size = path.stat().st_size
                with path.open("rb") as file:
                    packed.addfile(member, file)
            else:
                packed.addfile(member)


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _names(path: Path) -> str:
    return _plain(path.name.partition("-")[0])


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
