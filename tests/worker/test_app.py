"""Finding, hashing and importing an app."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetd.worker.app import AppError, find_app


def _app(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


ENTRY = '[project]\nname = "photos"\n[project.entry-points."fleetd.jobs"]\nresize = "pics:resize"\n'


def test_entry_points_are_read_without_running_code(tmp_path: Path) -> None:
    app = find_app(_app(tmp_path, {"pyproject.toml": ENTRY, "src/pics.py": "raise SystemExit('ran')"}))
    assert (app.name, app.root, app.entries) == ("photos", tmp_path / "src", (("resize", "pics:resize"),))


def test_the_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    files = {"jobs.py": "a = 1\n", "lib/b.py": "b = 2\n"}
    one, two = _app(tmp_path / "one", files), _app(tmp_path / "two", files)
    (two / "__pycache__").mkdir()
    (two / "__pycache__" / "jobs.py").write_text("x")
    (two / ".git").mkdir()
    (two / ".git" / "c.py").write_text("x")
    os.utime(two / "jobs.py", (1, 1))
    assert find_app(one).digest == find_app(two).digest
    (two / "lib" / "b.py").rename(two / "lib" / "c.py")
    assert find_app(one).digest != find_app(two).digest


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"other.txt": ""}, r"has neither a \[project.entry-points"),
        ({"pyproject.toml": "[project"}, "pyproject.toml: "),
        ({"pyproject.toml": '[project.entry-points."fleetd.jobs"]\na = "no function"\n'}, 'expected "module:function"'),
    ],
)
def test_a_wrong_app_is_one_clear_line(tmp_path: Path, files: dict[str, str], words: str) -> None:
    with pytest.raises(AppError, match=words):
        find_app(_app(tmp_path, files))


def test_a_missing_app_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(AppError, match="does not exist"):
        find_app(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"jobs.py": "import nothing_of_this_name\n"}, "No module named 'nothing_of_this_name'"),
        ({"jobs.py": "x = 1\n"}, "no function is decorated with @job"),
        ({"jobs.py": "import os; os._exit(7)\n"}, "ended with 7 while importing"),
        ({"jobs.py": "from fleetd.worker import job\n@job\ndef f(): pass\n"}, "must take the payload"),
        ({"pyproject.toml": ENTRY, "pics.py": ""}, "module 'pics' has no 'resize'"),
        ({"pyproject.toml": ENTRY}, "cannot import 'pics'"),
    ],
)
def test_an_app_that_cannot_be_imported_ends_the_worker(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], files: dict[str, str], words: str
) -> None:
    command = [sys.executable, "-m", "fleetd.worker", "--server", "127.0.0.1:1", "--app", str(_app(tmp_path, files))]
    run = subprocess.run(
        [*command, "--spool", str(tmp_path / "spool")], capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 1
    assert words in run.stderr
    if "import" in files.get("jobs.py", "").split()[:1] and "_exit" not in files["jobs.py"]:
        assert 'jobs.py", line 1' in run.stderr, "the traceback names the author's line"
        assert "app.py" not in run.stderr
