"""The app: where its code is, which jobs it has, and what its content's digest is.

Promises: finding an app and hashing it runs none of its code, so the supervisor may; only `load` and `check` do. Every
fault is an `AppError` in one line, with the traceback apart where the app's own code raised.
"""

import hashlib
import importlib
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fleetd.codecs.manifest import load_manifest
from fleetd.errors import FleetdError, UsageError
from fleetd.worker.jobs import MARK, Job, declared, declared_health, make_job

GROUP: Final = "fleetd.jobs"
HEALTH_GROUP: Final = "fleetd.health"
MANIFEST: Final = "manifest.json"
# What an app's behaviour is written in. Data files are not code, and hashing them would read gigabytes at every start.
_CODE: Final = frozenset({".py", ".toml", ".lock", ".cfg", ".ini", ".json", ".yaml", ".yml", ".txt", ".sql", ".j2"})


class AppError(FleetdError):
    """The app cannot be served. `traceback` holds what its own code raised at import, if that is the reason."""

    exit_code = 2

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True, slots=True)
class App:
    """An app found on disk. `entries` maps job names to "module:function"; empty where `@job` tells at import.

    `health` is "module:function" of its health check; "" where `@health` tells, or where there is none.
    """

    name: str
    path: Path
    root: Path
    module: str
    entries: tuple[tuple[str, str], ...]
    digest: str
    health: str = ""


def find_app(path: Path) -> App:
    """Look at PATH without running anything; raises AppError. A staged release is told by its manifest."""
    path = path.absolute()
    if (path / MANIFEST).is_file():
        return _released(path)
    if path.is_file() and path.suffix == ".py":
        return App(path.stem, path, path.parent, path.stem, (), _digest(path))
    if not path.is_dir():
        what = "is not a Python file" if path.exists() else "does not exist"
        raise AppError(f"app {path}: {what}; give a folder with pyproject.toml or jobs.py, or one .py file")
    root = path / "src" if (path / "src").is_dir() else path
    name, entries, health = _project(path)
    if not entries and not (root / "jobs.py").is_file():
        raise AppError(f'app {path}: has neither a [project.entry-points."{GROUP}"] table nor a jobs.py')
    return App(name, path, root, "jobs", entries, _digest(path), health)


def _released(path: Path) -> App:
    """Take a staged release, named by its digest, as its manifest says: its content was verified when it came."""
    try:
        manifest = load_manifest((path / MANIFEST).read_bytes())
    except (OSError, FleetdError) as error:
        raise AppError(f"release {path}: {error}") from None
    if manifest.kind == "folder":
        return replace(find_app(path / "app"), name=manifest.app, digest=path.name)
    entries = tuple(sorted(manifest.jobs.items()))
    return App(manifest.app, path, path / "site", "jobs", entries, path.name, manifest.health)


def load(app: App) -> tuple[Job, ...]:
    """Import the app's code and return its jobs by name; raises AppError."""
    sys.path.insert(0, str(app.root))
    if not app.entries:
        _import(app, app.module)
        jobs = declared()
        if not jobs:
            raise AppError(f"app {app.path}: no function is decorated with @job")
        return jobs
    return tuple(_entry(app, name, target) for name, target in app.entries)


def health_check(app: App) -> Callable[[], Any] | None:
    """Return the health check of a loaded app; None where it has none. Raises AppError."""
    return _attribute(app, "the health check", app.health) if app.health else declared_health()


def check(app: App, healthy: Callable[[], Any]) -> None:
    """Run the health check; raises AppError with what it raised."""
    try:
        healthy()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the app's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise AppError(f"app {app.path}: its health check failed: {reason}", _trace(error)) from None


def _attribute(app: App, what: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    found: Any = _import(app, module)
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise AppError(f"app {app.path}: {what}: module {module!r} has no {attribute!r}")
    return found


def _entry(app: App, name: str, target: str) -> Job:
    found = _attribute(app, f"job {name!r}", target)
    marked = getattr(found, MARK, None)
    try:
        if isinstance(marked, Job):
            return make_job(name, found, marked.timeout_s, marked.attempts)
        return make_job(name, found)
    except UsageError as error:
        raise AppError(f"app {app.path}: {error}") from None


def _import(app: App, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except UsageError as error:
        raise AppError(f"app {app.path}: {error}") from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the app's own code may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise AppError(f"app {app.path}: cannot import {module!r}: {reason}", _trace(error)) from None


def _trace(error: BaseException) -> str:
    """The traceback without the frames of this file and of the import system: what is left is the author's."""
    here = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in here and "importlib._bootstrap" not in frame.filename
    ]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)]
    return "".join(lines + traceback.format_exception_only(error))


def _project(path: Path) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Read the name, the jobs and the health check from pyproject.toml, if there is one."""
    file = path / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
    except FileNotFoundError:
        return path.name, (), ""
    except (OSError, ValueError) as error:  # tomllib's and unicode's errors are ValueErrors
        raise AppError(f"app {file}: {error}") from None
    groups = project.get("entry-points", {}) if isinstance(project, dict) else {}
    jobs, checks = groups.get(GROUP, {}), groups.get(HEALTH_GROUP, {})
    for what, table in ("job", jobs), ("health check", checks):
        for name, target in table.items():
            module, colon, function = target.partition(":") if isinstance(target, str) else ("", "", "")
            if not (module and colon and function):
                raise AppError(f'app {file}: {what} {name!r}: expected "module:function", got {target!r}')
    if len(checks) > 1:
        raise AppError(f"app {file}: {len(checks)} health checks; one function may call the others")
    return str(project.get("name", path.name)), tuple(sorted(jobs.items())), next(iter(checks.values()), "")


def _digest(path: Path) -> str:
    """Return the SHA-256 of the code: each file's relative path and content, in order of the paths."""
    total = hashlib.sha256()
    root = path if path.is_dir() else path.parent
    for file in sorted(_code(path)) if path.is_dir() else [path]:
        name = file.relative_to(root).as_posix().encode()
        try:
            content = file.read_bytes()
        except OSError as error:
            raise AppError(f"app {file}: cannot be read: {error.strerror or error}") from None
        total.update(b"%d %s %d " % (len(name), name, len(content)))
        total.update(content)
    return total.hexdigest()


def _code(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        for name in files:
            if Path(name).suffix in _CODE and not name.startswith("."):
                yield Path(folder, name)
