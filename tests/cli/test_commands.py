"""Commands that need no controller: exit codes, one clear line for each error, JSON that is JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fleetd import __version__
from fleetd.cli.entry import run
from scripts import commands
from tests import servers

ROOT = Path(__file__).parent.parent.parent
POLICY = ROOT / "examples" / "rush-hour.yaml"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No fleet of this machine is ever looked at."""
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FLEETD_URL", raising=False)
    return tmp_path / "state"


def command(*argv: str) -> int:
    """Run a command in this process and return its exit code, whichever way it ends."""
    try:
        return run(list(argv))
    except SystemExit as end:
        return int(end.code or 0)


def test_version(capsys):
    assert command("version") == 0
    assert capsys.readouterr().out == f"fleetd {__version__}\n"


def test_check_of_a_good_policy(capsys):
    assert command("check", str(POLICY)) == 0
    assert capsys.readouterr().out == f"{POLICY}: good: fleet rush, 1 queues, 1 pools\n"


def test_check_prints_every_error_with_its_place_and_ends_with_2(tmp_path, capsys):
    policy = tmp_path / "p.yaml"
    policy.write_text("version: 1\nflet: shop\nstability: wild\n")
    assert command("check", str(policy)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith(f"{policy}:") for line in lines)
    assert any("2:1" in line and "did you mean 'fleet'" in line for line in lines)
    assert any(":3:12: stability: " in line for line in lines)


def test_check_tells_programs_in_json(tmp_path, capsys):
    policy = tmp_path / "p.yaml"
    policy.write_text("version: 2\n")
    assert command("check", str(policy), "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["good"] is False
    assert told["problems"][0].startswith(f"{policy}:1:")
    assert command("check", str(POLICY), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"good": True, "problems": []}


def test_the_documented_commands_are_the_commands_there_are():
    """`make docs` renews the page."""
    assert commands.DOC.read_text() == commands.page()


def test_init_writes_a_policy_that_checks_and_never_overwrites(tmp_path, capsys):
    policy = tmp_path / "fleetd.yaml"
    assert command("init", str(policy)) == 0
    assert command("check", str(policy)) == 0
    policy.write_text("mine")
    assert command("init", str(policy)) == 2
    assert policy.read_text() == "mine"
    assert capsys.readouterr().err == f"fleetd: {policy}: is there already; --force overwrites it\n"


def test_schema_is_json_schema(capsys):
    assert command("schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/draft/2020-12")
    assert {"version", "fleet", "queues", "pools"} <= set(schema["properties"])


@pytest.mark.parametrize("argv", [["status"], ["explain"], ["wake", "local"], ["drain", "local"]])
def test_without_a_controller_the_exit_code_is_3(argv, capsys):
    assert command(*argv) == 3
    assert capsys.readouterr().err.startswith("fleetd: no controller runs here (looked in ")


def test_deep_terms_are_those_of_the_last_decision(capsys):
    assert command("explain", "--deep", "--at", "10m") == 2
    line = "fleetd: --at: --deep tells of the last decision; leave one of the two out\n"
    assert capsys.readouterr().err == line
    assert command("explain", "--deep") == 3


def test_an_unreachable_url_is_named(monkeypatch, capsys):
    url = f"http://127.0.0.1:{servers.free_port()}"
    monkeypatch.setenv("FLEETD_URL", url)
    assert command("status") == 3
    assert f"the controller at {url} does not answer" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["nonsense"], ["status", "--nonsense"], ["wake"], ["wake", "local", "--count", "0"]])
def test_wrong_usage_ends_with_2(argv):
    assert command(*argv) == 2


def test_a_bad_duration_is_named(capsys):
    assert command("wake", "local", "--for", "soon") == 2
    assert capsys.readouterr().err.startswith("fleetd: --for: ")


def test_plan_against_no_dispatcher_is_blind_and_launches_nothing(capsys, state):
    text = POLICY.read_text().replace("embedded", f'{{embedded: "127.0.0.1:{servers.free_port()}"}}')
    policy = state.parent / "p.yaml"
    policy.write_text(text.replace("path: thumbnails", f"path: {POLICY.parent / 'thumbnails'}"))
    assert command("plan", "--policy", str(policy), "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["intents"] == []
    assert "thumbnails: blind (" in plan["why"]["app photos"]
    assert not state.exists(), "plan changed something"


def test_submit_to_no_dispatcher_ends_with_3(capsys):
    code = command("submit", "x", "--payload", "a", "--wait", "1", "--server", f"127.0.0.1:{servers.free_port()}")
    assert code == 3
    assert capsys.readouterr().err.startswith("fleetd: job x: no dispatcher took it")


def test_worker_submit_and_version_load_no_library_of_the_controller():
    """A bare install runs them. Seen to fail with `import rich` in fleetd/cli/entry.py."""
    code = (
        "import sys; from fleetd.cli.entry import run; import fleetd.cli.submit, fleetd.worker.main; run(['version']);"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & set(sys.argv[1:])))"
    )
    libraries = [
        "pydantic",
        "yaml",
        "rich",
        "typer",
        "click",
        "httpx",
        "starlette",
        "uvicorn",
        "structlog",
        "apscheduler",
    ]
    out = subprocess.run([sys.executable, "-c", code, *libraries], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
