"""What goes wrong with releases, in the words that a person gets; and the loading of what an extra brings."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from fleetd.errors import FleetdError, UsageError


class BundleError(UsageError):
    """What was given as a release is none, or may not be trusted. Nothing of it was run or kept."""


def needed(module: str, extra: str, purpose: str) -> Any:
    """Import a module of an extra; raises UsageError that says how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise UsageError(f"{purpose} needs {module.partition('.')[0]}: pip install 'fleetd[{extra}]'") from None


@contextmanager
def on_disk(place: Path | str, doing: str) -> Iterator[None]:
    """Turn an OSError (a full disk, a missing permission) into one line with its place."""
    try:
        yield
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else place
        raise FleetdError(f"{where}: cannot {doing}: {error.strerror or error}") from None
