"""Real servers on loopback for tests and benchmarks: each is started on a free port, proven to answer, and ended.

They die with the process that started them, even after a SIGKILL (PR_SET_PDEATHSIG), and nothing else is ended.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Server:
    """A running server: where it listens and its process."""

    host: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{self.host}:{self.port}"

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find(command: str) -> str:
    """Return the command's path. Missing is a failure in CI, a skip on a contributor's machine."""
    path = shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{command} is missing; run scripts/need {command}")
        pytest.skip(f"{command} is missing; run scripts/need {command}")
    return path


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _serve(make: Callable[[int], list[str]], port: int | None = None) -> Iterator[Server]:
    chosen = port or free_port()
    command = make(chosen)
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509
    )
    server = Server("127.0.0.1", chosen, process)
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
            with contextlib.suppress(OSError), socket.create_connection((server.host, chosen), 1):
                break
            assert time.monotonic() < deadline, f"{command[0]} does not answer on port {chosen}"
            time.sleep(0.02)
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait(5)


def gearmand(*args: str, port: int | None = None) -> contextlib.AbstractContextManager[Server]:
    """Debian's gearmand with its builtin queue."""
    path = find("gearmand")
    return _serve(lambda at: [path, "--listen=127.0.0.1", f"--port={at}", "--log-file=stderr", *args], port)


def redis(*args: str, port: int | None = None) -> contextlib.AbstractContextManager[Server]:
    """Debian's Redis, in memory only."""
    path = find("redis-server")
    return _serve(
        lambda at: [path, "--bind", "127.0.0.1", "--port", str(at), "--save", "", "--appendonly", "no", *args], port
    )


def prometheus(config: Path, data: Path, port: int | None = None) -> contextlib.AbstractContextManager[Server]:
    """Debian's Prometheus with that configuration, keeping what it scrapes under `data`."""
    path = find("prometheus")
    return _serve(
        lambda at: [
            path,
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{at}",
            "--web.enable-lifecycle",
        ],
        port,
    )
