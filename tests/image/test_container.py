"""The container images: built here, run as a runtime would run them, with nothing of the machine's but its kernel."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests import servers
from tests.image import containers
from tests.image.containers import ContainerImage
from tests.worker.harness import Client, status, until

# One process for all of them: what they look at takes minutes to build.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("containers")]
APP = """
import os, subprocess, time
from fleetd.worker import job

@job
def nap(payload):
    time.sleep(float(payload))
    return f"slept as {os.getuid()}".encode()

@job
def litter(payload):
    subprocess.Popen(["sh", "-c", "sleep 0.2 & exit 0"]).wait()
    return b"left one behind"
"""
POLICY = """
version: 1
fleet: boxed
sources: {main: {gearman: {servers: ["SERVER"]}}}
apps: {naps: {release: {path: /app}}}
queues: {nap: {app: naps, source: main, match: "nap*", objective: {wait: 5s}, job_limit: 1m}}
pools: {here: {process: {}, apps: [naps], slots: 1, max: 1}}
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the images were built."""
    containers.need_root()
    for command in ("buildah", "mmdebstrap"):
        servers.find(command)
    out = tmp_path_factory.mktemp("built")
    containers.build(containers.copy_sources(out / "sources"), out)
    return out


@pytest.fixture(scope="module")
def worker(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> ContainerImage:
    """The worker's image."""
    return containers.open_image(archives / "worker.oci.tar", tmp_path_factory.mktemp("worker") / "root")


@pytest.fixture(scope="module")
def controller(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> ContainerImage:
    """The controller's image."""
    return containers.open_image(archives / "controller.oci.tar", tmp_path_factory.mktemp("controller") / "root")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app that is mounted, not part of the image."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "jobs.py").write_text(APP)
    return folder


def test_who_what_and_how_large(worker: ContainerImage, controller: ContainerImage) -> None:
    for image, entry, most in ((worker, ["fleetd", "worker"], 90), (controller, ["fleetd"], 160)):
        config = image.config["config"]
        assert config["User"] == "10001:10001"
        assert config["Entrypoint"] == entry
        labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
        assert labels["title"] == "fleetd"
        assert (labels["version"], labels["licenses"]) == ("0.1.0", "Apache-2.0")
        print(f"{entry}: {image.size / 2**20:.1f} MiB")
        assert image.size < most << 20
    assert worker.size < controller.size * 0.8


def test_nothing_that_built_them_is_left(worker: ContainerImage, controller: ContainerImage) -> None:
    for image in (worker, controller):
        names = {path.name for path in image.root.rglob("*") if not path.is_symlink()}
        assert not names & {"pip", "gcc", "x86_64-linux-gnu-gcc-12", "wheels", "ensurepip", "apt-get", "uv_cache.json"}
        assert "setuptools" not in names or image is controller  # a BMC's library wants it, to know its own version
        sources = [path for path in (image.root / "opt/fleetd/lib").rglob("*.py") if "/templates/" not in str(path)]
        compiled = [path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in sources]
        assert all(path.exists() for path in compiled)
        assert {path.read_bytes()[4:8] for path in compiled} == {b"\1\0\0\0"}  # by hash, not checked


def test_commands_run_unprivileged_on_a_read_only_root(worker: ContainerImage, controller: ContainerImage) -> None:
    for image, args, wanted in (
        (worker, ("--help",), "usage: fleetd worker"),
        (controller, ("--version",), "fleetd 0.1.0"),
        (controller, ("run", "--help"), "Usage: fleetd run"),
    ):
        with image.run(*args) as container:
            assert container.wait() == 0, container.log
            assert wanted in container.log
    with worker.run(
        entry=["sh", "-c", "id -u; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status; touch /here"]
    ) as it:
        assert it.wait() != 0
        assert it.log.split()[:7] == ["10001", "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]
        assert "Read-only file system" in it.log


def test_worker_as_process_1_finishes_its_job_and_ends(
    worker: ContainerImage, app: Path, gearmand: servers.Server
) -> None:
    with worker.run("--server", gearmand.address, "--app", "/app", "--slots", "1", mounts={app: "/app"}) as container:
        client = Client(gearmand.port)
        try:
            client.submit("nap", b"2")
            until(lambda: status(gearmand.port).get("nap", (0, 0, 0))[1] == 1, 60, lambda: container.log)
            container.terminate()
            assert client.end(limit_s=30).args[-1] == b"slept as 10001"
            assert container.wait() == 0, container.log
        finally:
            client.close()
    assert "why=SIGTERM" in container.log
    assert status(gearmand.port)["nap"][2] == 0


def test_worker_as_process_1_buries_what_jobs_leave_behind(
    worker: ContainerImage, app: Path, gearmand: servers.Server
) -> None:
    with worker.run("--server", gearmand.address, "--app", "/app", "--slots", "1", mounts={app: "/app"}) as container:
        client = Client(gearmand.port)
        try:
            for _ in range(3):
                assert client.run("litter").args[-1] == b"left one behind"
        finally:
            client.close()
        until(lambda: not _zombies(container.first), 20, lambda: str(_zombies(container.first)))
        container.terminate()
        assert container.wait() == 0


def test_controller_as_process_1_runs_a_job_and_ends(
    controller: ContainerImage, app: Path, gearmand: servers.Server, tmp_path: Path
) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "fleetd.yaml").write_text(POLICY.replace("SERVER", gearmand.address))
    args = ("run", "--drain", "--policy", "/policy/fleetd.yaml")
    with controller.run(*args, mounts={app: "/app", policy: "/policy"}) as container:
        client = Client(gearmand.port)
        try:
            client.submit("nap", b"0.1")
            assert client.end(limit_s=60).args[-1] == b"slept as 10001", container.log
        finally:
            client.close()
        container.terminate()
        assert container.wait(120) == 0, container.log


def test_two_builds_have_the_same_layers(
    archives: Path, worker: ContainerImage, controller: ContainerImage, tmp_path: Path
) -> None:
    time.sleep(1.1)  # a time in the layers would be another second's
    out = tmp_path / "elsewhere"
    containers.build(shutil.copytree(archives / "sources", tmp_path / "copied", symlinks=True), out)
    for name, first in (("worker", worker), ("controller", controller)):
        again = containers.open_image(out / f"{name}.oci.tar", tmp_path / name)
        assert again.layers == first.layers
        assert json.dumps(again.config) == json.dumps(first.config)
    assert (out / "root.tar").read_bytes() == (archives / "root.tar").read_bytes()


def _zombies(first: int) -> list[str]:
    said = subprocess.run(
        ["ps", "-o", "stat=,comm=", "--ppid", str(first)], capture_output=True, text=True, check=False
    )
    return [line for line in said.stdout.splitlines() if line.startswith("Z")]
