"""What uv.lock says of a project: whether it needs packages at all, and whether they can be had elsewhere.

fleetd itself is left out: the worker brings it, in its own version.
"""

import tomllib
from collections.abc import Iterator
from typing import Any, Final

from fleetd.releases.faults import BundleError

OURSELVES: Final = "fleetd"
_HERE: Final = "."
_LOCAL: Final = ("path", "directory", "editable", "virtual")


def packages(lock: bytes, place: str) -> list[dict[str, Any]]:
    """Return the packages that the project depends on, without itself, fleetd, and what only development needs."""
    try:
        found = tomllib.loads(lock.decode()).get("package", [])
        known: dict[str, list[dict[str, Any]]] = {}
        for package in found:
            known.setdefault(package["name"], []).append(package)
        roots = [package for package in found if _HERE in _sources(package)]
        return [one for one in _reached(roots, known) if one not in roots and one["name"] != OURSELVES]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BundleError(f"{place}: cannot be read: {error!r:.120}") from None


def check_sources(lock: bytes, place: str) -> None:
    """Refuse a lock with packages that are only on this machine."""
    for package in packages(lock, place):
        registry = str(package["source"].get("registry", "https://"))
        if _sources(package) or "://" not in registry or registry.startswith("file:"):
            raise BundleError(f"{place}: {package['name']} is in a folder of this machine, which no other node has")


def _sources(package: dict[str, Any]) -> list[str]:
    return [str(package["source"][kind]) for kind in _LOCAL if kind in package["source"]]


def _reached(roots: list[dict[str, Any]], known: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yield packages from the roots on, whatever their markers: which of them a node needs is known there."""
    ahead: list[tuple[dict[str, Any], str]] = [(package, "") for package in roots]
    seen: set[tuple[int, str]] = set()
    while ahead:
        package, extra = ahead.pop()
        if (id(package), extra) in seen:
            continue
        if not any(one == id(package) for one, _ in seen):
            yield package
        seen.add((id(package), extra))
        wants = package.get("optional-dependencies", {}).get(extra, []) if extra else package.get("dependencies", [])
        for want in wants:
            for found in known.get(want["name"], []):
                ahead.append((found, ""))
                ahead += [(found, name) for name in want.get("extra", [])]
