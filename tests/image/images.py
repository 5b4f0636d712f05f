"""A node image for tests: the recipe with an app of ours in it, today's packages, signed."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleetd.boot.image import Wanted, build_image
from fleetd.boot.manifest import Image
from fleetd.boot.recipe import read_recipe
from fleetd.releases.sign import make_key
from scripts import wheels
from tests import servers
from tests.image import containers

APP = "/opt/app/jobs.py"
HOOK = f"""#!/bin/sh
set -eu
mkdir -p "$1/opt/app"
cat > "$1{APP}" <<'END'
import os, time
from fleetd.worker import job

@job
def who(payload):
    return b"%d has %s" % (os.getuid(), payload)

@job
def nap(payload):
    time.sleep(float(payload))
    return b"slept"
END
"""


@dataclass(frozen=True, slots=True)
class Built:
    """An image, where it is, and what it was made of."""

    folder: Path
    image: Image
    recipe: Path
    wheels: Path
    key: Path
    public: str


def make(room: Path) -> Built:
    """Build it."""
    containers.need_root()
    for command in ("mmdebstrap", "mksquashfs", "dpkg-deb"):
        servers.find(command)
    sources = containers.copy_sources(room / "sources")
    recipe = sources / "pxe"
    (recipe / "hooks" / "50-app").write_text(HOOK)
    (recipe / "hooks" / "50-app").chmod(0o755)
    wheels.main([str(room / "wheels")])
    public = make_key(room / "key.pem")
    wanted = Wanted(room / "image", room / "wheels", room / "key.pem", relock=True)
    image = build_image(read_recipe(recipe), wanted, print)
    return Built(wanted.out, image, recipe, wanted.wheels, room / "key.pem", public)


def spoiled(built: Built, what: str, to: Path) -> Path:
    """Copy an image and change one byte in the middle of a part."""
    shutil.copytree(built.folder, to)
    path = to / built.image.parts[what].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return to


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One image for all tests that only read it."""
    return make(tmp_path_factory.mktemp("node-image"))
