"""Environments: made by uv from a lock, from an index on loopback; kept, shared, whole or not there."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleetd.errors import UnreachableError
from fleetd.releases.build import build
from fleetd.releases.bundle import Built
from fleetd.releases.faults import BundleError
from fleetd.releases.stage import Cache, Staged
from tests.releases import sample

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"


@dataclass(slots=True)
class Site:
    """An index with the packages `tiny` and `other`, and a folder to build and stage in."""

    folder: Path
    index: sample.Index

    def built(self, name: str, dependencies: str = '"tiny"', more: str = "") -> Built:
        folder = sample.project(self.folder / name, dependencies=dependencies, index=self.index.url, more=more)
        return build(folder, self.folder / f"{name}.release")

    def cache(self) -> Cache:
        return Cache(self.folder / "cache", ())

    def staged(self, built: Built) -> Staged:
        return self.cache().stage(built.digest, sample.sending(built.path))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with sample.index(tmp_path / "index", "tiny", "other") as index:
        yield Site(tmp_path, index)


def run(python: str, code: str) -> str:
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def leftovers(site: Site) -> list[str]:
    return [name for name in sample.tree(site.folder / "cache") if ".tmp-" in name or name.startswith("locks/")]


def test_a_release_runs_with_its_packages_and_no_others(site: Site) -> None:
    staged = site.staged(site.built("photos"))
    env = site.folder / "cache" / "envs" / f"{staged.manifest.lock}-{TAG}"
    assert staged.python == str(env / "bin" / "python")
    assert run(staged.python, "import tiny; print(tiny.NAME, tiny.__file__)").startswith(f"tiny {env}/lib")
    assert run(staged.python, "import sys; print(sys.prefix)") == str(env)
    said = subprocess.run([env / "bin" / "say-tiny"], capture_output=True, text=True, check=True).stdout
    assert said == "tiny\n"
    with pytest.raises(subprocess.CalledProcessError):
        run(staged.python, "import photos")
    assert leftovers(site) == []
    assert site.cache().find(staged.path.name) == staged


def test_its_files_are_hard_links_into_uv_s_cache(site: Site) -> None:
    staged = site.staged(site.built("photos"))
    (module,) = Path(staged.python).parent.parent.glob("lib/*/site-packages/tiny.py")
    assert module.stat().st_nlink >= 2


def test_the_same_lock_is_the_same_environment_kept_warm(site: Site) -> None:
    first = site.built("photos")
    made = Path(site.staged(first).python).parent.parent.stat().st_ino
    jobs = site.folder / "photos" / "src" / "photos" / "jobs.py"
    jobs.write_text(jobs.read_text() + "# another release\n")
    second = site.staged(build(site.folder / "photos", site.folder / "second"))
    assert second.path.name != first.digest
    assert Path(second.python).parent.parent.stat().st_ino == made


def test_a_release_that_lists_fleetd_gets_the_worker_s_own(site: Site) -> None:
    more = f'[tool.uv.sources]\nfleetd = {{ path = "{ROOT}", editable = true }}\n'
    staged = site.staged(site.built("photos", '"fleetd", "tiny"', more))
    assert run(staged.python, "import tiny, importlib.util as u; print(u.find_spec('fleetd'))") == "None"
    alone = site.staged(site.built("bare", '"fleetd"', more))
    assert alone.python == sys.executable


def test_packages_that_cannot_be_had_leave_nothing(site: Site) -> None:
    built = site.built("photos")
    for file in (site.folder / "index" / "simple" / "tiny").iterdir():
        file.unlink()
    with pytest.raises(BundleError) as caught:
        site.staged(built)
    line = str(caught.value)
    assert line.startswith(f"release {built.digest[:12]}: Failed to ")
    assert "tiny" in line
    assert "\n" not in line
    assert site.cache().find(built.digest) is None
    assert sample.tree(site.folder / "cache") == ["envs", "locks", "releases"]


def test_an_index_that_is_away_is_no_fault_of_the_release(site: Site, tmp_path: Path) -> None:
    with sample.index(tmp_path / "away", "tiny") as index:
        folder = sample.project(tmp_path / "photos", dependencies='"tiny"', index=index.url)
        built = build(folder, tmp_path / "b")
    with pytest.raises(UnreachableError, match="tiny"):
        site.staged(built)
    assert site.cache().find(built.digest) is None


def test_an_environment_whose_python_was_removed_is_made_anew(site: Site) -> None:
    built = site.built("photos")
    staged = site.staged(built)
    python = Path(staged.python)
    python.unlink()
    python.symlink_to("/none/python")
    assert site.cache().find(built.digest) is None
    assert site.cache().stage(built.digest, lambda _: pytest.fail("it is here")) == staged
    assert run(staged.python, "import tiny; print(tiny.NAME)") == "tiny"


def test_processes_that_stage_two_releases_with_one_lock_make_one_environment(site: Site) -> None:
    first = site.built("photos")
    jobs = site.folder / "photos" / "src" / "photos" / "jobs.py"
    jobs.write_text(jobs.read_text() + "# another release\n")
    second = build(site.folder / "photos", site.folder / "second")
    processes = [stager(site, built) for built in (first, second, first, second)]
    ends = [process.communicate(timeout=60)[0].decode().split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert len({tuple(end) for end in ends}) == 1
    assert leftovers(site) == []


def test_gc_removes_an_environment_with_its_last_release(site: Site) -> None:
    tiny, other = site.built("photos"), site.built("others", '"other"')
    first, second = site.staged(tiny), site.staged(other)
    site.cache().gc({tiny.digest}, 0)
    assert Path(first.python).exists()
    assert not Path(second.python).parent.parent.exists()
    assert leftovers(site) == []


# ── killed while uv works

STAGE = """
import sys
from pathlib import Path
from fleetd.releases.stage import Cache
staged = Cache(Path(sys.argv[1]), ()).stage(sys.argv[3], lambda file: file.write(Path(sys.argv[2]).read_bytes()))
print(staged.python, Path(staged.python).parent.parent.stat().st_ino)
"""


def stager(site: Site, built: Built) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", STAGE, str(site.folder / "cache"), str(built.path), built.digest]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def uvs_of(folder: Path) -> list[int]:
    """Return the processes that work with an environment below a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"UV_CACHE_DIR={folder}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def test_a_process_killed_while_uv_works_leaves_nothing_that_counts(site: Site) -> None:
    built = site.built("photos")
    site.index.asked.clear()
    site.index.stalling.set()
    with stager(site, built) as process:
        assert site.index.asked.wait(30)
        assert [path.name[:5] for path in (site.folder / "cache" / "envs").iterdir()] == [".tmp-"]
        assert uvs_of(site.folder / "cache")
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while uvs_of(site.folder / "cache") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert uvs_of(site.folder / "cache") == []
    site.index.stalling.clear()
    assert site.cache().find(built.digest) is None
    staged = site.staged(built)
    assert run(staged.python, "import tiny; print(tiny.NAME)") == "tiny"
    assert leftovers(site) == []
