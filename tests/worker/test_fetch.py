"""A worker that runs what its controller names: it fetches, verifies, and goes on with what it has where that fails."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fleetd.codecs.lease import WorkerOrder, join_token
from fleetd.releases.sign import make_key
from tests import servers
from tests.releases import sample
from tests.worker.conftest import StartWorker
from tests.worker.controller import SECRET, Controller, serving
from tests.worker.harness import APP, Client, Worker, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def controller() -> Iterator[Controller]:
    with serving() as made:
        yield made


def begin(start: StartWorker, gearmand: servers.Server, controller: Controller, *args: str) -> Worker:
    """A worker that has nothing to run yet."""
    identity = ("--fleet", "shop", "--pool", "rack3", "--controller", controller.url)
    env = {"FLEETD_JOIN_TOKEN": join_token(SECRET, "shop", "rack3")}
    return start("--server", gearmand.address, *identity, *args, wait=False, env=env, app=False)


def give(controller: Controller, app: Path, text: str) -> str:
    """Have the worker run an app whose `version` answers so."""
    (app / "jobs.py").write_text(APP + f"\n@job\ndef version(payload):\n    return b'{text}'\n")
    number = controller.order.number + 1 if controller.order else 1
    return controller.give(app, app.parent, number)


def order(controller: Controller, digest: str, body: bytes) -> None:
    """Name a release whose bundle is this."""
    controller.bundles[digest] = body
    assert controller.order is not None
    controller.order = replace(controller.order, number=controller.order.number + 1, release=digest)


def test_it_starts_with_nothing_and_is_no_capacity_until_it_runs_the_release(
    start: StartWorker, gearmand: servers.Server, controller: Controller, client: Client, app: Path
) -> None:
    begin(start, gearmand, controller)
    starting = controller.wait(lambda lease: lease.state == "starting")
    assert (starting.digest, starting.busy) == ("", 0)
    digest = give(controller, app, "one")
    assert controller.wait(lambda lease: lease.state == "working").digest == digest
    assert client.run("version").args[1] == b"one"


def test_a_release_that_cannot_be_trusted_is_refused_in_a_line_and_what_runs_goes_on(
    start: StartWorker, gearmand: servers.Server, controller: Controller, client: Client, app: Path
) -> None:
    worker = begin(start, gearmand, controller)
    good = give(controller, app, "one")
    controller.wait(lambda lease: lease.state == "working")
    slots = worker.slots()
    built = app.parent / "made"
    inside = {"app/jobs.py": b"x = 1\n"}
    digest = sample.bundle(built, inside, sample.manifest(inside, kind="folder", requires_python=">=3.99"))
    later = built.read_bytes()
    refusals = {
        "e" * 64: (controller.bundles[good], "what came is another release"),
        "f" * 64: (controller.bundles[good][:-40], "f" * 12),
        digest: (later, "needs Python >=3.99"),
    }
    for name, (body, reason) in refusals.items():
        order(controller, name, body)
        told = controller.wait(lambda lease, name=name: name in lease.refused).refused[name]  # type: ignore[misc]
        assert reason in told
        assert "\n" not in told
        assert client.run("version").args[1] == b"one"
    assert worker.slots() == slots, "no slot of what ran was touched"
    newer = give(controller, app, "two")
    controller.wait(lambda lease: lease.digest == newer)
    assert client.run("version").args[1] == b"two"


def test_with_a_key_an_unsigned_release_never_runs(
    start: StartWorker, gearmand: servers.Server, controller: Controller, app: Path, tmp_path: Path
) -> None:
    public = make_key(tmp_path / "key.pem")
    worker = begin(start, gearmand, controller, "--key", public)
    digest = give(controller, app, "one")
    told = controller.wait(lambda lease: digest in lease.refused)
    assert "is not signed, and signatures are asked for" in told.refused[digest]
    assert (told.state, worker.slots()) == ("starting", [])


def test_a_controller_that_cannot_give_it_is_asked_again(
    start: StartWorker, gearmand: servers.Server, controller: Controller, client: Client, app: Path
) -> None:
    worker = begin(start, gearmand, controller)
    digest = give(controller, app, "one")
    body = controller.bundles[digest]
    order(controller, "d" * 64, b"")  # never there
    del controller.bundles["d" * 64]
    worker.wait_log("release not fetched; it is tried again")
    controller.order = WorkerOrder(9, "work", release=digest)
    controller.bundles[digest] = body
    until(lambda: controller.leases[-1].digest == digest, hint=lambda: worker.log)
    assert client.run("version").args[1] == b"one"
