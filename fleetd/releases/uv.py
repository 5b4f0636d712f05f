"""Runs uv, which solves, builds and installs; and says in one line why it did not.

Promises: uv runs under a time limit, sees none of our own virtual environment, asks nobody anything and never fetches a
Python. It ends with the process that waits for it.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError, UnreachableError, UsageError
from fleetd.releases.faults import BundleError

LIMIT_S: Final = 900.0
MOST_REASON: Final = 400
_PLAIN: Final = {
    "NO_COLOR": "1",
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",  # a build backend that lies beside the sources would pack its own bytecode
}
_DIE_WITH_PARENT: Final = 1
_FRAME: Final = " \t\u00d7╰─▶│├"  # what uv draws around its reasons
_NOISE: Final = re.compile(r"^(Using |Resolved |Creating |Building |Prepared |Downloading |Downloaded |warning:|hint:)")
# The index does not answer: no fault of what was asked for.
_AWAY: Final = re.compile("error sending request|timed out|dns error|HTTP status server error", re.IGNORECASE)
_libc: Final = ctypes.CDLL(None)


def find_uv() -> list[str]:
    """Return the command that is uv."""
    if found := shutil.which("uv"):
        return [found]
    if find_spec("uv") is not None:
        return [sys.executable, "-m", "uv"]
    raise UsageError("uv is missing: it builds wheels and environments; pip install 'fleetd[releases]'")


def run_uv(arguments: list[str], cwd: Path, place: str, *, environ: Mapping[str, str] | None = None) -> None:
    """Run uv; raises BundleError with its reason where it says no, UnreachableError where an index is away."""
    around = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    try:
        done = subprocess.run(
            [*find_uv(), *arguments],
            cwd=cwd,
            env={**around, **_PLAIN, **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
            preexec_fn=_end_with_parent,
        )
    except subprocess.TimeoutExpired:
        raise FleetdError(f"{place}: uv {arguments[0]} took longer than {LIMIT_S:.0f} s") from None
    except OSError as error:
        raise FleetdError(f"{place}: uv cannot be run: {error}") from None
    if done.returncode:
        why = reason(done.stderr.decode(errors="replace"), done.returncode)
        raise UnreachableError(f"{place}: {why}") if _AWAY.search(why) else BundleError(f"{place}: {why}")


def reason(said: str, code: int) -> str:
    """Return what uv said went wrong, in one line."""
    lines = [line.strip(_FRAME) for line in said.splitlines()]
    kept = [line for line in lines if line and not _NOISE.match(line)]
    start = next((at for at, line in enumerate(kept) if line.startswith(("error", "No solution"))), 0)
    text = " ".join(" ".join(kept[start:]).split()).removeprefix("error: ").replace(" cause: ", ": ")
    return text[:MOST_REASON] or f"uv ended with {code} and said nothing"


def _end_with_parent() -> None:
    """Let no uv go on without the process that waits for it: the kernel ends it."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
