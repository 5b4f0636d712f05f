"""How a machine is switched: one small file a way, behind one Protocol. A new way is a file and a line in the table.

Promises: what is wrong is a ProviderError in one line that names the machine; every call ends within its time-out, also
one that is cancelled; nothing of a secret is in an error. What a way needs is imported when a machine has it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Literal, Protocol

from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine

State = Literal["on", "off"]


class Switch(Protocol):
    """Switches one machine. `tells`: its state can be asked for; `cuts`: it can be switched off from outside."""

    tells: bool
    cuts: bool

    async def on(self) -> None:
        """Switch it on, or ask it to come on; one that is on stays so."""

    async def off(self) -> None:
        """Cut its power, whatever it does; one that is off stays so."""

    async def state(self) -> State | None:
        """Return whether it is on; None where that cannot be told now."""

    async def close(self) -> None:
        """Let go of everything; safe twice."""


WAYS: Final = {
    "wol": ("wol", "Wol", "wakeonlan"),
    "relay": ("relay", "Relayed", ""),
    "redfish": ("redfish", "RedfishBmc", "sushy"),
    "ipmi": ("ipmi", "IpmiBmc", "pyghmi"),
    "command": ("command", "Commands", ""),
}


def way_of(machine: Machine) -> str:
    """Return which way a machine is switched."""
    for way in ("redfish", "ipmi", "command"):
        if getattr(machine.power, way) is not None:
            return way
    return "relay" if machine.relay else "wol"


def switch_of(machine: Machine) -> Switch:
    """Return what switches a machine; raises ProviderError where what that needs is not installed."""
    return _make(way_of(machine), machine)


def packet_of(machine: Machine) -> Switch:
    """Return what sends a machine its magic packet, however it is switched otherwise."""
    return _make("relay" if machine.relay else "wol", machine)


def _make(way: str, machine: Machine) -> Switch:
    file, name, needs = WAYS[way]
    try:
        made: Callable[[Machine], Any] = getattr(import_module(f"{__name__}.{file}"), name)
    except ImportError as error:
        if not needs or needs not in str(error):
            raise
        raise ProviderError(f"{machine.name}: {way} needs {needs}: run: pip install 'fleetd[rack]'") from None
    switch: Switch = made(machine)
    return switch
