"""What a depot says no with."""

from fleetd.errors import FleetdError


class GoneError(FleetdError):
    """It was here, and its time is over."""


class AbsentError(FleetdError):
    """There is no such blob or job here."""


class FullError(FleetdError):
    """There is no room. What is here stays."""


class ConflictError(FleetdError):
    """Not now, or not from there: another writes it, or has written more."""
