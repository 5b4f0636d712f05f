"""A root file system of Debian, made by mmdebstrap from a recipe; containers and nodes are made of it.

Promises: packages come from the mirrors that this machine's apt knows, or that were named, and apt checks their
signatures; each is then held against the recipe's list of hashes, before anything is made of it. The same packages give
the same bytes: nothing of the hour, the place or the person that built is in them.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleetd.boot.recipe import LOCK, Recipe
from fleetd.errors import FleetdError, UsageError
from fleetd.releases.faults import on_disk

SUITE: Final = "bookworm"
ARCHITECTURE: Final = "amd64"
CLOCK: Final = "315532800"  # 1980, as in releases: the time of everything that is built
LIMIT_S: Final = 1800.0
_ASK_APT: Final = ("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)")
# Hooks see the new root as $1. Packages are kept between builds: apt takes one from there only if its hash is right.
_BEFORE: Final = 'mkdir -p "$1/var/cache/apt/archives" && cp "$FLEETD_CACHE"/*.deb "$1/var/cache/apt/archives/" || true'
# Merged from the start: usrmerge, which does it afterwards and is taken by default, would bring all of perl.
_MERGED: Final = """\
for folder in bin sbin lib lib64; do mkdir -p "$1/usr/$folder" && ln -s "usr/$folder" "$1/$folder"; done
mkdir -p "$1/etc/apt/preferences.d" &&
printf 'Package: usrmerge\\nPin: release *\\nPin-Priority: -1\\n' > "$1/etc/apt/preferences.d/merged\""""
_AFTER: Final = 'cp "$1"/var/cache/apt/archives/*.deb "$FLEETD_DEBS/"'
_KERNEL: Final = """\
cd "$FLEETD_DEBS" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" &&
kernel=$(apt-cache depends "$FLEETD_KERNEL" | sed -n 's/.*Depends: \\(linux-image-\\)/\\1/p' | head -n 1) &&
apt-get -qq -o APT::Sandbox::User=root download "$kernel"; : "$1\""""
_PASSED_ON: Final = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy")
Locked = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Root:
    """A root file system as a tar; the kernel's package, where one was asked for; the hash of all that was used."""

    tar: Path
    kernel: Path | None
    used: Locked


def make_root(
    recipe: Recipe, room: Path, mirrors: Sequence[str] = (), kernel: str = "", *, relock: bool = False
) -> Root:
    """Make the root file system in an empty folder; `relock` takes whatever packages the mirrors have today."""
    debs, tar = room / "debs", room / "root.tar"
    cache = _cache()
    with on_disk(room, "build"):
        debs.mkdir(parents=True)
        cache.mkdir(parents=True, exist_ok=True)
    _run(_command(recipe, tar, mirrors or machines_mirrors(), kernel), debs, cache, kernel)
    used = {name: _hash(debs / name) for name in _installed(tar)}
    image = _kernel_of(debs) if kernel else None
    if image is not None:
        used[image.name] = _hash(image)
    if not relock:
        check_used(used, recipe.lock, recipe.folder / LOCK)
    _keep(debs, used, cache)
    return Root(tar, image, used)


def machines_mirrors() -> tuple[str, ...]:
    """Return the Debian mirrors that apt on this machine uses, as lines of a sources.list."""
    try:
        said = subprocess.run([*_ASK_APT, "Identifier: Packages"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"apt-get cannot be asked for its mirrors ({error}); name one: --mirror") from None
    lines = [line.split() for line in said.decode(errors="replace").splitlines()]
    found = [f"deb {row[1]} {row[2]} {row[3]}" for row in lines if len(row) == 4 and row[0] == "Debian"]
    mine = tuple(dict.fromkeys(line for line in found if line.split()[2].partition("-")[0] == SUITE))
    if not mine:
        raise UsageError(f"apt knows no mirror of Debian {SUITE}; name one: --mirror 'deb URL {SUITE} main'")
    return mine


def check_used(used: Locked, lock: Locked, place: Path) -> None:
    """Refuse packages that are not in the list, or are there with another hash."""
    for name in sorted(used):
        if lock.get(name) == used[name]:
            continue
        known = next((other for other in lock if other.split("_")[0] == name.split("_")[0]), None)
        was = "is not in the list" if known is None else f"is in the list as {known}, or with another hash"
        raise FleetdError(
            f"{place}: {name} {was}; build from a mirror of that day (--mirror), or take today's packages: --relock"
        )


def _command(recipe: Recipe, tar: Path, mirrors: Sequence[str], kernel: str) -> list[str]:
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--architectures={ARCHITECTURE}", "--format=tar"]
    command += [f"--include={','.join(recipe.packages)}", "--skip=essential/unlink,download/empty"]
    hooks = [
        _AFTER,
        *([_KERNEL] if kernel else []),
        *(f'{shlex.quote(str(hook.absolute()))} "$1"' for hook in recipe.hooks),
    ]
    command += [f"--setup-hook={_BEFORE}", f"--setup-hook={_MERGED}", *(f"--customize-hook={hook}" for hook in hooks)]
    return [*command, SUITE, str(tar), *mirrors]


def _run(command: list[str], debs: Path, cache: Path, kernel: str) -> None:
    around = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    told = {"FLEETD_DEBS": str(debs), "FLEETD_CACHE": str(cache), "FLEETD_KERNEL": kernel, "SOURCE_DATE_EPOCH": CLOCK}
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]} is missing; run scripts/need {command[0]}, or: apt-get install {command[0]}")
    try:
        done = subprocess.run(
            command, env=around | told, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise FleetdError(f"{command[0]} took longer than {LIMIT_S:.0f} s; does the mirror answer?") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        errors = [line for line in said if line.startswith(("E:", "Err:", "W:"))] or said
        raise FleetdError(f"{command[0]} failed: {' '.join(errors[:3])[:400] or done.returncode}")


def _installed(tar: Path) -> list[str]:
    """Return the files that the installed packages came in, as apt names them."""
    with tarfile.open(tar) as archive:
        status = archive.extractfile("./var/lib/dpkg/status")
        text = status.read().decode() if status else ""
    names = []
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
        if fields:
            version = fields["Version"].replace(":", "%3a")
            names.append(f"{fields['Package']}_{version}_{fields['Architecture']}.deb")
    return names


def _kernel_of(debs: Path) -> Path:
    found = sorted(debs.glob("linux-image-*.deb"))
    if len(found) != 1:
        raise FleetdError(f"{debs}: {len(found)} kernels were fetched, and one was wanted; see --kernel")
    return found[0]


def _hash(path: Path) -> str:
    with on_disk(path, "read the package"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fleetd" / "debs"


def _keep(debs: Path, used: Locked, cache: Path) -> None:
    with on_disk(cache, "keep packages"):
        for name in used:
            if not (cache / name).exists():
                shutil.copyfile(debs / name, debs / f"{name}.new")
                shutil.move(debs / f"{name}.new", cache / name)
