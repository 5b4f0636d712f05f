"""Files and later results, from a client through a real fleet: there and back, what breaks, who asks later."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fleetd.client import (
    AsyncClient,
    Client,
    Files,
    JobError,
    JobHandle,
    JobTimeoutError,
    NotKeptError,
    StoreFullError,
    Submission,
    UnreachableError,
    UsageError,
    asse,
    sse,
)
from fleetd.codecs.reference import Reference, Wish, dump_reference, dump_wish, load_reference
from fleetd.dispatchers.submit import Limits
from tests.blobs.rig import Rig, rig

pytestmark = [pytest.mark.real, pytest.mark.slow]
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("fleet") / "rig", '  most: 256MB\n  webhooks: ["http://127.0.0.1/hooks"]') as made:
        yield made


@pytest.fixture
def client(fleet: Rig) -> Iterator[Client]:
    with fleet.client() as made:
        yield made


def written(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def dead(fleet: Rig) -> list[dict[str, str]]:
    command = [sys.executable, "-m", "fleetd", "dead", "list", "--json"]
    said = subprocess.run(command, env=fleet.env, capture_output=True, text=True, check=True)
    return list(json.loads(said.stdout))


# ── files


def test_a_file_goes_there_as_a_stream_and_comes_back_as_a_file(client: Client, tmp_path: Path) -> None:
    file, into = written(tmp_path / "f", 3 * MIB), tmp_path / "into"
    told = client.run("digest", file=file).decode()
    assert told == f"{3 * MIB} {hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert client.run("back", file=file, into=into) == b""
    assert into.read_bytes() == file.read_bytes()
    assert client.run("double", file=file) == file.read_bytes() * 2
    assert client.run("later", file=file, into=into) == b""  # async, and bytes
    assert into.read_bytes() == file.read_bytes()[::-1]


def test_nothing_of_a_job_is_left_on_its_node(fleet: Rig, client: Client, tmp_path: Path) -> None:
    client.run("double", file=written(tmp_path / "f", MIB), into=tmp_path / "into")
    (room,) = (fleet.home / "state" / "files").rglob("jobs")
    fleet.until("an empty room", lambda: list(room.iterdir()) == [])


def test_a_payload_above_the_cap_goes_by_reference_and_a_job_of_bytes_does_not_notice(client: Client) -> None:
    body = os.urandom(MIB)
    assert client.run("echo", body) == body
    assert client.run("echo", b"small") == b"small"
    assert client.result(client.submit("echo", body, keep_result_s=60), wait_s=20) == body


def test_a_file_job_takes_small_payloads_too(client: Client) -> None:
    assert client.run("digest", b"abc").decode() == f"3 {hashlib.sha256(b'abc').hexdigest()}"


def test_without_a_store_large_things_are_refused_as_ever(fleet: Rig, tmp_path: Path) -> None:
    with Client(fleet.server.address) as bare:
        with pytest.raises(UsageError, match="store it elsewhere and send a reference"):
            bare.run("echo", b"x" * MIB)
        file = written(tmp_path / "f", 1)
        for call in (lambda: bare.submit("echo", file=file), lambda: bare.result("u", function="f")):
            with pytest.raises(UsageError, match=r"needs the fleet's store: give the client files=Files\(URL, TOKEN\)"):
                call()


@pytest.mark.parametrize("payload", [b'{"fleetd-reference":1}', b'{"fleetd-job":1}\n'])
def test_a_payload_that_could_be_mistaken_is_refused(client: Client, payload: bytes) -> None:
    with pytest.raises(UsageError, match="it begins as a reference does"):
        client.run("echo", payload)


def test_a_file_that_is_not_there_is_told(client: Client, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"job digest: file: {tmp_path}/none: No such file or directory"):
        client.run("digest", file=tmp_path / "none")
    with pytest.raises(UsageError, match="both a payload and a file"):
        client.run("digest", b"x", file=tmp_path)


def test_a_full_store_refuses_the_file_and_submits_nothing(fleet: Rig, client: Client, tmp_path: Path) -> None:
    os.truncate(written(tmp_path / "f", 1), 257 * MIB)
    with pytest.raises(StoreFullError, match=r"files: the store is full: \d+ of its 268435456 bytes are in use"):
        client.submit("digest", file=tmp_path / "f")
    assert client.run("echo", b"it goes on") == b"it goes on"


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (Reference("http://169.254.169.254/latest", "ab" * 32, 5, 2_000_000_000), "is refused: only fleetd://FLEET/ID"),
        (Reference(f"fleetd://others/{'ab' * 16}", "ab" * 32, 5, 2_000_000_000), "of the store of fleet others"),
        (Reference(f"fleetd://files/{'ab' * 16}", "ab" * 32, 5, 1_000_000_000), r"expired \d+ s ago"),
        (Reference(f"fleetd://files/{'ab' * 16}", "ab" * 32, 5, 2_000_000_000), "is not in the store of fleet files"),
    ],
)
def test_a_bad_reference_is_a_dead_letter_with_its_payload(fleet: Rig, reference: Reference, said: str) -> None:
    payload = dump_wish(Wish(1000), dump_reference(reference))
    with Client(fleet.server.address) as raw:
        handle = submitted_raw(raw, payload)
    fleet.until("its letter", lambda: any(letter["unique"] == handle for letter in dead(fleet)))
    letter = next(letter for letter in dead(fleet) if letter["unique"] == handle)
    assert re.search(said, letter["reason"])
    assert "\n" not in letter["reason"]


def submitted_raw(client: Client, payload: bytes) -> str:
    """Submit past the client's own checks, as any other program could."""
    unique = hashlib.sha256(payload).hexdigest()[:32]
    client.submit_many([Submission("digest", payload, unique)])
    return unique


def test_an_altered_file_fails_the_job_in_one_line(fleet: Rig, client: Client, tmp_path: Path) -> None:
    data = fleet.home / "state" / "files" / "files" / "data"
    file, before = written(tmp_path / "f", 2 * MIB), set(data.iterdir())
    handle = client.submit("digest", file=file, keep_result_s=60)
    client.result(handle, wait_s=20)
    (blob,) = set(data.iterdir()) - before
    with blob.open("r+b") as there:
        there.seek(MIB)
        there.write(b"altered")
    handle = client.submit("digest", file=file, keep_result_s=60)
    with pytest.raises(JobError, match=r"^job digest: BadFileError: file [0-9a-f]{12}: altered: its content's SHA-256"):
        client.result(handle, wait_s=20)


# ── killed half way, and deadlines

SENDER = """
import sys
from pathlib import Path
from fleetd.client import Client, Files
server, url, token, file, into = sys.argv[1:]
with Client(server, files=Files(url, token)) as client:
    client.run("back", file=Path(file), into=Path(into))
"""


def test_a_client_and_a_slot_that_are_killed_half_way_are_taken_up(fleet: Rig, tmp_path: Path) -> None:
    file, into = written(tmp_path / "f", 20 * MIB), tmp_path / "into"
    data = fleet.home / "state" / "files" / "files" / "data"
    before = set(data.iterdir())
    command = [sys.executable, "-c", SENDER, fleet.server.address, fleet.url, fleet.files.token, str(file), str(into)]
    process = subprocess.Popen(command)
    fleet.until("a part of it", lambda: any(one.stat().st_size > MIB for one in set(data.iterdir()) - before))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process = subprocess.Popen(command)
    noted = len(fleet.notes())
    fleet.until("the job", lambda: len(fleet.notes()) > noted)
    with_kill = int(fleet.notes()[noted].split()[1])
    os.kill(with_kill, signal.SIGKILL)
    assert process.wait(60) == 0
    assert into.read_bytes() == file.read_bytes()
    assert list(tmp_path.glob(".*")) == []


def test_an_error_comes_within_100_ms_of_its_deadline(fleet: Rig, client: Client, tmp_path: Path) -> None:
    file = written(tmp_path / "f", 4 * MIB)
    with Client(fleet.server.address, files=Files("http://127.0.0.1:9", "t")) as lost:
        for call in (
            lambda: client.run("nobody", wait_s=0.4),
            lambda: client.run("steps", b"20 0.1", wait_s=0.4),
            lambda: client.result(client.submit("nobody", keep_result_s=60), wait_s=0.4),
            lambda: lost.submit("digest", file=file, wait_s=0.4),
            lambda: lost.result("any", function="digest", wait_s=0.4),
            lambda: lost.run("digest", file=file, wait_s=0.4),
        ):
            late: list[float] = []
            for _ in range(3):  # the machine may be busy with others
                begun = time.monotonic()
                with pytest.raises((JobTimeoutError, UnreachableError)):
                    call()
                late.append(time.monotonic() - begun - 0.4)
            assert min(late) < 0.1, late


# ── later


def test_a_client_killed_and_restarted_finds_its_results(fleet: Rig) -> None:
    script = (
        "import sys, time\nfrom fleetd.client import *\nserver, url, token = sys.argv[1:]\n"
        "client = Client(server, files=Files(url, token))\n"
        "client.submit_many([Submission('echo', b'%d' % n, f'mine{n}') for n in range(150)], keep_result_s=60)\n"
        "client.submit('large', b'1000000', unique='huge', keep_result_s=60)\n"
        "print('in', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, fleet.server.address, fleet.url, fleet.files.token], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    process.kill()
    process.communicate()
    with fleet.client() as client:
        for number in range(150):
            assert client.result(f"mine{number}", function="echo", wait_s=20) == b"%d" % number
        assert client.result("huge", function="large", wait_s=20) == b"x" * 1_000_000


def test_results_outlive_the_controller(fleet: Rig, client: Client) -> None:
    handle = client.submit("echo", b"kept", keep_result_s=600)
    assert client.result(handle, wait_s=20) == b"kept"
    fleet.end(signal.SIGKILL)
    fleet.start()
    with fleet.client() as again:
        assert again.result(handle.unique, function="echo") == b"kept"


def test_what_is_not_kept_is_told(client: Client) -> None:
    with pytest.raises(NotKeptError, match="nothing is kept of it: it was submitted without keep_s, or long ago"):
        client.result("never", function="echo")
    with pytest.raises(UsageError, match="which function's job is it"):
        client.result("never")
    with pytest.raises(JobTimeoutError, match="has not ended within 0 s"):
        client.result(client.submit("nobody", keep_result_s=60))


def test_progress_is_polled_and_streamed(fleet: Rig, client: Client) -> None:
    handle = client.submit("steps", b"5 0.2", keep_result_s=60)
    states = list(client.follow(handle, every_s=0.05, wait_s=20))
    assert [state.name for state in states][-1] == "done"
    assert {(state.done, state.total) for state in states} >= {(1, 5), (2, 5), (3, 5)}
    (event,) = sse(states[-1:])
    assert event == b'event: state\ndata: {"name": "done", "done": 0, "total": 0, "reason": "", "over": true}\n\n'
    unkept = client.submit("steps", b"2 0.2")
    assert [state.name for state in client.follow(unkept, every_s=0.05, wait_s=20)][-1] == "unknown"


async def test_the_asyncio_client_does_the_same(fleet: Rig) -> None:
    async with AsyncClient(fleet.server.address, files=fleet.files) as client:
        handle = await client.submit("steps", b"3 0.2", keep_result_s=60)
        events = [event async for event in asse(client.follow(handle, every_s=0.05))]
        assert b'"over": true' in events[-1]
        assert len(events) > 3
        assert await client.result(handle) == b"all"


def test_cancelling_takes_out_what_waits_and_asks_what_runs(fleet: Rig, client: Client) -> None:
    running = client.submit("steps", b"200 0.1", unique="cancel-me", keep_result_s=60)
    waiting = client.submit("nobody", keep_result_s=60)
    fleet.until("it runs", lambda: client.state(running).name == "running")
    assert client.cancel(waiting) == "taken out"
    assert client.cancel(running) == "asked"
    assert [state.name for state in client.follow(running, every_s=0.1, wait_s=20)][-1] == "cancelled"
    assert fleet.notes()[-1] == "heard cancel-me"
    with pytest.raises(JobError, match="job steps: was cancelled"):
        client.result(running)
    unkept = client.submit("steps", b"10 0.1")
    fleet.until("it runs", lambda: client.state(unkept).name == "running")
    assert client.cancel(unkept) == "runs"
    assert client.cancel(replace(unkept, handle="H:none:1")) == "over"


@pytest.mark.parametrize(("function", "said"), [("bad", "ValueError: no good"), ("crash", "killed by signal 11")])
def test_a_failure_is_an_end_that_is_kept_too(client: Client, function: str, said: str) -> None:
    handle: JobHandle = client.submit(function, keep_result_s=60)
    with pytest.raises(JobError, match=f"job {function}: {said}"):
        client.result(handle, wait_s=20)


def test_a_webhook_hears_the_end(fleet: Rig) -> None:
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with fleet.client() as client, HTTPServer(("127.0.0.1", 0), Handler) as server:
        with pytest.raises(UsageError, match=r"is none of files\.webhooks in the policy"):
            client.submit("echo", tell="http://127.0.0.1:1/hooks")
        url = f"http://127.0.0.1:{server.server_port}/hooks"
        policy = fleet.home / "policy.yaml"
        policy.write_text(policy.read_text().replace('"http://127.0.0.1/hooks"', f'"{url}"'))
        assert fleet.process is not None
        fleet.process.send_signal(signal.SIGHUP)
        fleet.until("the reload", lambda: "files.webhooks" in (fleet.home / "log").read_text())
        thread = Thread(target=server.handle_request)
        thread.start()
        client.submit("echo", b"x", unique="told", tell=f"{url}/1")
        thread.join(20)
    assert {**json.loads(got[0]), "ended_at": 0, "id": ""} == {
        "id": "", "function": "echo", "unique": "told", "state": "done", "reason": "", "ended_at": 0,
    }  # fmt: skip


# ── the store away


def test_a_result_that_cannot_be_stored_is_not_lost(fleet: Rig, client: Client) -> None:
    """The controller is away when the job ends: the worker waits for it."""
    handle = client.submit("steps", b"10 0.1", keep_result_s=60)
    fleet.until("it runs", lambda: client.state(handle).name == "running")
    fleet.end(signal.SIGKILL)
    time.sleep(2)
    fleet.start()
    with fleet.client() as again:
        assert again.result(handle, wait_s=30) == b"all"


# ── the command


def submit(fleet: Rig, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    env = {**fleet.env, "FLEETD_URL": fleet.url, "FLEETD_TOKEN": fleet.files.token}
    command = [sys.executable, "-m", "fleetd", "submit", *argv, "--server", fleet.server.address]
    return subprocess.run(command, env=env, input=stdin, capture_output=True, check=False, timeout=60)


def test_the_command_sends_files_and_fetches_results_later(fleet: Rig, tmp_path: Path) -> None:
    file = written(tmp_path / "f", MIB)
    assert submit(fleet, "back", "--file", str(file), "--into", str(tmp_path / "into")).returncode == 0
    assert (tmp_path / "into").read_bytes() == file.read_bytes()
    assert submit(fleet, "echo", "--payload", "hi", "--background", "--keep", "60", "--unique", "cli").returncode == 0
    assert submit(fleet, "echo", "--result", "cli").stdout == b"hi"
    wrong = submit(fleet, "echo", "--result", "none")
    assert (wrong.returncode, wrong.stdout) == (4, b"")


def test_a_batch_tells_each_end_and_shows_how_far_it_is(fleet: Rig, tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    batch.write_bytes(b"".join(b"line %d\n" % number for number in range(400)) + b"\n")
    run = submit(fleet, "echo", "--batch", str(batch))
    told = sorted((json.loads(line) for line in run.stdout.splitlines()), key=lambda one: one["line"])
    assert [one["result"] for one in told] == [f"line {number}" for number in range(400)]
    assert run.returncode == 0
    assert run.stderr.decode().splitlines()[-1] == "fleetd: 400 of 400 jobs have ended"
    failed = submit(fleet, "bad", "--batch", "-", stdin=b"a\nb\n")
    assert failed.returncode == 4
    assert {json.loads(line)["error"] for line in failed.stdout.splitlines()} == {"job bad: ValueError: no good"}


def test_a_kept_batch_started_anew_submits_nothing_twice(fleet: Rig, tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    batch.write_bytes(b"".join(b"1 0.0%d\n" % number for number in range(20)))
    assert submit(fleet, "steps", "--batch", str(batch), "--keep", "60").returncode == 0
    begun = time.monotonic()
    again = submit(fleet, "steps", "--batch", str(batch), "--keep", "60", "--server", "127.0.0.1:9")
    assert again.returncode == 0
    assert again.stdout.count(b'"result": "all"') == 20
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--batch", "x", "--payload", "y"], "submit: --batch: each line of its file is a payload"),
        (["--file", "x", "--payload", "y"], "submit: --file: goes in the place of the payload"),
        (["--payload", "x", "--keep", "5"], "submit: --keep: what is waited for is not kept"),
        (["--batch", "/none/there"], "submit: --batch: /none/there: No such file or directory"),
        (["--wait", "-1"], "submit: --wait: must be a positive number of seconds, not -1"),
    ],
)
def test_a_wrong_use_of_the_command_is_told(fleet: Rig, argv: list[str], said: str) -> None:
    run = submit(fleet, "echo", *argv)
    assert run.returncode == 2
    assert said in run.stderr.decode()


def test_limits_smaller_than_the_cap_send_by_reference(fleet: Rig) -> None:
    with Client(fleet.server.address, limits=Limits(max_payload=1000), files=fleet.files) as client:
        assert client.run("echo", b"y" * 5000) == b"y" * 5000


def test_a_path_is_answered_with_a_reference_also_to_others(fleet: Rig) -> None:
    with Client(fleet.server.address) as bare:
        reference = load_reference(bare.run("back", b"a small payload"))
    assert reference.size == len(b"a small payload")
