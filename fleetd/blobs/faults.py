"""What goes wrong with files, in the words that a person gets."""

from fleetd.errors import FleetdError


def of_others(error: BaseException) -> bool:
    """Whether an OSError comes from neither the system nor its sockets: a job's time limit is a TimeoutError, too."""
    return isinstance(error, OSError) and type(error).__module__ not in ("builtins", "socket", "ssl", "http.client")


class BadFileError(FleetdError):
    """A reference that cannot be followed, now or later: expired, altered, truncated, foreign, unknown."""


class StoreFullError(FleetdError):
    """The store has no room for it. Nothing of what it holds was touched."""
