"""The job that faults happen to. It tells when it starts and when it has ended, and waits in between for its word.

The payload is "UNIQUE WHAT": `quick` ends soon; all others wait until FAULTS_HOME/go is there, and then `wait` ends
well, `segfault` touches address 0, `allocate` takes memory without end, `fail` raises. The rest is ballast.
"""

import ctypes
import os
import time
from pathlib import Path

RELEASE: int = 0
SLOW_S: float = 0.0  # what the import takes
HOME = "FAULTS_HOME"
QUICK_S = 0.05
STEP_BYTES = 8 * 1024 * 1024
MOST_STEPS = 100
LIMIT_S = 60.0

time.sleep(SLOW_S)


def act(payload: bytes) -> str:
    """Do as the payload says; returns the release that ran it."""
    unique, what, *_ = payload.decode().split()
    home = Path(os.environ[HOME])
    _note(home / "started", unique)
    if what == "quick":
        time.sleep(QUICK_S)
    else:
        _wait_for(home / "go")
    match what:
        case "segfault":
            ctypes.string_at(0)
        case "allocate":
            _allocate()
        case "fail":
            raise ValueError("this job cannot be done")
        case _:
            pass
    _note(home / "ledger", unique)
    return str(RELEASE)


def _wait_for(word: Path) -> None:
    give_up_at = time.monotonic() + LIMIT_S
    while not word.exists() and time.monotonic() < give_up_at:
        time.sleep(0.02)


def _allocate() -> None:
    taken = []
    for _ in range(MOST_STEPS):
        taken.append(bytearray(b"x") * STEP_BYTES)
        time.sleep(0.03)


def _note(file: Path, unique: str) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, f"{unique} {os.getpid()}\n".encode())
    finally:
        os.close(handle)
