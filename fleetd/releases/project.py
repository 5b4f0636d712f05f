"""What an app's pyproject.toml says, read without running anything."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.codecs.manifest import TARGET
from fleetd.releases.faults import BundleError, on_disk
from fleetd.releases.wheel import HEALTH, JOBS

FILE: Final = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class Project:
    """An app as it is described. `app` is the name that policies know it by: [tool.fleetd] app, or the project's."""

    app: str
    version: str
    requires_python: str
    jobs: dict[str, str]
    health: str


def read_project(folder: Path) -> Project | None:
    """Read the project of a folder; None where there is no pyproject.toml, or no [project] in it."""
    path = folder / FILE
    with on_disk(path, "read the project"):
        if not path.exists():
            return None
        body = path.read_bytes()
    try:
        whole = tomllib.loads(body.decode())
        project = whole.get("project")
        if project is None:
            return None
        points = project.get("entry-points", {})
        checks = _targets(points.get(HEALTH, {}), "health check", path)
        if len(checks) > 1:
            raise BundleError(f"{path}: {len(checks)} health checks; one function may call the others")
        return Project(
            app=str(whole.get("tool", {}).get("fleetd", {}).get("app", project["name"])),
            version=str(project.get("version", "")),
            requires_python=str(project.get("requires-python", "")),
            jobs=_targets(points.get(JOBS, {}), "job", path),
            health="".join(checks.values()),
        )
    except KeyError as error:
        raise BundleError(f"{path}: project: {error} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path}: {' '.join(str(error).split())}") from None


def _targets(table: Any, what: str, path: Path) -> dict[str, str]:
    for name, target in table.items():
        if not isinstance(target, str) or not TARGET.fullmatch(target):
            raise BundleError(f'{path}: {what} {name!r}: expected "module:function", got {target!r:.80}')
    return dict(table)
