"""User data: cloud-init and systemd find no fault in it, it holds no secret, and it does install and start a worker."""

import asyncio
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from fleetd import __version__
from fleetd.cli.entry import run
from fleetd.codecs.lease import Lease, WorkerOrder
from fleetd.core.model import AppPolicy, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import UsageError
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.userdata import MOST, user_data
from tests import servers
from tests.control.fleet import FakeSource, Fleet, policy, pool, until
from tests.ec2.identity import authority, pages
from tests.web.site import Site
from tests.web.site import serving as serving_site
from tests.worker.metadata import Metadata
from tests.worker.metadata import serving as serving_metadata

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HASH = "#sha256=" + 64 * "a"
WORKERS = (
    "pip:fleetd[releases]==1.2",
    "image",
    "https://s3.example/fleetd-1.2-py3-none-any.whl",
    f"https://s3.example/wheels.tar.gz?X-Amz-Date=1{HASH}",
)


def made(worker: str = WORKERS[0], **more: Any) -> str:
    """The user data of a pool."""
    return user_data(a_pool(worker, **more), a_launch())


def a_pool(worker: str = WORKERS[0], **more: Any) -> PoolPolicy:
    given: dict[str, Any] = {
        "mode": "fleet",
        "region": "eu-central-1",
        "launch_template": "worker",
        "types": ["c7a.large"],
        "subnets": ["subnet-0"],
        "controller": "http://10.0.0.2:7117/",
        "identity": authority().certificate,
        "worker": worker,
        **more,
    }
    return PoolPolicy("burst", "ec2", Ec2Options(**given), ("photos",), slots=4)


def a_launch(**more: Any) -> WorkerLaunch:
    apps, address = {"photos": AppPolicy("photos")}, ("10.0.0.5:4730",)
    base = WorkerLaunch(
        *("shop", "c-1", "", "/state"), apps, {"photos": address}, {"photos": 60.0}, lambda pool: f"{pool}-token"
    )
    return replace(base, **more)


def files(text: str) -> dict[str, str]:
    """The files that user data writes."""
    return {one["path"]: one["content"] for one in yaml.safe_load(text)["write_files"]}


# ── what it says


@pytest.mark.parametrize("worker", WORKERS)
def test_the_same_pool_has_the_same_text_and_it_fits(worker: str) -> None:
    text = made(worker)
    assert text == made(worker)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < MOST


def test_it_says_where_the_controller_is_and_nothing_that_follows_the_policy_or_is_secret() -> None:
    assert json.loads(files(made())["/etc/fleetd/instance.json"]) == {
        "controller": "http://10.0.0.2:7117",
        "fleet": "shop",
        "pool": "burst",
    }
    other = a_launch(limits={"photos": None}, keys=("k",), apps={"photos": AppPolicy("photos", attempts=9)})
    assert user_data(replace(a_pool(), slots=64), other) == made()
    assert "token" not in made()


def test_an_instance_whose_worker_is_over_or_cannot_start_ends_itself() -> None:
    unit = files(made())["/etc/systemd/system/fleetd-worker.service"].splitlines()
    assert {"SuccessAction=poweroff", "FailureAction=poweroff", "Restart=on-failure", "StartLimitBurst=5"} <= {*unit}
    assert {"KillMode=mixed", "User=fleetd", "StateDirectoryMode=0700", "TimeoutStopSec=120"} <= {*unit}


def test_an_authority_of_the_controllers_is_trusted() -> None:
    parsed = yaml.safe_load(made(ca=authority("ours").certificate))
    assert parsed["ca_certs"]["trusted"] == [authority("ours").certificate]
    assert "ca_certs" not in yaml.safe_load(made())


@pytest.mark.real
@pytest.mark.parametrize("worker", WORKERS)
def test_cloud_init_finds_no_fault(tmp_path: Path, worker: str) -> None:
    path = tmp_path / "user-data"
    path.write_text(made(worker, ca=authority().certificate))
    command = [servers.find("cloud-init"), "schema", "--config-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Valid" in done.stdout
    path.write_text(made(worker).replace("write_files:", "write_files: 7\nxs:"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, "it does look"


@pytest.mark.real
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "fleetd-worker.service"
    text = files(made())["/etc/systemd/system/fleetd-worker.service"]
    unit.write_text(text.replace("/opt/fleetd/bin/python", str(program)))
    command = [servers.find("systemd-analyze"), "verify", "--man=no", str(unit)]
    environ = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert [line for line in done.stderr.splitlines() if "fleetd" in line] == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        ("https://s3.example/fleetd.zip", "is neither a wheel"),
        ("https://s3.example/fleetd.whl#md5=1", "#sha256"),
        ("https://s3.example/fleetd.whl#sha256=short", "#sha256"),
        ("pip: ", "must be pip:SPEC"),
    ],
)
def test_a_worker_that_cannot_be_installed_is_refused(worker: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"^pool burst: ec2: worker: .*{re.escape(why)}"):
        made(worker)


def test_a_pool_whose_instances_could_never_work_is_refused() -> None:
    with pytest.raises(UsageError, match="needs `identity:`, AWS's public certificate of the region"):
        made(identity=None)
    foreign = a_launch(apps={"photos": AppPolicy("photos", exec=("celery",))})
    with pytest.raises(UsageError, match="app photos: only apps with a `release` run on instances yet"):
        user_data(a_pool(), foreign)
    with pytest.raises(UsageError, match="app photos: no queue names it, so its workers have no dispatcher"):
        user_data(a_pool(), a_launch(servers={}))


# ── the command

POLICY = """
version: 1
fleet: shop
controller: {listen: "10.0.0.2:7117", join: {env: NOT_AT_HAND}}
sources: {main: {gearman: {servers: ["10.0.0.5:4730"]}}}
apps: {photos: {release: {path: photos}}}
queues: {resize: {app: photos, source: main, match: "resize_*", objective: {wait: 30s}, job_limit: 2m}}
pools:
  burst:
    ec2: {mode: asg, region: eu-central-1, group: workers, identity: {file: aws.pem}}
    apps: [photos]
    slots: 4
    max: 10
    price: 0.40/h
  local: {process: {}, apps: [photos], slots: 1, max: 1}
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "aws.pem").write_text(authority().certificate)
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def command(*argv: str) -> int:
    """The exit code of `fleetd ARGV`."""
    try:
        return run(list(argv))
    except SystemExit as ended:
        return int(ended.code or 0)


def test_fleetd_userdata_prints_it_and_needs_no_secret(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("userdata", "burst", "-p", str(written)) == 0
    config = json.loads(files(capsys.readouterr().out)["/etc/fleetd/instance.json"])
    assert config == {"controller": "http://10.0.0.2:7117", "fleet": "shop", "pool": "burst"}


@pytest.mark.parametrize(
    ("name", "line"),
    [("local", "pool local is of the kind process, not ec2"), ("brust", "no pool 'brust'; did you mean 'burst'?")],
)
def test_another_pool_is_refused_by_name(
    written: Path, capsys: pytest.CaptureFixture[str], name: str, line: str
) -> None:
    for what in ("userdata", "iam"):
        assert command(what, name, "-p", str(written)) == 2
        assert capsys.readouterr() == ("", f"fleetd: {line}\n")


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("10.0.0.2:7117", "0.0.0.0:7117", "pool burst: ec2: needs `controller:`, the URL by which"),
        ("10.0.0.2:7117", "127.0.0.1:7117", "pool burst: ec2: needs `controller:`, the URL by which"),
        (", identity: {file: aws.pem}", "", "pool burst: ec2: needs `identity:`, AWS's public"),
        ("{file: aws.pem}", "not one", "pool burst: identity: holds no certificate in PEM"),
    ],
)
def test_what_is_wrong_is_one_line(
    written: Path, capsys: pytest.CaptureFixture[str], before: str, after: str, line: str
) -> None:
    written.write_text(POLICY.replace(before, after))
    assert command("userdata", "burst", "-p", str(written)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"fleetd: {line}")


# ── its script, for once not in /opt


class Machine:
    """Where the script runs: a root of its own, and stand-ins for what a test must not do to this machine."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.done = folder / "systemctl.log"
        stub = folder / "bin" / "systemctl"
        stub.parent.mkdir()
        stub.write_text(f'#!/bin/sh\necho "$*" >>{self.done}\n')
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)

    def install(self, worker: str) -> subprocess.CompletedProcess[str]:
        """Run the script of the user data."""
        text = files(made(worker))["/opt/fleetd-install"]
        path = self.root / "install"
        path.write_text(
            text.replace("/opt/fleetd", f"{self.root}/fleetd").replace("/dev/console", f"{self.root}/console")
        )
        environ = {
            **os.environ,
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": "/dev/null",
        }
        return subprocess.run(["sh", str(path)], capture_output=True, text=True, timeout=110, check=False, env=environ)

    @property
    def calls(self) -> list[str]:
        return self.done.read_text().splitlines() if self.done.exists() else []


def wheel(folder: Path, name: str) -> Path:
    """A wheel with nothing in it: what stands for a package that is not the matter here."""
    path = folder / f"{name}-99-py3-none-any.whl"
    info = f"{name}-99.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder behind an HTTP server: fleetd's own wheel, as it is now, and a tar of wheels."""
    folder = tmp_path_factory.mktemp("shelf")
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--offline", "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, timeout=100)
    (own,) = folder.glob("fleetd-*.whl")
    with tarfile.open(folder / "wheels.tar.gz", "w:gz") as tar:
        for path in (own, wheel(folder, "cryptography"), wheel(folder, "uv")):
            tar.add(path, f"some/folder/{path.name}")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.slow
def test_a_tar_of_wheels_becomes_a_worker_that_systemd_starts(tmp_path: Path, shelf: tuple[Path, str]) -> None:
    folder, url = shelf
    digest = hashlib.sha256((folder / "wheels.tar.gz").read_bytes()).hexdigest()
    machine = Machine(tmp_path)
    done = machine.install(f"{url}/wheels.tar.gz#sha256={digest}")
    assert done.returncode == 0, done.stderr
    assert machine.calls == ["daemon-reload", "enable --now fleetd-worker.service"]
    python = tmp_path / "fleetd" / "bin" / "python"
    asked = [str(python), "-P", "-c", "import fleetd, fleetd.worker.instance; print(fleetd.__version__)"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True, cwd=tmp_path).stdout == f"{__version__}\n"
    (tmp_path / "again").mkdir()
    again = Machine(tmp_path / "again")  # its image has the worker already
    shutil.copytree(tmp_path / "fleetd", tmp_path / "again" / "fleetd", symlinks=True)
    assert again.install("image").returncode == 0
    assert again.calls == ["daemon-reload", "enable --now fleetd-worker.service"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "worker", ["URL/wheels.tar.gz#sha256=" + 64 * "0", "URL/none.tar.gz", "pip:fleetd-none", "image"]
)
def test_an_instance_that_cannot_install_its_worker_says_so_and_ends(
    tmp_path: Path, shelf: tuple[Path, str], worker: str
) -> None:
    machine = Machine(tmp_path)
    assert machine.install(worker.replace("URL", shelf[1])).returncode != 0
    assert machine.calls == ["poweroff"]
    assert (tmp_path / "console").read_text() == "fleetd: the worker cannot be installed: this instance ends\n"


# ── from the config to a worker

INSTANCE = "i-0123456789abcdef0"
NODE = f"burst/{INSTANCE}"


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    """The metadata service of an instance that AWS vouches for."""
    with serving_metadata() as found:
        found.pages |= pages(INSTANCE, authority())
        yield found


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A controller whose pool `burst` is of instances."""
    identity = SimpleNamespace(identity=authority().certificate, region="eu-central-1")
    wanted = policy(pool("burst", kind="ec2", options=identity, slots=2, min_nodes=0))
    source = replace(wanted.sources["main"], options=SimpleNamespace(servers=(f"127.0.0.1:{servers.free_port()}",)))
    async with serving_site(Fleet(tmp_path / "state", replace(wanted, sources={"main": source}), FakeSource())) as made:
        yield made


class Instance:
    """The program that the unit starts, on an instance of its own."""

    def __init__(self, folder: Path, site: Site, metadata: Metadata) -> None:
        self.home, self.log, self.imds = folder / "home", folder / "log", metadata.url
        self.config = folder / "instance.json"
        self.config.write_text(files(made(controller=f"http://127.0.0.1:{site.port}"))["/etc/fleetd/instance.json"])
        settings = json.loads(self.config.read_text())
        self.config.write_text(json.dumps({**settings, "fleet": "test"}))
        self.site = site
        self.process: asyncio.subprocess.Process | None = None

    async def boot(self, *more: str) -> asyncio.subprocess.Process:
        """Start it."""
        words = ["-m", "fleetd.worker.instance", str(self.config), "--imds", self.imds, "--home", str(self.home), *more]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=log)
        return self.process

    async def lease(self, node: str = NODE) -> Lease:
        """Wait for its worker's word."""
        entries = self.site.fleet.controller.leases.entries
        with suppress(AssertionError):
            await until(lambda: node in entries and entries[node].lease, 15)
        found = entries[node].lease if node in entries else None
        assert found is not None, self.log.read_text()
        return found

    async def kill(self) -> None:
        """Cut its power."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@pytest.fixture
async def instance(tmp_path: Path, site: Site, metadata: Metadata) -> AsyncIterator[Instance]:
    found = Instance(tmp_path, site, metadata)
    yield found
    await found.kill()


async def test_an_instance_enrols_and_becomes_its_worker_which_ends_with_0_when_told_to(
    instance: Instance, site: Site
) -> None:
    process = await instance.boot()
    await until(lambda: "is not known here yet" in instance.log.read_text(), 10)
    site.fleet.providers["burst"].machines.nodes[NODE] = ""  # the provider sees it late
    lease = await instance.lease()
    assert (lease.fleet, lease.pool, lease.node, lease.app, lease.slots) == ("test", "burst", NODE, "photos", 2)
    assert stat.S_IMODE((instance.home / "token").stat().st_mode) == 0o600
    site.fleet.controller.leases.order(NODE, "stop")
    assert await asyncio.wait_for(process.wait(), 15) == 0, "which switches the instance off"


async def test_a_worker_that_starts_again_is_the_same_node_without_asking_and_a_copied_disk_is_another(
    instance: Instance, site: Site, metadata: Metadata
) -> None:
    site.fleet.providers["burst"].machines.nodes[NODE] = ""
    await instance.boot()
    first = await instance.lease()
    await instance.kill()
    metadata.pages.pop("/latest/dynamic/instance-identity/document")  # it will not be asked for
    entries = site.fleet.controller.leases.entries
    await instance.boot()
    await until(lambda: entries[NODE].lease.boot != first.boot, 15)  # type: ignore[union-attr]
    await instance.kill()
    other = "i-0fedcba9876543210"
    metadata.pages |= pages(other, authority())
    site.fleet.providers["burst"].machines.nodes[f"burst/{other}"] = ""
    await instance.boot()
    assert (await instance.lease(f"burst/{other}")).node == f"burst/{other}"


async def test_an_instance_that_nobody_vouches_for_ends_with_one_line(instance: Instance, metadata: Metadata) -> None:
    metadata.pages |= pages(INSTANCE, authority("somebody"))
    process = await instance.boot()
    assert await asyncio.wait_for(process.wait(), 15) == 1
    (line,) = instance.log.read_text().splitlines()
    assert "not enrolled: pool burst: the identity document is not signed by what its `identity:` names" in line
    assert not instance.home.exists()


@pytest.mark.parametrize("what", ["metadata", "controller"])
async def test_an_instance_that_reaches_nobody_gives_up(
    instance: Instance, metadata: Metadata, site: Site, what: str
) -> None:
    site.fleet.providers["burst"].machines.nodes[NODE] = ""
    if what == "metadata":
        metadata.mode = "500"
    else:
        told = {"controller": f"http://127.0.0.1:{servers.free_port()}", "fleet": "test", "pool": "burst"}
        instance.config.write_text(json.dumps(told))
    process = await instance.boot("--try-for", "2")
    assert await asyncio.wait_for(process.wait(), 15) == 3
    assert instance.log.read_text().count("\n") == 2


async def test_an_interruption_reaches_the_controller_by_the_lease(
    instance: Instance, site: Site, metadata: Metadata
) -> None:
    site.fleet.providers["burst"].machines.nodes[NODE] = ""
    metadata.interrupt(100)
    await instance.boot()
    await instance.lease()
    entry = site.fleet.controller.leases.entries[NODE]
    await until(lambda: entry.lease is not None and entry.lease.leaving == "spot interruption", 10)
    assert entry.lease is not None
    assert entry.lease.leaving_s is not None
    assert 80 < entry.lease.leaving_s <= 100
    assert isinstance(entry.order, WorkerOrder)
