"""Removes from a node's cache what is not needed any more.

Promises: nothing that is kept, held, or just being staged is touched; what goes is renamed first, so that nothing that
is half removed is ever taken for a release.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fleetd.codecs.manifest import DIGEST, Manifest, load_manifest
from fleetd.errors import FleetdError
from fleetd.releases.bundle import MANIFEST
from fleetd.releases.disk import LOCKS, SCRATCH, locked, sweep
from fleetd.releases.environment import ENVS
from fleetd.releases.faults import on_disk

RELEASES: Final = "releases"


def clean(cache: Path, keep: set[str], last: int) -> list[str]:
    """Remove all releases but those to keep, those held, and the `last` ones used of each app; return their digests."""
    removed: list[str] = []
    seen: dict[str, int] = {}
    with on_disk(cache, "clean the cache"):
        for path in sorted(_releases(cache), key=lambda path: path.stat().st_mtime, reverse=True):
            manifest = _manifest(path)
            app = manifest.app if manifest else ""
            seen[app] = seen.get(app, 0) + 1
            if path.name not in keep and seen[app] > last and _remove(cache, path):
                removed.append(path.name)
        _environments(cache)
        _leftovers(cache)
    return removed


@contextmanager
def unheld(release: Path) -> Iterator[bool]:
    """Tell whether nobody holds a release, and let nobody begin to meanwhile."""
    handle = os.open(release, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def _releases(cache: Path) -> list[Path]:
    folder = cache / RELEASES
    return [path for path in folder.iterdir() if DIGEST.fullmatch(path.name)] if folder.is_dir() else []


def _manifest(release: Path) -> Manifest | None:
    try:
        return load_manifest((release / MANIFEST).read_bytes())
    except (OSError, FleetdError):
        return None


def _remove(cache: Path, release: Path) -> bool:
    with locked(cache / LOCKS / release.name, wait=False) as mine:
        if not mine:
            return False
        with unheld(release) as free:
            if free:
                release.rename(release.with_name(f"{SCRATCH}{release.name}-gone"))
        sweep(release.parent, release.name)
        return free


def _environments(cache: Path) -> None:
    """Remove the environments that no release here needs, of whichever Python."""
    needed = {manifest.lock for path in _releases(cache) if (manifest := _manifest(path))}
    for path in (cache / ENVS).glob("[0-9a-f]*-cp*"):
        if path.name.partition("-")[0] in needed:
            continue
        with locked(cache / LOCKS / path.name, wait=False) as mine:
            if mine:
                path.rename(path.with_name(f"{SCRATCH}{path.name}-gone"))
                sweep(path.parent, path.name)


def _leftovers(cache: Path) -> None:
    """Remove what killed processes left of releases and environments that nobody staged again."""
    for path in [*(cache / RELEASES).glob(f"{SCRATCH}*"), *(cache / ENVS).glob(f"{SCRATCH}*")]:
        name = path.name.removeprefix(SCRATCH).rpartition("-")[0]
        with locked(cache / LOCKS / name, wait=False) as mine:
            if mine:
                sweep(path.parent, name)
