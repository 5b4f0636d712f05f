"""A machine that nobody wants is turned off by a kernel with one program of one system call."""

import struct
from pathlib import Path

import pytest

from fleetd.boot.manifest import load_image
from fleetd.boot.off import initrd
from tests.boot.test_machines import unpack
from tests.image.machines import machine
from tests.rack.e2e import node_image


def test_the_archive_holds_one_program_that_no_library_is_needed_for() -> None:
    found = unpack(initrd())
    assert sorted(found) == ["dev", "dev/console", "init"]
    mode, program = found["init"]
    assert mode == 0o100755
    assert program[:5] == b"\x7fELF\x02"
    entry, table = struct.unpack_from("<QQ", program, 24)
    assert entry == 0x400000 + table + 56 * struct.unpack_from("<H", program, 56)[0]
    assert struct.unpack_from("<Q", program, table + 32)[0] == len(program)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("rack-image")
def test_a_kernel_with_it_turns_the_machine_off(tmp_path: Path) -> None:
    image = node_image()
    kernel = image / load_image(image).parts["kernel"].name
    (tmp_path / "off").write_bytes(initrd())
    words = ["-kernel", str(kernel), "-initrd", str(tmp_path / "off"), "-append", "console=ttyS0"]
    with machine(tmp_path / "machine", *words) as on:
        assert on.wait_off() == 0
        assert "Power down" in on.said
