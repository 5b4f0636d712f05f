"""The errors that fleetd raises on purpose; each is one clear line that names its place and, where known, the fix.

Promises: every error a caller can act on is a `FleetdError`; `exit_code` is what a command ends with.
"""


class FleetdError(Exception):
    """Something a person can mend. `str()` is one line: the place, what is wrong, the fix."""

    exit_code = 1


class UsageError(FleetdError):
    """The command line, a name or an argument is wrong; nothing was done."""

    exit_code = 2


class PolicyError(FleetdError):
    """The policy file is wrong. `problems` holds every finding, one line each."""

    exit_code = 2

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UnreachableError(FleetdError):
    """The controller or a dispatcher does not answer."""

    exit_code = 3


class ProtocolError(FleetdError):
    """Bytes from outside that are not what the protocol says. The connection they came on is closed."""


class SourceError(FleetdError):
    """A source could not be read: the queues it tells of are blind, never empty."""


class ProviderError(FleetdError):
    """A provider could not do what it was asked to. What is certain is that nothing more is known."""


class ExhaustedError(ProviderError):
    """The provider has no more capacity of this kind now; another pool may."""


class RefusedError(ProviderError):
    """The provider understood and said no (a quota, a permission, a wrong template): asking again will not help."""


class SeatTakenError(FleetdError):
    """Another controller was quicker to write that it acts; nothing was overwritten."""


class LostLeadError(FleetdError):
    """This controller may act no more: another one may. Whoever keeps it running should start it anew."""

    exit_code = 5


class JobError(FleetdError):
    """A job failed at its worker. `remote` is what the worker said (its exception's text), if it said anything."""

    def __init__(self, message: str, remote: bytes = b"") -> None:
        super().__init__(message)
        self.remote = remote


class JobTimeoutError(JobError):
    """The deadline of the client passed before the job's result came. The job itself may still run."""
