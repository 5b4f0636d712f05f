"""The dispatcher as a process: crashes, hostile peers, credentials, and how it starts and ends."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetd.codecs.gearman import RES, Decoder, Kind, Packet, encode
from fleetd.dispatchers.embedded.main import main
from tests import servers
from tests.conformance.gearman_peer import Peer, ask
from tests.dispatchers.embedded.serving import embedded
from tests.servers import Server
from tests.worker.harness import until

BG = Kind.SUBMIT_JOB_BG
TOKEN = "0123456789abcdef0123456789abcdef"


def run(*args: str) -> tuple[int, str]:
    """Start it in vain; return the exit code and the lines."""
    command = [sys.executable, "-m", "fleetd.dispatchers.embedded", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stderr


# ── durability


def test_a_killed_dispatcher_has_every_acknowledged_job_again(tmp_path: Path) -> None:
    port = servers.free_port()
    with embedded(data=tmp_path, port=port) as server, Peer(server) as client, Peer(server, b"f") as worker:
        handles = [client.submit(BG, unique=b"%d" % at, payload=b"p%d" % at) for at in range(20)]
        assert worker.grab().args[0] == handles[0]
        done = worker.grab().args[0]
        worker.send(Kind.WORK_COMPLETE, done, b"")
        worker.settle()
        client.submit(unique=b"foreground")
        time.sleep(0.2)  # ends are written a little later than they are heard
        server.kill()
    with embedded(data=tmp_path, port=port) as server, Peer(server, b"f") as worker:
        again = [worker.grab().args for _ in range(19)]
        assert [args[0] for args in again] == [handles[0], *handles[2:]]
        assert again[1][2:] == (b"2", b"p2")
        assert worker.grab_nothing()


def test_a_terminated_dispatcher_forgets_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    with embedded(data=tmp_path) as server, Peer(server) as client, Peer(server, b"f") as worker:
        handles = [client.submit(BG) for _ in range(3)]
        worker.send(Kind.WORK_COMPLETE, worker.grab().args[0], b"")
        worker.settle()
        assert ask(server, "shutdown") == "OK\r\n"
        assert server.process.wait(5) == 0
    with embedded(data=tmp_path) as server, Peer(server, b"f") as worker:
        assert [worker.grab().args[0] for _ in range(2)] == handles[1:]
        assert worker.grab_nothing()


def test_dead_letters_survive_and_can_be_run_again(tmp_path: Path) -> None:
    with embedded("--attempts", "1", data=tmp_path) as server, Peer(server) as client:
        handle = client.submit(BG, unique=b"u").decode()
        with Peer(server, b"f") as worker:
            worker.grab()
        until(lambda: ask(server, "dead") != ".\n" or None)
        time.sleep(0.2)
        server.kill()
    with embedded("--attempts", "1", data=tmp_path) as server, Peer(server, b"f") as worker:
        number = handle.rpartition(":")[2]
        assert ask(server, "dead").startswith(f"{number}\tf\tu\t1\t1\t")
        assert worker.grab_nothing()
        assert ask(server, f"dead retry {number}") == "OK\r\n"
        assert worker.grab().args[0] == handle.encode()


def test_a_full_disk_refuses_and_later_takes_again(tmp_path: Path) -> None:
    with embedded(data=tmp_path) as server, Peer(server) as client, Peer(server, b"f") as worker:
        kept = client.submit(BG, unique=b"kept")
        # Files may not grow: what a full disk does, without filling one.
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        (answer,) = [client.ask(BG, b"f", b"lost", b"x" * 100_000)]
        assert (answer.kind, answer.args[0]) == (Kind.ERROR, b"QUEUE_ERROR")
        assert ask(server, "status") == "f\t1\t0\t1\n.\n"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        later = until(lambda: taken(client.ask(BG, b"f", b"later", b"")))
        server.kill()
    with embedded(data=tmp_path) as server, Peer(server, b"f") as worker:
        assert [worker.grab().args[0] for _ in range(2)] == [kept, later]
        assert worker.grab_nothing()


def taken(packet: Packet) -> bytes | None:
    return packet.args[0] if packet.kind is Kind.JOB_CREATED else None


# ── hostile peers


@pytest.fixture
def server() -> "contextlib.AbstractContextManager[Server]":
    return embedded()


def test_a_reader_that_never_reads_is_closed_and_harms_nobody(
    server: contextlib.AbstractContextManager[Server],
) -> None:
    with server as at, Peer(at) as fool, Peer(at, b"f") as worker, Peer(at) as other:
        fool.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handle = fool.submit()
        worker.grab()
        megabyte = encode(Kind.WORK_DATA, handle, b"x" * 1024 * 1024)
        for _ in range(80):
            worker.sock.sendall(megabyte)
        worker.settle()
        until(lambda: len(ask(at, "workers").splitlines()) == 4 or None)
        assert other.submit(BG)


def test_who_does_not_read_its_answers_is_not_read(server: contextlib.AbstractContextManager[Server]) -> None:
    """The echoes fill its buffers, then the dispatcher stops reading: memory stays bounded."""
    with server as at, Peer(at) as fool, Peer(at) as other:
        packet = encode(Kind.ECHO_REQ, b"x" * 100_000)
        fool.sock.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 2000:
                fool.sock.sendall(packet)
                sent += 1
        assert sent < 500, "50 MB"
        assert other.submit(BG)


def test_many_submissions_in_one_go_are_all_answered_in_order(tmp_path: Path) -> None:
    with embedded(data=tmp_path) as at, Peer(at) as client:
        count = 20_000
        client.sock.sendall(b"".join(encode(BG, b"f", b"%d" % n, b"") for n in range(count)))
        numbers = [int(packet.args[0].rpartition(b":")[2]) for packet in client.read(count)]
        assert numbers == sorted(numbers)
        assert ask(at, "status") == f"f\t{count}\t0\t0\n.\n"


def test_a_text_command_without_an_end_is_cut_off(server: contextlib.AbstractContextManager[Server]) -> None:
    with server as at, Peer(at) as fool, Peer(at) as other:
        fool.sock.sendall(b"status" * 1000)
        assert fool.is_closed()
        assert other.submit(BG)


def test_several_commands_in_crumbs_are_answered_one_by_one(server: contextlib.AbstractContextManager[Server]) -> None:
    with server as at, socket.create_connection((at.host, at.port), 5) as sock:
        for piece in (b"ver", b"sion\nsta", b"tus\r\nmaxqueue f 1\n"):
            sock.sendall(piece)
            time.sleep(0.02)
        text = b""
        while text.count(b"\n") < 3:
            text += sock.recv(4096)
        assert text == b"OK 1.1.20+fleetd\n.\nOK\r\n"


@pytest.mark.slow
def test_a_thousand_workers_sleep_and_are_served(server: contextlib.AbstractContextManager[Server]) -> None:
    with server as at, contextlib.ExitStack() as stack, Peer(at) as client:
        socks = [stack.enter_context(socket.create_connection((at.host, at.port), 5)) for _ in range(1000)]
        for sock in socks:
            sock.sendall(encode(Kind.CAN_DO, b"f") + encode(Kind.PRE_SLEEP))
        until(lambda: "f\t0\t0\t1000" in ask(at, "status") or None)
        for _ in range(1000):
            client.submit(BG)
        for sock in socks:
            sock.settimeout(5)
            assert sock.recv(100) == encode(Kind.NOOP, magic=RES)
            sock.sendall(encode(Kind.GRAB_JOB))
        assert sum(b"payload"[:1] in sock.recv(1000) for sock in socks) == 1000
        assert ask(at, "status") == "f\t1000\t1000\t1000\n.\n"


# ── credentials


def test_beyond_loopback_a_credential_is_needed(tmp_path: Path) -> None:
    code, said = run("--listen", "0.0.0.0:0")
    assert code == 2
    assert "beyond loopback a credential is needed: give --token-file or --tls-client-ca" in said
    assert len(said.splitlines()) == 1
    code, said = run("--listen", "[::]:0")
    assert code == 2


def test_a_token_opens_the_door_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with embedded("--token-file", str(tmp_path / "token")) as at, Peer(at) as good, Peer(at) as bad, Peer(at) as large:
        assert good.ask(Kind.OPTION_REQ, b"token:" + TOKEN.encode()).kind is Kind.OPTION_RES
        good.submit(payload=b"x" * 100_000)
        assert bad.ask(BG, b"f", b"", b"").args[0] == b"AUTHENTICATION_REQUIRED"
        assert bad.is_closed()
        large.sock.sendall(encode(BG, b"f", b"", b"x" * 5000))
        assert large.is_closed()
        assert ask(at, "status").startswith("ERR AUTHENTICATION_REQUIRED")
        with socket.create_connection((at.host, at.port), 5) as sock:
            sock.sendall(f"token {TOKEN}\nprioritystatus\n".encode())
            text = b""
            while not text.endswith(b".\n"):
                text += sock.recv(4096)
            assert text == b"OK\r\nf\t0\t1\t0\t0\n.\n"


@pytest.mark.parametrize(
    ("content", "words"), [("short", "expected 16 to 512 letters and digits"), (None, "No such file")]
)
def test_a_token_file_that_is_none(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "token"
    if content:
        path.write_text(content)
    code, said = run("--token-file", str(path), "--listen", "127.0.0.1:0")
    assert code == 2
    assert words in said


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is missing")
    for name in ("server", "client", "stranger"):
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        about = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        subprocess.run([*command, *files, *about], check=True, capture_output=True, timeout=20)
    return tmp_path


def test_tls_lets_in_who_has_a_certificate(certificates: Path) -> None:
    files = [f"--tls-cert={certificates}/server.pem", f"--tls-key={certificates}/server.key"]
    with embedded(*files, f"--tls-client-ca={certificates}/client.pem") as at:
        assert echo_over_tls(at, certificates, "client").kind is Kind.ECHO_RES
        with pytest.raises((ssl.SSLError, ConnectionError)):
            echo_over_tls(at, certificates, "stranger")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            echo_over_tls(at, certificates, None)
        plain = Peer(at)
        plain.send(Kind.ECHO_REQ, b"x")
        assert plain.is_closed()
        plain.sock.close()


def echo_over_tls(at: Server, certificates: Path, name: str | None) -> Packet:
    context = ssl.create_default_context(cafile=str(certificates / "server.pem"))
    if name:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    with (
        socket.create_connection((at.host, at.port), 5) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(encode(Kind.ECHO_REQ, b"x" * 100_000))
        decoder = Decoder()
        while data := sock.recv(65536):
            for packet in decoder.feed(data):
                return packet
        raise ConnectionError("closed")


# ── start and end


def test_without_data_it_says_that_nothing_is_durable() -> None:
    command = [sys.executable, "-m", "fleetd.dispatchers.embedded", "--listen", "127.0.0.1:0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert '"event": "dispatcher listens on 127.0.0.1:' in line
        assert "nothing is durable: without --data a restart loses all jobs" in line
        assert process.wait(5) == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--listen", "nowhere"], "expected HOST:PORT or [IPV6]:PORT"),
        (["--listen", "no.such.host.invalid:1"], "--listen no.such.host.invalid:1: "),
        (["--tls-cert", "x"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "/nope", "--tls-key", "/nope"], "No such file"),
    ],
)
def test_wrong_options_are_one_line(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert main(args) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = run("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert code == 1
    assert "address already in use" in said.lower()
    assert len(said.splitlines()) == 1


def test_a_damaged_journal_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"nonsense" * 1000)
    code, said = run("--listen", "127.0.0.1:0", "--data", str(tmp_path))
    assert code == 1
    assert "file is not a database; restore it from a backup, or move it away" in said
    assert len(said.splitlines()) == 1


def test_usr1_ends_it_after_the_last_running_job(server: contextlib.AbstractContextManager[Server]) -> None:
    with server as at, Peer(at) as client, Peer(at, b"f") as worker:
        handle = client.submit()
        worker.grab()
        os.kill(at.process.pid, signal.SIGUSR1)
        worker.settle()
        until(lambda: refused(at) or None)
        worker.send(Kind.WORK_COMPLETE, handle, b"done")
        assert client.read_one().args[1] == b"done"
        assert at.process.wait(5) == 0


def refused(at: Server) -> bool:
    try:
        socket.create_connection((at.host, at.port), 1).close()
    except ConnectionRefusedError:
        return True
    return False
