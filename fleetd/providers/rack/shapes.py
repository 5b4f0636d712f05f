"""What an inventory may hold, key by key: pydantic models, each value checked by itself.

Promises: a mistake is a ValueError with one short sentence. Secrets are `{env: NAME}` or `{file: PATH}`, never written
into the file; a SecureOn password, which every packet shows to the whole LAN, may be.
"""

import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    model_validator,
)

from fleetd.codecs.magic import mac_text, secureon_text
from fleetd.core.units import per_minute, seconds


def _secret(value: object, info: ValidationInfo) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    match value:
        case {"env": str() as name, **rest} if not rest:
            found = os.environ.get(name)
            if not found:
                raise ValueError(f"the environment variable {name!r} is not set")
            return SecretStr(found)
        case {"file": str() as name, **rest} if not rest:
            try:
                return SecretStr(Path((info.context or {}).get("base_dir", "."), name).read_text().strip())
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"the file {name!r} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}"
                ) from None
    raise ValueError("a secret is never written into the inventory; give {env: NAME} or {file: PATH}")


def _secureon(value: object, info: ValidationInfo) -> SecretStr:
    secret = SecretStr(value) if isinstance(value, str) else _secret(value, info)
    return SecretStr(secureon_text(secret.get_secret_value()))


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"expected HOST:PORT, as in 10.77.0.1:8081, got {value!r}")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc or value.endswith("/"):
        raise ValueError(
            f"expected an address such as http://10.77.0.1:8080, without a slash at its end, got {value!r}"
        )
    return value


def _beside(value: str, info: ValidationInfo) -> str:
    return str(Path((info.context or {}).get("base_dir", "."), value))


Duration = Annotated[float, BeforeValidator(seconds, json_schema_input_type=float | str), Field(ge=0, le=86400)]
PerMinute = Annotated[float, BeforeValidator(per_minute, json_schema_input_type=float | str), Field(gt=0)]
Secret = Annotated[SecretStr, BeforeValidator(_secret, json_schema_input_type=dict[str, str])]
Mac = Annotated[str, AfterValidator(mac_text)]
SecureOn = Annotated[SecretStr, BeforeValidator(_secureon, json_schema_input_type=str | dict[str, str])]
Address = Annotated[str, AfterValidator(_address)]
Url = Annotated[str, AfterValidator(_url)]
Words = Annotated[tuple[str, ...], Field(min_length=1)]
Beside = Annotated[str, AfterValidator(_beside)]


class Shape(BaseModel):
    """What all have in common: nothing that is not known, nothing that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Redfish(Shape):
    """A BMC that speaks Redfish. {name}, {mac} and {ip} in `url` and `system` are the machine's."""

    url: str
    user: str = ""
    password: Secret | None = None
    system: str = Field(default="", description="the machine's id behind this BMC; needless where there is one")
    verify: str = Field(default="true", description="true, false, or the file of the authority to trust")


class Ipmi(Shape):
    """A BMC that speaks IPMI 2.0 over the LAN. {name}, {mac} and {ip} in `host` are the machine's."""

    host: str
    port: int = Field(default=623, gt=0, lt=65536)
    user: str = ""
    password: Secret | None = None


class Command(Shape):
    """Programs that switch a machine. {name}, {mac} and {ip} in their words are the machine's; without `on`: a packet.

    `status` ends with 0 where the machine is on, with 1 where it is off; anything else tells nothing.
    """

    on: Words | None = None
    off: Words | None = None
    status: Words | None = None
    timeout: Duration = 20.0


def _power(value: object) -> object:
    return {} if value == "wol" else value


class Power(Shape):
    """How a machine is switched: `wol`, or one of these."""

    redfish: Redfish | None = None
    ipmi: Ipmi | None = None
    command: Command | None = None

    @model_validator(mode="after")
    def _one(self) -> "Power":
        if len([kind for kind in (self.redfish, self.ipmi, self.command) if kind]) > 1:
            raise ValueError("one way to switch a machine: wol, redfish, ipmi or command")
        return self


PowerSpec = Annotated[Power, BeforeValidator(_power, json_schema_input_type=Literal["wol"] | Power)]


class Relay(Shape):
    """A `fleetd wol-relay` in another network, with the key that it shares."""

    address: Address
    key: Secret


class Boot(Shape):
    """The boot service of this rack."""

    listen: Address
    url: Url
    enrol: Address | None = None
    image: Beside = Field(default="image", validate_default=True, description="its folder, from this file's own")
    interface: str = ""
    subnet: IPv4Network | None = None
    range: str = ""
    gateway: IPv4Address | None = None
    dns: tuple[IPv4Address, ...] = ()
    dhcp: Literal["full", "proxy", "none"] = "proxy"
    wait: Duration = 600.0
    syslog: str = ""
    arguments: tuple[str, ...] = ()


class MachineShape(Shape):
    """A machine, as the file has it."""

    mac: Mac
    ip: IPv4Address | None = None
    watts: float = Field(default=0.0, ge=0, le=100_000)
    secureon: SecureOn | None = None
    broadcast: IPv4Address | None = None
    source: IPv4Address | None = None
    port: int | None = Field(default=None, gt=0, lt=65536)
    relay: str | None = None
    power: PowerSpec | None = None
    probe: int | None = Field(default=None, gt=0, lt=65536)
