"""Wake-on-LAN: a magic packet over UDP from this machine. It can be sent; whether it was heard shows in the boot."""

import asyncio
import errno
import re
from typing import Final

import wakeonlan

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import State

_HINTS: Final = {
    errno.ENETUNREACH: "there is no route there: give `broadcast`, the address of the rack's own subnet",
    errno.EADDRNOTAVAIL: "`source` is no address of this machine",
    errno.EACCES: "sending to a broadcast address is not allowed here",
}


class Wol:
    """Sends the packet; can neither ask nor switch off."""

    tells = False
    cuts = False

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def on(self) -> None:
        """Send the packet, with the password where the card asks for one."""
        machine = self._machine
        target = machine.mac + (f"/{machine.secureon}" if machine.secureon else "")
        try:
            await asyncio.to_thread(
                wakeonlan.wake, target, host=machine.broadcast, port=machine.port, interface=machine.source or None
            )
        except OSError as error:
            raise ProviderError(f"{machine.name}: {_sentence(error, machine)}") from None

    async def off(self) -> None:
        """A packet wakes, and does nothing else."""
        raise ProviderError(f"{self._machine.name}: wake-on-LAN switches nothing off: its worker does, or a BMC")

    async def state(self) -> State | None:
        """A packet is not answered."""
        return None

    async def close(self) -> None:
        """Nothing is held."""


def _sentence(error: OSError, machine: Machine) -> str:
    hint = _HINTS.get(error.errno or 0, "")
    what = re.sub(r"^\[.*?\] *", "", error.strerror or str(error))
    return f"its magic packet could not be sent to {machine.broadcast}: {what}{f'; {hint}' if hint else ''}"
