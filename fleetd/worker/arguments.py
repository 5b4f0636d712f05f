"""What both command lines of a worker read alike: numbers, sizes, folders, and which process this is.

Promises: what is no such value is a ValueError, which argparse makes one clear line of.
"""

import os
import re
from pathlib import Path
from typing import Final

from fleetd.errors import UsageError

_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)i?B?", re.IGNORECASE)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def start_time() -> int:
    """When this process started, in clock ticks since the machine's start: with the pid, it names the process."""
    # The name of the program, field 2, may hold anything, spaces and brackets included: count from its end.
    return int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])


def default_spool(fleet: str, pool: str) -> Path:
    """A folder for each pool, so that no letter goes to another fleet's controller."""
    state = base("XDG_STATE_HOME", ".local/state", "--spool")
    return state / "fleetd" / "dead" / _UNSAFE.sub("_", fleet) / _UNSAFE.sub("_", pool)


def base(variable: str, below_home: str, option: str) -> Path:
    """Return the folder that a variable names, or one below the home; raises UsageError naming `option`."""
    try:
        return Path(os.environ.get(variable) or Path.home() / below_home)
    except RuntimeError:
        raise UsageError(f"{option}: there is neither {variable} nor a home folder; say where") from None


def positive(text: str) -> int:
    """Read a whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def count(text: str) -> int:
    """Read a whole number from 0."""
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def size(text: str) -> int:
    """Read a size in bytes, as 200MB."""
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError
    return int(found[1]) << 10 * " KMG".index(found[2].upper() or " ")


def seconds(text: str) -> float:
    """Read a time above 0."""
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


# argparse shows the names
positive.__name__, count.__name__, seconds.__name__ = "positive number", "whole number", "number of seconds"
size.__name__ = "size like 200MB"
