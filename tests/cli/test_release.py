"""`fleetd release`: from sources to a controller that serves them, each answer one line, each fault one line."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from fleetd.cli import asking, release
from fleetd.cli.entry import run
from fleetd.errors import UsageError
from fleetd.releases.bundle import read
from tests.releases import sample
from tests.web.site import TOKEN
from tests.web.test_releases import serving

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No fleet of this machine is ever looked at."""
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FLEETD_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def command(*argv: str) -> int:
    """Run a command in this process and return its exit code, whichever way it ends."""
    try:
        return run(["release", *argv])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
async def site(tmp_path, monkeypatch):
    async with serving(tmp_path / "fleet") as site:
        monkeypatch.setenv("FLEETD_URL", f"http://127.0.0.1:{site.port}")
        monkeypatch.setenv("FLEETD_TOKEN", TOKEN)
        yield site


async def asked(*argv: str) -> int:
    """Run a command while this loop serves the controller."""
    return await asyncio.to_thread(command, *argv)


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_build_and_show_need_no_controller(tmp_path, capsys):
    sample.project(tmp_path / "photos")
    assert command("build", "photos", "--out", "b") == 0
    digest = read(Path("b"), ())[1]
    assert lines(capsys) == [f"b: photos 1.0, {digest}"]
    assert command("show", "b") == 0
    shown = lines(capsys)
    assert shown[:3] == ["photos 1.0 (wheel)", f"digest           {digest}", "signed by        nobody"]
    assert "job              resize = photos.jobs:resize" in shown
    assert command("build", "photos", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["digest"] == digest
    assert told["path"] == str(tmp_path / f"photos-1.0-{digest[:12]}.release")


def test_a_key_signs_and_show_tells_whose_it_is(tmp_path, capsys):
    assert command("key", "--out", "k.pem") == 0
    out = capsys.readouterr()
    public = out.out.strip()
    assert public.startswith("ed25519:")
    assert out.err == "wrote k.pem: keep it where releases are built and nowhere else\n"
    sample.project(tmp_path / "photos")
    assert command("build", "photos", "--out", "b", "--key", "k.pem") == 0
    capsys.readouterr()
    assert command("show", "b", "--json") == 0
    assert json.loads(capsys.readouterr().out)["signed_by"] == public
    assert command("key", "--out", "k.pem") == 2
    assert capsys.readouterr().err == "fleetd: k.pem: is there already; a key is never overwritten\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("build", "none"), "none: has no pyproject.toml with a [project]; a release is built from one"),
        (("show", "none"), "release: 'none' is no file and no digest of at least 8 hex digits"),
        (("push", "none"), "none: No such file or directory"),
        (("push", "b", "--key", "k"), "--key: a release is signed when it is built; leave it out"),
        (("activate", "photos", "a" * 64, "--canary", "200%"), "--canary: must be a share such as 10% or 0.1"),
        (("activate", "photos", "a" * 64, "--canary", "some"), "--canary: must be a share such as 10% or 0.1"),
        (("activate", "photos", "xyz"), "release: 'xyz' is no file and no digest of at least 8 hex digits"),
    ],
)
def test_wrong_usage_is_one_line_and_2(argv, line, capsys):
    assert command(*argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert line in err


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0)])
def test_a_share(text, share):
    assert release._share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0", "0%", "101%", "nan", "-1", ""])
def test_no_share(text):
    with pytest.raises(UsageError, match="--canary"):
        release._share(text)


def test_without_a_controller_it_is_3(capsys):
    assert command("list") == 3
    assert "no controller runs here" in capsys.readouterr().err


async def test_push_list_show_and_gc(tmp_path, capsys, site):
    digest = sample.bundle(tmp_path / "b")
    assert await asked("push", "b") == 0
    assert lines(capsys) == [f"pushed photos 1.0, {digest}; next: fleetd release activate photos"]
    assert await asked("list", "photos") == 0
    (row,) = lines(capsys)
    assert row.startswith(f"{digest[:12]} photos           1.0          wheel ")
    assert "not signed" in row
    assert await asked("list", "others") == 0
    assert lines(capsys) == ["no releases"]
    assert await asked("list", "--json") == 0
    assert [entry["digest"] for entry in json.loads(capsys.readouterr().out)] == [digest]
    assert await asked("show", digest[:8]) == 0
    assert f"digest           {digest}" in lines(capsys)
    assert await asked("gc") == 0
    assert lines(capsys) == ["nothing"]
    assert await asked("gc", "--keep", "0") == 0
    assert lines(capsys) == [f"removed 1: {digest[:12]}"]


async def test_push_of_a_folder_builds_it(tmp_path, capsys, site):
    sample.project(tmp_path / "photos")
    assert await asked("push", "photos") == 0
    out = capsys.readouterr()
    assert out.out.startswith("pushed photos 1.0, ")
    assert out.err.startswith(f"wrote {tmp_path}/photos/uv.lock: keep it beside the sources")
    assert not list(tmp_path.glob("*.release"))


async def test_a_broken_release_is_refused_with_the_controller_s_line(tmp_path, capsys, site):
    (tmp_path / "b").write_bytes(os.urandom(100_000))
    assert await asked("push", "b") == 2
    assert capsys.readouterr().err == "fleetd: release: is damaged, or is no zip: File is not a zip file\n"


async def test_what_activate_rollback_and_pardon_ask_for(tmp_path, capsys, site, monkeypatch):
    """Their answers are the roll-out's business; here it is what they send."""
    sent: list[tuple[str, str, dict[str, object]]] = []

    def ask(method, path, fleet, **body):
        if path == "/v1/releases":
            return from_controller(method, path, fleet)
        sent.append((method, path, body))
        return {"said": ["one", "two"]}

    from_controller = asking.ask
    monkeypatch.setattr(release, "ask", ask)
    old = sample.bundle(tmp_path / "b", {"app/jobs.py": b"x = 1\n"})
    await asked("push", "b")
    new = sample.bundle(tmp_path / "b", {"app/jobs.py": b"x = 2\n"})
    await asked("push", "b")
    capsys.readouterr()
    assert await asked("activate", "photos") == 0
    assert lines(capsys) == ["one", "two"]
    assert await asked("activate", "photos", old[:10], "--canary", "10%") == 0
    assert await asked("rollback", "photos") == 0
    assert await asked("pardon", "photos", old) == 0
    assert sent == [
        ("POST", "/v1/activate", {"app": "photos", "digest": new, "canary": None}),
        ("POST", "/v1/activate", {"app": "photos", "digest": old, "canary": 0.1}),
        ("POST", "/v1/rollback", {"app": "photos"}),
        ("POST", "/v1/release/pardon", {"app": "photos", "digest": old}),
    ]
    capsys.readouterr()
    assert await asked("activate", "others") == 2
    assert "no release of 'others' was pushed" in capsys.readouterr().err
    assert await asked("pardon", "photos", "0" * 8) == 2
    assert "00000000 is the beginning of no release here" in capsys.readouterr().err
