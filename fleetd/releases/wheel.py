"""The wheel in a release: packed anew so that only its content counts, read for its jobs, unpacked to be imported.

Promises: nothing in a wheel is run or imported here. What an installer would put into a site folder is unpacked there;
scripts, headers and data files outside of it are not: a worker imports modules, it has no use for those.
"""

import re
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from typing import Any, BinaryIO, Final

from fleetd.codecs.manifest import TARGET
from fleetd.releases import zips
from fleetd.releases.faults import BundleError

JOBS: Final = "fleetd.jobs"
HEALTH: Final = "fleetd.health"
_DATA: Final = re.compile(r"[^/]+\.data/([^/]+)/(.+)")
_SITE: Final = ("purelib", "platlib")


@dataclass(frozen=True, slots=True)
class Described:
    """What a wheel says of itself."""

    name: str
    version: str
    requires_python: str
    jobs: dict[str, str]
    health: str


class _About(Distribution):
    """A wheel's metadata, read from the zip as it is."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive, self._folder = archive, folder

    def read_text(self, filename: str) -> str | None:
        """Return a file of the .dist-info folder."""
        try:
            return self._archive.read(f"{self._folder}/{filename}").decode()
        except KeyError:
            return None

    def locate_file(self, path: Any) -> Any:
        """Nothing is installed, so nothing is anywhere."""
        raise FileNotFoundError(path)


def repack(source: Path, out: Path) -> None:
    """Write a wheel anew: sorted, one time, one mode, and not compressed, since another zlib gives other bytes."""
    with zips.opened(source, source.name, folders=True) as archive, zipfile.ZipFile(out, "w") as packed:
        for name in sorted(name for name in archive.namelist() if not name.endswith("/")):
            with archive.open(name) as inside, packed.open(zips.entry(name, packed=False), "w") as file:
                shutil.copyfileobj(inside, file, zips.CHUNK)


def describe(path: Path) -> Described:
    """Read a wheel's metadata and entry points; raises BundleError for jobs that cannot be."""
    place = path.name
    with zips.opened(path, place) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
        infos = [folder for folder in folders if folder.endswith(".dist-info")]
        if len(infos) != 1:
            raise BundleError(f"{place}: has {len(infos)} .dist-info folders: this is no wheel")
        about = _About(archive, infos[0])
        points = about.entry_points
        jobs = {point.name: _target(point, "job", place) for point in points.select(group=JOBS)}
        checks = [_target(point, "health check", place) for point in points.select(group=HEALTH)]
        if len(checks) > 1:
            raise BundleError(f"{place}: {len(checks)} health checks; one function may call the others")
        if not jobs:
            raise BundleError(f'{place}: has no job: [project.entry-points."{JOBS}"] of pyproject.toml names them')
        check_targets(jobs, "".join(checks), layout(archive, place).values(), place)
        requires = str(about.metadata.json.get("requires_python", ""))
        return Described(about.name, about.version, requires, jobs, "".join(checks))


def _target(point: EntryPoint, what: str, place: str) -> str:
    target = point.value.partition("[")[0].replace(" ", "")
    if not TARGET.fullmatch(target):
        raise BundleError(f'{place}: {what} {point.name!r}: expected "module:function", got {point.value!r:.80}')
    return target


def check_targets(jobs: Mapping[str, str], health: str, names: Iterable[str], place: str) -> None:
    """Refuse a job or health check whose module is not in the wheel."""
    modules = {_module(name) for name in names}
    told = {f"job {name!r:.80}": target for name, target in jobs.items()} | {"the health check": health}
    for what, target in told.items():
        module = target.partition(":")[0]
        if module and module not in modules:
            raise BundleError(f"{place}: {what} is in module {module!r:.80}, which is not in the wheel")


def _module(name: str) -> str:
    """Return the dotted name of the module in a file; "" for what is none."""
    if name.endswith(".py"):
        name = name.removesuffix(".py").removesuffix("/__init__")
    elif name.endswith(".so"):
        folder, slash, file = name.rpartition("/")
        name = folder + slash + file.partition(".")[0]
    else:
        return ""
    return name.replace("/", ".")


def layout(archive: zipfile.ZipFile, place: str) -> dict[str, str]:
    """Return where each file of the wheel belongs in the site folder, by its name in the wheel."""
    places: dict[str, str] = {}
    for name in archive.namelist():
        data = _DATA.fullmatch(name)
        if data is None:
            places[name] = name
        elif data[1] in _SITE:
            places[name] = data[2]
    zips.check_names(places.values(), place)
    return places


def unpack(file: BinaryIO, into: Path, place: str) -> None:
    """Unpack a wheel for import into a folder that is not there yet."""
    with zips.opened(file, place) as archive:
        for name, target in layout(archive, place).items():
            extract(archive, name, into / target, place)


def extract(archive: zipfile.ZipFile, name: str, to: Path, place: str) -> None:
    """Write one file of a zip to its place, which must be new."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("xb") as out:
        for data in zips.chunks(archive, name, place):
            out.write(data)


def check_tag(name: str, version: tuple[int, int], machine: str, place: str) -> None:
    """Refuse a wheel with compiled parts for another Python or another machine."""
    parts = name.removesuffix(".whl").split("-")
    if len(parts) < 5:
        raise BundleError(f"{place}: {name!r:.120} is no name of a wheel")
    interpreters, abis, platforms = (part.split(".") for part in parts[-3:])
    mine = f"cp{version[0]}{version[1]}"
    plain = {mine, f"py{version[0]}", f"py{version[0]}{version[1]}"}
    python = bool(plain & set(interpreters)) or "abi3" in abis
    abi = bool({mine, "abi3", "none"} & set(abis))
    if not (python and abi and any(tag == "any" or tag.endswith(machine) for tag in platforms)):
        raise BundleError(f"{place}: {name} is for another Python or machine than {mine} on {machine}")
