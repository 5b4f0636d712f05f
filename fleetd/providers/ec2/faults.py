"""What AWS's answers mean, as typed errors: one line with the pool's name, AWS's code and the fix. Pure.

A code is of one kind: out of capacity (another choice may have it), a quota, a moment's trouble (ask again), or a no.
"""

from typing import Final

from fleetd.errors import ExhaustedError, ProviderError, RefusedError

OUT: Final = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientCapacityOnOutpost",
        "InsufficientHostCapacity",
        "UnfulfillableCapacity",
        "InsufficientFreeAddressesInSubnet",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "UnsupportedOperation",
    }
)
QUOTAS: Final = frozenset(
    {"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VolumeLimitExceeded"}
)
THROTTLED: Final = frozenset(
    {
        "RequestLimitExceeded",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "EC2ThrottledException",
        "RequestThrottled",
        "RequestThrottledException",
        "TooManyRequestsException",
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
    }
)
TRANSIENT: Final = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "Unavailable",
        "ServiceUnavailable",
        "RequestTimeout",
        "RequestTimeoutException",
        "ResourceContention",
        "ScalingActivityInProgress",
        "ScalingActivityInProgressFault",
        "ResourceContentionFault",
    }
)
GONE: Final = frozenset({"InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"})
SPENT: Final = frozenset({"IdempotentParameterMismatch", "IdempotentInstanceTerminated"})  # a token's answer is lost

_RIGHTS: Final = "grant what `fleetd iam` prints"
_LOGIN: Final = "renew them, or name another `profile:`"
_FIXES: Final = {
    "UnauthorizedOperation": _RIGHTS,
    "AccessDenied": _RIGHTS,
    "AccessDeniedException": _RIGHTS,
    "AuthFailure": "the credentials are not valid here: check them and `region:`",
    "InvalidClientTokenId": "the credentials are not valid here: check them and `region:`",
    "UnrecognizedClientException": "the credentials are not valid here: check them and `region:`",
    "SignatureDoesNotMatch": "the secret key is wrong, or this machine's clock is",
    "ExpiredToken": _LOGIN,
    "ExpiredTokenException": _LOGIN,
    "RequestExpired": "set this machine's clock, or renew the credentials",
    "OptInRequired": "the account has no access to this region: enable it, or change `region:`",
    "InvalidLaunchTemplateName.NotFoundException": "make it, or change `launch_template:`",
    "InvalidLaunchTemplateId.NotFound": "make it, or change `launch_template:`",
    "InvalidLaunchTemplateId.VersionNotFound": "make it, or change `version:`",
    "InvalidLaunchTemplateName.MalformedException": "change `launch_template:`",
    "InvalidSubnetID.NotFound": "make it, or change `subnets:`",
    "InvalidInstanceType": "change `types:`",
    "InvalidAMIID.NotFound": "name an image that is there in the launch template",
    "InvalidAMIID.Unavailable": "name an image that is there in the launch template",
    "InvalidGroup.NotFound": "name a security group that is there in the launch template",
    "InvalidKeyPair.NotFound": "name a key that is there in the launch template",
    "VcpuLimitExceeded": "have the vCPU quota raised, or lower the pool's `max:`",
    "InstanceLimitExceeded": "have the quota raised, or lower the pool's `max:`",
    "MaxSpotInstanceCountExceeded": "have the spot quota raised, or lower `spot:`",
    "VolumeLimitExceeded": "have the volume quota raised, or lower the pool's `max:`",
}


class AwsError(ProviderError):
    """AWS said no, or nothing. `code` is AWS's, or the SDK's word for the silence; `again`: asking again may help."""

    def __init__(self, line: str, code: str, *, again: bool = False) -> None:
        super().__init__(line)
        self.code, self.again = code, again


class DeniedError(RefusedError, AwsError):
    """AWS understood and said no."""


class FullError(ExhaustedError, AwsError):
    """There is no more of it now."""


def fault(place: str, operation: str, code: str, message: str, status: int = 400) -> AwsError:
    """Return what an error answer means, as one line."""
    said = " ".join(message.split())[:300]
    line = f"{place}: {operation}: {code}: {said}"
    if code in OUT:
        return FullError(line, code)
    if code in THROTTLED:
        return AwsError(f"{line}; AWS asks for fewer calls", code, again=True)
    if code in TRANSIENT or status >= 500:
        return AwsError(line, code, again=True)
    if code in GONE | SPENT:
        return AwsError(line, code)
    fix = _FIXES.get(code)
    return DeniedError(f"{line}; {fix}" if fix else line, code)


def kind_of(code: str) -> str:
    """Return "out", "quota", "moment" or "no" for a code of CreateFleet's `Errors[]`."""
    if code in OUT:
        return "out"
    if code in QUOTAS:
        return "quota"
    return "moment" if code in THROTTLED | TRANSIENT else "no"
