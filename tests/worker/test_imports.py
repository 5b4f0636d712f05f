"""What the runtime imports, and what it never says."""

import ast
import subprocess
import sys
from pathlib import Path


def test_the_worker_needs_the_standard_library_alone() -> None:
    script = (
        "import sys; before = set(sys.modules)\n"
        "import fleetd.worker.main, fleetd.worker.generation, fleetd.worker.slot, fleetd.worker.__main__\n"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('fleetd')))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    roots, ours = (line.split() for line in run.stdout.splitlines())
    assert [name for name in roots if name not in sys.stdlib_module_names] == ["fleetd"]
    rooms = ("worker", "dispatchers", "codecs", "errors", "releases", "blobs")
    allowed = tuple(f"fleetd.{room}" for room in rooms)
    assert [name for name in ours if name != "fleetd" and not name.startswith(allowed)] == []


def test_the_author_imports_neither_sockets_nor_asyncio() -> None:
    script = "import sys, fleetd.worker; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert not {"asyncio", "socket", "logging"} & set(run.stdout.split())


def test_the_worker_never_gives_abilities_back() -> None:
    """gearmand re-queues the running jobs of a connection that sends CANT_DO or RESET_ABILITIES."""
    root = Path(__file__).parents[2] / "fleetd"
    files = [*root.glob("worker/*.py"), root / "dispatchers" / "work.py"]
    used = {
        node.attr for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)
    }
    assert "CAN_DO" in used
    assert not {"CANT_DO", "RESET_ABILITIES", "CAN_DO_TIMEOUT"} & used
