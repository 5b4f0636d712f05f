"""A node's process 1, as an ordinary process: what it reads, says and runs. That it is process 1 is tested in qemu."""

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fleetd.errors import UsageError
from fleetd.worker.node import Log, Node, Orders, environment, read_orders, syslog_of, watch_button
from tests.worker.harness import until

# It waits for any child, and so needs a process of its own.
RUN = """
import signal, sys
from pathlib import Path
from fleetd.worker import node
node.backoff_s = lambda failures, cap: 0.01
where, script = sys.argv[1:]
around, command = {"HOME": "/", "PATH": "/usr/bin:/bin"}, ("sh", "-c", script)
it = node.Node(node.Orders((), {}), node.Log(Path(where)), around, command, None)
signal.signal(signal.SIGTERM, lambda *_: it.end("TERM"))
it.run()
"""


def _start(log: Path, script: str) -> subprocess.Popen[bytes]:
    log.touch()
    return subprocess.Popen([sys.executable, "-c", RUN, str(log), script])


def _lines(log: Path) -> str:
    return log.read_text("utf-8", "replace").replace("<3>fleetd: ", "")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the console's lines go: a pipe of the kernel's that keeps them all, as a file."""
    path = tmp_path / "console"
    os.mkfifo(path)
    kept = tmp_path / "said"

    def keep() -> None:
        handle = os.open(path, os.O_RDWR)
        while data := os.read(handle, 65536):
            with kept.open("ab") as file:
                file.write(data)

    kept.touch()
    threading.Thread(target=keep, daemon=True).start()
    return path


def _said(log: Path) -> str:
    return _lines(log.with_name("said"))


def test_orders_are_read(tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text(json.dumps({"args": ["--slots", 2], "env": {"A": 1}}))
    assert read_orders(tmp_path) == Orders(("--slots", "2"), {"A": "1"})
    for name, text in (("token", "t"), ("controller", "https://c\n"), ("ca.pem", "pem")):
        (tmp_path / name).write_text(text)
    read = read_orders(tmp_path)
    assert (read.token, read.controller, read.ca) == ("t", "https://c", "pem")
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(UsageError, match=r"a token came without controller or ca\.pem"):
        read_orders(tmp_path)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"args": 3}', '{"args": [], "env": []}'])
def test_orders_that_are_none_are_one_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "worker.json").write_text(text)
    with pytest.raises(UsageError, match=r"worker.json: no orders that can be read") as caught:
        read_orders(tmp_path)
    assert "\n" not in str(caught.value)


def test_environment_without_a_token_is_that_of_the_orders(tmp_path: Path) -> None:
    made = environment(Orders((), {"FLEETD_JOIN_TOKEN": "x", "HOME": "/elsewhere"}), tmp_path)
    assert made["FLEETD_JOIN_TOKEN"] == "x"
    assert made["HOME"] == "/elsewhere"
    assert made["XDG_CACHE_HOME"] == "/var/cache"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("quiet fleetd.syslog=10.0.0.1", ("10.0.0.1", 514)),
        ("fleetd.syslog=log.example:5514 quiet", ("log.example", 5514)),
        ("fleetd.syslog= quiet", None),
        ("quiet", None),
    ],
)
def test_where_the_syslog_is(line: str, found: tuple[str, int] | None) -> None:
    assert syslog_of(line) == found


def test_lines_reach_console_and_syslog(log: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", 0))
        heard.settimeout(5)
        Log(log, heard.getsockname()).pass_on([b"one\n", b"\xff" * 2000])
        assert heard.recv(4096).startswith(b"<30>1 - ")
    until(lambda: _said(log).count("\n") == 2)
    first, second, _ = log.with_name("said").read_bytes().split(b"\n")
    assert first == b"<3>fleetd: one"
    assert len(second) == 900  # the kernel refuses more, and an unended line waits for the next one


def test_a_worker_that_ends_well_is_the_end(log: Path) -> None:
    assert _start(log, "echo hello; exit 0").wait(20) == 0
    until(lambda: "the worker has ended with 0" in _said(log))
    assert "hello" in _said(log)


def test_a_worker_that_crashes_is_started_again_until_it_is_enough(log: Path) -> None:
    assert _start(log, "exit 3").wait(30) == 0
    until(lambda: "6 times in a row: this machine gives up" in _said(log))
    assert _said(log).count("it is started again") == 5


def test_told_to_end_the_worker_finishes_and_is_not_started_again(log: Path) -> None:
    process = _start(log, "trap 'echo finishing; exit 7' TERM; echo up; while :; do sleep 0.05; done")
    until(lambda: "up" in _said(log))
    process.terminate()
    assert process.wait(20) == 0
    until(lambda: "the worker has ended with 7" in _said(log))
    assert "TERM: the worker is to finish and end" in _said(log)
    assert "started again" not in _said(log)


def test_orphans_are_buried(log: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    process = _start(log, f"sleep 0.1 & echo $! > {pid}; sleep 1; exit 0")
    assert process.wait(20) == 0
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_the_power_button_is_heard_and_nothing_else(tmp_path: Path) -> None:
    device = tmp_path / "event0"
    os.mkfifo(device)
    lines = tmp_path / "lines"
    lines.touch()
    node = Node(Orders((), {}), Log(lines), {})
    handle = os.open(device, os.O_RDWR)
    try:
        threading.Thread(target=watch_button, args=(node, tmp_path), daemon=True).start()
        for kind, code, value in ((1, 30, 1), (0, 0, 0), (1, 116, 0)):  # a key, the end of an event, letting go
            os.write(handle, struct.pack("llHHi", 0, 0, kind, code, value))
        time.sleep(0.2)
        assert not node.ending
        os.write(handle, struct.pack("llHHi", 0, 0, 1, 116, 1))
        until(lambda: node.ending)
        assert "the power button: the worker is to finish and end" in lines.read_text()
    finally:
        os.close(handle)
