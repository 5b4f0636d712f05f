"""A fleet of constant size: what is run by whoever scales nothing.

Source: none is needed. Which constant is the smallest that meets the objective is found by the caller, who makes a
peer of it with `static(nodes)`.
"""

from typing import ClassVar

from fleetd.core.model import Seconds
from fleetd.sim.scaler import Scaler, View


class Static:
    """Wants the same for ever; as it stands here, the pool's least."""

    name: ClassVar[str] = "static"
    every_s: ClassVar[Seconds] = 60.0
    recent_first: ClassVar[bool] = False
    nodes: ClassVar[int] = 0

    def wanted(self, view: View) -> int:
        """Return the constant."""
        del view
        return self.nodes


def static(nodes: int) -> type[Scaler]:
    """Return the peer that wants so many nodes."""
    return type("Static", (Static,), {"nodes": nodes})
