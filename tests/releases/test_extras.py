"""What a bare install does with releases: it imports all of it, and says what to install for what it cannot do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetd.errors import UsageError
from fleetd.releases.shelf import open_shelf
from fleetd.releases.sign import make_key
from fleetd.releases.stage import Cache
from tests.releases import sample

ROOT = Path(__file__).parents[2]
MODULES = [f"fleetd.releases.{path.stem}" for path in (ROOT / "fleetd" / "releases").glob("[a-z]*.py")]


def test_the_standard_library_is_enough_to_import_it() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        f"import {', '.join(MODULES)}\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('fleetd.')))"
    )
    around = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=around)
    roots, ours = (line.split() for line in run.stdout.splitlines())
    assert [name for name in roots if name not in sys.stdlib_module_names] == ["fleetd"]
    allowed = ("fleetd.releases", "fleetd.codecs", "fleetd.errors")
    assert [name for name in ours if not name.startswith(allowed)] == []


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An install without the extras."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cryptography", "obstore"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("cryptography", "obstore"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
def test_what_an_extra_brings_is_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^signing needs cryptography: pip install 'fleetd\[releases\]'$"):
        make_key(tmp_path / "key")
    with pytest.raises(UsageError, match=r"^releases\.store s3://bucket needs obstore: pip install 'fleetd\[s3\]'$"):
        open_shelf("s3://bucket", ())


@pytest.mark.usefixtures("bare")
def test_without_keys_a_bare_install_stages(tmp_path: Path) -> None:
    digest = sample.bundle(tmp_path / "b")
    assert Cache(tmp_path / "cache", ()).stage(digest, sample.sending(tmp_path / "b")).manifest.app == "photos"


@pytest.mark.usefixtures("bare")
def test_with_keys_it_refuses_rather_than_not_look(tmp_path: Path) -> None:
    digest = sample.bundle(tmp_path / "b")
    cache = Cache(tmp_path / "cache", ("ed25519:" + "A" * 43 + "=",))
    with pytest.raises(UsageError, match="is not signed, and signatures are asked for"):
        cache.stage(digest, sample.sending(tmp_path / "b"))
