"""Container images from their archives, and containers as a runtime makes them, without one: namespaces, a read-only
root, no privileges, and the image's own program as process 1."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests import servers
from tests.worker.harness import until

ROOT = Path(__file__).resolve().parents[2]
# In namespaces of its own, as process 1: the image's root, read-only, with memory where it may write.
ENTER = """\
set -eu
root=$1; user=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
for pair in $MOUNTS; do mkdir -p "$root/${pair#*:}" && mount --bind "${pair%%:*}" "$root/${pair#*:}"; done
for folder in tmp var/lib/fleetd var/cache/fleetd; do mount -t tmpfs -o mode=1777 tmpfs "$root/$folder"; done
mount -t proc proc "$root/proc"
mount -o remount,bind,ro "$root"
unset MOUNTS
exec chroot "$root" setpriv --reuid "${user%%:*}" --regid "${user#*:}" --clear-groups --inh-caps=-all \\
    --bounding-set=-all --no-new-privs -- sh -c 'cd "$1" && shift && exec "$@"' sh "$WORKDIR" "$@"
"""


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """An image: its layers' digests, its configuration, its root file system unpacked."""

    layers: tuple[str, ...]
    config: dict[str, Any]
    root: Path
    size: int

    @contextlib.contextmanager
    def run(
        self, *args: str, mounts: Mapping[Path, str] | None = None, entry: Sequence[str] | None = None
    ) -> Iterator["Container"]:
        """Run a container until the end of the block."""
        config = self.config["config"]
        command = [*(config["Entrypoint"] if entry is None else entry), *args]
        pairs = " ".join(f"{outside}:{inside.strip('/')}" for outside, inside in (mounts or {}).items())
        environ = dict(item.split("=", 1) for item in config["Env"])
        around = {**environ, "MOUNTS": pairs, "WORKDIR": config["WorkingDir"], "PATH": os.environ["PATH"]}
        around["PATH"] = f"{environ['PATH']}:/usr/sbin:/sbin"
        log_path = self.root.parent / f"log-{servers.free_port()}"
        with log_path.open("wb") as log:
            apart = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=SIGKILL"]
            process = subprocess.Popen(
                [*apart, "sh", "-c", ENTER, "sh", str(self.root), config["User"], *command],
                env=around,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Container(process, log_path)
        finally:
            process.kill()
            process.wait(20)


@dataclass(frozen=True, slots=True)
class Container:
    """A running container."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        """All that it said."""
        return self.log_path.read_text("utf-8", "replace")

    @property
    def first(self) -> int:
        """The pid, as the machine sees it, of its process 1."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(until(lambda: children.read_text().split(), 20)[0])

    def terminate(self) -> None:
        """Send TERM to its process 1, as a runtime does."""
        os.kill(self.first, signal.SIGTERM)

    def wait(self, limit_s: float = 60.0) -> int:
        """Return the exit code."""
        return self.process.wait(limit_s)


def copy_sources(to: Path) -> Path:
    """Copy what the images are made of: sources that stand still while others change the tree."""
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("fleetd", "scripts", "pxe"):
        shutil.copytree(ROOT / name, to / name, ignore=skipped)
    for name in ("pyproject.toml", "requirements.lock", "README.md", "LICENSE", "Containerfile"):
        shutil.copy(ROOT / name, to / name)
    (to / ".venv").symlink_to(ROOT / ".venv")
    return to


def build(sources: Path, out: Path) -> None:
    """Build the images as a person would."""
    command = ["scripts/image", "--relock", str(out)]
    done = subprocess.run(command, cwd=sources, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def open_image(archive: Path, into: Path) -> ContainerImage:
    """Read an archive and unpack its layers."""
    with tarfile.open(archive) as tar:

        def blob(digest: str) -> IO[bytes]:
            file = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
            assert file is not None
            return file

        index = tar.extractfile("index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        config = json.load(blob(manifest["config"]["digest"]))
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"]), mode="r:gz") as files:
                files.extractall(into, filter="fully_trusted")
    assert not [*into.rglob(".wh.*")], "a layer takes something away, which is not done here"
    return ContainerImage(tuple(config["rootfs"]["diff_ids"]), config, into, archive.stat().st_size)


def need_root() -> None:
    """Skip where there is no root; in CI fail."""
    if os.geteuid() == 0 and shutil.which("unshare"):
        return
    if os.environ.get("CI"):
        pytest.fail("containers need root here")
    pytest.skip("containers need root; run these tests as root")
