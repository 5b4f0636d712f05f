"""A worker with two slots on a durable dispatcher, a victim among bystanders, and what became of each.

Promises: everything is read from the outside: the jobs' own files, the spool, the dispatcher's letters, the worker's
log. All processes are ended with the scene.
"""

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bench import processes
from bench.apps.faults.faults_job import HOME
from bench.processes import ROOT
from fleetd.client import Client, Submission
from fleetd.errors import FleetdError
from tests import servers
from tests.dispatchers.embedded.serving import embedded

APP: Final = ROOT / "bench" / "apps" / "faults"
Dispatcher = Literal["embedded", "gearmand"]
SLOTS: Final = 2
UP_S: Final = 30.0
SEE_S: Final = 30.0
SETTLE_S: Final = 30.0
DEADLINE_S: Final = 25.0  # of a foreground client
SLOW_IMPORT_S: Final = 1.0
VICTIM: Final = "victim"
BALLAST: Final = "x" * 4000


class SceneError(Exception):
    """Something that had to be seen was not."""


@dataclass(slots=True)
class Answer:
    """What a foreground client got, and when."""

    text: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Scene:
    """One fault's place."""

    home: Path
    dispatcher: Dispatcher
    options: Sequence[str]
    port: int
    server: servers.Server | None = None
    serving: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    bystanders: list[str] = field(default_factory=list)
    answer: Answer = field(default_factory=Answer)
    asking: threading.Thread | None = None

    # ── the parts

    @property
    def address(self) -> str:
        """Where the dispatcher listens."""
        return f"127.0.0.1:{self.port}"

    @property
    def spool(self) -> Path:
        """Where dead letters go."""
        return self.home / "spool"

    @property
    def worker(self) -> subprocess.Popen[bytes]:
        """The newest worker."""
        return self.workers[-1]

    def serve(self) -> None:
        """Start the dispatcher, on the same port and the same disk each time."""
        if self.dispatcher == "embedded":
            made = embedded(data=self.home / "journal", port=self.port)
        else:
            made = servers.gearmand("-q", "libsqlite3", f"--libsqlite3-db={self.home / 'queue'}", port=self.port)
        self.server = self.serving.enter_context(made)

    def start_worker(self) -> None:
        """Start a worker and see its slots."""
        before = self.log().count("slot started")
        words = ["-m", "fleetd.worker", "--app", str(self.home / "app"), "--slots", str(SLOTS)]
        words += ["--server", self.address, "--spool", str(self.spool), *self.options]
        self.workers.append(processes.start(words, {HOME: str(self.home)}, self.home / "log"))
        self.until("the slots are up", lambda: self._up(before + SLOTS), UP_S)

    def _up(self, starts: int) -> bool:
        if self.worker.poll() is not None:
            raise SceneError(f"the worker ended with {self.worker.returncode}\n{self.log()[-2000:]}")
        return self.log().count("slot started") >= starts

    def write_app(self, number: int, slow_s: float = 0.0) -> None:
        """Write a release of the app."""
        folder = self.home / "app"
        folder.mkdir(exist_ok=True)
        code = (APP / "faults_job.py").read_text()
        code = re.sub(r"^RELEASE: int = 0$", f"RELEASE: int = {number}", code, flags=re.MULTILINE)
        code = re.sub(r"^SLOW_S: float = 0\.0", f"SLOW_S: float = {slow_s}", code, flags=re.MULTILINE)
        shutil.copy(APP / "pyproject.toml", folder)
        (folder / ".new").write_text(code)
        (folder / ".new").replace(folder / "faults_job.py")

    # ── jobs

    def submit(self, what: str, *, foreground: bool) -> None:
        """Submit the victim."""
        payload = f"{VICTIM} {what} {BALLAST}".encode()
        if foreground:
            self.asking = threading.Thread(target=self._ask, args=(payload,), daemon=True)
            self.asking.start()
            return
        with Client([self.address]) as client:
            client.submit("act", payload, unique=VICTIM)

    def _ask(self, payload: bytes) -> None:
        begun = time.monotonic()
        try:
            with Client([self.address]) as client:
                said = client.run("act", payload, unique=VICTIM, wait_s=DEADLINE_S)
                text = f"result by release {said.decode()}"
        except FleetdError as error:
            remote = getattr(error, "remote", b"") or b""
            text = f"{type(error).__name__}: {remote.decode(errors='replace') or error}"
        self.answer.seconds = time.monotonic() - begun
        self.answer.text = text

    def submit_bystanders(self, count: int = 10) -> None:
        """Submit jobs that nothing happens to by intent."""
        uniques = [f"by-{len(self.bystanders) + number}" for number in range(count)]
        with Client([self.address]) as client:
            client.submit_many(Submission("act", f"{one} quick".encode(), one) for one in uniques)
        self.bystanders += uniques

    def lines(self, name: str) -> list[tuple[str, int]]:
        """Return what the jobs noted: unique and pid."""
        file = self.home / name
        rows = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        return [(unique, int(pid)) for unique, pid in rows]

    def count(self, name: str, unique: str = VICTIM) -> int:
        """Return how often a job has noted this."""
        return sum(one == unique for one, _ in self.lines(name))

    def victim_pid(self) -> int:
        """Return the process that runs the victim."""
        return next(pid for unique, pid in reversed(self.lines("started")) if unique == VICTIM)

    def letters(self) -> list[str]:
        """Return the reasons of the victim's dead letters: the worker's and the dispatcher's."""
        found = []
        for file in self.spool.glob("*.json"):
            letter = _read_json(file)
            if letter.get("unique") == VICTIM:
                found.append(f"{letter['reason']} ({letter['attempts']} attempts)")
        return found + self._dispatchers_letters()

    def _dispatchers_letters(self) -> list[str]:
        if self.dispatcher != "embedded":
            return []
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2.0) as line:
            line.sendall(b"dead\n")
            with line.makefile("r") as said:
                rows = [row.rstrip().split("\t") for row in itertools.takewhile(lambda row: row.rstrip() != ".", said)]
            return [f"{row[-1]} (the dispatcher's letter)" for row in rows if row[2] == VICTIM]
        return []

    # ── what is seen

    def log(self) -> str:
        """What the workers wrote."""
        file = self.home / "log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def see(self, pattern: str, after: int = 0) -> str:
        """Wait for a line in the worker's log; returns it without its time."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [line for line in self.log()[after:].splitlines() if re.search(pattern, line)]
            return bool(found)

        self.until(f"a line like {pattern!r}", there, SEE_S)
        return re.sub(r"^\S+ \S+ \w+\s+", "", found[0])

    def until(self, what: str, seen: Callable[[], bool], limit_s: float = SEE_S) -> None:
        """Wait for a positive event."""
        give_up_at = time.monotonic() + limit_s
        while not seen():
            if time.monotonic() > give_up_at:
                raise SceneError(f"not seen within {limit_s:g} s: {what}\n{self.log()[-3000:]}")
            time.sleep(0.05)

    def settle(self, *, foreground: bool) -> None:
        """Wait until the bystanders have run and the victim's fate is known."""
        done = lambda: all(self.count("ledger", one) for one in self.bystanders)  # noqa: E731
        with contextlib.suppress(SceneError):  # told as what it is: a bystander lost
            self.until("the bystanders have run", done, SETTLE_S)
        if foreground and self.asking is not None:
            self.asking.join(DEADLINE_S + 5)
        else:
            fate = lambda: bool(self.count("ledger") or self.letters())  # noqa: E731
            with contextlib.suppress(SceneError):
                self.until("the victim has run or is dead", fate, SETTLE_S)
        time.sleep(1.0)  # a job run once more would show now


@contextlib.contextmanager
def scene(dispatcher: Dispatcher, options: Sequence[str]) -> Iterator[Scene]:
    """A dispatcher and a place; the worker is started by the caller."""
    with tempfile.TemporaryDirectory(prefix="fleetd-faults-") as folder, contextlib.ExitStack() as serving:
        made = Scene(Path(folder), dispatcher, options, servers.free_port(), serving=serving)
        made.spool.mkdir()
        made.write_app(1)
        made.serve()
        with processes.ended(made.workers):
            yield made


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):  # just being written, or sent away
        return {}
