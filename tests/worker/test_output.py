"""What jobs print reaches the log, each line with its job: from Python, from programs, from a crash."""

import json
import re
from typing import Any

import pytest

from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import APP, Client, Worker, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
SAYING = """
import subprocess, sys

@job
def say(payload):
    print("said", payload.decode())
    print("half", end="")
    print(" and half", file=sys.stdout)
    print("a warning", file=sys.stderr)
    sys.stdout.buffer.write(b"bytes\\n")
    return b"ok"

@job
def mutter(payload):
    print("no end", end="")

@job
def shell(payload):
    subprocess.run(["echo", "from a program"], check=True)
    os.write(2, b"from below\\n")
    time.sleep(0.3)
    return b"ok"

@job
async def murmur(payload):
    for step in range(3):
        print(f"{payload.decode()}-{step}")
        await asyncio.sleep(0.02)
    return b"ok"

@job
def threaded(payload):
    for step in range(3):
        print(f"{payload.decode()}-{step}")
        time.sleep(0.02)
    return b"ok"

@job
def last_words(payload):
    os.write(2, b"terminate called after throwing\\n")
    os.abort()
"""


@pytest.fixture
def speaking(app):
    (app / "jobs.py").write_text(APP + SAYING)


def lines(worker: Worker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.log.splitlines() if line.startswith("{")]


def said(worker: Worker, text: str) -> dict[str, Any]:
    return until(lambda: next((line for line in lines(worker) if line["event"] == text), None), hint=lambda: worker.log)


@pytest.mark.usefixtures("speaking")
def test_a_print_is_an_event_with_its_job(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json")
    client.submit("say", b"hello", b"u-1")
    client.end()
    for text, stream in (
        ("said hello", "stdout"),
        ("half and half", "stdout"),
        ("a warning", "stderr"),
        ("bytes", "stdout"),
    ):
        line = said(worker, text)
        assert (line["stream"], line["function"], line["unique"]) == (stream, "say", "u-1")
        assert re.fullmatch("H:.*", line["job"])
        assert (line["slot"], len(line["digest"])) == (0, 12)
    assert all(line.startswith("{") for line in worker.log.splitlines())


@pytest.mark.usefixtures("speaking")
def test_a_line_without_an_end_is_told_once_its_job_is_over(
    start: StartWorker, client: Client, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json")
    for name in (b"u-4", b"u-5"):
        client.submit("mutter", b"", name)
        client.end()
    until(lambda: [line["unique"] for line in lines(worker) if line["event"] == "no end"] == ["u-4", "u-5"])


@pytest.mark.usefixtures("speaking")
def test_what_comes_from_below_carries_the_running_job(
    start: StartWorker, client: Client, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json")
    client.submit("shell", b"", b"u-2")
    client.end()
    for text in ("from a program", "from below"):
        line = said(worker, text)
        assert (line["stream"], line["function"], line["unique"]) == ("output", "shell", "u-2")


@pytest.mark.usefixtures("speaking")
@pytest.mark.parametrize("function", ["murmur", "threaded"])
def test_jobs_side_by_side_keep_their_lines_apart(
    start: StartWorker, connect: Connect, gearmand: servers.Server, function: str
) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json", "--per-process", "4")
    client = connect()
    for at in range(4):
        client.submit(function, b"j%d" % at, b"u%d" % at)
    for _ in range(4):
        client.end()
    found = [line for line in lines(worker) if re.fullmatch(r"j\d-\d", line["event"])]
    assert len(found) == 12
    assert all(line["unique"] == "u" + line["event"][1] for line in found)


@pytest.mark.usefixtures("speaking")
def test_the_last_words_of_a_crash_are_heard(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json", "--attempts", "1")
    client.submit("last_words", b"", b"u-3")
    client.end()
    assert said(worker, "terminate called after throwing")["unique"] == "u-3"
