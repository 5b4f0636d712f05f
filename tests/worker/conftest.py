"""Workers and clients that end with their test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.worker.harness import APP, Client, Worker

StartWorker = Callable[..., Worker]
Connect = Callable[..., Client]


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with the usual jobs."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "jobs.py").write_text(APP)
    return folder


@pytest.fixture
def start(tmp_path: Path, app: Path) -> Iterator[StartWorker]:
    """Start a worker with the usual app; its slots are started when this returns."""
    workers: list[Worker] = []

    def go(
        *args: str, slots: int = 1, wait: bool = True, env: dict[str, str] | None = None, app: bool = True
    ) -> Worker:
        worker = Worker(tmp_path, "--slots", str(slots), *args, env=env, app=app)
        workers.append(worker)
        if wait:
            worker.wait_log("slot started", slots)
            worker.wait_slots(slots)
        return worker

    yield go
    for worker in workers:
        worker.close()


@pytest.fixture
def connect(gearmand: servers.Server) -> Iterator[Connect]:
    """Connect a client, to the test's own dispatcher where no port is given."""
    clients: list[Client] = []

    def go(port: int = gearmand.port) -> Client:
        clients.append(Client(port))
        return clients[-1]

    yield go
    for client in clients:
        client.close()


@pytest.fixture
def worker(start: StartWorker, gearmand: servers.Server) -> Worker:
    """A worker with one slot on the test's own dispatcher."""
    return start("--server", gearmand.address)


@pytest.fixture
def client(connect: Connect) -> Client:
    """A client of the test's own dispatcher."""
    return connect()
