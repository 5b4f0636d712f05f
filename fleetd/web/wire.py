"""Requests to values, values to answers, and errors to refusals, which all have one shape.

Promises: a refusal is `{"error": "one clear line"}`, with `place` where one key or parameter is to blame, and it is
counted; a body that is larger than allowed, or slower, is refused; a fault of ours is said to be one and told to the
log; whatever text is in an answer, it is JSON.
"""

import asyncio
import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from fleetd.codecs.lease import MAX_BODY
from fleetd.depot.faults import AbsentError, ConflictError, FullError, GoneError
from fleetd.errors import FleetdError, UsageError

BODY_S: Final = 20.0
JSON: Final = "application/json"


class DeniedError(FleetdError):
    """Nobody known: no token, or a wrong one."""


class ForbiddenError(FleetdError):
    """Known, and not allowed."""


class NotFoundError(FleetdError):
    """There is no such thing."""


class SlowError(FleetdError):
    """A request that did not come in time."""


class TooLargeError(FleetdError):
    """A body beyond the limit."""


class MediaError(FleetdError):
    """A body of a kind that is not read here."""


class InvalidError(UsageError):
    """A key, a parameter or its value is wrong; `place` names it."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(f"{place}: {text}")
        self.place = place


class TooManyError(FleetdError):
    """Too many at a time; one may come again in `after_s`."""

    def __init__(self, text: str, after_s: float) -> None:
        super().__init__(text)
        self.after_s = after_s


class BusyError(FleetdError):
    """Right, but it could not be done now."""


CODES: Final[Mapping[type[FleetdError], int]] = {
    DeniedError: 401,
    ForbiddenError: 403,
    NotFoundError: 404,
    SlowError: 408,
    TooLargeError: 413,
    MediaError: 415,
    UsageError: 422,
    TooManyError: 429,
    BusyError: 503,
    AbsentError: 404,
    ConflictError: 409,
    GoneError: 410,
    FullError: 507,
    FleetdError: 400,
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest name, or nothing."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


async def read_body(request: Request) -> bytes:
    """Return the body; raises TooLargeError or SlowError."""
    told = request.headers.get("content-length", "0")
    parts, size = [], int(told) if told.isdecimal() else 0
    refusal = TooLargeError(f"body: more than the {MAX_BODY} bytes allowed")
    if size > MAX_BODY:
        raise refusal
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY:
                    raise refusal
                parts.append(part)
    except TimeoutError:
        raise SlowError(f"body: did not come within {BODY_S:.0f} s") from None
    return b"".join(parts)


def dump(value: Any) -> bytes:
    """Return a value as JSON. A worker's text may hold half of a surrogate pair: such a character becomes `?`."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def answer(value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON answer; nobody between us and the client may keep it."""
    return Response(dump(value), code, {"Cache-Control": "no-store", **(headers or {})}, JSON)


def refusal(request: Request, code: int, line: str, headers: Mapping[str, str] | None = None, **more: str) -> Response:
    """Return a refusal, and count it."""
    request.app.state.refused[code] += 1
    return answer({"error": line, **more}, code, headers)


async def refuse(request: Request, error: Exception) -> Response:
    """Answer an error that was raised on purpose."""
    code = next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)
    headers: dict[str, str] = {}
    if isinstance(error, DeniedError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyError):
        headers["Retry-After"] = f"{max(1.0, error.after_s):.0f}"
    more = {"place": error.place} if isinstance(error, InvalidError) else {}
    return refusal(request, code, " ".join(str(error).split()), headers, **more)


async def unknown(request: Request, error: Exception) -> Response:
    """Answer a path or method that is not there."""
    assert isinstance(error, HTTPException), "starlette raises no other for its own codes"
    line = f"{request.method} {request.url.path}: there is no such thing here"
    return refusal(request, error.status_code, line, error.headers)


async def gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left before its request was whole."""
    del error
    return refusal(request, 400, "the client left")


async def broken(request: Request, error: Exception) -> Response:
    """Answer a fault of ours; starlette hands it on, and the server logs it."""
    return refusal(request, 500, f"{request.method} {request.url.path}: {type(error).__name__}: see the log")
