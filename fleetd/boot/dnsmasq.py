"""How a rack's LAN is told where to boot from: text for dnsmasq, and for other DHCP servers. Pure: values to text.

Promises: what does not follow from the inventory is asked for in one line. Full DHCP gives out addresses; proxyDHCP
leaves that to the server that is there, and adds where to boot from; both serve BIOS, UEFI and UEFI HTTP boot.
"""

import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from fleetd.errors import UsageError
from fleetd.providers.rack.inventory import Inventory
from fleetd.providers.rack.shapes import Boot

# iPXE itself fills in what stands in ${}; `netX` is the card that it booted from.
SCRIPT: Final = "/ipxe/${netX/mac:hexhyp}?platform=${platform}"
BIOS: Final = "undionly.kpxe"
UEFI: Final = "snponly.efi"
FIRST: Final = 10  # of a subnet's addresses, where no range is given: those before it are left to routers and servers


@dataclass(frozen=True, slots=True)
class Lan:
    """What a DHCP server has to know of a rack: `hosts` are (name, MAC, address or "")."""

    pool: str
    boot: Boot
    subnet: IPv4Network
    server: IPv4Address
    hosts: tuple[tuple[str, str, str], ...]
    tftp: str

    @property
    def script(self) -> str:
        """Return where iPXE gets its script."""
        return self.boot.url + SCRIPT

    @property
    def loader(self) -> str:
        """Return where firmware that speaks HTTP gets iPXE."""
        return f"{self.boot.url}/loader/{UEFI}"

    @property
    def span(self) -> tuple[str, str]:
        """Return the first and the last address for machines without one of their own."""
        if self.boot.range:
            ends = [part.strip() for part in self.boot.range.replace(",", "-").split("-")]
            try:
                first, last = map(IPv4Address, ends)
            except ValueError:
                raise UsageError(f"{self.pool}: boot.range: {self.boot.range!r} must be FIRST-LAST") from None
            if not (first in self.subnet and last in self.subnet and first <= last):
                raise UsageError(f"{self.pool}: boot.range: {first}-{last} is not within {self.subnet}")
            return str(first), str(last)
        size = self.subnet.num_addresses
        return str(self.subnet[min(FIRST, size // 4)]), str(self.subnet[size - 2])


def lan_of(pool: str, inventory: Inventory, admitted: dict[str, str], tftp: str) -> Lan:
    """Return what is needed; raises UsageError naming the key that is missing. `admitted`: names by address."""
    boot = inventory.boot
    if boot is None:
        raise UsageError(f"{pool}: its inventory has no `boot`, so there is nothing to boot from")
    if boot.subnet is None:
        raise UsageError(f"{pool}: boot.subnet: is needed, as 10.77.0.0/24")
    if boot.subnet.num_addresses < 8:
        raise UsageError(f"{pool}: boot.subnet: {boot.subnet} has no room for a rack")
    if not boot.interface:
        raise UsageError(f"{pool}: boot.interface: is needed: the network card on the rack's side")
    if boot.dhcp == "none":
        raise UsageError(f"{pool}: boot.dhcp: is none; say full, or proxy where another server gives out addresses")
    host = boot.listen.rpartition(":")[0].strip("[]")
    try:
        server = IPv4Address(host)
    except ValueError:
        server = IPv4Address(0)
    if server not in boot.subnet:
        raise UsageError(f"{pool}: boot.listen: {host} is not within the rack's subnet, {boot.subnet}")
    hosts = [(name, machine.mac, str(machine.ip or "")) for name, machine in inventory.machines.items()]
    known = {mac for _, mac, _ in hosts}
    hosts += [(name, mac, "") for mac, name in sorted(admitted.items()) if mac not in known]
    return Lan(pool, boot, boot.subnet, server, tuple(hosts), tftp)


def dnsmasq(lan: Lan) -> str:
    """Return a configuration of dnsmasq's for full DHCP or proxyDHCP, as the inventory says."""
    mode = _full(lan) if lan.boot.dhcp == "full" else _proxy(lan)
    return _lines(
        f"# {lan.pool}: made by `fleetd boot dnsmasq`; run it with `dnsmasq --keep-in-foreground --conf-file=FILE`.",
        "# No DNS.",
        "port=0",
        f"interface={lan.boot.interface}",
        "bind-dynamic",
        "",
        "# Who asks: iPXE itself, or firmware: of UEFI (7, 9), of UEFI that boots by HTTP (16), or of a BIOS.",
        "dhcp-match=set:ipxe,175",
        *(f"dhcp-match=set:{tag},option:client-arch,{arch}" for tag, arch in _ARCHITECTURES),
        "",
        "# iPXE for firmware that has none, and where iPXE gets its script: a proxy must name a server, too.",
        "enable-tftp",
        f"tftp-root={lan.tftp}",
        f"dhcp-boot=tag:ipxe,{lan.script},,{lan.server}",
        "",
        *mode,
    )


_ARCHITECTURES: Final = (("uefi", 7), ("uefi", 9), ("http", 16))


def _full(lan: Lan) -> list[str]:
    first, last = lan.span
    router = f"option:router,{lan.boot.gateway}" if lan.boot.gateway else "option:router"
    names = ",".join(map(str, lan.boot.dns))
    return [
        f"dhcp-boot=tag:!ipxe,tag:!uefi,tag:!http,{BIOS}",
        f"dhcp-boot=tag:uefi,tag:!ipxe,{UEFI}",
        f"dhcp-boot=tag:http,tag:!ipxe,{lan.loader}",
        "dhcp-option-force=tag:http,tag:!ipxe,60,HTTPClient",
        "",
        "# Addresses. Those that fleetd does not know get one, too, so that they can be seen and admitted.",
        "dhcp-authoritative",
        f"dhcp-range={first},{last},{lan.subnet.netmask},1h",
        f"dhcp-option={router}",
        *([f"dhcp-option=option:dns-server,{names}"] if names else ["dhcp-option=option:dns-server"]),
        *(",".join(filter(None, (f"dhcp-host={mac}", ip, name))) for name, mac, ip in lan.hosts),
        "",
        *_advertised(lan),
    ]


def _proxy(lan: Lan) -> list[str]:
    return [
        "# Another server gives out the addresses.",
        f"dhcp-range={lan.subnet.network_address},proxy,{lan.subnet.netmask}",
        f'pxe-service=tag:!ipxe,x86PC,"fleetd",{BIOS}',
        f'pxe-service=tag:!ipxe,BC_EFI,"fleetd",{UEFI}',
        f'pxe-service=tag:!ipxe,x86-64_EFI,"fleetd",{UEFI}',
        "# Firmware that boots by HTTP asks no proxy: where you want that, the other server must name",
        f"# {lan.loader} to client-arch 16, with the vendor class HTTPClient.",
        "",
        *_advertised(lan),
    ]


def _advertised(lan: Lan) -> list[str]:
    """Without any router's word on IPv6, iPXE of 2019 waits for one for 13 s. Ours is one that routes nothing."""
    prefix = ula(lan.subnet)
    return [
        "# iPXE waits 13 s for a router's word on IPv6. This one says: there is no router here. It needs an address:",
        f"#   ip address add {prefix}1/64 dev {lan.boot.interface}",
        "enable-ra",
        f"ra-param={lan.boot.interface},5,0",
        f"dhcp-range={prefix},ra-only,64,10m",
    ]


def ula(subnet: IPv4Network) -> str:
    """Return a prefix of local IPv6 addresses for a subnet, the same each time."""
    number = int(subnet.network_address)
    return f"fd77:{number >> 16:x}:{number & 0xFFFF:x}::"


def isc(lan: Lan) -> str:
    """Return a part of dhcpd.conf."""
    names = ", ".join(map(str, lan.boot.dns))
    first, last = lan.span
    hosts = [
        f"  host {name} {{ hardware ethernet {mac};{f' fixed-address {ip};' if ip else ''} }}"
        for name, mac, ip in lan.hosts
    ]
    return _lines(
        f"# {lan.pool}: for ISC dhcpd. A TFTP server at {lan.server} must have {BIOS} and {UEFI} of iPXE.",
        "option client-arch code 93 = unsigned integer 16;",
        f"subnet {lan.subnet.network_address} netmask {lan.subnet.netmask} {{",
        f"  range {first} {last};",
        *([f"  option routers {lan.boot.gateway};"] if lan.boot.gateway else []),
        *([f"  option domain-name-servers {names};"] if names else []),
        f"  next-server {lan.server};",
        '  if exists user-class and option user-class = "iPXE" {',
        f'    filename "{lan.script}";',
        "  } elsif option client-arch = 16 {",
        '    option vendor-class-identifier "HTTPClient";',
        f'    filename "{lan.loader}";',
        "  } elsif option client-arch = 7 or option client-arch = 9 {",
        f'    filename "{UEFI}";',
        "  } else {",
        f'    filename "{BIOS}";',
        "  }",
        *hosts,
        "}",
    )


def kea(lan: Lan) -> str:
    """Return a configuration of Kea's DHCPv4 server."""
    first, last = lan.span
    arch = "option[93].hex == 0x{:04x}"
    other = "not member('ipxe') and "
    classes: list[dict[str, Any]] = [
        {"name": "ipxe", "test": "option[77].text == 'iPXE'", "boot-file-name": lan.script},
        {"name": "bios", "test": other + arch.format(0), "boot-file-name": BIOS},
        {"name": "uefi", "test": f"{other}({arch.format(7)} or {arch.format(9)})", "boot-file-name": UEFI},
        {
            "name": "http",
            "test": other + arch.format(16),
            "boot-file-name": lan.loader,
            "option-data": [{"name": "vendor-class-identifier", "data": "HTTPClient", "always-send": True}],
        },
    ]
    options = [{"name": "routers", "data": str(lan.boot.gateway)}] if lan.boot.gateway else []
    if lan.boot.dns:
        options.append({"name": "domain-name-servers", "data": ", ".join(map(str, lan.boot.dns))})
    hosts = [{"hw-address": mac, "hostname": name, **({"ip-address": ip} if ip else {})} for name, mac, ip in lan.hosts]
    subnet = {
        "id": 1,
        "subnet": str(lan.subnet),
        "next-server": str(lan.server),
        "pools": [{"pool": f"{first} - {last}"}],
        "option-data": options,
        "reservations": hosts,
    }
    server = {
        "interfaces-config": {"interfaces": [lan.boot.interface]},
        "lease-database": {"type": "memfile"},
        "client-classes": classes,
        "subnet4": [subnet],
    }
    return json.dumps({"Dhcp4": server}, indent=2) + "\n"


def pfsense(lan: Lan) -> str:
    """Return what goes into pfSense's pages."""
    return _lines(
        f"{lan.pool}: pfSense, Services > DHCP Server > the rack's interface > Network Booting",
        "  Enable Network Booting    yes",
        f"  Next Server               {lan.server}  (a TFTP server with {BIOS} and {UEFI} of iPXE)",
        f"  Default BIOS File Name    {BIOS}",
        f"  UEFI 64 bit File Name     {UEFI}",
        f"  UEFI 64 bit HTTPBoot URL  {lan.loader}",
        "  iPXE itself must be told another name. Under Custom BOOTP/DHCP Options this cannot be made to depend on who",
        "  asks: set boot.dhcp to proxy and run `fleetd boot dnsmasq` beside it; it answers iPXE with",
        f"  {lan.script}",
        "DHCP Static Mappings:",
        *(f"  {mac}  {ip or '(any)'}  {name}" for name, mac, ip in lan.hosts),
    )


def _lines(*lines: str) -> str:
    return "\n".join((*lines, ""))
