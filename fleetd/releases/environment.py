"""The third-party packages of a release: one environment for each uv.lock, made by uv, kept and used again.

Promises: an environment is whole or not there: it is made under a name of its own and renamed, which a relocatable one
allows. Its files are hard links into uv's own cache beside it, so that two environments share what they have in common.
"""

import os
from pathlib import Path
from typing import Final

from fleetd.releases.bundle import LOCK
from fleetd.releases.disk import LOCKS, locked, put_in_place, scratch
from fleetd.releases.lock import OURSELVES, packages
from fleetd.releases.python import Python
from fleetd.releases.uv import run_uv

ENVS: Final = "envs"
UV_CACHE: Final = "uv"


def interpreter_of(release: Path, cache: Path, lock: str, python: Python) -> Path | None:
    """Return the interpreter of a release's environment; None where it needs none. It may not be there yet."""
    if not lock or not packages((release / LOCK).read_bytes(), str(release / LOCK)):
        return None
    return cache / ENVS / f"{lock}-{python.tag}" / "bin" / "python"


def ensure(interpreter: Path, release: Path, cache: Path, python: str, place: str) -> None:
    """Make the environment that an interpreter belongs to, unless it is there; raises FleetdError."""
    env = interpreter.parent.parent
    with locked(cache / LOCKS / env.name):
        if interpreter.exists():  # a link: it is broken where its Python was removed, and then the environment is, too
            return
        with scratch(cache / ENVS, env.name) as room:
            new = room / "env"
            around = {
                "UV_PROJECT_ENVIRONMENT": str(new),
                "UV_CACHE_DIR": str(cache / UV_CACHE),
                "UV_LINK_MODE": "hardlink",
            }
            make = ["venv", "--relocatable", "--no-project", "--python", python, str(new)]
            run_uv(make, release, place, environ=around)
            fill = ["sync", "--frozen", "--no-install-project", "--no-default-groups", "--no-editable"]
            fill += ["--no-install-package", OURSELVES, "--compile-bytecode", "--python", python]
            run_uv(fill, release, place, environ=around)
            os.sync()  # thousands of small files, most of them on the disk already: one call is cheaper than theirs
            put_in_place(new, env)
