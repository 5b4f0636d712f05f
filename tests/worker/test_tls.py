"""A worker on the dispatcher of our own, over TLS and with a token: jobs, drain, crashes, refusals."""

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetd.client import Client
from fleetd.errors import JobError
from fleetd.worker.main import main
from tests import servers
from tests.certificates import Certificates
from tests.dispatchers.embedded.serving import embedded
from tests.worker.conftest import StartWorker
from tests.worker.harness import until

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    return file


@pytest.fixture
def environ(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the worker; the client of this test gets it as well."""
    found = {"FLEETD_DISPATCHER_TOKEN": TOKEN, **certificates.environ(cert="client")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def server(certificates: Certificates, token_file: Path, environ: dict[str, str]) -> Iterator[str]:
    """A dispatcher's address that takes nothing but TLS, a client certificate and the token."""
    options = [*certificates.serve(), "--tls-client-ca", certificates.pem("ca"), "--token-file", str(token_file)]
    with embedded(*options) as dispatcher:
        yield f"tls://localhost:{dispatcher.port}"


def test_jobs_of_every_kind_and_size_are_run(start: StartWorker, server: str) -> None:
    worker = start("--server", server, slots=2)
    payload = os.urandom(250_000)
    with Client(server) as client:
        assert client.run("upper", b"x" * 200_000, wait_s=20) == b"X" * 200_000
        assert client.run("later", payload, wait_s=20) == b"later " + payload
        for at in range(300):
            client.submit("upper", b"%d" % at)
        data: list[bytes] = []
        assert client.run("talk", wait_s=20, on_data=data.append).startswith(b"talk H:")
        assert data == [b"part"]
        with pytest.raises(JobError, match="no good: at all"):
            client.run("fail", b"at all", wait_s=20)
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    assert "lost" not in worker.log
    assert TOKEN not in worker.log


@pytest.mark.parametrize("function", ["nap", "doze"])
def test_a_drain_finishes_and_answers_what_runs(start: StartWorker, server: str, function: str) -> None:
    worker = start("--server", server)
    with Client(server) as client:
        running = client._started().start(client._started().client.run(function, b"0.6", wait_s=20))
        worker.wait_note("start")
        client.submit(function, b"0.1 left")
        worker.signal(signal.SIGTERM)
        assert running.result(20) == b"slept"
        assert worker.wait_exit() == 0
        assert [line.split()[0] for line in worker.notes()] == ["start", "end"]


def test_a_released_job_goes_to_another_slot(start: StartWorker, server: str) -> None:
    worker = start("--server", server, slots=2)
    with Client(server) as client:
        running = client._started().start(client._started().client.run("nap", b"0.5", wait_s=20))
        (line,) = worker.wait_note("start")
        os.kill(int(line.split()[-1]), signal.SIGKILL)
        assert running.result(20) == b"slept", "the duplicate of the dead slot's socket held nothing up"
    worker.wait_log('job crashed .*attempt="1 of 3"')
    worker.wait_slots(2)


def test_a_poison_job_is_a_dead_letter_once_and_the_dispatcher_ends_it(start: StartWorker, server: str) -> None:
    """The supervisor cannot speak TLS on a dead slot's connection; the dispatcher's own attempts (3) are the end."""
    worker = start("--server", server, "--attempts", "2")
    with Client(server) as client:
        with pytest.raises(JobError):
            client.run("crash", b"poison", wait_s=30)
        assert len(worker.wait_note("crash", 3)) == 3
        until(lambda: worker.log.count("job crashed") == 3)
        (letter,) = worker.letters()
        assert (letter["attempts"], base64.b64decode(letter["payload"])) == (2, b"poison")
        assert "in crash" in letter["traceback"]
        assert "last word not heard" in worker.log
        assert "over TLS only its own --attempts can end the job" in worker.log
        assert client.run("upper", b"x", wait_s=20) == b"X", "and the worker goes on"


def test_the_token_is_not_in_the_apps_environment(start: StartWorker, server: str, app: Path) -> None:
    (app / "jobs.py").write_text(
        "import os\nfrom fleetd.worker import job\n\nAT_IMPORT = dict(os.environ)\n\n\n@job\ndef show(payload):\n"
        "    return repr((AT_IMPORT, dict(os.environ), open('/proc/self/environ').read()))\n"
    )
    start("--server", server)
    with Client(server) as client:
        shown = client.run("show", wait_s=20).decode()
    assert "FLEETD_TLS_CA" in shown
    assert TOKEN not in shown
    assert "FLEETD_DISPATCHER_TOKEN" not in shown


def test_slots_that_import_the_app_themselves_get_the_token_too(start: StartWorker, server: str, app: Path) -> None:
    text = (app / "jobs.py").read_text()
    thread = "threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    (app / "jobs.py").write_text(text.replace("HERE =", f"{thread}HERE =", 1))
    worker = start("--server", server)
    with Client(server) as client:
        assert client.run("upper", b"x", wait_s=20) == b"X"
    assert "threads are alive after the import" in worker.log


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"FLEETD_DISPATCHER_TOKEN": ""}, "it asks for a token: set FLEETD_DISPATCHER_TOKEN"),
        ({"FLEETD_DISPATCHER_TOKEN": "wrong"}, "it refuses the token of FLEETD_DISPATCHER_TOKEN"),
        ({"FLEETD_TLS_CA": ""}, "its certificate is refused: "),
        ({"FLEETD_TLS_CERT": "", "FLEETD_TLS_KEY": ""}, "set FLEETD_TLS_CERT and FLEETD_TLS_KEY"),
    ],
)
def test_what_a_worker_lacks_is_said(start: StartWorker, server: str, change: dict[str, str], says: str) -> None:
    worker = start("--server", server, env=change)
    worker.wait_log(f'dispatcher not reachable .*dispatcher={server} error="dispatcher {server}: .*{says}')


def test_a_worker_without_the_token_is_told_so_without_tls_too(start: StartWorker, token_file: Path) -> None:
    with embedded("--token-file", str(token_file)) as dispatcher:
        worker = start("--server", dispatcher.address)
        worker.wait_log("dispatcher lost .*it asks for a token: set FLEETD_DISPATCHER_TOKEN")


def test_certificates_that_cannot_be_used_are_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], app: Path
) -> None:
    monkeypatch.setenv("FLEETD_TLS_CA", "/nonexistent")
    assert main(["--server", "tls://localhost:1", "--app", str(app)]) == 2
    assert "FLEETD_TLS_CA: /nonexistent: No such file or directory" in capsys.readouterr().err


@pytest.mark.real
def test_gearmand_with_a_token_set_is_served_and_it_is_said(start: StartWorker, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, env={"FLEETD_DISPATCHER_TOKEN": TOKEN})
    with Client(gearmand.address) as client:
        assert client.run("upper", b"x", wait_s=20) == b"X"
    assert len(worker.wait_log(f"dispatcher {gearmand.address}: knows no tokens and lets anybody in")) == 1
    assert TOKEN not in worker.log
