"""New code reaches a running fleet: a watched folder, a pushed release, a canary, a bad one; the jobs go on."""

import json
import subprocess
from typing import Any

import pytest

from tests.e2e.fleet import APP, Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROJECT = """\
[project]
name = "naps"
version = "{version}"
requires-python = ">=3.11"

[project.entry-points."fleetd.jobs"]
nap = "naps_jobs:nap"
version = "naps_jobs:version"

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.build.targets.wheel]
include = ["naps_jobs.py"]
"""


def version(text: str) -> str:
    return APP + f"\n\n@job\ndef version(payload):\n    return b'{text}'\n"


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path, most=3) as made:
        text = made.policy.read_text().replace("match: nap,", 'match: "*",')
        made.policy.write_text(text)
        yield made


def ask(naps: Fleet) -> str:
    """What the version job answers."""
    argv = ["gearman", "-h", naps.server.host, "-p", str(naps.server.port), "-f", "version", "x"]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout


def release(naps: Fleet) -> dict[str, Any]:
    return dict(naps.status()["releases"]["naps"])


def run(naps: Fleet, *argv: str) -> str:
    done = naps.fleetd(*argv)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_watched_folder_is_loaded_by_running_workers_and_bad_code_never_takes_over(naps):
    jobs = naps.home / "app" / "jobs.py"
    jobs.write_text(version("one"))
    naps.start()
    run(naps, "wake", "local", "--count", "2", "--policy", str(naps.policy))
    assert ask(naps) == "one"
    before = release(naps)["active"]
    naps.submit(2.0, count=2)
    naps.until("both nap", lambda: sum(node["busy"] for node in naps.status()["nodes"]) == 2)
    jobs.write_text(version("two"))
    naps.until("new code runs", lambda: ask(naps) == "two")
    naps.until("on all nodes", lambda: set(release(naps)["nodes"]) == {release(naps)["active"]} != {before})
    naps.until("the naps end where they began", lambda: len(naps.naps()) == 2)
    good = release(naps)["active"]
    jobs.write_text(version("three") + "\nraise RuntimeError('half an edit')\n")
    naps.until("it is refused", lambda: "RuntimeError: half an edit" in str(release(naps)["refused"]))
    assert release(naps)["active"] == good
    assert ask(naps) == "two"
    jobs.write_text(version("four"))
    naps.until("mended code runs", lambda: ask(naps) == "four")


def test_a_pushed_release_comes_by_canary_and_goes_back_by_a_word(naps):
    text = naps.policy.read_text().replace("{path: app}", "pushed, reload: {canary: 2s, probation: 5s}")
    naps.policy.write_text(text)
    naps.start()
    digests = {}
    for name, code in ("1.0", version("one")), ("1.1", version("two")), ("1.2", "raise RuntimeError('bad')\n"):
        folder = naps.home / f"project-{name}"
        folder.mkdir()
        (folder / "pyproject.toml").write_text(PROJECT.format(version=name))
        (folder / "naps_jobs.py").write_text(code)
        bundle = naps.home / f"{name}.release"
        run(naps, "release", "build", str(folder), "--out", str(bundle))
        said = run(naps, "release", "push", str(bundle))
        digests[name] = json.loads(run(naps, "release", "show", str(bundle), "--json"))["digest"]
        assert digests[name][:8] in said
    run(naps, "release", "activate", "naps", digests["1.0"])
    run(naps, "wake", "local", "--count", "3", "--policy", str(naps.policy))
    assert ask(naps) == "one"
    naps.until("three nodes", lambda: release(naps)["nodes"] == {digests["1.0"]: 3})
    run(naps, "release", "activate", "naps", digests["1.1"][:12], "--canary", "30%")
    naps.until("a canary", lambda: release(naps)["nodes"].get(digests["1.1"]) == 1)
    assert release(naps)["stage"] == "canary"
    naps.until("all nodes", lambda: release(naps)["nodes"] == {digests["1.1"]: 3})
    assert (release(naps)["active"], release(naps)["previous"]) == (digests["1.1"], digests["1.0"])
    run(naps, "release", "activate", "naps", digests["1.2"], "--canary", "30%")
    naps.until("the bad one is refused", lambda: digests["1.2"] in release(naps)["refused"])
    assert "RuntimeError: bad" in release(naps)["refused"][digests["1.2"]]
    assert ask(naps) == "two"
    run(naps, "release", "rollback", "naps")
    naps.until("one again", lambda: release(naps)["nodes"] == {digests["1.0"]: 3})
    assert ask(naps) == "one"
