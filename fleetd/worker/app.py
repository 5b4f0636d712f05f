"""The app: where its code is, which jobs it has, and what its content's digest is.

Promises: finding an app and hashing it runs none of its code, so the supervisor may; only `load` imports it. Every
fault is an `AppError` in one line, with the traceback apart where the app's own code raised.
"""

import hashlib
import importlib
import os
import sys
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.errors import FleetdError, UsageError
from fleetd.worker.jobs import MARK, Job, declared, make_job

GROUP: Final = "fleetd.jobs"
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
    """An app found on disk. `entries` maps job names to "module:function"; empty where `@job` tells at import."""

    name: str
    path: Path
    root: Path
    module: str
    entries: tuple[tuple[str, str], ...]
    digest: str


def find_app(path: Path) -> App:
    """Look at PATH without running anything; raises AppError."""
    path = path.absolute()
    if path.is_file() and path.suffix == ".py":
        return App(path.stem, path, path.parent, path.stem, (), _digest(path))
    if not path.is_dir():
        what = "is not a Python file" if path.exists() else "does not exist"
        raise AppError(f"app {path}: {what}; give a folder with pyproject.toml or jobs.py, or one .py file")
    root = path / "src" if (path / "src").is_dir() else path
    name, entries = _project(path)
    if not entries and not (root / "jobs.py").is_file():
        raise AppError(f'app {path}: has neither a [project.entry-points."{GROUP}"] table nor a jobs.py')
    return App(name, path, root, "jobs", entries, _digest(path))


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


def _entry(app: App, name: str, target: str) -> Job:
    module, _, attribute = target.partition(":")
    found: Any = _import(app, module)
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise AppError(f"app {app.path}: job {name!r}: module {module!r} has no {attribute!r}")
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


def _project(path: Path) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Read the name and the jobs from pyproject.toml, if there is one."""
    file = path / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
    except FileNotFoundError:
        return path.name, ()
    except (OSError, ValueError) as error:  # tomllib's and unicode's errors are ValueErrors
        raise AppError(f"app {file}: {error}") from None
    table = project.get("entry-points", {}).get(GROUP, {}) if isinstance(project, dict) else {}
    for name, target in table.items():
        module, colon, function = target.partition(":") if isinstance(target, str) else ("", "", "")
        if not (module and colon and function):
            raise AppError(f'app {file}: job {name!r}: expected "module:function", got {target!r}')
    return str(project.get("name", path.name)), tuple(sorted(table.items()))


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
