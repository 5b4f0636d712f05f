"""Archives for the kernel: every field held against what cpio itself would write, and unpacked by the real cpio."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fleetd.codecs.cpio import ALIGN, Entry, device, file, folder, link, pack
from fleetd.errors import UsageError
from tests import servers


def test_one_file_to_the_byte() -> None:
    made = pack([file("a/b", b"hello", 0o400)])
    zeros, length = "00000000", "00000005"
    head = f"070701{1:08X}{0o100400:08X}{zeros}{zeros}00000001{zeros}{length}{zeros * 4}00000004{zeros}"
    assert made.startswith(head.encode() + b"a/b\0" + bytes(2) + b"hello" + bytes(3) + b"070701")
    assert made.rstrip(b"\0").endswith(b"TRAILER!!!")


def test_length_is_a_multiple_that_firmware_needs() -> None:
    for size in range(0, 2000, 97):
        assert len(pack([file("x", b"y" * size)])) % ALIGN == 0


def test_two_archives_follow_each_other() -> None:
    first, second = pack([file("one", b"1")]), pack([file("two", b"2")])
    assert (first + second).index(b"070701", len(first)) == len(first)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "a//b", "../up", "a/..", "./a", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name in a cpio archive"):
        pack([file(name, b"")])


def test_other_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="mode 140000 is no file"):
        pack([Entry("socket", 0o140000)])


@pytest.mark.real
def test_the_real_cpio_unpacks_it(tmp_path: Path) -> None:
    cpio = servers.find("cpio")
    entries = [folder("etc", 0o700), file("etc/token", b"secret", 0o400), link("bin", "usr/bin")]
    if os.geteuid() == 0:
        entries.append(device("console", 5, 1))
    subprocess.run([cpio, "-idm", "--quiet"], input=pack(entries), cwd=tmp_path, check=True)
    assert (tmp_path / "etc/token").read_bytes() == b"secret"
    assert (tmp_path / "etc/token").stat().st_mode == 0o100400
    assert (tmp_path / "etc").stat().st_mode == 0o40700
    assert (tmp_path / "bin").readlink() == Path("usr/bin")
    if os.geteuid() == 0:
        status = (tmp_path / "console").stat()
        assert (os.major(status.st_rdev), os.minor(status.st_rdev), status.st_uid) == (5, 1, 0)
    shutil.rmtree(tmp_path)
