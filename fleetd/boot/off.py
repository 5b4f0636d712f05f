"""What turns a machine off that has booted nothing yet: an initrd with one program, of one system call. x86-64.

Some builds of iPXE have no `poweroff`; every kernel has one. So a machine that nobody wants boots our kernel with this.
"""

import struct
from typing import Final

from fleetd.codecs.cpio import device, file, folder, pack

_BASE: Final = 0x400000
_HEAD: Final = 64 + 56  # of an ELF file with one segment
_CODE: Final = bytes.fromhex(
    "b8a9000000"  # mov eax, 169: reboot(
    "bfaddee1fe"  # mov edi, 0xfee1dead
    "be69191228"  # mov esi, 0x28121969
    "badcfe2143"  # mov edx, 0x4321fedc: LINUX_REBOOT_CMD_POWER_OFF
    "4d31d2"  # xor r10, r10
    "0f05"  # syscall )
    "ebfe"  # jmp to itself: the first program must not end
)


def _program() -> bytes:
    """Return the program as an ELF file, without any library."""
    size = _HEAD + len(_CODE)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEAD, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return head + segment + _CODE


def initrd() -> bytes:
    """Return the archive that a kernel unpacks and whose /init it runs."""
    return pack([folder("dev"), device("dev/console", 5, 1), file("init", _program(), 0o755)])
