"""Where control groups can be made, and what they say; on what the machine has, and on folders that look like it."""

import subprocess
import sys

import pytest

from fleetd.worker import cgroup


def test_no_groups_where_the_kernel_tells_of_none(tmp_path):
    assert cgroup.find(tmp_path, tmp_path / "missing") is None
    (tmp_path / "own").write_text("0::/user.slice\n")
    assert cgroup.find(tmp_path / "cgroup", tmp_path / "own") is None


def test_version_2_is_not_touched_where_memory_is_not_ours_to_give(tmp_path):
    base = tmp_path / "cgroup" / "app"
    base.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/app\n")
    (base / "cgroup.controllers").write_text("cpu pids\n")
    assert cgroup.find(tmp_path / "cgroup", tmp_path / "own") is None
    assert sorted(path.name for path in base.iterdir()) == ["cgroup.controllers"]


def test_version_2_with_memory_given_to_groups_below(tmp_path):
    base = tmp_path / "cgroup" / "app"
    base.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/app\n")
    (base / "cgroup.controllers").write_text("cpu memory\n")
    (base / "cgroup.subtree_control").write_text("memory\n")
    groups = cgroup.find(tmp_path / "cgroup", tmp_path / "own")
    assert groups is not None
    group = groups.make(1 << 20)
    assert group is not None
    assert (group.path / "memory.max").read_text() == "1048576"
    (group.path / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 0\n")
    assert not group.killed()
    (group.path / "memory.events").write_text("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\n")
    assert group.killed()


@pytest.mark.skipif(cgroup.find() is None, reason="this machine lets nobody make control groups with a memory limit")
@pytest.mark.slow
def test_the_kernel_ends_what_is_over_its_limit():
    groups = cgroup.find()
    assert groups is not None
    group = groups.make(50 << 20)
    assert group is not None
    script = "import sys; sys.stdin.read(1); held = bytearray(300 << 20); held[::4096] = b'x' * len(held[::4096])"
    try:
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
            group.enter(process.pid)
            process.communicate(b"go", timeout=20)
        assert process.returncode == -9
        assert group.killed()
    finally:
        group.close()
    assert not group.path.exists()
