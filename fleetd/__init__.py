"""fleetd: watches job queues and keeps just enough workers alive."""

__version__ = "0.1.0"
