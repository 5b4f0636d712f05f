"""Requests to values, and errors to answers: every error is `{"error": "one clear line"}`.

Promises: a body larger than allowed, or slower, is refused; a fault of ours is said to be one and told to the log.
"""

import asyncio
import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fleetd.codecs.lease import MAX_BODY
from fleetd.errors import FleetdError, ProtocolError, UsageError

BODY_S: Final = 20.0


class DeniedError(FleetdError):
    """Not allowed: answered with 401."""


class TooLargeError(FleetdError):
    """A body beyond the limit: answered with 413."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest name, or nothing."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


async def read_body(request: Request) -> bytes:
    """Return the body; raises TooLargeError or ProtocolError."""
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
        raise ProtocolError(f"body: did not come within {BODY_S:.0f} s") from None
    return b"".join(parts)


async def read_json(request: Request) -> dict[str, Any]:
    """Return the body's JSON object, an empty one for no body; raises UsageError."""
    try:
        raw = json.loads(await read_body(request) or b"{}")
    except (ValueError, RecursionError):
        raise UsageError("body: must be JSON") from None
    if not isinstance(raw, dict):
        raise UsageError("body: must be a JSON object")
    return raw


def number(raw: dict[str, Any], name: str, least: float, most: float) -> float:
    """Return a number of the body within its bounds; absent, it is the least. Raises UsageError."""
    value = raw.get(name, least)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise UsageError(f"{name}: must be a number from {least:g} to {most:g}, not {value!r}")
    return float(value)


async def refuse(request: Request, error: Exception) -> Response:
    """Answer an error that was raised on purpose."""
    del request
    match error:
        case DeniedError():
            code = 401
        case TooLargeError():
            code = 413
        case UsageError():
            code = 422
        case _:
            code = 400
    return JSONResponse({"error": str(error)}, code)


async def unknown(request: Request, error: Exception) -> Response:
    """Answer a path or method that is not there."""
    return JSONResponse(
        {"error": f"{request.method} {request.url.path}: there is no such thing here"},
        getattr(error, "status_code", 404),
    )


async def gone(request: Request, error: Exception) -> Response:
    """Answer nobody: the client left before its request was whole."""
    del request, error
    return Response(status_code=400)


async def broken(request: Request, error: Exception) -> Response:
    """Answer a fault of ours; starlette logs it."""
    return JSONResponse({"error": f"{request.method} {request.url.path}: {type(error).__name__}: see the log"}, 500)
