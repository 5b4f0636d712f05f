"""Which Python a release wants, and which one is there: `requires-python` without a library, for a bare worker.

Promises: what the standard (PEP 440) allows in a `requires-python` is understood as packaging understands it for a
final version, `===` and versions with letters excepted: those are refused, never guessed.
"""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from fleetd.errors import FleetdError
from fleetd.releases.faults import BundleError

ASK_S: Final = 30.0
Version = tuple[int, ...]
_CLAUSE: Final = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*v?(\d{1,9}(?:\.\d{1,9}){0,9})(\.\*)?")
_COMPARE: Final[Mapping[str, Callable[[Version, Version], bool]]] = {
    "==": lambda mine, told: mine == told,
    "!=": lambda mine, told: mine != told,
    "<=": lambda mine, told: mine <= told,
    ">=": lambda mine, told: mine >= told,
    "<": lambda mine, told: mine < told,
    ">": lambda mine, told: mine > told,
}
_ASK: Final = "import json,platform,sys;print(json.dumps([list(sys.version_info[:3]),platform.machine()]))"


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter: its version and the machine it is made for."""

    version: tuple[int, int, int]
    machine: str

    @property
    def tag(self) -> str:
        """Return what environments for it are marked with."""
        return f"cp{self.version[0]}{self.version[1]}"


@cache
def python_of(path: str) -> Python:
    """Ask an interpreter what it is."""
    if path == sys.executable:
        return Python(sys.version_info[:3], platform.machine())
    try:
        said = subprocess.run([path, "-I", "-c", _ASK], capture_output=True, check=True, timeout=ASK_S).stdout
        (major, minor, micro), machine = json.loads(said)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise FleetdError(f"{path}: is no Python that runs: {error}") from None
    return Python((major, minor, micro), machine)


def check_python(requires: str, python: Python, place: str) -> None:
    """Refuse a release that the interpreter does not fit."""
    if not meets(requires, python.version, place):
        mine = ".".join(map(str, python.version))
        raise BundleError(f"{place}: needs Python {requires}, and this is {mine}")


def meets(requires: str, version: Version, place: str) -> bool:
    """Whether a final version is within `requires-python`; raises BundleError for what cannot be read."""
    return all(_meets(clause.strip(), version, place) for clause in requires.split(",") if clause.strip())


def _meets(clause: str, version: Version, place: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None or (match[3] and match[1] not in ("==", "!=")) or (match[1] == "~=" and "." not in match[2]):
        raise BundleError(f"{place}: requires-python: {clause!r:.80} cannot be read")
    told = tuple(map(int, match[2].split(".")))
    if match[1] == "~=":
        mine, most = _padded(version, told), len(told) - 1
        return mine >= _padded(told, mine) and mine[:most] == told[:most]
    if match[3]:
        width = max(len(told), len(version))
        same = (version + (0,) * width)[: len(told)] == told
        return same if match[1] == "==" else not same
    mine = _padded(version, told)
    return _COMPARE[match[1]](mine, _padded(told, mine))


def _padded(version: Version, like: Version) -> Version:
    return version + (0,) * (len(like) - len(version))
