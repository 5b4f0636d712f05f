"""A foreign worker under supervision, as a process; `close` leaves nothing of it behind."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleetd.codecs.lease import join_token
from tests.worker.controller import SECRET, Controller
from tests.worker.harness import MARK, Worker

# Says what it does, takes its time after a TERM, and knows the signals of the tests.
PROGRAM = """
import os, signal, sys, time

class Told(Exception):
    pass

def told(*_):
    raise Told

def say(text):
    with open("notes", "a") as notes:
        notes.write(f"{text} {os.getpid()}\\n")
    print(text, flush=True)

mode, seconds = sys.argv[1], float(sys.argv[2])
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else told)
signal.signal(signal.SIGUSR1, lambda *_: say("usr1"))
signal.signal(signal.SIGUSR2, lambda *_: say("quiet"))
signal.signal(signal.SIGCONT, lambda *_: say("back"))
try:
    say("start")
    if mode == "crash":
        sys.exit(3)
    while True:
        time.sleep(60)
except Told:
    say("told")
    time.sleep(seconds)
    say("end")
"""


class ForeignWorker(Worker):
    """`python -m fleetd.worker … --exec …`, with the test's folder as its own."""

    def __init__(self, folder: Path, options: list[str], command: list[str], **environment: str) -> None:
        self.folder, self.spool = folder, folder / "spool"
        self.mark = secrets.token_hex(8)
        self.log_path = folder / f"log-{self.mark}"
        words = [sys.executable, "-m", "fleetd.worker", "--spool", str(self.spool), *options, "--exec", *command]
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                words, stderr=log, cwd=folder, env={**os.environ, **environment, MARK: self.mark}
            )

    def notes(self) -> list[str]:
        """What the program wrote down."""
        path = self.folder / "notes"
        return path.read_text().splitlines() if path.exists() else []


@contextmanager
def foreign(
    folder: Path, *options: str, command: list[str], controller: Controller | None = None, **environment: str
) -> Iterator[ForeignWorker]:
    """Start one; it is killed at the end."""
    given = list(options)
    if controller is not None:
        given += ["--controller", controller.url, "--fleet", "test", "--node", "local/n1"]
        environment["FLEETD_JOIN_TOKEN"] = join_token(SECRET, "test", "local")
    worker = ForeignWorker(folder, given, command, **environment)
    try:
        yield worker
    finally:
        worker.close()


def program(folder: Path, mode: str = "good", seconds: float = 0.0) -> list[str]:
    """Return the command line of the usual program."""
    path = folder / "program.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path), mode, f"{seconds:g}"]
