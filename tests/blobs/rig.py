"""A whole fleet with a store of files, for clients of tests and benchmarks: gearmand, a controller, process workers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fleetd.client import Client, Files
from tests import servers

APP = """\
import hashlib, os, signal, time
from pathlib import Path
from fleetd.worker import Cancelled, Context, File, Retry, job

NOTES = Path(os.environ["FILES_NOTES"])

def note(text):
    with NOTES.open("a") as file:
        file.write(text + "\\n")

@job
def echo(payload):
    return payload

@job
def digest(file: File):
    total = hashlib.sha256()
    for part in file.chunks():
        total.update(part)
    return f"{file.size} {total.hexdigest()}"

@job
def back(file: File, ctx: Context) -> Path:
    note(f"back {os.getpid()}")
    return file.path

@job
def double(file: File, ctx: Context) -> Path:
    out = ctx.folder / "out"
    with file.open() as source, out.open("wb") as target:
        body = source.read()
        target.write(body + body)
    return out

@job
async def later(file: File) -> bytes:
    return file.read()[::-1]

@job
def large(payload):
    return b"x" * int(payload)

@job
def bad(payload):
    raise ValueError("no good")

@job
def crash(payload):
    os.kill(os.getpid(), signal.SIGSEGV)

@job
def steps(payload, ctx: Context):
    count, pause = payload.decode().split()
    for at in range(int(count)):
        if ctx.cancelled:
            note(f"heard {ctx.unique}")
            raise Cancelled
        ctx.progress(at, int(count))
        time.sleep(float(pause))
    return b"all"
"""
POLICY = """\
version: 1
fleet: files
sources: {{main: {{gearman: {{servers: ["{server}"]}}}}}}
apps: {{app: {{release: {{path: app}}, attempts: 2}}}}
queues: {{all: {{app: app, source: main, match: "*", objective: {{wait: 5s}}}}}}
pools: {{local: {{process: {{}}, apps: [app], slots: {slots}, min: 1, max: 1}}}}
files:
  tokens: [{{env: FILES_TOKEN}}]
  secret: {{env: FILES_SECRET}}
{files}
"""
TOKEN, SECRET = "token-of-the-web-shop", "secret-of-the-webhooks"


@dataclass(slots=True)
class Rig:
    """The test's hands on it."""

    home: Path
    server: servers.Server
    process: subprocess.Popen[bytes] | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The controller's address."""
        return str(json.loads((self.home / "state" / "files" / "controller.json").read_text())["url"])

    @property
    def files(self) -> Files:
        """The store, as a client is told of it."""
        return Files(self.url, TOKEN)

    def client(self) -> Client:
        """A client with the store."""
        return Client(self.server.address, files=self.files)

    def start(self) -> None:
        """Start the controller and wait until a worker has started."""
        command = [sys.executable, "-m", "fleetd", "run", "--policy", str(self.home / "policy.yaml"), "--no-live"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, "--drain"], env=self.env, stdout=log, stderr=log)
        self.until("a worker", lambda: self.picture().get("nodes", [{}])[0].get("phase") == "ready")

    def picture(self) -> dict[str, list[dict[str, str]]]:
        """The status, as a command gives it."""
        said = subprocess.run(
            [sys.executable, "-m", "fleetd", "status", "--json"],
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        found = json.loads(said.stdout) if said.returncode == 0 else {}
        return found if found.get("nodes") else {}

    def end(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the controller; with SIGINT the workers, too."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def slots(self) -> list[int]:
        """The pids of the slot processes of this rig's workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if b"fleetd-slot" in (path / "comm").read_bytes():
                    environment = (path / "environ").read_bytes()
                    if f"FILES_NOTES={self.home / 'notes'}\0".encode() in environment:
                        found.append(int(path.name))
        return found

    def notes(self) -> list[str]:
        """What jobs wrote down."""
        path = self.home / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, what: str, seen: object, limit_s: float = 30.0) -> None:
        """Wait for a positive event; fail with the log where it does not come."""
        deadline = time.monotonic() + limit_s
        while not seen():  # type: ignore[operator]
            assert time.monotonic() < deadline, f"not seen: {what}\n{(self.home / 'log').read_text()[-4000:]}"
            time.sleep(0.05)


@contextlib.contextmanager
def rig(home: Path, files: str = "", slots: int = 2, more: str = "") -> Iterator[Rig]:
    """A rig at work. `files`: further keys of the policy's section; `more`: jobs beside those of APP."""
    (home / "app").mkdir(parents=True)
    (home / "app" / "jobs.py").write_text(APP + more)
    with servers.gearmand() as server:
        (home / "policy.yaml").write_text(POLICY.format(server=server.address, files=files, slots=slots))
        env = {
            **os.environ,
            "FLEETD_STATE": str(home / "state"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "FILES_NOTES": str(home / "notes"),
            "FILES_TOKEN": TOKEN,
            "FILES_SECRET": SECRET,
        }
        made = Rig(home, server, env=env)
        try:
            made.start()
            yield made
        finally:
            made.end()
