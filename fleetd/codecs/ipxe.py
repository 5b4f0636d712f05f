"""Boot scripts for iPXE: values to text. Sans I/O.

Promises: nothing that is put into a script is read as more than a word of it. iPXE has `${...}`, quotes, backslashes
and `&&` in every place, and its versions differ in how they are escaped; so nothing is: what goes into an address is
percent-encoded, what is shown loses all but plain characters, and a kernel argument with any other is refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from fleetd.errors import UsageError

AGAIN_S: Final = 10
_WORD: Final = re.compile(r"[A-Za-z0-9._~:/?=,%+@\[\]-]+")  # nothing that a line of a script, or a kernel, takes apart
_HIDDEN: Final = re.compile(r"[^A-Za-z0-9 .,:/_()@+-]")
_LONGEST_LINE: Final = 2000  # a kernel's own limit is 2048


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine is to boot: `arguments` for the kernel, `initrds` in the order in which they are laid over."""

    say: str
    kernel: str
    initrds: Sequence[str]
    arguments: Sequence[str]
    again: str


def hyphened(mac: str) -> str:
    """Return a MAC as iPXE's `hexhyp` spells it."""
    return mac.replace(":", "-")


def address(base: str, *parts: str) -> str:
    """Return an address below `base`, its parts encoded; raises UsageError for a base that is none."""
    whole = "/".join((base.rstrip("/"), *(quote(part, safe="") for part in parts)))
    return _word(whole, "an address")


def boot_script(boot: Boot) -> str:
    """Return the script that boots; what fails on the way is tried again with a new script."""
    names = [f"initrd{number}" for number in range(len(boot.initrds))]
    # The names are for UEFI, where the kernel itself asks its loader for each; a BIOS kernel ignores the arguments.
    arguments = [f"initrd={name}" for name in names] + [_word(each, "a kernel argument") for each in boot.arguments]
    line = " ".join(arguments)
    if len(line) > _LONGEST_LINE:
        raise UsageError(f"the kernel arguments are {len(line)} characters, more than a kernel's {_LONGEST_LINE}")
    get = [f"kernel --name kernel {_word(boot.kernel, 'an address')} {line}"]
    get += [f"initrd --name {name} {_word(at, 'an address')}" for name, at in zip(names, boot.initrds, strict=True)]
    return _script(
        f"echo fleetd: {shown(boot.say)}",
        *(f"{step} || goto failed" for step in (*get, "boot")),
        ":failed",
        "echo fleetd: that failed, once more",
        "imgfree ||",
        f"sleep {AGAIN_S}",
        f"chain --replace --autofree {_again(boot.again)} || goto failed",
    )


def wait_script(say: str, again: str, left_s: float) -> str:
    """Return the script that has a machine ask again soon; it goes off by itself where nobody answers for `left_s`.

    Not every iPXE can do that (Debian's of 2019 in a BIOS cannot): one that cannot goes on asking.
    """
    tries = max(1, int(left_s // AGAIN_S) + 1)
    return _script(
        f"echo fleetd: {shown(say)}",
        "set left:uint32 0 ||",
        ":again",
        f"sleep {AGAIN_S}",
        f"chain --replace --autofree {_again(again)} ||",
        "inc left || goto again",
        f"iseq ${{left}} {tries} || goto again",
        "poweroff || goto again",
    )


def off_script(say: str, again: str, kernel: str = "", initrd: str = "") -> str:
    """Return the script that turns a machine off: by itself, or by a kernel and an initrd that do nothing else."""
    by_kernel = []
    if kernel:
        by_kernel = [
            f"kernel --name kernel {_word(kernel, 'an address')} initrd=off quiet || goto failed",
            f"initrd --name off {_word(initrd, 'an address')} || goto failed",
            "boot || goto failed",
        ]
    return _script(
        f"echo fleetd: {shown(say)}",
        "sleep 3",
        "poweroff ||",
        *by_kernel,
        ":failed",
        "imgfree ||",
        f"sleep {AGAIN_S}",
        f"chain --replace --autofree {_again(again)} || goto failed",
    )


def _again(at: str) -> str:
    return f"{_word(at, 'an address')}?platform=${{platform}}"


def shown(text: str) -> str:
    """Return text for the screen, with a question mark for whatever is no plain character."""
    return _HIDDEN.sub("?", text)[:200]


def _word(text: str, what: str) -> str:
    if not _WORD.fullmatch(text):
        raise UsageError(
            f"{text!r:.100} cannot stand in a boot script as {what}: only A-Z a-z 0-9 and ._~:/?=,%+@[]- can"
        )
    return text


def _script(*lines: str) -> str:
    return "\n".join(("#!ipxe", *lines, ""))
