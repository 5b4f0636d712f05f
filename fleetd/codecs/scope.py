"""Whom a join token lets speak: any node of a pool for ever, or one node until a moment. Sans I/O.

Promises: a scope that is read admits nothing but what is written in it. ``fleet/pool`` is the old form, and stays;
``fleet/pool/name@until`` is for the node ``pool/name``, until a second of the controller's clock (since 1970). Both
are held by the token's key, which is made of the whole scope: neither can be made from the other.
"""

from dataclasses import dataclass
from typing import Final

from fleetd.codecs.lease import scope_token
from fleetd.errors import ProtocolError

CREDENTIAL_S: Final = 4 * 3600.0  # renewed after half of it: so long a controller may be away and finds its nodes again


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token is for. Without `node` it is for the whole pool, and has no end."""

    fleet: str
    pool: str
    node: str = ""
    until: int | None = None

    def __str__(self) -> str:
        """Spell it as it stands in a token."""
        return f"{self.fleet}/{self.node}@{self.until}" if self.node else f"{self.fleet}/{self.pool}"

    def check(self, node: str, now: float) -> None:
        """Raise ProtocolError unless this lets `node` speak `now`."""
        if self.until is not None and now >= self.until:
            raise ProtocolError(f"the credential of {self.node} ended {now - self.until:.0f} s ago")
        # Names of nodes begin with their pool's.
        if node != self.node if self.node else node.partition("/")[0] != self.pool:
            raise ProtocolError(f"the token is for {self}, not for node {node}")

    def left_s(self, now: float) -> float | None:
        """Return how long this is still good for; None where it has no end."""
        return None if self.until is None else self.until - now


def read_scope(text: str) -> Scope:
    """Read a scope; raises ProtocolError for what is neither of the two forms."""
    fleet, _, rest = text.partition("/")
    node, at, until = rest.rpartition("@")
    pool, slash, name = node.partition("/")
    if "/" not in rest and fleet and rest:
        return Scope(fleet, rest)
    if at and fleet and pool and slash and name and until.isascii() and until.isdigit() and len(until) < 13:
        return Scope(fleet, pool, node, int(until))
    raise ProtocolError(f"join token: {text!r:.80} is no scope: it must be FLEET/POOL or FLEET/POOL/NODE@UNTIL")


def node_token(secret: str, fleet: str, node: str, until: float) -> str:
    """Return the credential of one node, good until a second of the controller's clock."""
    return scope_token(secret, str(Scope(fleet, node.partition("/")[0], node, int(until))))
