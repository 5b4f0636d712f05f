"""What an API server's answer means, as a typed error: one line with the pool's name and the fix. Pure."""

from typing import Final

from fleetd.errors import ExhaustedError, ProviderError, RefusedError

ROLE: Final = "bind the Role that docs/kubernetes.md shows"
# What a status means, and whether asking again is in vain.
_MEANING: Final = {
    400: ("the API server refuses: {said}", True),
    401: ("the API server knows nobody by these credentials (401): they are expired, or of another cluster", False),
    403: ("the API server refuses: {said}", True),
    404: ("{said}; make it, or name another", True),
    405: ("the API server refuses: {said}", True),
    422: ("the API server refuses: {said}", True),
    429: ("the API server is overloaded (429): {said}", False),
}


class AnswerError(ProviderError):
    """The server answered, but not with what was asked for."""

    def __init__(self, line: str, status: int) -> None:
        super().__init__(line)
        self.status = status


class DeniedError(RefusedError, AnswerError):
    """The server understood and said no."""


class FullError(ExhaustedError, AnswerError):
    """A quota is used up."""


def fault(place: str, namespace: str, path: str, status: int, message: str) -> AnswerError:
    """Return what an answer means, as one line with the place and the fix."""
    said = message or path
    if "exceeded quota" in said:
        return FullError(f"{place}: {said}", status)
    if "because it is being terminated" in said:
        return DeniedError(f"{place}: namespace {namespace} is being deleted; make it anew, or name another", status)
    if status == 403 and "cannot" in said:
        return DeniedError(f"{place}: not permitted: {said}; {ROLE}", status)
    words, final = _MEANING.get(status, (f"the API server answered {status}: {{said}}", False))
    return (DeniedError if final else AnswerError)(f"{place}: {words.format(said=said)}", status)
