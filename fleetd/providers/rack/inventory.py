"""What a rack is made of: the inventory file, its machines with every default filled in.

Promises: a valid inventory, or each mistake in one line with its place and what to do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from fleetd.errors import PolicyError
from fleetd.providers.rack.reading import read_file
from fleetd.providers.rack.shapes import Boot, Duration, MachineShape, PerMinute, Power, PowerSpec, Relay, Shape, Url

NAME: Final = r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"  # a machine's name is its host name, too
EVERYBODY: Final = "255.255.255.255"
SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine with all defaults filled in; `broadcast` and `port` are where its magic packet goes."""

    name: str
    mac: str
    ip: str = ""
    watts: float = 0.0
    secureon: str = field(default="", repr=False)
    broadcast: str = EVERYBODY
    source: str = ""
    port: int = 9
    relay: Relay | None = None
    power: Power = field(default_factory=Power)
    probe: int = 9

    def fill(self, text: str) -> str:
        """Put the machine into a text of the inventory."""
        return text.replace("{name}", self.name).replace("{mac}", self.mac).replace("{ip}", self.ip)


class Inventory(Shape):
    """A rack: its machines by name, and what they have in common."""

    boot: Boot | None = None
    power: PowerSpec = Power()
    watts: float | None = Field(default=None, gt=0, description="what all may draw together")
    wakes: PerMinute | None = Field(default=None, description="how many may be switched on in a minute")
    rank: Literal["fastest", "cheapest", "least used"] = "fastest"
    broadcast: IPv4Address | None = None
    source: IPv4Address | None = None
    port: int = Field(default=9, gt=0, lt=65536)
    probe: int = Field(default=9, gt=0, lt=65536, description="the TCP port that is knocked at to see if one is on")
    relays: dict[str, Relay] = Field(default_factory=dict)
    machines: dict[Annotated[str, Field(pattern=NAME)], MachineShape] = Field(default_factory=dict)

    @field_validator("machines")
    @classmethod
    def _apart(cls, machines: dict[str, MachineShape]) -> dict[str, MachineShape]:
        """No two machines share an address."""
        seen: dict[object, str] = {}
        for name, machine in machines.items():
            for key, address in (("mac", machine.mac), ("ip", machine.ip)):
                if address is not None and (other := seen.setdefault(address, name)) != name:
                    raise ValueError(f"{address} is {other}'s already; each machine has its own", (name, key))
        return machines

    @model_validator(mode="after")
    def _fits(self) -> "Inventory":
        subnet = self.boot.subnet if self.boot else None
        for name, machine in self.machines.items():
            at = ("machines", name)
            if subnet and machine.ip and machine.ip not in subnet:
                raise ValueError(f"{machine.ip} is outside of the rack's subnet, {subnet}", (*at, "ip"))
            if machine.relay is not None and machine.relay not in self.relays:
                known = ", ".join(self.relays) or "none"
                raise ValueError(f"no relay {machine.relay!r} under `relays`; there are: {known}", (*at, "relay"))
            if self.watts and machine.watts > self.watts:
                why = f"{machine.watts:g} W are more than the rack's `watts`, {self.watts:g}: it could never be woken"
                raise ValueError(why, (*at, "watts"))
        return self

    def machine(self, name: str, mac: str = "") -> Machine:
        """Return a machine with its defaults; one that was admitted by command has nothing but an address."""
        shape = self.machines.get(name) or MachineShape(mac=mac)
        subnet = self.boot.subnet if self.boot else None
        near = subnet if subnet and (shape.ip is None or shape.ip in subnet) else None
        everybody = near.broadcast_address if near else EVERYBODY
        secureon = shape.secureon.get_secret_value() if shape.secureon else ""
        return Machine(
            name=name,
            mac=shape.mac,
            ip=str(shape.ip or ""),
            watts=shape.watts,
            secureon=secureon,
            broadcast=str(shape.broadcast or self.broadcast or everybody),
            source=str(shape.source or self.source or ""),
            port=shape.port or self.port,
            relay=self.relays[shape.relay] if shape.relay else None,
            power=shape.power or self.power,
            probe=shape.probe or self.probe,
        )


def load_inventory(path: Path) -> Inventory:
    """Read an inventory; raises PolicyError with every mistake. Files that it names count from its own folder."""
    return read_file(path, Inventory, {"base_dir": path.parent})


def conflicts(racks: Mapping[str, Inventory]) -> list[tuple[str, str]]:
    """Return what several racks must not share, subnets and machines, with the pool that comes later."""
    found: list[tuple[str, str]] = []
    owners: dict[str, str] = {}
    pools = list(racks)
    for at, pool in enumerate(pools):
        subnet = _subnet(racks[pool])
        for other in pools[:at]:
            its = _subnet(racks[other])
            if subnet and its and subnet.overlaps(its):
                text = f"the subnets of the racks {other} and {pool} overlap: {its} and {subnet}; give each its own"
                found.append((pool, text))
        for name, machine in racks[pool].machines.items():
            owner = owners.setdefault(machine.mac, f"{pool}/{name}")
            if owner != f"{pool}/{name}":
                found.append((pool, f"{machine.mac} is both {owner} and {pool}/{name}; a machine is in one rack"))
    return found


def _subnet(rack: Inventory) -> IPv4Network | None:
    return rack.boot.subnet if rack.boot else None


def _inventory(value: object, info: ValidationInfo) -> object:
    """Read the file that a policy names; the policy's reader shows one finding a key, so several are in one line."""
    if not isinstance(value, str):
        return value
    try:
        return load_inventory(Path((info.context or {}).get("base_dir", "."), value))
    except PolicyError as error:
        more = len(error.problems) - SHOWN
        text = "; ".join(error.problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(text) from None


class RackOptions(BaseModel):
    """What stands under `rack:` in a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inventory: Annotated[Inventory, BeforeValidator(_inventory, json_schema_input_type=str)] = Field(
        description="the file that lists the machines"
    )
    controller: Url | None = Field(default=None, description="where machines reach the controller")
    boot: Duration = Field(default=300.0, description="how long a boot may take that was not seen before")
    off: Duration = Field(default=120.0, description="how long a machine may take to go off once it was told to")
